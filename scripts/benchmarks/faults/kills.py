"""Training that is killed at any moment, and started again: the result is that of a run which was not."""

import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

import lafr.commands.train
from lafr.errors import Stopped
from scripts.benchmarks.faults import Trial
from scripts.benchmarks.faults.runs import (
    SLOWEST,
    Ended,
    Events,
    Workshop,
    content,
    enter_group,
    free_port,
    run,
    start,
    wait,
)

ADVERSARIAL = (
    "+loss.terms.adversarial={_target_: lafr.losses.adversarial.Adversarial, learning_rate: 1e-3, warmup: 1, "
    "discriminator: {_target_: lafr.losses.discriminators.ConvolutionalDiscriminator, width: 8, halvings: 1}}"
)
EMA = ["+stage.alignment.ema_decay=0.9", "+stage.restoration.ema_decay=0.9", "stage.restoration.schedule=cosine"]
TWO = "two processes"
VARIANTS = {
    "one process": [],
    "two loader processes": ["trainer.num_workers=2"],
    "accumulation": ["trainer.accumulation=2"],
    "cached latents": ["trainer.cache_latents=true"],
    "averaged weights, cosine": EMA,
    "adversarial": [ADVERSARIAL, "+loss.weights.adversarial=0.1"],
    TWO: ["trainer.accumulation=2", *EMA],
}
CHAIN = 5  # kills of one run at most, before its result is compared


def trials(count: int, seed: int, folder: Path) -> Iterator[Trial]:
    """Kill `count` runs at random events, and stop two by signals in each variant."""
    rng, shop = np.random.default_rng(seed), Workshop(folder)
    shop.fill(seed)
    each, rest = divmod(count, len(VARIANTS))
    for number, (name, overrides) in enumerate(VARIANTS.items()):
        config = partial(shop.training, *overrides, f"trainer.latent_cache={folder / 'latents'}")
        whole, events = unbroken(name, config(f"run_dir={folder / 'whole'}"), folder)
        tried = 0
        wanted = each + (number < rest)
        while tried < wanted:
            kills = min(CHAIN, wanted - tried)
            yield from (chain := list(chained(name, config, folder, whole, events, kills, rng)))
            tried += len(chain)
        yield from chained(name, config, folder, whole, events, 2, rng, signals=True)
        shutil.rmtree(folder / "whole")


def unbroken(name: str, cfg: DictConfig, folder: Path) -> tuple[dict[str, bytes], int]:
    """Return what a run that nobody kills learns, and the number of its events in the main process."""
    count = folder / "events.txt"
    ended = attempt(name, cfg, folder, Events(0, count_into=count))
    if ended.code:
        raise RuntimeError(ended.said)
    return content(Path(cfg.run_dir)), int(count.read_text(encoding="utf-8"))


def chained(
    name: str,
    config: partial,
    folder: Path,
    whole: dict[str, bytes],
    events: int,
    kills: int,
    rng: np.random.Generator,
    signals: bool = False,
) -> Iterator[Trial]:
    """Kill one run up to `kills` times, let it end, and compare it with the run that was not."""
    cfg, numbers = config(f"run_dir={folder / 'killed'}"), [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    what = f"signal, {name}" if signals else f"kill -9, {name}"
    cases, trouble = [], ""
    for _ in range(kills):
        number = signal.Signals(rng.choice(numbers)) if signals else signal.SIGKILL
        # a run that resumes has fewer events than a whole one: most draws still fall within it
        last, victim = int(rng.integers(1, events // 2 if kills > 1 else events)), int(rng.integers(2))
        ended = attempt(name, cfg, folder, Events(last, number), victim)
        wanted = (Stopped.CODE, 0) if signals else (-signal.SIGKILL, 0)
        if ended.code not in wanted:
            trouble = f"ended with {ended.code}: {last_line(ended.said)}"
        if ended.code == 0:  # fewer events were left: it has ended, and nothing killed it
            break
        cases.append(f"{number.name} at event {last} of {events}")
        if trouble:
            break
    if not trouble:
        ended = attempt(name, cfg, folder)
        trouble = f"ended with {ended.code}: {last_line(ended.said)}" if ended.code else ""
    learned = content(Path(cfg.run_dir))
    differing = [file for file in whole if learned.get(file) != whole[file]]
    shutil.rmtree(cfg.run_dir, ignore_errors=True)
    for case in cases:
        if trouble:
            yield Trial(what, case, "lost", trouble)
        elif differing:
            yield Trial(what, case, "silent", f"other than of the unbroken run: {', '.join(differing)}")
        else:
            yield Trial(what, case, "held")


def attempt(name: str, cfg: DictConfig, folder: Path, events: Events | None = None, victim: int = 0) -> Ended:
    """Train in one process or two; of two `victim` is killed, and the launcher's work is done for the other."""
    events = events or Events(0)
    work, output = partial(lafr.commands.train.main, cfg), folder / "output.txt"
    if name != TWO:
        return run(work, output, events.watch)
    port, processes = free_port(), []
    for rank in range(2):

        def prepare(rank: int = rank) -> None:
            enter_group(rank, port)
            if rank == victim:
                events.watch()

        processes.append(start(work, folder / f"output_{rank}.txt", prepare))
    ended = wait(processes[victim], folder / f"output_{victim}.txt")
    if ended.code == -signal.SIGKILL:
        processes[1 - victim].join(2)
        processes[1 - victim].kill()
    # a launcher ends the others when one has failed; a signal within a stage ends both by themselves
    other = wait(processes[1 - victim], folder / f"output_{1 - victim}.txt", 30 if ended.code else SLOWEST)
    return ended if ended.code or other.code == 0 else other


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
