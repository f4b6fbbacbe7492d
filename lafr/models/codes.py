"""What every adapter with a codebook shares: shapes, distances, the library's settings and its random draws."""

import torch
from torch import Tensor


def quantizer_settings(dim: int, num_codes: int, decay: float, dead_below: float) -> dict:
    """Return the arguments of a `VectorQuantize` that does what `CodebookAdapter` says."""
    return dict(
        dim=dim, codebook_size=num_codes, kmeans_init=True, decay=decay, threshold_ema_dead_code=dead_below,
        commitment_weight=1.0, rotation_trick=False, sync_codebook=False,
    )  # fmt: skip


def flatten(features: Tensor) -> Tensor:
    """Return `[B, h * w, d]` from `[B, d, h, w]`."""
    return features.flatten(2).transpose(1, 2)


def distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the distances `[B, n, N]` of `vectors [B, n, d]` to the codes `[N, d]`, by the library's formula."""
    squared = (codebook**2).sum(-1) - 2 * vectors @ codebook.T + (vectors**2).sum(-1, keepdim=True)
    return squared.clamp(min=1e-8).sqrt()


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the index `[B, n]` of the code in `[N, d]` that is nearest to each of `vectors [B, n, d]`."""
    return distances(vectors, codebook).argmin(-1)


class seeded_global:
    """The library draws from the global generator: lend it a state of ours, then put its own back."""

    def __init__(self, generator: torch.Generator):
        self.seed = int(torch.randint(2**62, (), generator=generator))

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng()
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *exception) -> None:
        self.fork.__exit__(*exception)
