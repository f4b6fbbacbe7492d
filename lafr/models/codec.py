"""The codec: a frozen diffusers autoencoder, deterministic, with the scale of its own config."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.models.loading import load_exactly, planned, read_config
from lafr.storage import sha256_of_tensors, sha256_of_values


class Codec(nn.Module):
    """Images to latents and back, through any diffusers autoencoder; frozen here.

    `encode` maps `[B, 3, H, W]` in [-1, 1] to `[B, C, H/f, W/f]`: the posterior mode (never a sample), shifted and
    scaled as the autoencoder's config says. `decode` is its inverse. Both compute as the autocast around them says
    and return float32.

    Attributes:
        tiny: a smaller decoder for the same latents, see `lafr.models.tiny`; None decodes exactly.
    """

    tiny: nn.Module | None

    def __init__(self, vae: nn.Module):
        super().__init__()
        # frozen in all of LAFR's stages: z_hq and the decoder stay those of the base model
        self.vae = vae.requires_grad_(False).eval()
        self.tiny = None

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Codec":
        """Load the codec of a model that was saved with everything, in float32.

        Raises InputError unless names and shapes of the weights are exactly those of its configuration.
        """
        folder = Path(folder)
        vae = planned(AutoencoderKL, read_config(folder), str(folder / "config.json"), own=True)
        require_autoencoder(vae, str(folder / "config.json"))
        # float32 whatever the file holds; assigned, as the autoencoder has no values to copy into
        state = load_exactly(folder / SAFETENSORS_WEIGHTS_NAME, vae.state_dict())
        vae.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
        return cls(vae)

    @property
    def scale(self) -> float:
        """The config's scaling factor."""
        return getattr(self.vae.config, "scaling_factor", None) or 1.0

    @property
    def shift(self) -> float:
        """The config's shift factor, 0 for most autoencoders."""
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    @property
    def latent_channels(self) -> int:
        """C, from the config."""
        return self.vae.config.latent_channels

    @property
    def downscale(self) -> int:
        """f: image side / latent side."""
        config = self.vae.config
        blocks = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
        # every block but the last halves the side: f = 8 for four blocks
        return 2 ** (len(blocks) - 1)

    def encode(self, image: Tensor) -> Tensor:
        """Return `z [B, C, H/f, W/f]`; raises InputError when H or W is not a multiple of f."""
        height, width = image.shape[-2:]
        if height % self.downscale or width % self.downscale:
            raise InputError(
                f"image of {width} x {height} is not a multiple of {self.downscale}, the autoencoder's downscale "
                "factor; crop or resize first"
            )
        encoded = self.vae.encode(image)
        # the mode is deterministic; a sample would add noise to what the adapter has to align
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        # z = (encode(x) - shift) * scale has about unit variance (Rombach et al., 2022)
        return (z.float() - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Return the image `[B, 3, H, W]`, not clamped."""
        if self.tiny is not None:
            # it was distilled on scaled latents (its own scale is 1), and saturates at 3: x = 3 tanh(z / 3)
            return self.tiny.decode(z / self.tiny.config.scaling_factor).sample.float()
        # the inverse; [B, C, H/f, W/f] -> [B, 3, H, W]
        return self.vae.decode(z / self.scale + self.shift).sample.float()

    def train(self, mode: bool = True) -> "Codec":
        """Stay in eval mode: a frozen codec has no training mode."""
        return super().train(False)

    def fingerprint(self) -> str:
        """Return the hex sha256 of the autoencoder's weights and settings: equal codecs encode equally."""
        # diffusers adds its version and class under names with an underscore: not the function's
        settings = {name: value for name, value in self.vae.config.items() if not name.startswith("_")}
        return sha256_of_values(settings, sha256_of_tensors(self.vae.state_dict()))

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Return decode(encode(image)): the ceiling of any restoration in this latent space."""
        return self.decode(self.encode(image))


def require_autoencoder(vae: nn.Module, where: str) -> None:
    """Raise InputError unless an autoencoder of RGB images has the scale and shift of a latent."""
    config = vae.config
    if (config.in_channels, config.out_channels) != (3, 3):
        raise InputError(f"{where!r} has {config.in_channels} and {config.out_channels} channels; RGB images have 3")
    # None stands for the plain choice in some configurations
    for name, plain in (("scaling_factor", 1.0), ("shift_factor", 0.0)):
        value = getattr(config, name, None)
        value = plain if value is None else value
        if not isinstance(value, int | float) or (name == "scaling_factor" and not value > 0):
            raise InputError(f"{where!r} has {name}={value!r:.40}; it must be a number, and a scale above 0")
