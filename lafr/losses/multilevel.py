"""The multi-level loss: named terms with weights, over latents and decoded images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.losses.kept import tensors_of
from lafr.losses.learned import Gather, LearnedTerm
from lafr.networks import origins

Network = Callable[[Tensor], Any]  # images [B, 3, H, W] -> what it says of them


@dataclass(frozen=True)
class Restoration:
    """Input of every term: images `[B, 3, H, W]` in [-1, 1], latents `[B, C, h, w]` at the codec's scale.

    `n [B]` are the numbers of the pairs, for terms that draw noise by them. `recall(network, hq)` returns what a
    network says of the ground truth, where it is kept from earlier steps. `z_aligned [B, C, h, w]` is the adapter's,
    where there is one.
    """

    restored: Tensor
    hq: Tensor
    z_restored: Tensor
    z_hq: Tensor
    n: Tensor | None = None
    recall: Callable[[Network, Tensor], Any] | None = field(default=None, repr=False, compare=False)
    z_aligned: Tensor | None = None
    # (side, network) -> output: identity, landmarks and parsing are shared by several terms
    _seen: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def through(self, network: Network, autocast: bool = False) -> tuple[Any, Any]:
        """Return `network(restored)` and, without gradient, `network(hq)`, in float32 or as the step's autocast says.

        Each is computed once, however many terms ask. Raises InputError where a trained term's network computes no
        gradient.
        """
        # A term that is reported only (no gradient) takes the trained terms' output where there is one.
        trained = torch.is_grad_enabled() or ("trained", network) in self._seen
        side = "trained" if trained else "reported"
        return self._see(side, network, self.restored, trained, autocast), self.hq_through(network, autocast)

    def hq_through(self, network: Network, autocast: bool = False) -> Any:
        """Return `network(hq)` alone."""
        return self._see("hq", network, self.hq, False, autocast)

    def _see(self, side: str, network: Network, image: Tensor, gradient: bool, autocast: bool) -> Any:
        if (side, network) not in self._seen:
            compute = partial(self.recall, network) if side == "hq" and self.recall else network
            # float32: most networks were trained in it, and heatmaps and cosines are small differences
            device = image.device.type
            enabled = autocast and torch.is_autocast_enabled(device)
            with torch.autocast(device, enabled=enabled), torch.set_grad_enabled(gradient):
                output = compute(image.float())
            # an output of another kind than tensors is taken to train
            trains = any(getattr(one, "requires_grad", True) for one in tensors_of(output))
            if gradient and image.requires_grad and not trains:
                # else the term would be added to the others and train nothing
                name = type(getattr(network, "__self__", network)).__name__
                raise InputError(f"{name} computes no gradient", remedy="give its term weight 0 or another network")
            self._seen[side, network] = output
        return self._seen[side, network]


class MultiLevelLoss(nn.Module):
    """A sum of named terms; weight 0 means report, don't train.

    Args:
        terms: name -> module that maps a `Restoration` to a scalar. They are frozen here; a `LearnedTerm` trains
            parameters of its own in `update`, which a stage calls after each optimiser step.
        weights: name -> weight, for exactly the same names.
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]):
        super().__init__()
        if set(terms) != set(weights):
            raise InputError("weights", sorted(weights), f"weights of exactly the terms {', '.join(sorted(terms))}")
        if wrong := {name: weight for name, weight in weights.items() if not 0 <= weight < float("inf")}:
            raise InputError("weights", wrong, "numbers, 0 or more")
        # Frozen weights still pass the gradient to the image; only theirs is never computed.
        self.terms = nn.ModuleDict(terms).requires_grad_(False).eval()
        self.weights = dict(weights)

    @property
    def sees_latents_only(self) -> bool:
        """Whether no term asks for an image, so that nothing need be decoded."""
        return all(getattr(term, "sees_latents_only", False) for term in self.terms.values())

    def train(self, mode: bool = True) -> "MultiLevelLoss":
        """Stay in eval mode: a perceptual network may hold dropout."""
        return super().train(False)

    def learned(self) -> dict[str, LearnedTerm]:
        """Return the terms with parameters of their own, by name."""
        return {name: term for name, term in self.terms.items() if isinstance(term, LearnedTerm)}

    def forget(self) -> None:
        """Drop what an interrupted step left for `update`."""
        for term in self.learned().values():
            term.forget()

    def update(self, gather: Gather) -> dict[str, Tensor]:
        """Train the learned terms on what the step showed them; return "term/number" -> scalar to log."""
        reported = {name: term.update(gather) for name, term in self.learned().items()}
        return {f"{name}/{key}": value for name, numbers in reported.items() for key, value in numbers.items()}

    def origins(self) -> frozenset[str]:
        """Return the names of the networks behind the weighted terms, those they were distilled from included."""
        return frozenset().union(*(origins(term) for name, term in self.terms.items() if self.weights[name]))

    def forward(self, restoration: Restoration) -> dict[str, Tensor]:
        """Return each term's unweighted value; those of weight 0 carry no gradient."""
        # L = sum_k w_k L_k is formed by the objective, so that each L_k can be logged.
        values = {}
        trained_first = sorted(
            self.terms, key=lambda name: self.weights[name] == 0
        )  # reported terms reuse their outputs
        for name in trained_first:
            # a term of weight 0 keeps no graph: it costs a forward pass and no memory for a backward pass
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.weights[name] != 0):
                values[name] = self.terms[name](restoration).float()
        return {name: values[name] for name in self.terms}
