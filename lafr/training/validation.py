"""Validation during training: loss terms, PSNR and images, on held-out faces under fixed degradations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import default_collate

from lafr.errors import InputError, setting
from lafr.images import write_image
from lafr.metrics.fidelity import psnr_rgb

if TYPE_CHECKING:
    from lafr.training.objectives import Objective
    from lafr.training.state import TrainingState

Validate = Callable[[nn.Module, int], dict[str, float]]  # (objective, step) -> named numbers

SHOWN = 6  # faces in the image that each validation writes


class Validation:
    """Callable (objective, step) -> named means over the first `num_images` of `pairs`, the held-out items.

    Writes `step_N.png` into `folder`: the first six faces, each a column of LQ, restored and HQ.

    Args:
        pairs: the held-out items.
        folder: of the images.
        device: of the objective.
        num_images: faces to validate on.
        batch_size: faces at a time; a micro-batch of training, so that validation needs no more memory than a step.
    """

    def __init__(
        self,
        pairs: Sequence[dict[str, Tensor]],
        folder: str | Path,
        device: torch.device,
        num_images: int = 32,
        batch_size: int = 8,
    ):
        self.folder, self.device, self.batch_size = Path(folder), device, batch_size
        # made once: every validation sees the same images and degradations
        items = [pairs[i] for i in range(min(num_images, len(pairs)))]
        self.items = default_collate(items)  # [N, ...] each

    def __call__(self, objective: nn.Module, step: int) -> dict[str, float]:
        """Return the means and write the image."""
        sums: dict[str, float] = {}
        columns: list[Tensor] = []  # [3, 3 H, W] each
        count = len(self.items["hq"])
        for start in range(0, count, self.batch_size):
            batch = {k: v[start : start + self.batch_size].to(self.device) for k, v in self.items.items()}
            measured = objective(batch)
            restored = objective.restore(batch)
            if restored is not None:
                measured["psnr_rgb"] = psnr_rgb(restored, batch["hq"]).mean()
                columns += torch.cat([batch["lq"], restored, batch["hq"]], dim=2).cpu()
            for name, value in measured.items():
                # the last batch may be smaller: a mean of batch means would count its faces more
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch["hq"])
        if columns:
            write_image(torch.cat(columns[:SHOWN], dim=2), self.folder / f"step_{step:08d}.png")
        return {name: total / count for name, total in sums.items()}


class BestWeights:
    """A validation that keeps the trained tensors for which the number `monitor` was lowest.

    Attributes:
        value: the lowest number so far.
        step: at which it was measured; 0 before the first validation.
        trained: the tensors, on the CPU; only on the main process, which validates, until `copy_to`.
    """

    def __init__(self, validate: Validate, monitor: str):
        self.validate, self.monitor = validate, monitor
        self.value, self.step = float("inf"), 0
        self.trained: dict[str, Tensor] = {}

    def __call__(self, objective: nn.Module, step: int) -> dict[str, float]:
        """Validate; copy the weights where the monitored number is lower than ever before."""
        measured = self.validate(objective, step)
        if self.monitor not in measured:
            raise InputError("monitor", self.monitor, f"one of {', '.join(measured)}, which validation measures")
        # strictly: of equal steps the first is kept, and nan never is
        if measured[self.monitor] < self.value:
            self.value, self.step = measured[self.monitor], step
            self.trained = {name: value.detach().cpu().clone() for name, value in objective.trained_state().items()}
        return measured

    def is_stale(self, step: int, patience: int) -> bool:
        """Return whether `patience` steps have passed since the best weights, as far as this process knows."""
        return bool(self.trained) and step - self.step >= patience

    def age(self, step: int) -> int:
        """Return how many steps ago the best weights were; the main process sends its answer to the others."""
        # all processes must leave the loop at the same step, or the next collective operation waits forever
        (self.step,) = broadcast_object_list([self.step])
        return step - self.step

    def copy_to(self, objective: "Objective") -> None:
        """Load the best weights into the objective, on every process."""
        self.trained, self.step = broadcast_object_list([self.trained, self.step])
        objective.load_trained_state(self.trained)

    def state_dict(self) -> dict:
        """Return value, step and weights, for a checkpoint."""
        return {"value": self.value, "step": self.step, "trained": self.trained}

    def load_state_dict(self, state: dict) -> None:
        """Load what `state_dict` returned."""
        self.value, self.step, self.trained = state["value"], state["step"], state["trained"]


@torch.no_grad()
def validate_on_main(validate: Validate, state: "TrainingState", accelerator: Accelerator) -> dict[str, float]:
    """Validate on the main process alone, with the averaged weights where there are any; others get {}.

    In the precision of a training step. The objective keeps its own weights and its mode.
    """
    measured: dict[str, float] = {}
    if accelerator.is_main_process:
        parameters = state.parameters()
        if state.ema:
            # swap the averaged weights in, and the trained ones back afterwards
            state.ema.store(parameters)
            state.ema.copy_to(parameters)
        training = state.objective.training
        state.objective.eval()
        with accelerator.autocast():
            measured = validate(state.objective, state.step)
        state.objective.train(training)
        if state.ema:
            state.ema.restore(parameters)
    accelerator.wait_for_everyone()
    return measured


def require_validation(validate: Validate | None, validate_every: int | None, patience: int) -> Validate:
    """Return `validate`; raises InputError where it is never called, so that `patience` would have no effect."""
    if not (validate and validate_every):
        raise InputError(
            "patience",
            patience,
            "None without validation",
            f"give {setting('validate_every')} and faces to validate on",
        )
    return validate
