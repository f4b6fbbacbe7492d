"""Everything that changes while a stage trains, in one record: what a checkpoint holds and a resumed run loads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lafr.errors import InputError
from lafr.training.checkpoints import Checkpoints, random_state, set_random_state
from lafr.training.objectives import Objective
from lafr.training.validation import BestWeights


@dataclass
class TrainingState:
    """The state of one stage after `step` optimiser steps.

    Attributes:
        objective: holds the trained tensors.
        optimizer: with its running averages.
        schedule: of the learning rate.
        scaler: of float16's gradients; None in other precisions.
        ema: averaged weights; None where none are kept.
        best: the weights with the lowest validation number; None where the last weights are the result.
        step: optimiser steps done.
        seconds: spent in them, over all starts of the run.
    """

    objective: Objective
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler | None = None
    ema: EMAModel | None = None
    best: BestWeights | None = None
    step: int = 0
    seconds: float = 0.0

    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimiser updates."""
        return [p for p in self.objective.parameters() if p.requires_grad]

    def state_dict(self) -> dict:
        """Return everything but the trained tensors, which a checkpoint keeps in a file of their own."""
        # None for what this run does not have: the keys of a checkpoint are always the same
        parts = {name: getattr(self, name) for name in ("optimizer", "schedule", "ema", "scaler", "best")}
        states = {name: part.state_dict() if part else None for name, part in parts.items()}
        learned = self.objective.learned_state()
        return {"step": self.step, "seconds": self.seconds, "learned": learned, **states}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Load what `state_dict` returned; a part that this run does not have is ignored."""
        self.step, self.seconds = state["step"], state["seconds"]
        for name in ("optimizer", "schedule", "ema", "scaler", "best"):
            part = getattr(self, name)
            if part and state.get(name):
                part.load_state_dict(state[name])
        self.objective.load_learned_state(state.get("learned", {}))
        if self.ema:
            self.ema.to(device)  # the optimizer moves its own state to its parameters' device, EMAModel does not


def save(checkpoints: Checkpoints, state: TrainingState, accelerator: Accelerator) -> None:
    """Write a checkpoint on the main process, with the random state of every process."""
    # objectives draw from generators of their own; the global state is saved for layers such as dropout
    random_states: list[Any] = [random_state()]
    if accelerator.num_processes > 1:
        random_states = [None] * accelerator.num_processes  # filled by all_gather_object
        torch.distributed.all_gather_object(random_states, random_state())
    # weights and optimiser are equal on all processes: one writes them
    if accelerator.is_main_process:
        checkpoints.save(state.step, state.objective.trained_state(), state.state_dict(), random_states)
    accelerator.wait_for_everyone()


def resume(checkpoints: Checkpoints, state: TrainingState, accelerator: Accelerator) -> None:
    """Load the newest whole checkpoint, if there is one, into `state` and this process's random generators."""
    step, damage = from_main(checkpoints.newest_whole, accelerator)
    for text in damage:
        accelerator.print(f"warning: {text}; the checkpoint before it is used")
    if not step:
        return
    trained, stored = checkpoints.load(step)
    state.objective.load_trained_state(trained)
    state.load_state_dict(stored, accelerator.device)
    if accelerator.process_index < len(stored["random"]):  # a run may resume on more processes than it had
        set_random_state(stored["random"][accelerator.process_index])
    accelerator.print(f"resuming at step {state.step} from {checkpoints.folder}")


def load_finished(
    checkpoints: Checkpoints, objective: Objective, max_steps: int, accelerator: Accelerator
) -> dict | None:
    """Load the result of a stage that has been trained for `max_steps` and return its summary, else None."""
    whole, damage = from_main(checkpoints.final_is_whole, accelerator)
    for text in damage:
        accelerator.print(f"warning: {text}{'' if whole else '; the result is made again from the last checkpoint'}")
    if not whole:
        return None
    trained, summary = checkpoints.load_final()
    # more steps than it was to have: they are trained. Patience may have ended it before, and would again
    if max_steps > summary["max_steps"] == summary["steps"]:
        return None
    objective.load_trained_state(trained)
    return summary


def from_main(decide: Callable[[], Any], accelerator: Accelerator) -> Any:
    """Return, on every process, what `decide` returns on the main one; an InputError is raised on every process."""
    answer: Any = None
    if accelerator.is_main_process:
        try:
            answer = decide()
        except InputError as error:
            answer = error
    (answer,) = broadcast_object_list([answer])
    if isinstance(answer, InputError):
        raise answer
    return answer
