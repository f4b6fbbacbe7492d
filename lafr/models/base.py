"""The base model in Stable Diffusion's folder layout: `vae/`, `unet/`, `scheduler/`."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.models.codec import Codec


@dataclass
class Base:
    """A latent diffusion model: autoencoder, noise predictor, noise schedule and its null condition `[1, L, D]`."""

    vae: nn.Module
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    null_embedding: Tensor

    def codec(self) -> Codec:
        """Return the frozen codec around the autoencoder."""
        return Codec(self.vae)

    def save_pretrained(self, folder: str | Path, variant: torch.dtype = torch.float32) -> None:
        """Write the four parts; `variant` is the precision of the stored weights."""
        folder = Path(folder)
        for name, part in (("vae", self.vae), ("unet", self.unet)):
            # a copy, as diffusers' from_config would forget the latent scale where it was not given at the start
            copy.deepcopy(part).to(variant).save_pretrained(folder / name)
        self.scheduler.save_pretrained(folder / "scheduler")
        save_file(
            {"null_embedding": self.null_embedding.to(variant).contiguous()}, folder / "null_embedding.safetensors"
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, remedy: str = "give a folder in diffusers layout") -> "Base":
        """Load a folder in the layout above, in float32; `remedy` ends the error when parts are missing."""
        folder = Path(folder)
        missing = [part for part in ("vae", "unet", "scheduler") if not (folder / part).is_dir()]
        if missing:
            raise InputError(f"base model weights are missing: {str(folder)!r} has no {', '.join(missing)}; {remedy}")
        null = folder / "null_embedding.safetensors"
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        return cls(
            AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32),
            unet,
            DDPMScheduler.from_pretrained(folder / "scheduler"),
            load_file(null)["null_embedding"].float()
            if null.is_file()
            else torch.zeros(1, 1, unet.config.cross_attention_dim),
        )


def new_base(vae: dict, unet: dict, scheduler: dict, null_tokens: int = 4, seed: int = 0) -> Base:
    """Return an untrained base model of the given diffusers configurations, initialised by `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        null = torch.randn(1, null_tokens, unet["cross_attention_dim"])
        return Base(AutoencoderKL(**vae), UNet2DConditionModel(**unet), DDPMScheduler(**scheduler), null)
