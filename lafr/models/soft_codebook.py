"""Soft assignment: a position reads a mean of its nearest codes, not one of them."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from lafr.errors import InputError
from lafr.models.adapter import CodebookAdapter, ConvAdapter, Quantized
from lafr.models.codes import distances, flatten, quantizer_settings


class SoftCodebookAdapter(CodebookAdapter):
    """The paper's codebook, read softly: the mean of the codes under softmax(-distance / temperature).

    At temperature 0, and with `top_k` 1, that is the nearest code. The gradient is the assignment's own, not straight
    through (soft-to-hard quantisation, Agustsson et al., NeurIPS 2017). Codes are learned as the paper's, by the moving
    average of the features nearest to them; `indices` are the nearest codes.

    Args:
        temperature: above 0, in the unit of the features' distances.
        top_k: only the so many nearest codes are read; None reads all.
        others: as of `CodebookAdapter`.

    Raises InputError when temperature or `top_k` is not possible.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        width: int = 128,
        code_dim: int = 256,
        extractor_blocks: int = 3,
        mapper_blocks: int = 3,
        num_codes: int = 1024,
        decay: float = 0.95,
        dead_below: float = 1.0,
        temperature: float = 0.5,
        top_k: int | None = None,
    ):
        if not temperature > 0:
            raise InputError(f"adapter.temperature={temperature} is not above 0; adapter=codebook is what 0 would be")
        if top_k is not None and not 1 <= top_k <= num_codes:
            raise InputError(f"adapter.top_k={top_k} is not in 1..{num_codes}, the number of codes; null reads all")
        ConvAdapter.__init__(self, latent_channels, width, code_dim, extractor_blocks, mapper_blocks)
        self.quantizer = VectorQuantize(**quantizer_settings(code_dim, num_codes, decay, dead_below))

    def quantize(self, features: Tensor) -> Quantized:
        """Give each position the mean of its codes."""
        if self.config.top_k == 1:
            return super().quantize(features)
        with torch.autocast(features.device.type, enabled=False):  # distances to close codes need float32
            weights = self.weights(flatten(features))  # [B, h * w, N]
            codes = (weights @ self.quantizer.codebook).transpose(1, 2).reshape(features.shape)
        indices = weights.argmax(-1).unflatten(1, features.shape[2:])[..., None]
        return Quantized(codes, indices, F.mse_loss(features, codes.detach()))

    def weights(self, vectors: Tensor) -> Tensor:
        """Return how much of each code `[B, n, N]` each of `vectors [B, n, d]` reads; a row adds up to 1."""
        logits = -distances(vectors, self.quantizer.codebook) / self.config.temperature
        if self.config.top_k:
            last = logits.topk(self.config.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < last, -torch.inf)
        return logits.softmax(-1)

    def assign_in_graph(self, features: Tensor) -> Tensor:
        """Return the features of `quantize`."""
        if self.config.top_k == 1:
            return super().assign_in_graph(features)
        return self.quantize(features).features
