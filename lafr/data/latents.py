"""A cache of the latents of a fixed set of faces: encoded once, stored as files, read by the training stream.

Stages that need z_hq alone then run no encoder. A file is `FOLDER/CODEC/xx/IMAGE.safetensors`, where CODEC identifies
the encoder and IMAGE is the hash of the 8-bit pixels: other weights or pixels have other files, so none is stale.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lafr.data.faces.sources import FaceSet
from lafr.errors import setting
from lafr.images import to_uint8
from lafr.storage import read_tensors, sha256_of_tensors, write_tensors

SIDES = ("plain", "mirrored")  # an encoder is not mirror-equivariant: E(flip(x)) != flip(E(x)), so both are stored


@torch.no_grad()
def cached_latents(
    faces: FaceSet,
    encode: Callable[[Tensor], Tensor],
    folder: str | Path,
    codec_key: str,
    progress: bool = True,
) -> Tensor:
    """Return the latents of every face, plain and mirrored: `[N, 2, C, h, w]`, float32 on the CPU.

    Files that exist are read; what is missing or damaged is encoded and written, so a stopped run resumes where it
    was. Raises InputError when a file cannot be written.

    Args:
        faces: `[3, R, R]` in [-1, 1], at 8-bit levels.
        encode: maps `[2, 3, R, R]` to `[2, C, h, w]`.
        folder: of the cache; several codecs and sets of faces can share it.
        codec_key: identifies what `encode` returns: the hash of its weights, and its precision.
        progress: show a progress bar.
    """
    latents = []
    for i in tqdm(range(len(faces)), desc="latents", unit="face", dynamic_ncols=True, disable=not progress):
        face = faces[i]
        # of the pixels, not of the file: the same face from a folder or a shard has one latent
        image = sha256_of_tensors({"": to_uint8(face)})
        path = Path(folder) / codec_key / image[:2] / f"{image}.safetensors"  # 256 folders: FFHQ is 70,000 files
        z = read_latents(path, codec_key, image)
        if z is None:
            # always this batch of two: in another batch size a convolution may round otherwise, and a rebuilt file
            # must hold the bits of the lost one
            z = encode(torch.stack([face, face.flip(-1)])).float().cpu()
            write_latents(z, path, codec_key, image)
        latents.append(z)
    return torch.stack(latents)


def read_latents(path: Path, codec_key: str, image: str) -> Tensor | None:
    """Return `[2, C, h, w]` as `write_latents` wrote it; None if the file is absent, damaged or of another image."""
    sides = read_tensors(path, {"codec": codec_key, "image": image})
    return None if sides is None else torch.stack([sides[side] for side in SIDES])


def write_latents(z: Tensor, path: Path, codec_key: str, image: str) -> None:
    """Write `z [2, C, h, w]` atomically, with what it belongs to."""
    elsewhere = f"free space, choose another folder ({setting('latent_cache')})"
    remedy = f"{elsewhere} or encode at every step ({setting('cache_latents', False)})"
    sides = {side: z[i] for i, side in enumerate(SIDES)}
    write_tensors(path, sides, {"codec": codec_key, "image": image}, remedy)
