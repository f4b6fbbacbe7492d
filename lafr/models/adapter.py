"""The codebook adapter: LQ latents onto the HQ codebook. Extractor -> codebook -> mapper.

Two phases (see `lafr.training.objectives`): the codebook phase learns all three on HQ latents, the alignment phase
moves the extractor alone, so that LQ latents reach the codes of their HQ partners.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from lafr.models.codes import flatten, nearest, quantizer_settings, seeded_global


@dataclass(frozen=True)
class Quantized:
    """Matched codes: `features [B, d, h, w]` (straight-through), `indices [B, h, w, Q]` or None, `commitment`."""

    features: Tensor
    indices: Tensor | None
    commitment: Tensor


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with SiLU and group normalisation around a skip."""

    def __init__(self, width: int):
        super().__init__()
        groups = math.gcd(8, width)
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, width, h, w]` to the same shape."""
        return x + self.layers(x)


def convolutions(inputs: int, width: int, outputs: int, blocks: int) -> nn.Sequential:
    """Return shallow convolutions `inputs` -> `outputs` channels that keep the spatial size."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1),
        *(ResidualBlock(width) for _ in range(blocks)),
        nn.Conv2d(width, outputs, 1),
    )


class Adapter(ModelMixin, ConfigMixin):
    """What every adapter is: `extractor` -> (codes) -> `mapper`, on latents `[B, C, h, w]`.

    This class has no codes; subclasses set `extractor` and `mapper` and override what differs.
    """

    has_codes = False
    extractor: nn.Module
    mapper: nn.Module

    def forward(self, z_lq: Tensor) -> Tensor:
        """Map `z_lq [B, C, h, w]` to `z_aligned`, same shape, float32."""
        return self.map(self.assign(self.extract(z_lq)).features)

    def extract(self, z: Tensor) -> Tensor:
        """Return features `[B, d, h, w]`, float32; the convolutions follow autocast."""
        return self.extractor(z).float()

    def quantize(self, features: Tensor) -> Quantized:
        """Pass the features through: there are no codes."""
        return Quantized(features, None, features.new_zeros(()))

    def assign(self, features: Tensor) -> Quantized:
        """Return what the mapper gets for an LQ latent's `features [B, d, h, w]`: what `quantize` matches."""
        return self.quantize(features)

    def assign_in_graph(self, features: Tensor) -> Tensor:
        """Return the features of `assign`, by operations that an exported graph can hold."""
        return features

    def map(self, features: Tensor) -> Tensor:
        """Return the latent `[B, C, h, w]` of (quantised) features, float32; the convolutions follow autocast."""
        return self.mapper(features).float()

    def frozen_in_codebook(self) -> list[nn.Module]:
        """Return the parts that the codebook phase leaves as they are: none."""
        return []

    def frozen_in_alignment(self) -> list[nn.Module]:
        """Return the parts that the alignment phase leaves as they are: none."""
        return []

    def code_buffers(self) -> dict[str, Tensor]:
        """Return the learned buffers: none."""
        return {}

    def code_layers(self) -> list[VectorQuantize]:
        """Return the quantisers, in order: none."""
        return []

    def size(self) -> int:
        """Return the number of learned values, codes included."""
        return sum(p.numel() for p in self.parameters()) + sum(layer.codebook.numel() for layer in self.code_layers())


class NoAdapter(Adapter):
    """A control: z_lq goes to the denoiser as it is."""

    @register_to_config
    def __init__(self, latent_channels: int = 4):
        super().__init__()
        self.extractor, self.mapper = nn.Identity(), nn.Identity()


class ConvAdapter(Adapter):
    """The other control: an extractor and a mapper with no codebook between them, trained through both phases.

    Args:
        latent_channels: C of the codec.
        width: channels inside extractor and mapper.
        code_dim: channels d between them.
        extractor_blocks: residual blocks of the extractor.
        mapper_blocks: residual blocks of the mapper.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        width: int = 128,
        code_dim: int = 256,
        extractor_blocks: int = 3,
        mapper_blocks: int = 3,
    ):
        super().__init__()
        self.extractor = convolutions(latent_channels, width, code_dim, extractor_blocks)
        self.mapper = convolutions(code_dim, width, latent_channels, mapper_blocks)


class CodebookAdapter(ConvAdapter):
    """The paper's adapter: hard nearest neighbour among N codes (`vector-quantize-pytorch`), straight-through.

    The library's codebook is always called frozen; k-means start, EMA and dead-code reset happen in
    `initialise_codes` and `update_codes`, once per optimiser step, on gathered features, with a passed-in generator.
    So accumulation, checkpointing and the number of processes cannot change what is learned.

    Args:
        num_codes: N.
        num_residual: quantisers in a row, each coding what the ones before left over; 1 is the paper's.
        decay: of the codes' moving average, per optimiser step.
        dead_below: a code whose average use per step falls below this is reset to a feature of the batch.
    """

    has_codes = True

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        width: int = 128,
        code_dim: int = 256,
        extractor_blocks: int = 3,
        mapper_blocks: int = 3,
        num_codes: int = 1024,
        num_residual: int = 1,
        decay: float = 0.95,
        dead_below: float = 1.0,
    ):
        super().__init__(latent_channels, width, code_dim, extractor_blocks, mapper_blocks)
        settings = quantizer_settings(code_dim, num_codes, decay, dead_below)
        self.quantizer = (
            VectorQuantize(**settings) if num_residual == 1 else ResidualVQ(num_quantizers=num_residual, **settings)
        )

    def quantize(self, features: Tensor) -> Quantized:
        """Match each position with its nearest code; the gradient passes straight through."""
        flat = flatten(features)
        with torch.autocast(features.device.type, enabled=False):  # distances to close codes need float32
            codes, indices, commitment = self.quantizer(flat, freeze_codebook=True)
        if self.training:  # straight-through, once: the library's residual quantiser passes the gradient Q times
            codes = flat + (codes - flat).detach()
        height, width = features.shape[-2:]
        codes = codes.transpose(1, 2).unflatten(2, (height, width))
        return Quantized(codes, indices.reshape(len(flat), height, width, -1), commitment.sum())

    def assign_in_graph(self, features: Tensor) -> Tensor:
        """Return the matched codes' sum; the library asks the values of its buffers, which a graph cannot."""
        residual, total = flatten(features), 0.0  # [B, h * w, d]
        for layer in self.code_layers():
            codes = layer.codebook[nearest(residual, layer.codebook)]
            residual, total = residual - codes, total + codes
        return total.transpose(1, 2).reshape(features.shape)

    def index_cross_entropy(self, features: Tensor, indices: Tensor) -> Tensor:
        """Return the cross-entropy of the given codes under softmax(-distance to every code), over quantisers a sum."""
        with torch.autocast(features.device.type, enabled=False):
            return sum(
                layer(given, indices=chosen, freeze_codebook=True)[1]
                for layer, given, chosen in self.inputs(features, indices)
            )

    def inputs(self, features: Tensor, indices: Tensor) -> Iterator[tuple[VectorQuantize, Tensor, Tensor]]:
        """Yield each quantiser, what it is given `[B, h * w, d]` and its own indices `[B, h * w]`."""
        residual = flatten(features)
        for layer, chosen in zip(self.code_layers(), indices.flatten(1, 2).unbind(-1), strict=True):
            left_over = residual - layer.get_codes_from_indices(chosen)  # before anyone moves the codes
            yield layer, residual, chosen
            residual = left_over

    def frozen_in_alignment(self) -> list[nn.Module]:
        """Return codebook and mapper: what was learned from HQ stays."""
        return [self.quantizer, self.mapper]

    def code_layers(self) -> list[VectorQuantize]:
        """Return the quantisers, in order."""
        return [self.quantizer] if isinstance(self.quantizer, VectorQuantize) else list(self.quantizer.layers)

    def code_buffers(self) -> dict[str, Tensor]:
        """Return codes, EMA sums, cluster sizes and the started flag, by state-dict name."""
        return {f"quantizer.{name}": value for name, value in self.quantizer.named_buffers() if "_codebook." in name}

    def codes_are_initialised(self) -> bool:
        """Return whether k-means has run."""
        return all(bool(layer._codebook.initted) for layer in self.code_layers())

    @torch.no_grad()
    def initialise_codes(self, features: Tensor, generator: torch.Generator) -> None:
        """Start the codes by k-means on `features [B, d, h, w]`, later quantisers on what earlier ones leave over."""
        residual = flatten(features)
        for layer in self.code_layers():
            with seeded_global(generator):
                layer._codebook.init_embed_(residual.reshape(1, -1, residual.shape[-1]))
            residual = residual - layer.get_codes_from_indices(layer(residual, freeze_codebook=True)[1])

    @torch.no_grad()
    def update_codes(self, features: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Move codes towards the `features [B, d, h, w]` matched by `indices [B, h, w, Q]`; reset dead ones."""
        for layer, given, chosen in self.inputs(features, indices):
            with seeded_global(generator):
                layer.update_indices(given, chosen)
