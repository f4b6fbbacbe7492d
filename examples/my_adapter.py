"""An adapter of one's own: a linear map in the codebook's place."""

from torch import nn

from lafr.models.adapter import Adapter, register_adapter
from lafr.models.quantizers import Identity


@register_adapter("linear")
def linear(latent_channels: int = 4, code_dim: int = 32) -> Adapter:
    """Build extractor, quantizer (here none) and mapper; the arguments are the adapter's settings."""
    extractor = nn.Conv2d(latent_channels, code_dim, 3, padding=1)  # [B, 4, h, w] -> [B, 32, h, w]
    mapper = nn.Conv2d(code_dim, latent_channels, 1)  # [B, 32, h, w] -> [B, 4, h, w]
    return Adapter(extractor, Identity(), mapper)
