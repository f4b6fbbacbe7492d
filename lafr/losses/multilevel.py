"""The multi-level loss: named terms with weights, over latents and decoded images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.networks import origins


@dataclass(frozen=True)
class Restoration:
    """What a term may look at: images `[B, 3, H, W]` in [-1, 1], latents `[B, C, h, w]` at the codec's scale."""

    restored: Tensor
    hq: Tensor
    z_restored: Tensor
    z_hq: Tensor
    _seen: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def through(self, network: nn.Module) -> tuple[Any, Any]:
        """Return `network(restored)` and, without gradient, `network(hq)`, in float32.

        Each is computed once, however many terms ask.
        """
        trained = torch.is_grad_enabled() or ("trained", network) in self._seen
        side = "trained" if trained else "reported"
        return self._see(side, network, self.restored, gradient=trained), self.hq_through(network)

    def hq_through(self, network: nn.Module) -> Any:
        """Return `network(hq)` alone."""
        return self._see("hq", network, self.hq, gradient=False)

    def _see(self, side: str, network: nn.Module, image: Tensor, gradient: bool) -> Any:
        if (side, network) not in self._seen:
            with torch.autocast(image.device.type, enabled=False), torch.set_grad_enabled(gradient):
                self._seen[side, network] = network(image.float())
        return self._seen[side, network]


class MultiLevelLoss(nn.Module):
    """A sum of named terms; weight 0 means report, don't train.

    Args:
        terms: name -> module that maps a `Restoration` to a scalar. They are frozen here.
        weights: name -> weight, for exactly the same names.
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]):
        super().__init__()
        if set(terms) != set(weights):
            raise InputError(f"loss terms {sorted(terms)} and weights {sorted(weights)} must have the same names")
        self.terms = nn.ModuleDict(terms).requires_grad_(False).eval()
        self.weights = dict(weights)

    def train(self, mode: bool = True) -> "MultiLevelLoss":
        """Stay in eval mode: a perceptual network may hold dropout."""
        return super().train(False)

    def origins(self) -> frozenset[str]:
        """Return the names of the networks that the weighted terms look through, teachers included."""
        return frozenset().union(*(origins(term) for name, term in self.terms.items() if self.weights[name]))

    def forward(self, restoration: Restoration) -> dict[str, Tensor]:
        """Return each term's unweighted value; those of weight 0 carry no gradient."""
        values = {}
        for name in sorted(self.terms, key=lambda name: self.weights[name] == 0):  # trained first: reports reuse theirs
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.weights[name] != 0):
                values[name] = self.terms[name](restoration).float()
        return {name: values[name] for name in self.terms}
