"""Latents of a fixed set of faces: encoded once, kept as files, looked up by the stream.

A stage that only needs z_hq then runs no encoder. A file is `FOLDER/CODEC/xx/IMAGE.safetensors`, where CODEC names what
encodes and IMAGE is the hash of the 8-bit pixels: other weights or other pixels are other files, never stale ones.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from lafr.images import to_uint8
from lafr.storage import atomic_write, sha256_of_tensors

SIDES = ("plain", "mirrored")  # an encoder is not mirror-equivariant: both are stored


@torch.no_grad()
def cached_latents(
    faces: Sequence[Tensor],
    encode: Callable[[Tensor], Tensor],
    folder: str | Path,
    codec_key: str,
    progress: bool = True,
) -> Tensor:
    """Return the latents of every face, plain and mirrored: `[N, 2, C, h, w]`, float32 on the CPU.

    Files that exist are read; what is missing or damaged is encoded and written, so a stopped filling goes on where
    it was. A face is encoded with its mirror image alone, whatever else is missing: a rebuilt file holds the bits of
    the lost one. Raises InputError when a file cannot be written.

    Args:
        faces: `[3, R, R]` in [-1, 1], at 8-bit levels.
        encode: maps `[2, 3, R, R]` to `[2, C, h, w]`.
        folder: of the cache; several codecs and sets of faces can share it.
        codec_key: names everything that decides what `encode` returns: the hash of its weights, and its precision.
        progress: show a bar.
    """
    latents = []
    for i in tqdm(range(len(faces)), desc="latents", unit="face", dynamic_ncols=True, disable=not progress):
        face = faces[i]
        image = sha256_of_tensors({"": to_uint8(face)})
        path = Path(folder) / codec_key / image[:2] / f"{image}.safetensors"
        z = read_latents(path, codec_key, image)
        if z is None:
            z = encode(torch.stack([face, face.flip(-1)])).float().cpu()
            write_latents(z, path, codec_key, image)
        latents.append(z)
    return torch.stack(latents)


def read_latents(path: Path, codec_key: str, image: str) -> Tensor | None:
    """Return `[2, C, h, w]` as `write_latents` wrote it, or None for a file that is absent, damaged or another's."""
    try:
        with safe_open(path, "pt") as file:
            z = torch.stack([file.get_tensor(side) for side in SIDES])
            whole = file.metadata() == {"codec": codec_key, "image": image, "sha256": sha256_of_tensors({"": z})}
    except (OSError, SafetensorError, RuntimeError):  # RuntimeError: two shapes
        return None
    return z if whole else None


def write_latents(z: Tensor, path: Path, codec_key: str, image: str) -> None:
    """Write `z [2, C, h, w]` aside and rename it, with what it belongs to and the hash of its values."""
    metadata = {"codec": codec_key, "image": image, "sha256": sha256_of_tensors({"": z})}
    data = save({side: z[i].contiguous() for i, side in enumerate(SIDES)}, metadata)
    remedy = (
        "free space, choose another folder (trainer.latent_cache=FOLDER) or encode at every step "
        "(trainer.cache_latents=false)"
    )
    atomic_write(path, lambda aside: aside.write_bytes(data), remedy)
