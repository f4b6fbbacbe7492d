"""The miniature's tiny decoder: latents and what the exact decoder makes of them, and what learns to do the same."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from tqdm import tqdm

from lafr.data.degradation.operators import Degrade
from lafr.data.faces.sources import FaceSet
from lafr.data.stream import HeldOut, PairStream
from lafr.models.base.model import Base
from lafr.models.codec import Codec
from lafr.models.restorer import Restorer
from lafr.models.tiny import save_tiny
from lafr.storage import read_tensors, sha256_of_tensors, sha256_of_values, write_tensors
from lafr.training.objectives import Batch, Objective
from lafr.training.record import sha256_of_faces

CHUNK = 64  # items of a cached file


class TinyStudent(nn.Module):
    """A tiny decoder to be trained, and the codec whose latents it decodes."""

    def __init__(self, codec: Codec, tiny: AutoencoderTiny):
        super().__init__()
        self.codec, self.tiny = codec, tiny

    @classmethod
    def new(cls, sources: str, width: int, blocks: Sequence[int], seed: int = 0) -> "TinyStudent":
        """Return an untrained student for the base model at `sources`.

        Args:
            width: channels of every layer.
            blocks: residual blocks at each size, from the latent's to the image's.
        """
        codec = Base.from_pretrained(sources).codec()
        sizes = dict(num_encoder_blocks=tuple(blocks), encoder_block_out_channels=(width,) * len(blocks))
        sizes |= dict(num_decoder_blocks=tuple(blocks), decoder_block_out_channels=(width,) * len(blocks))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tiny = AutoencoderTiny(latent_channels=codec.latent_channels, **sizes)
        tiny.encoder = nn.Identity()
        return cls(codec, tiny)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the decoder."""
        save_tiny(self.tiny, Path(folder), self.codec)


class LatentStream(PairStream):
    """An endless sequence: item n is {"z", "hq", "lq", "n"}, from a cache of `count` items.

    `z [C, h, w]` is a latent as the decoder meets it: even items are encoded HQ faces, odd ones restored latents of
    degraded faces. `hq [3, H, W]` is what the exact decoder makes of it; `lq` is the same, for validation's image.

    Args:
        restorer: whose latents and decoder.
        folder: of the cache; a stopped run resumes there.
        count: different items.
    """

    def __init__(
        self, faces: FaceSet, degradation: Degrade, seed: int, restorer: Restorer, folder: str, count: int = 1024
    ):
        super().__init__(faces, degradation, seed)
        self.restorer, self.folder = restorer.requires_grad_(False).eval(), folder
        self.items = decoded_latents(super().__getitem__, count, self._cache("train", faces), self.restorer)

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        return item(self.items, n)

    def held_out(self, faces: FaceSet) -> "HeldOutLatents":
        """Return validation items: as many as faces, every other one restored."""
        pairs = HeldOut(faces, self.degradation, self.seed)
        items = decoded_latents(pairs.__getitem__, len(pairs), self._cache("val", faces), self.restorer)
        return HeldOutLatents(pairs, items)

    def _cache(self, part: str, faces: FaceSet) -> Path:
        weights, items = sha256_of_tensors(self.restorer.state_dict()), sha256_of_faces(faces)
        return Path(self.folder) / sha256_of_values(weights, items, repr(self.degradation), self.seed, part)[:16]


class HeldOutLatents(HeldOut):
    """Validation items of a `LatentStream`."""

    def __init__(self, pairs: HeldOut, items: dict[str, Tensor]):
        super().__init__(pairs.faces, pairs.degradation, pairs.seed)
        self.items = items

    def __len__(self) -> int:
        return len(self.items["z"])

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        return item(self.items, n)


def item(items: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """Return item n, counted round and round."""
    z, decoded = (items[name][n % len(items["z"])].float() for name in ("z", "decoded"))
    return {"z": z, "hq": decoded, "lq": decoded, "n": torch.tensor(n)}


@torch.no_grad()
def decoded_latents(
    pairs: Callable[[int], dict[str, Tensor]], count: int, folder: Path, restorer: Restorer
) -> dict[str, Tensor]:
    """Return `z [count, C, h, w]` and `decoded [count, 3, H, W]`, in half precision, from files of 64 or newly made."""
    parts = []
    for start in tqdm(range(0, count, CHUNK), desc="latents", unit="file", leave=False):
        path = folder / f"{start:06d}-{min(start + CHUNK, count):06d}.safetensors"
        facts = {"set": folder.name, "items": path.stem}
        found = read_tensors(path, facts)
        if found is None:
            made = [pairs(n) for n in range(start, min(start + CHUNK, count))]
            clean = restorer.codec.encode(torch.stack([pair["hq"] for pair in made[::2]]))
            z = clean.repeat_interleave(2, 0)[: len(made)]
            if made[1::2]:
                z[1::2] = restorer.latents(torch.stack([pair["lq"] for pair in made[1::2]])).z_restored
            found = {"z": z.half(), "decoded": restorer.codec.decode(z).half()}
            write_tensors(path, found, facts)
        parts.append(found)
    return {name: torch.cat([part[name] for part in parts]) for name in ("z", "decoded")}


class DecoderObjective(Objective):
    """Distillation of the exact decoder: L1 + squared error of the two images.

    There is one right answer to copy, so nothing perceptual is needed; its network would take two thirds of a step.
    """

    def __init__(self, student: TinyStudent, weights: dict[str, float]):
        super().__init__()
        # channels last: a third faster with these few channels
        self.tiny = student.tiny.requires_grad_(True).to(memory_format=torch.channels_last)
        self.weights = dict(weights)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return pixel_l1 and pixel_mse on latents "z" with the exact decoder's images "hq"."""
        restored, exact = self.restore(batch).float(), batch["hq"]
        return {"pixel_l1": F.l1_loss(restored, exact), "pixel_mse": F.mse_loss(restored, exact)}

    def restore(self, batch: Batch) -> Tensor:
        """Return what the tiny decoder makes of the latents: validation's PSNR is that to the exact decoder."""
        return self.tiny.decode(batch["z"]).sample
