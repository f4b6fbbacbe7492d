"""The adapter: LQ latents onto the HQ codebook. Extractor -> quantizer -> mapper.

Two phases (see `lafr.training.objectives`): the codebook phase learns all three on HQ latents, the alignment phase
moves the extractor alone, so that LQ latents reach the codes of their HQ partners.
"""

import importlib
import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.models.quantizers import (
    HardCodebook,
    HeadsCodebook,
    Identity,
    PredictedCodebook,
    Quantizer,
    ResidualCodebook,
    SoftCodebook,
    TopKCodebook,
)
from lafr.models.schema import Blocks, Range, described, fits

MODULES = "LAFR_ADAPTERS"  # environment variable: the user's modules that register adapters, separated by commas


class Adapter(nn.Module):
    """Maps latents `[B, C, h, w]` to aligned latents of the same shape.

    Args:
        extractor: latent `[B, C, h, w]` to features `[B, d, h, w]`.
        quantizer: features to codes, or `Identity`.
        mapper: features or codes `[B, d, h, w]` to a latent `[B, C, h, w]`.

    Attributes:
        kind, settings: of `build_adapter`, by which a saved model builds it again; None and {} when composed by hand.
    """

    kind: str | None = None
    settings: Mapping[str, Any] = {}

    def __init__(self, extractor: nn.Module, quantizer: Quantizer, mapper: nn.Module):
        super().__init__()
        self.extractor, self.quantizer, self.mapper = extractor, quantizer, mapper

    def forward(self, z_lq: Tensor) -> Tensor:
        """Map `z_lq [B, C, h, w]` to `z_aligned`, same shape, float32."""
        features = self.extract(z_lq)  # [B, d, h, w]
        matched = self.quantizer.assign(features).features  # [B, d, h, w]
        return self.map(matched)  # [B, C, h, w]

    def extract(self, z: Tensor) -> Tensor:
        """Return features `[B, d, h, w]`, float32; the convolutions follow autocast."""
        # float32: bfloat16 has 8 bits of precision, and would confuse codes that lie close together
        return self.extractor(z).float()

    def map(self, features: Tensor) -> Tensor:
        """Return the latent `[B, C, h, w]` of (quantised) features, float32; the convolutions follow autocast."""
        return self.mapper(features).float()

    def size(self) -> int:
        """Return the number of learned values, codes included."""
        # codes are buffers, not parameters: the quantizer counts them
        convolutions = [*self.extractor.parameters(), *self.mapper.parameters()]
        return sum(p.numel() for p in convolutions) + self.quantizer.size()

    # A diffusers pipeline asks each of its parts for these two.

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; float32 without weights."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Of the weights; the CPU without weights."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with SiLU and group normalisation around a skip."""

    def __init__(self, width: int):
        super().__init__()
        # groups of equal size, 8 where the width allows: normalisation then does not depend on the batch
        groups = math.gcd(8, width)
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, width, h, w]` to the same shape."""
        # pre-activation: the skip passes unchanged from block to block
        return x + self.layers(x)


def convolutions(inputs: int, width: int, outputs: int, blocks: int) -> nn.Sequential:
    """Return shallow convolutions `inputs` -> `outputs` channels that keep the spatial size."""
    return nn.Sequential(
        # stride 1 throughout: latent position (i, j) keeps its code (i, j)
        nn.Conv2d(inputs, width, 3, padding=1),  # [B, inputs, h, w] -> [B, width, h, w]
        *(ResidualBlock(width) for _ in range(blocks)),
        nn.Conv2d(width, outputs, 1),  # [B, width, h, w] -> [B, outputs, h, w]
    )


Builder = Callable[..., Adapter]
Channels = Annotated[int, Range(1, 4096)]


@dataclass(frozen=True)
class Convolutional:
    """A builder: shallow convolutions around a quantizer.

    Args:
        quantizer: class of the quantizer, called with the channels d and its own settings.
    """

    quantizer: type[Any]  # a Quantizer; each has settings of its own

    def __call__(
        self,
        latent_channels: Channels = 4,
        width: Channels = 128,
        code_dim: Channels = 256,
        extractor_blocks: Blocks = 3,
        mapper_blocks: Blocks = 3,
        **of_quantizer: Any,
    ) -> Adapter:
        """Build an untrained adapter.

        Args:
            latent_channels: C of the codec.
            width: channels inside extractor and mapper.
            code_dim: channels d between them.
            extractor_blocks: residual blocks of the extractor.
            mapper_blocks: residual blocks of the mapper.
            of_quantizer: see the quantizer's class.
        """
        # In this order: it decides which random numbers each part starts from.
        extractor = convolutions(latent_channels, width, code_dim, extractor_blocks)
        mapper = convolutions(code_dim, width, latent_channels, mapper_blocks)
        return Adapter(extractor, self.quantizer(code_dim, **of_quantizer), mapper)


def no_adapter(latent_channels: Channels = 4) -> Adapter:
    """Build the control without an adapter: z_lq goes to the denoiser unchanged, whatever `latent_channels`."""
    return Adapter(nn.Identity(), Identity(), nn.Identity())


# The quantizer is what distinguishes these kinds; extractor and mapper are the same.
BUILDERS: dict[str, Builder] = {
    "none": no_adapter,
    "conv": Convolutional(Identity),  # the other control: as many learned values, no codebook
    "codebook": Convolutional(HardCodebook),  # the paper's
    "soft_codebook": Convolutional(SoftCodebook),
    "topk_codebook": Convolutional(TopKCodebook),
    "heads_codebook": Convolutional(HeadsCodebook),
    "residual_codebook": Convolutional(ResidualCodebook),
    "code_prediction": Convolutional(PredictedCodebook),
}


def register_adapter(kind: str) -> Callable[[Builder], Builder]:
    """Name a builder, a function or `Convolutional(YourQuantizer)`, so that configurations and saved models find it.

    The builder's keyword arguments are the adapter's settings; their annotations are checked. Put your module's name
    into the environment variable LAFR_ADAPTERS: a saved model cannot import code, only you can.
    """

    def register(builder: Builder) -> Builder:
        BUILDERS[kind] = builder
        return builder

    return register


def builder_of(kind: str) -> Builder:
    """Return the builder of a kind; raises InputError when none is registered."""
    # The user's environment names the modules, never the saved model: loading one runs no code of its own.
    if kind not in BUILDERS:
        for module in filter(None, os.environ.get(MODULES, "").split(",")):
            try:
                importlib.import_module(module.strip())
            except ImportError as error:
                raise InputError(f"{MODULES}={module} cannot be imported ({error}); put it on PYTHONPATH") from None
    if kind not in BUILDERS:
        remedy = f"for a kind of your own, name the module that registers it in the environment variable {MODULES}"
        raise InputError("Adapter.kind", kind, f"one of {', '.join(BUILDERS)}", remedy)
    return BUILDERS[kind]


def settings_of(builder: Builder) -> dict[str, inspect.Parameter]:
    """Return a builder's settings with annotation and default, those of its quantizer and of the bases included."""
    functions: list[Callable] = [builder.__call__ if isinstance(builder, Convolutional) else builder]
    for cls in builder.quantizer.__mro__ if isinstance(builder, Convolutional) else ():
        if "__init__" in vars(cls):
            made_by = vars(cls)["__init__"]
            functions.append(made_by)
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(made_by).parameters.values()):
                break  # it passes nothing on to its own base
    # eval_str: annotations as types, whose ranges `fits` checks
    given = [p for function in functions for p in inspect.signature(function, eval_str=True).parameters.values()]
    return {p.name: p for p in given if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def build_adapter(kind: str, **settings: Any) -> Adapter:
    """Build an untrained adapter of a registered kind.

    Raises InputError for an unknown kind or setting, and for a value of another type or out of range.
    """
    builder = builder_of(kind)
    known = settings_of(builder)
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"adapter {kind!r} has no setting {name!r}; it has {', '.join(known)}")
        if not fits(value, known[name].annotation):
            raise InputError(f"Adapter.{name}", value, described(known[name].annotation))
    complete = {name: settings.get(name, p.default) for name, p in known.items()}
    if missing := [name for name, value in complete.items() if value is inspect.Parameter.empty]:
        raise InputError(f"adapter {kind!r} needs {', '.join(missing)}")
    adapter = builder(**complete)
    # complete settings, so that a later change of a default does not change a saved model
    adapter.kind, adapter.settings = kind, complete
    return adapter
