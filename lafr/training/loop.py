"""The training loop: one for every stage, on Accelerate. Running it again on the same folder resumes exactly."""

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from lafr.data.stream import PairStream
from lafr.errors import InputError, need
from lafr.training.checkpoints import Checkpoints
from lafr.training.log import Log
from lafr.training.objectives import Objective
from lafr.training.settings import require_settings
from lafr.training.state import TrainingState, load_finished, resume, save
from lafr.training.stopping import StopSignals
from lafr.training.validation import BestWeights, Validate, require_validation, validate_on_main


def train(
    objective: Objective,
    pairs: PairStream,
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
    steps_before: int = 0,
    stop: StopSignals | None = None,
) -> dict:
    """Minimise `objective` for `max_steps` optimiser steps; return the stage's summary.

    Args:
        objective: names the loss terms; its parameters that require a gradient are trained.
        pairs: the training data, pair n a function of (seed, n).
        accelerator: decides device, precision, processes and accumulation.
        folder: of the stage's checkpoints, log and result; a finished stage is loaded, not repeated.
        validate: called with the objective and the step; returns named numbers to log.
        name: label of the progress bar and of the tracked curves.
        max_steps: optimiser steps.
        batch_size: pairs per optimiser step over all processes and accumulation steps.
        optimizer: "adamw", or "adamw8bit", whose two averages take one byte per value (needs bitsandbytes).
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        warmup_steps: steps over which the learning rate rises from 0, which is that of the first step, as in diffusers:
            with a warm-up, a run of one step moves no weight.
        schedule: any of diffusers' schedules, such as "cosine".
        clip_norm: largest norm of the gradient.
        ema_decay: decay of the averaged weights that become the result; None for none.
        patience: steps without a lower `monitor` in validation after which the stage ends; the result is then the
            weights with the lowest. None trains to `max_steps` and keeps the last weights.
        monitor: name of the validation number that `patience` watches; lower is better.
        gradient_checkpointing: recompute activations to save memory.
        decode_crop: side, in latent positions, of the crop of each face that is decoded for the loss, at a position
            drawn from (seed, n); the whole face when None. No effect in stages whose loss decodes nothing.
        num_workers: loader processes.
        log_every: steps between log lines.
        log_pairs: write the random parameters of each pair to `pairs.jsonl`; `lafr.data.stream.rebuilt` makes the
            pair from them.
        validate_every: steps between validations; only at the end when None.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many are kept.
        steps_before: of the stages before: trackers count the steps of a run, not of a stage.
        stop: the signals that end the run after its running step, which is saved.
    """
    require_whole_weights(accelerator)
    steps = dict(max_steps=max_steps, batch_size=batch_size, warmup_steps=warmup_steps, patience=patience)
    intervals = dict(log_every=log_every, validate_every=validate_every, checkpoint_every=checkpoint_every)
    kept = dict(num_workers=num_workers, keep_checkpoints=keep_checkpoints)
    rates = dict(learning_rate=learning_rate, weight_decay=weight_decay, clip_norm=clip_norm)
    others = dict(schedule=schedule, ema_decay=ema_decay, decode_crop=decode_crop)
    require_settings(steps | intervals | kept | rates | others)
    checkpoints = Checkpoints(folder, keep_checkpoints)
    # a finished stage: later stages and the saved model need its weights, and what `finish` derives from them
    if summary := load_finished(checkpoints, objective, max_steps, accelerator):
        objective.eval()
        objective.finish(pairs.faces, accelerator.device)
        return summary

    if gradient_checkpointing:
        objective.enable_gradient_checkpointing()
    if decode_crop:
        objective.decode_crops(decode_crop, pairs.seed)
    # the objective's constructor has decided what is trained
    parameters = [p for p in objective.parameters() if p.requires_grad]
    adamw = new_optimizer(optimizer, parameters, learning_rate, weight_decay)
    scheduler = get_scheduler(schedule, adamw, num_warmup_steps=warmup_steps, num_training_steps=max_steps)
    # the schedule is not prepared: Accelerate would advance it once per process, and a step is one global batch here
    model, adamw = accelerator.prepare(objective.train(), adamw)
    # use_ema_warmup: the decay at step s is min(ema_decay, 1 - (1 + s)^-0.75), so that the start is forgotten
    ema = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True, power=0.75) if ema_decay else None
    best = BestWeights(require_validation(validate, validate_every, patience), monitor) if patience else None
    state = TrainingState(objective, adamw, scheduler, accelerator.scaler, ema, best)
    resume(checkpoints, state, accelerator)

    # resumed after its last step, which patience may have chosen: only validation is left
    validated = validate_every is not None and state.step % validate_every == 0
    ended = best is not None and patience is not None and validated and best.is_stale(state.step, patience)
    loader = pairs.loader(
        state.step,
        state.step if ended else max_steps,
        batch_size,
        accelerator.gradient_accumulation_steps,
        accelerator.process_index,
        accelerator.num_processes,
        num_workers,
    )
    log = Log(accelerator, checkpoints, name, state.step, max_steps, batch_size, steps_before)
    resumed_at, stop = state.step, stop or StopSignals()
    stop.deferred = True  # until the loop is left
    # one optimiser step an iteration
    for batches in optimiser_batches(loader, accelerator):
        started = time.perf_counter()
        # the objective itself, not `model`: DistributedDataParallel wraps forward alone
        objective.before_step(batches, state.step, accelerator.gather)
        all_terms = []
        for batch in batches:
            # divides the loss by the number of micro-batches, and synchronises gradients at the last one only
            with accelerator.accumulate(model):
                terms = model(batch)  # named scalars
                accelerator.backward(objective.total(terms))
                if accelerator.sync_gradients:
                    # of the whole gradient, before it is clipped
                    norm = accelerator.clip_grad_norm_(parameters, clip_norm)
                adamw.step()  # a no-op until gradients are synchronised
                adamw.zero_grad()
                all_terms.append({key: value.detach() for key, value in terms.items()})
        rate = scheduler.get_last_lr()[0]  # of this step
        scheduler.step()
        learned = objective.after_step(state.step, accelerator.gather) or {}
        if ema:
            ema.step(parameters)
        state.step += 1
        state.seconds += time.perf_counter() - started

        step, asked = state.step, stop.asked(accelerator)
        # at a checkpoint too: a loss that is not finite must end the run before it is saved
        logged = step % log_every == 0 or step % checkpoint_every == 0 or step == max_steps
        if logged or asked:
            numbers = mean_terms(all_terms, accelerator) | {name: float(value) for name, value in learned.items()}
            log.terms(step, numbers, rate, norm, written=logged)
        log.advance()
        if log_pairs:
            log.pairs(pairs.record(n) for n in range((step - 1) * batch_size, step * batch_size))
        # the last step is validated below, with the weights that become the result
        if validate and validate_every and step % validate_every == 0 and step < max_steps:
            log.validation(step, validate_on_main(best or validate, state, accelerator))
            if best and patience and best.age(step) >= patience:
                break
        if asked or (step % checkpoint_every == 0 and step < max_steps):
            save(checkpoints, state, accelerator)
        stop.obey(f"{name} is saved at step {step}")
    stop.deferred = False

    # before the last validation: if that fails (memory, a full disk), running again repeats it and no step
    if state.step > resumed_at:
        save(checkpoints, state, accelerator)
    if ema:
        ema.copy_to(parameters)
        state.ema = None  # from here on the objective itself holds the averaged weights
    if best:
        validate_on_main(best, state, accelerator)  # the last weights may be the best
        best.copy_to(objective)
    objective.eval()
    # before validation, which may use what is derived (the latent scale)
    objective.finish(pairs.faces, accelerator.device)
    measured = validate_on_main(validate, state, accelerator) if validate else {}
    log.validation(state.step, measured)
    log.close()
    summary = {
        "steps": state.step,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "seconds": round(state.seconds, 1),
        "validation": measured,
        "trained_parameters": sum(p.numel() for p in parameters),
    }
    if best:
        summary["best_step"] = best.step
    if accelerator.is_main_process:
        checkpoints.finish(objective.trained_state(), summary)
    accelerator.wait_for_everyone()
    return summary


def require_whole_weights(accelerator: Accelerator) -> None:
    """Raise InputError where processes hold shards: codebook, validation and checkpoints need whole weights."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise InputError("distributed_type", kind.value, "NO or MULTI_GPU: this loop cannot save shards of weights")


def new_optimizer(
    name: str, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov & Hutter, ICLR 2019), its state in float32 or ("adamw8bit") in eight bits.

    Raises InputError for another name, and when bitsandbytes is missing. bitsandbytes keeps tensors under 4,096 values
    in float32. For the LoRA's 3.6 M values at full size eight bits save 0.02 GB: they pay where a whole VAE encoder or
    UNet is trained.
    """
    if name not in ("adamw", "adamw8bit"):
        raise InputError("optimizer", name, "adamw or adamw8bit")
    kind = torch.optim.AdamW if name == "adamw" else need("bitsandbytes", "bitsandbytes").optim.AdamW8bit
    return kind(parameters, lr=learning_rate, weight_decay=weight_decay)


def optimiser_batches(loader: Iterable, accelerator: Accelerator) -> Iterable[list[dict[str, Tensor]]]:
    """Group the loader's micro-batches by optimiser step, on the device."""
    stream = iter(loader)  # one iterator: a DataLoader restarts with every `for`
    while batches := _read(stream, accelerator.gradient_accumulation_steps):
        yield [send_to_device(batch, accelerator.device) for batch in batches]


def _read(stream: Iterator, count: int) -> list[dict[str, Tensor]]:
    """Return the next micro-batches; an InputError of a loader process without the traceback that torch gives it."""
    try:
        return list(islice(stream, count))
    except InputError as error:
        *traceback, said = error.args[0].splitlines()
        if not traceback:
            raise
        raise InputError(said.partition(": ")[2]) from None


def mean_terms(all_terms: list[dict[str, Tensor]], accelerator: Accelerator) -> dict[str, float]:
    """Return each term's mean over micro-batches and processes."""
    by_micro_batch = [torch.stack(list(terms.values())).float() for terms in all_terms]  # [terms] each
    local = torch.stack(by_micro_batch).mean(0)
    # one reduction for all terms, and one wait for the device
    means = accelerator.reduce(local, "mean").tolist()
    return dict(zip(all_terms[0], means, strict=True))
