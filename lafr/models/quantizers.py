"""Quantizers: how an adapter's features become codes. Each is used and tested alone.

Features are `[B, d, h, w]` in float32; a position is one vector of d channels. Codes are not learned by a gradient:
they start from k-means and follow an exponential moving average (van den Oord et al., 2017, appendix A.1).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from lafr.errors import InputError, setting
from lafr.models.schema import Blocks, Count, Fraction, NotNegative, Positive, Range


@dataclass(frozen=True)
class Quantized:
    """Matched codes: `features [B, d, h, w]`, `indices [B, h, w, Q]` (None without codes), scalar `commitment`."""

    features: Tensor
    indices: Tensor | None
    commitment: Tensor


class Quantizer(nn.Module):
    """The interface of every quantizer; without codes, features pass through.

    Attributes:
        layers: the codebooks, each `[N, d]`; Q of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()

    @property
    def has_codes(self) -> bool:
        """Whether there is a codebook to learn."""
        return len(self.layers) > 0

    def quantize(self, features: Tensor) -> Quantized:
        """Match `features [B, d, h, w]` of an HQ latent with codes."""
        # nothing was matched: no indices, and no distance to commit to
        return Quantized(features, None, features.new_zeros(()))

    def assign(self, features: Tensor) -> Quantized:
        """Return the codes for the `features [B, d, h, w]` of an LQ latent; the same as `quantize` unless predicted."""
        return self.quantize(features)

    def aligned_parts(self) -> list[nn.Module]:
        """Return what the alignment phase trains in here and the codebook phase does not."""
        return []

    def code_buffers(self) -> dict[str, Tensor]:
        """Return codes, moving averages, cluster sizes and the started flags, by state-dict name."""
        return {name: value for name, value in self.named_buffers() if "._codebook." in name}

    def size(self) -> int:
        """Return the number of learned values: codes, and the weights of a predictor."""
        # codes are buffers, which parameters() does not list
        codes = sum(layer.codebook.numel() for layer in self.layers)
        return codes + sum(p.numel() for p in self.parameters())


class Identity(Quantizer):
    """No codes: the mapper gets the features themselves, of any number `dim` of channels."""

    def __init__(self, dim: int | None = None, /):
        super().__init__()


class Codebook(Quantizer):
    """One or more hard codebooks: nearest neighbour, straight-through gradient.

    Several codebooks form a chain: each codes what the ones before left over (residual quantisation).

    Codes, k-means start, moving average and reset of dead codes are those of `vector-quantize-pytorch`. They move in
    `initialise` and `update`, once per optimiser step, on features gathered from all processes, with a passed-in
    generator: accumulation, checkpointing and the number of processes cannot change what is learned. Matching is one
    matrix product and one look-up here; the library's looks codes up by a product with one-hot vectors, and branches
    on its buffers, which an exported graph cannot.

    Args:
        dims: channels of each codebook.
        num_codes: N, of each codebook.
        decay: of the moving average, per optimiser step.
        dead_below: a code whose average use per step falls below this is reset to a feature of the batch.
    """

    def __init__(
        self, dims: Sequence[int], /, num_codes: Count = 1024, decay: Fraction = 0.95, dead_below: NotNegative = 1.0
    ):
        super().__init__()
        self.layers.extend(
            VectorQuantize(
                dim=dim,
                codebook_size=num_codes,
                kmeans_init=True,
                decay=decay,
                threshold_ema_dead_code=dead_below,
                commitment_weight=1.0,
                # the plain straight-through estimator, as in the paper
                rotation_trick=False,
                sync_codebook=False,  # features are gathered outside
            )
            for dim in dims
        )

    def quantize(self, features: Tensor) -> Quantized:
        """Match each position with its nearest code, then what is left over with the next codebook's."""
        flat = flatten(features)  # [B, h * w, d]
        # residual quantisation: code k approximates what codes 1..k-1 left over
        residual, total, indices, commitment = flat, 0.0, [], 0.0
        with torch.autocast(features.device.type, enabled=False):  # distances to close codes need float32
            for layer in self.layers:
                codes, chosen = match(residual, layer.codebook)  # [B, h * w, d], [B, h * w]
                commitment = commitment + F.mse_loss(residual, codes)
                # what the next codebook codes: codes have no gradient, so that it passes once
                residual, total = residual - codes, total + codes
                indices.append(chosen)
        if self.training:  # straight-through
            total = flat + (total - flat).detach()
        return Quantized(unflatten(total, features), spatial(indices, features), commitment)

    def inputs(self, features: Tensor, indices: Tensor) -> Iterator[tuple[VectorQuantize, Tensor, Tensor]]:
        """Yield each codebook, its input `[B, h * w, d]` and its own indices `[B, h * w]`."""
        residual = flatten(features)
        for layer, chosen in zip(self.layers, indices.flatten(1, 2).unbind(-1), strict=True):
            # [B, h * w, d]
            left_over = residual - layer.get_codes_from_indices(chosen)  # before the caller moves the codes
            yield layer, residual, chosen
            residual = left_over

    def index_cross_entropy(self, features: Tensor, indices: Tensor) -> Tensor:
        """Return the cross-entropy of `indices [B, h, w, Q]` under softmax(-distance to every code), summed over Q."""
        with torch.autocast(features.device.type, enabled=False):
            return sum(
                F.cross_entropy(-distances(given, layer.codebook).flatten(0, 1), chosen.flatten())
                for layer, given, chosen in self.inputs(features, indices)
            )

    def is_initialised(self) -> bool:
        """Return whether k-means has run."""
        # a buffer of the library's, saved with the codes: a resumed run does not start them again
        return all(bool(layer._codebook.initted) for layer in self.layers)

    @torch.no_grad()
    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """Start the codes by k-means on `features [B, d, h, w]`, later codebooks on what earlier ones leave over."""
        residual = flatten(features)
        for layer in self.layers:
            # in order, as each codebook's input depends on the codes before it
            start_by_kmeans(layer, residual, generator)
            residual = residual - match(residual, layer.codebook)[0]

    @torch.no_grad()
    def update(self, features: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Move codes towards the `features [B, d, h, w]` matched by `indices [B, h, w, Q]`; reset dead ones."""
        for layer, given, chosen in self.inputs(features, indices):
            with seeded_global(generator):
                # moving average of cluster sizes and sums (van den Oord et al., Eqs. 6 to 8), then dead codes are reset
                layer.update_indices(given, chosen)


class HardCodebook(Codebook):
    """The paper's: each position is replaced by the nearest of N codes."""

    def __init__(self, dim: int, /, **codes: Any):
        super().__init__([dim], **codes)


class ResidualCodebook(Codebook):
    """`num_residual` codebooks in a chain (Lee et al., CVPR 2022): N ** num_residual features can be distinguished."""

    def __init__(self, dim: int, /, num_residual: Annotated[int, Range(1, 64)] = 4, **codes: Any):
        super().__init__([dim] * num_residual, **codes)


class SoftCodebook(HardCodebook):
    """The mean of the codes under softmax(-distance / temperature); temperature 0 would be the nearest code.

    The gradient is the assignment's own, not straight-through (soft-to-hard quantisation, Agustsson et al., NeurIPS
    2017). Codes are learned as in `HardCodebook`, from the features nearest to them; `indices` are the nearest codes.

    Args:
        temperature: in the unit of the distances between features.
    """

    def __init__(self, dim: int, /, temperature: Positive = 0.5, **codes: Any):
        super().__init__(dim, **codes)
        self.temperature = temperature

    def quantize(self, features: Tensor) -> Quantized:
        """Replace each position by the weighted mean of the codes."""
        with torch.autocast(features.device.type, enabled=False):  # distances to close codes need float32
            # a soft code lies inside the convex hull of the codes
            # softmax(-|f - c_n| / temperature) over the N codes
            weights = self.weights(flatten(features))  # [B, h * w, N]
            codes = unflatten(weights @ self.layers[0].codebook, features)
        return Quantized(codes, spatial([weights.argmax(-1)], features), F.mse_loss(features, codes.detach()))

    def weights(self, vectors: Tensor) -> Tensor:
        """Return the weight `[B, n, N]` of each code for each of `vectors [B, n, d]`; they add up to 1 over N."""
        return self.logits(vectors).softmax(-1)

    def logits(self, vectors: Tensor) -> Tensor:
        """Return -distance / temperature, `[B, n, N]`."""
        return -distances(vectors, self.layers[0].codebook) / self.temperature


class TopKCodebook(SoftCodebook):
    """`SoftCodebook` over the `top_k` nearest codes of each position; with 1 it equals `HardCodebook`."""

    def __init__(self, dim: int, /, top_k: Count = 4, **soft: Any):
        super().__init__(dim, **soft)
        num_codes = self.layers[0].codebook_size
        if top_k > num_codes:
            raise InputError("Adapter.top_k", top_k, f"from 1 to {num_codes}, the number of codes")
        self.top_k = top_k

    def quantize(self, features: Tensor) -> Quantized:
        """Replace each position by the weighted mean of its nearest codes; of one code straight-through."""
        return Codebook.quantize(self, features) if self.top_k == 1 else super().quantize(features)

    def weights(self, vectors: Tensor) -> Tensor:
        """Return the weights `[B, n, N]`, zero for all but the nearest codes."""
        logits = self.logits(vectors)
        # the k-th largest logit is the threshold; ties are all kept
        last = logits.topk(self.top_k).values[..., -1:]
        return logits.masked_fill(logits < last, -torch.inf).softmax(-1)  # exp(-inf) = 0


class HeadsCodebook(Codebook):
    """Product quantisation (Jegou et al., TPAMI 2011): `heads` codebooks, each for d / heads of the channels.

    N codes a head hold as many values as N codes of one codebook, and tell N ** heads features apart.
    """

    def __init__(self, dim: int, /, heads: Annotated[int, Range(1, 64)] = 4, **codes: Any):
        if dim % heads:
            raise InputError("Adapter.heads", heads, f"a divisor of {setting('Adapter.code_dim', dim)}")
        super().__init__([dim // heads] * heads, **codes)

    def parts(self, features: Tensor) -> Iterator[tuple[VectorQuantize, Tensor]]:
        """Yield each head and its part `[B, h * w, d / heads]` of `features [B, d, h, w]`."""
        yield from zip(self.layers, flatten(features).chunk(len(self.layers), -1), strict=True)

    def quantize(self, features: Tensor) -> Quantized:
        """Match each part of each position with its head's nearest code; the gradient passes straight through."""
        with torch.autocast(features.device.type, enabled=False):  # distances to close codes need float32
            # each head sees d / heads channels of every position: [B, h * w, d / heads]
            found = [match(part, head.codebook) for head, part in self.parts(features)]
            codes, flat = torch.cat([codes for codes, _ in found], -1), flatten(features)
            commitment = F.mse_loss(flat, codes)
        if self.training:  # straight-through
            codes = flat + (codes - flat).detach()
        return Quantized(unflatten(codes, features), spatial([chosen for _, chosen in found], features), commitment)

    def inputs(self, features: Tensor, indices: Tensor) -> Iterator[tuple[VectorQuantize, Tensor, Tensor]]:
        """Yield each head, its part and its own indices `[B, h * w]`."""
        chosen = indices.flatten(1, 2).unbind(-1)
        for (head, part), own in zip(self.parts(features), chosen, strict=True):
            yield head, part, own

    @torch.no_grad()
    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """Start each head's codes by k-means on its part of `features [B, d, h, w]`."""
        for head, part in self.parts(features):
            start_by_kmeans(head, part, generator)


class CodePredictor(nn.Module):
    """A transformer over all positions, then a linear layer to the N codes; any spatial size.

    Positions enter as sines of their place in the face, so that no size is learned.
    """

    def __init__(self, code_dim: int, num_codes: int, layers: int, heads: int, ff_width: int):
        super().__init__()
        self.layers = nn.ModuleList(
            BasicTransformerBlock(
                code_dim, heads, code_dim // heads, activation_fn="gelu", ff_inner_dim=ff_width, attention_bias=True
            )
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(code_dim), nn.Linear(code_dim, num_codes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits `[B, h, w, N]` of `features [B, d, h, w]`, float32; the layers follow autocast."""
        # computed for the size at hand, not stored: any h x w
        places = get_2d_sincos_pos_embed(
            features.shape[1], features.shape[-2:], device=features.device, output_type="pt"
        )
        tokens = flatten(features) + places.to(features)  # [B, h * w, d]
        for layer in self.layers:
            tokens = layer(tokens)
        # the last norm belongs to pre-norm transformers, whose residual stream is not normalised
        return self.head(self.norm(tokens)).float().unflatten(1, features.shape[-2:])


class PredictedCodebook(HardCodebook):
    """CodeFormer's way (Zhou et al., NeurIPS 2022; also DAEFR): the codes of an LQ latent are predicted, not matched.

    The codebook phase is that of `HardCodebook` and leaves the predictor alone. In the alignment phase extractor and
    predictor learn: `index_cross_entropy` is the predictor's, and no gradient passes through the choice of a code.

    Args:
        layers: of the transformer.
        heads: of its attention.
        ff_width: channels inside its feed-forward layers.
    """

    def __init__(
        self,
        dim: int,
        /,
        layers: Blocks = 2,
        heads: Annotated[int, Range(1, 64)] = 4,
        ff_width: Count = 256,
        **codes: Any,
    ):
        if dim % 4 or dim % heads:  # the sines need a multiple of 4: two axes, sine and cosine
            raise InputError("Adapter.code_dim", dim, f"a multiple of 4 and of {setting('Adapter.heads', heads)}")
        super().__init__(dim, **codes)
        self.predictor = CodePredictor(dim, self.layers[0].codebook_size, layers, heads, ff_width)

    @torch.no_grad()
    def assign(self, features: Tensor) -> Quantized:
        """Look up the most probable code of each position."""
        # no straight-through here: CodeFormer trains its predictor by cross-entropy alone
        indices = self.predictor(features).argmax(-1)  # [B, h, w]
        codes = self.layers[0].codebook[indices].permute(0, 3, 1, 2)  # [B, d, h, w]
        return Quantized(codes, indices[..., None], features.new_zeros(()))

    def index_cross_entropy(self, features: Tensor, indices: Tensor) -> Tensor:
        """Return the cross-entropy of the codes `indices [B, h, w, 1]` under the predictor's softmax."""
        return F.cross_entropy(self.predictor(features).flatten(0, 2), indices.flatten())

    def aligned_parts(self) -> list[nn.Module]:
        """Return the predictor: in the codebook phase there is nothing to predict yet."""
        return [self.predictor]


def flatten(features: Tensor) -> Tensor:
    """Return `[B, h * w, d]` from `[B, d, h, w]`."""
    return features.flatten(2).transpose(1, 2)


def unflatten(vectors: Tensor, like: Tensor) -> Tensor:
    """Return `[B, d, h, w]`, the shape of `like`, from `[B, h * w, d]`."""
    return vectors.transpose(1, 2).reshape(like.shape)


def spatial(indices: Sequence[Tensor], features: Tensor) -> Tensor:
    """Return `[B, h, w, Q]` from Q indices `[B, h * w]`, for `features [B, d, h, w]`."""
    # Q last: code indices of one position lie together, as in [B, h, w, Q]
    return torch.stack(list(indices), -1).unflatten(1, features.shape[-2:])


def distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the distances `[B, n, N]` of `vectors [B, n, d]` to the codes `[N, d]`, by the library's formula."""
    # |v - c|^2 = |c|^2 - 2 v.c + |v|^2: one matrix product instead of n * N differences of d channels
    squared = (codebook**2).sum(-1) - 2 * vectors @ codebook.T + (vectors**2).sum(-1, keepdim=True)
    return squared.clamp(min=1e-8).sqrt()  # rounding can make a square negative


def match(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes `[B, n, d]` of `[N, d]` that are nearest to `vectors [B, n, d]`, and their indices `[B, n]`."""
    # |v|^2 and the root do not change which code is nearest: the least |c|^2 - 2 v.c
    compared = torch.addmm((codebook**2).sum(-1), vectors.detach().flatten(0, 1), codebook.T, alpha=-2)  # [B * n, N]
    indices = compared.argmin(-1).unflatten(0, vectors.shape[:2])
    return codebook[indices], indices


def start_by_kmeans(layer: VectorQuantize, vectors: Tensor, generator: torch.Generator) -> None:
    """Start one codebook by k-means on `vectors [B, n, d]`; `generator` decides the first centres."""
    with seeded_global(generator):
        # the library's shape is [heads, vectors, d]; each of ours is one head
        layer._codebook.init_embed_(vectors.reshape(1, -1, vectors.shape[-1]))


class seeded_global:
    """The library draws from the global generator: seed it from `generator`, and restore its state afterwards."""

    def __init__(self, generator: torch.Generator):
        # drawn once: a second use of the generator would seed another start
        self.seed = int(torch.randint(2**62, (), generator=generator))

    def __enter__(self) -> None:
        # also forks every GPU's generator, which manual_seed sets too
        self.fork = torch.random.fork_rng()
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *exception: Any) -> None:
        self.fork.__exit__(*exception)
