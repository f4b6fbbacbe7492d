"""The training loop: one for every stage, on Accelerate. Running it again on the same folder resumes exactly."""

import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from lafr.errors import InputError, need
from lafr.storage import JsonLines
from lafr.training.checkpoints import Checkpoints, random_state, set_random_state

Validate = Callable[[torch.nn.Module, int], dict[str, float]]


def train(
    objective,
    pairs,
    accelerator: Accelerator,
    folder: str | Path,
    validate: Validate | None = None,
    *,
    name: str = "training",
    max_steps: int = 20_000,
    batch_size: int = 16,
    optimizer: str = "adamw",
    learning_rate: float = 5e-5,
    weight_decay: float = 1e-2,
    warmup_steps: int = 0,
    schedule: str = "constant_with_warmup",
    clip_norm: float = 1.0,
    ema_decay: float | None = None,
    patience: int | None = None,
    monitor: str = "latent_l1",
    gradient_checkpointing: bool = False,
    decode_crop: int | None = None,
    num_workers: int = 0,
    log_every: int = 10,
    log_pairs: bool = False,
    validate_every: int | None = None,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
) -> dict:
    """Minimise `objective` for `max_steps` optimiser steps; return the stage's summary.

    Args:
        objective: a `lafr.training.objectives.Objective`; what requires a gradient is trained.
        pairs: a `lafr.data.stream.PairStream`.
        accelerator: decides device, precision, processes and accumulation.
        folder: where the stage's checkpoints, log and result live; a finished stage is loaded, not repeated.
        validate: called with the objective and the step; returns named numbers to log.
        name: label of the progress bar and of the tracked curves.
        max_steps: optimiser steps.
        batch_size: pairs per optimiser step over all processes and accumulation steps.
        optimizer: "adamw", or "adamw8bit", whose two averages take a byte a value (needs bitsandbytes).
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        warmup_steps: steps over which the learning rate rises from 0.
        schedule: any of diffusers' schedules, such as "cosine".
        clip_norm: largest norm of the gradient.
        ema_decay: decay of the averaged weights that become the result; None for none.
        patience: steps without a lower `monitor` in validation after which the stage ends; the result is then the
            weights with the lowest. None trains to `max_steps` and keeps the last weights.
        monitor: name of the validation number that `patience` looks at.
        gradient_checkpointing: recompute activations to save memory.
        decode_crop: side, in latent positions, of the part of each face that is decoded for the loss, at a place drawn
            from (seed, n); the whole face when None. A stage whose loss decodes nothing has no use for it.
        num_workers: loader processes.
        log_every: steps between log lines.
        log_pairs: write all that was drawn for each pair to `pairs.jsonl`: `lafr.data.stream.rebuilt` makes it again.
        validate_every: steps between validations; only at the end when None.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many are kept.
    """
    require_whole_weights(accelerator)
    checkpoints = Checkpoints(folder, keep_checkpoints)
    if finished := checkpoints.load_final():
        objective.load_trained_state(finished[0])
        objective.eval()
        objective.finish(pairs.faces, accelerator.device)
        return finished[1]

    if gradient_checkpointing:
        objective.enable_gradient_checkpointing()
    if decode_crop:
        objective.decode_crops(decode_crop, pairs.seed)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = new_optimizer(optimizer, parameters, learning_rate, weight_decay)
    schedule_lr = get_scheduler(schedule, optimizer, num_warmup_steps=warmup_steps, num_training_steps=max_steps)
    model, optimizer = accelerator.prepare(objective.train(), optimizer)
    ema = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True, power=0.75) if ema_decay else None
    best = BestWeights(require_validation(validate, validate_every), monitor) if patience else None
    validate = best or validate

    step, seconds = resume(checkpoints, accelerator, objective, optimizer, schedule_lr, ema, best)
    loader = pairs.loader(
        step,
        max_steps,
        batch_size,
        accelerator.gradient_accumulation_steps,
        accelerator.process_index,
        accelerator.num_processes,
        num_workers,
    )
    log = Log(accelerator, Path(folder), name, step, max_steps, batch_size)
    for batches in optimiser_batches(loader, accelerator):
        started = time.perf_counter()
        objective.before_step(batches, step, accelerator.gather)
        all_terms = []
        for batch in batches:
            with accelerator.accumulate(model):
                terms = model(batch)
                accelerator.backward(objective.total(terms))
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(parameters, clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                all_terms.append({key: value.detach() for key, value in terms.items()})
        schedule_lr.step()
        objective.after_step(step, accelerator.gather)
        if ema:
            ema.step(parameters)
        step += 1
        seconds += time.perf_counter() - started

        if step % log_every == 0 or step % checkpoint_every == 0 or step == max_steps:
            log.terms(step, mean_terms(all_terms, accelerator), schedule_lr.get_last_lr()[0], norm)
        log.advance()
        if log_pairs:
            log.pairs(pairs.record(n) for n in range((step - 1) * batch_size, step * batch_size))
        if validate and validate_every and step % validate_every == 0 and step < max_steps:
            log.validation(step, validate_with(validate, objective, step, ema, parameters, accelerator))
            if best and best.age(step) >= patience:
                break
        if step % checkpoint_every == 0 and step < max_steps:
            save(checkpoints, accelerator, step, seconds, objective, optimizer, schedule_lr, ema, best)

    if ema:
        ema.copy_to(parameters)
    if best:
        validate_with(validate, objective, step, None, parameters, accelerator)  # the last weights may be the best
        best.copy_to(objective)
    objective.eval()
    objective.finish(pairs.faces, accelerator.device)
    measured = validate_with(validate, objective, step, None, parameters, accelerator) if validate else {}
    log.validation(step, measured)
    log.close()
    summary = {"steps": step, "batch_size": batch_size, "seconds": round(seconds, 1), "validation": measured,
               "trained_parameters": sum(p.numel() for p in parameters)}  # fmt: skip
    if best:
        summary["best_step"] = best.step
    if accelerator.is_main_process:
        checkpoints.finish(objective.trained_state(), summary)
    accelerator.wait_for_everyone()
    return summary


def require_whole_weights(accelerator: Accelerator) -> None:
    """Raise InputError where processes hold shards: codebook, validation and checkpoints look at whole weights."""
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise InputError(
            f"distributed_type={accelerator.distributed_type.value} keeps shards of what is trained, which this loop "
            "cannot save; use configs/accelerate/multi_gpu.yaml"
        )


def new_optimizer(name: str, parameters: list, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov & Hutter, ICLR 2019), its state in float32 or ("adamw8bit") in eight bits.

    Raises InputError for another name, and when bitsandbytes is missing. Tensors under 4,096 values stay in float32.
    For the LoRA's 3.6 M values at full size eight bits save 0.02 GB: it is an encoder trained whole that needs them.
    """
    if name not in ("adamw", "adamw8bit"):
        raise InputError(f"trainer.optimizer={name} is not known; choose adamw or adamw8bit")
    kind = torch.optim.AdamW if name == "adamw" else need("bitsandbytes", "bitsandbytes").optim.AdamW8bit
    return kind(parameters, lr=learning_rate, weight_decay=weight_decay)


def optimiser_batches(loader: Iterable, accelerator: Accelerator) -> Iterable[list[dict[str, Tensor]]]:
    """Group the loader's micro-batches by optimiser step, on the device."""
    stream = iter(loader)
    while batches := list(islice(stream, accelerator.gradient_accumulation_steps)):
        yield [{key: value.to(accelerator.device) for key, value in batch.items()} for batch in batches]


def mean_terms(all_terms: list[dict[str, Tensor]], accelerator: Accelerator) -> dict[str, float]:
    """Return each term's mean over micro-batches and processes."""
    local = torch.stack([torch.stack(list(terms.values())).float() for terms in all_terms]).mean(0)
    return dict(zip(all_terms[0], accelerator.reduce(local, "mean").tolist(), strict=True))


@torch.no_grad()
def validate_with(
    validate: Validate, objective, step: int, ema, parameters, accelerator: Accelerator
) -> dict[str, float]:
    """Validate on the main process, with the averaged weights where there are any."""
    measured: dict[str, float] = {}
    if accelerator.is_main_process:
        if ema:
            ema.store(parameters)
            ema.copy_to(parameters)
        objective.eval()
        measured = validate(objective, step)
        objective.train()
        if ema:
            ema.restore(parameters)
    accelerator.wait_for_everyone()
    return measured


def require_validation(validate: Validate | None, validate_every: int | None) -> Validate:
    """Raise InputError where `patience` has no validation to look at."""
    if not (validate and validate_every):
        raise InputError("patience needs validations: give trainer.validate_every=STEPS and validation faces")
    return validate


class BestWeights:
    """A validation that keeps the trained tensors for which the number `monitor` was lowest."""

    def __init__(self, validate: Validate, monitor: str):
        self.validate, self.monitor = validate, monitor
        self.value, self.step, self.trained = float("inf"), 0, {}

    def __call__(self, objective, step: int) -> dict[str, float]:
        """Validate; copy the weights where the monitored number is lower than ever before."""
        measured = self.validate(objective, step)
        if self.monitor not in measured:
            raise InputError(f"monitor={self.monitor!r} is not measured in validation; choose one of {[*measured]}")
        if measured[self.monitor] < self.value:
            self.value, self.step = measured[self.monitor], step
            self.trained = {name: value.detach().cpu().clone() for name, value in objective.trained_state().items()}
        return measured

    def age(self, step: int) -> int:
        """Return how many steps ago the best weights were; the main process, which validates, tells the others."""
        (self.step,) = broadcast_object_list([self.step])
        return step - self.step

    def copy_to(self, objective) -> None:
        """Give the objective the best weights, on every process."""
        self.trained, self.step = broadcast_object_list([self.trained, self.step])
        objective.load_trained_state(self.trained)

    def state_dict(self) -> dict:
        """Return value, step and weights, for a checkpoint."""
        return {"value": self.value, "step": self.step, "trained": self.trained}

    def load_state_dict(self, state: dict) -> None:
        """Take a checkpoint's back."""
        self.value, self.step, self.trained = state["value"], state["step"], state["trained"]


def save(
    checkpoints: Checkpoints, accelerator, step: int, seconds: float, objective, optimizer, schedule_lr, ema, best
) -> None:
    """Write a checkpoint: trained tensors, optimiser, schedule, EMA and every process's random state."""
    states = [random_state()]
    if accelerator.num_processes > 1:
        states = [None] * accelerator.num_processes
        torch.distributed.all_gather_object(states, random_state())
    if accelerator.is_main_process:
        state = {
            "seconds": seconds,
            "optimizer": optimizer.state_dict(),
            "schedule": schedule_lr.state_dict(),
            "ema": ema.state_dict() if ema else None,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            "best": best.state_dict() if best else None,
        }
        checkpoints.save(step, objective.trained_state(), state, states)
    accelerator.wait_for_everyone()


def resume(checkpoints: Checkpoints, accelerator, objective, optimizer, schedule_lr, ema, best) -> tuple[int, float]:
    """Load the newest checkpoint, if any, into everything that has a state; return (step, seconds so far)."""
    loaded = checkpoints.load_latest()
    if loaded is None:
        return 0, 0.0
    trained, state = loaded
    objective.load_trained_state(trained)
    optimizer.load_state_dict(state["optimizer"])
    schedule_lr.load_state_dict(state["schedule"])
    if ema:
        ema.load_state_dict(state["ema"])
        ema.to(accelerator.device)
    if accelerator.scaler and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    if best and state.get("best"):
        best.load_state_dict(state["best"])
    if accelerator.process_index < len(state["random"]):
        set_random_state(state["random"][accelerator.process_index])
    accelerator.print(f"resuming at step {state['step']} from {checkpoints.folder}")
    return state["step"], state["seconds"]


class Log:
    """Progress bar, `log.jsonl`, `pairs.jsonl` and trackers of a stage; on resume both are cut to the checkpoint."""

    def __init__(self, accelerator: Accelerator, folder: Path, name: str, step: int, max_steps: int, batch_size: int):
        self.accelerator, self.name, self.batch_size = accelerator, name, batch_size
        self.path, self.pairs_path = folder / "log.jsonl", folder / "pairs.jsonl"
        self.started, self.first = time.perf_counter(), step
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            JsonLines(self.path).rewrite(lambda line: line["step"] <= step)
            JsonLines(self.pairs_path).rewrite(lambda line: line["n"] < step * batch_size)
        self.bar = tqdm(
            total=max_steps, initial=step, desc=name, unit="step", dynamic_ncols=True, mininterval=1,
            disable=not accelerator.is_main_process,
        )  # fmt: skip

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self.bar.update()

    def pairs(self, records: Iterable[dict]) -> None:
        """Write what was drawn for the pairs of a step."""
        if self.accelerator.is_main_process:
            JsonLines(self.pairs_path).append(*records)

    def terms(self, step: int, terms: dict[str, float], learning_rate: float, norm: Tensor) -> None:
        """Log the loss terms; a loss that is not finite ends the run with the last checkpoint intact."""
        rate = (step - self.first) * self.batch_size / (time.perf_counter() - self.started)
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in terms.items()} | {"img/s": f"{rate:.3g}"}, refresh=False)
        self._write(step, terms | {"learning_rate": learning_rate, "grad_norm": float(norm)})
        overflowed = self.accelerator.scaler is None and not norm.isfinite()  # float16 skips such steps by itself
        if overflowed or not all(abs(v) < float("inf") for v in terms.values()):
            raise InputError(
                f"{self.name}: a loss or its gradient is not finite at step {step} ({terms}); "
                "lower the learning rate, run again"
            )

    def validation(self, step: int, measured: dict[str, float]) -> None:
        """Log validation numbers."""
        if measured:
            self._write(step, {f"validation/{k}": v for k, v in measured.items()})
            self.accelerator.print(
                f"{self.name} step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in measured.items())
            )

    def _write(self, step: int, values: dict[str, float]) -> None:
        self.accelerator.log({f"{self.name}/{key}": value for key, value in values.items()}, step=step)
        if self.accelerator.is_main_process:
            JsonLines(self.path).append({"step": step, **values})

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()
