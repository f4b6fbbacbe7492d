"""Several heads: a position's feature is cut in parts, and each part has a codebook of its own."""

from collections.abc import Iterator

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from lafr.errors import InputError
from lafr.models.adapter import CodebookAdapter, ConvAdapter, Quantized
from lafr.models.codes import flatten, nearest, quantizer_settings, seeded_global


class MultiHeadCodebookAdapter(CodebookAdapter):
    """Product quantisation (Jegou et al., TPAMI 2011): `heads` codebooks side by side, of d / heads channels each.

    N codes a head hold as many values as N codes of the paper's, and tell N ** heads features apart.

    Args:
        num_codes: N, of each head.
        heads: a divisor of `code_dim`.
        others: as of `CodebookAdapter`.

    Raises InputError when the heads do not divide the channels.
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
        heads: int = 4,
        decay: float = 0.95,
        dead_below: float = 1.0,
    ):
        if heads < 1 or code_dim % heads:
            raise InputError(f"adapter.heads={heads} does not divide adapter.code_dim={code_dim}; choose a divisor")
        ConvAdapter.__init__(self, latent_channels, width, code_dim, extractor_blocks, mapper_blocks)
        settings = quantizer_settings(code_dim // heads, num_codes, decay, dead_below)
        self.quantizer = nn.ModuleList(VectorQuantize(**settings) for _ in range(heads))

    def quantize(self, features: Tensor) -> Quantized:
        """Match each part of each position with its head's nearest code; the gradient passes straight through."""
        with torch.autocast(features.device.type, enabled=False):  # distances to close codes need float32
            found = [head(part, freeze_codebook=True) for head, part in self.parts(features)]
        codes = torch.cat([codes for codes, _, _ in found], -1)
        codes = codes.transpose(1, 2).unflatten(2, features.shape[-2:])
        indices = torch.stack([indices for _, indices, _ in found], -1).unflatten(1, features.shape[-2:])
        return Quantized(codes, indices, sum(commitment for _, _, commitment in found) / len(found))

    def assign_in_graph(self, features: Tensor) -> Tensor:
        """Return the matched codes side by side."""
        codes = torch.cat([head.codebook[nearest(part, head.codebook)] for head, part in self.parts(features)], -1)
        return codes.transpose(1, 2).reshape(features.shape)

    def code_layers(self) -> list[VectorQuantize]:
        """Return the heads, in order."""
        return list(self.quantizer)

    def parts(self, features: Tensor) -> Iterator[tuple[VectorQuantize, Tensor]]:
        """Yield each head and its part `[B, h * w, d / heads]` of `features [B, d, h, w]`."""
        yield from zip(self.quantizer, flatten(features).chunk(len(self.quantizer), -1), strict=True)

    def inputs(self, features: Tensor, indices: Tensor) -> Iterator[tuple[VectorQuantize, Tensor, Tensor]]:
        """Yield each head, its part and its own indices `[B, h * w]`."""
        for (head, part), chosen in zip(self.parts(features), indices.flatten(1, 2).unbind(-1), strict=True):
            yield head, part, chosen

    @torch.no_grad()
    def initialise_codes(self, features: Tensor, generator: torch.Generator) -> None:
        """Start each head's codes by k-means on its part of `features [B, d, h, w]`."""
        for head, part in self.parts(features):
            with seeded_global(generator):
                head._codebook.init_embed_(part.reshape(1, -1, part.shape[-1]))
