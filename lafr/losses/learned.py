"""Terms with parameters of their own: a discriminator, or the score network of a distillation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lafr.errors import InputError

if TYPE_CHECKING:
    from lafr.losses.multilevel import Restoration

Gather = Callable[[Tensor], Tensor]
Sample = tuple[Tensor, ...]  # what a term remembers of one micro-batch


class LearnedTerm(nn.Module):
    """A term that trains parameters of its own on what it has seen, once after each optimiser step of the stage.

    `forward` computes the term with these parameters frozen, so that its gradient reaches the restored image alone and
    the stage's optimiser never holds them, and calls `remember`. `update` then minimises `own_loss` of all that a step
    remembered with an AdamW of the term's own; the gradient is averaged over processes. What `training_state` returns
    is part of a checkpoint. A subclass gives `forward`, `trained_parameters` and `own_loss`.

    Args:
        learning_rate: of the term's AdamW.
        weight_decay: of the term's AdamW.
        clip_norm: largest norm of its gradient.
    """

    def __init__(self, learning_rate: float, weight_decay: float = 1e-2, clip_norm: float = 1.0):
        super().__init__()
        if not 0 < learning_rate < float("inf"):  # torch would say so after the first step
            raise InputError("LearnedTerm.learning_rate", learning_rate, "a number above 0")
        self.learning_rate, self.weight_decay, self.clip_norm = learning_rate, weight_decay, clip_norm
        self.updates = 0  # optimiser steps of the term's own
        self._optimizer: torch.optim.AdamW | None = None
        self._seen: list[tuple[Sample, bool]] = []

    def forward(self, r: "Restoration") -> Tensor:
        """Return the term's value."""
        raise NotImplementedError

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that `update` trains."""
        raise NotImplementedError

    def own_loss(self, *sample: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `update` minimises on one micro-batch, and scalars to log."""
        raise NotImplementedError

    def remember(self, *sample: Tensor) -> None:
        """Keep a micro-batch for `update`, without its graph; a no-op in validation and at weight 0."""
        if torch.is_grad_enabled():
            # bfloat16 as in the step itself; float16 would need a gradient scaler of the term's own, hence float32
            device = sample[0].device.type
            low = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
            self._seen.append((tuple(v.detach() if torch.is_tensor(v) else v for v in sample), low))

    def forget(self) -> None:
        """Drop what an interrupted step left."""
        self._seen.clear()

    def update(self, gather: Gather) -> dict[str, Tensor]:
        """Train the parameters one step on what was remembered; return scalars to log, equal on all processes."""
        # emptied first: a step that fails leaves nothing to be learned from twice
        seen, self._seen = self._seen, []
        if not seen:
            return {}
        parameters, reported = self.trained_parameters(), []
        # frozen outside of this block: the stage's optimiser takes what requires a gradient
        with _trainable(parameters):
            for sample, low in seen:
                with torch.autocast(sample[0].device.type, torch.bfloat16, enabled=low):
                    loss, numbers = self.own_loss(*sample)
                (loss / len(seen)).backward()  # the mean over micro-batches, as the stage's own loss
                reported.append({"loss": loss.detach()} | numbers)
            _average_gradients(parameters, gather)
            norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            self.optimizer().step()
            self.optimizer().zero_grad()
        self.updates += 1
        means = {name: _mean([numbers[name] for numbers in reported], gather) for name in reported[0]}
        # an infinite gradient of a finite loss ruins the parameters too: the log refuses it before a checkpoint
        return means | {"grad_norm": norm.detach()}

    def optimizer(self) -> torch.optim.AdamW:
        """Return the term's optimiser, made when it is first needed: the parameters are on their device by then."""
        if self._optimizer is None:
            settings = dict(lr=self.learning_rate, weight_decay=self.weight_decay)
            self._optimizer = torch.optim.AdamW(self.trained_parameters(), **settings)
        return self._optimizer

    def training_state(self) -> dict:
        """Return the trained parameters, their optimiser's state and the number of updates: part of a checkpoint."""
        return {
            "parameters": {name: value.data for name, value in self._named().items()},
            "optimizer": self.optimizer().state_dict(),
            "updates": self.updates,
        }

    @torch.no_grad()
    def load_training_state(self, state: dict) -> None:
        """Load what `training_state` returned, bit for bit; missing and unexpected names are errors."""
        # named as in named_parameters, so that a changed architecture is noticed
        own = self._named()
        if own.keys() != state["parameters"].keys():
            raise ValueError(f"the state of a term does not fit: {sorted(own.keys() ^ state['parameters'].keys())[:3]}")
        for name, value in state["parameters"].items():
            own[name].copy_(value)
        self.optimizer().load_state_dict(state["optimizer"])
        self.updates = state["updates"]

    def _named(self) -> dict[str, nn.Parameter]:
        trained = {id(value) for value in self.trained_parameters()}
        return {name: value for name, value in self.named_parameters() if id(value) in trained}


@contextmanager
def _trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let parameters have gradients while this lasts."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _average_gradients(parameters: Sequence[nn.Parameter], gather: Gather) -> None:
    """Replace gradients by their mean over processes, in one transfer."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    # DistributedDataParallel averages the stage's parameters alone
    mean = gather(flat[None]).mean(0)  # [processes, values] -> [values]
    for parameter, part in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def _mean(values: Sequence[Tensor], gather: Gather) -> Tensor:
    """Return the mean of scalars over micro-batches and processes."""
    return gather(torch.stack([value.detach().float() for value in values]).mean()[None]).mean()


def seeded_noise(like: Tensor, n: Tensor, seed: int) -> Tensor:
    """Return white noise `[B, ...]` that depends on (seed, pair number) alone.

    It is drawn on the CPU: the same noise on every device, in any batch, after any resumption. Any `seed` of 0 or more
    is possible.
    """
    draws = []
    for number in n.tolist():
        # (seed, number) -> one number, without collisions in a run of up to 1,000,003 pairs; a generator takes 64 bits,
        # which a date as the seed exceeds where the number of updates is mixed in too
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**64)
        draws.append(torch.randn(like.shape[1:], generator=generator))
    return torch.stack(draws).to(like)
