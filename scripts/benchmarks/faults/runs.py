"""Commands on the tiniest model, each in a process forked from this one, which has everything imported."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

import lafr.commands.evaluate
import lafr.commands.prepare
import lafr.commands.train
import lafr.evaluation.publishing
import lafr.evaluation.run
import lafr.storage
import lafr.training.loop
import lafr.training.validation
from lafr.commands.doors import as_hydra, one_line_errors
from lafr.commands.launch import composed
from lafr.models.base.model import new_base
from scripts.benchmarks.faults.folders import ADAPTER, SIZE, TINY

STAGES = ("codebook", "alignment", "restoration")
STEPS = 4
SLOWEST = 120  # seconds until a process that does not end is taken for hung
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Workshop:
    """A folder with what runs need: `base/`, `faces/` of 40 px, and `lq/` and `hq/` of `SIZE` px."""

    folder: Path

    def fill(self, seed: int) -> None:
        """Make the base model and the faces, in a process of its own: this one must not use torch before it forks."""
        rng = np.random.default_rng(seed)
        for name in ("faces", "lq", "hq"):
            (self.folder / name).mkdir(parents=True)
        for i in range(10):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            coarse.resize((40, 40), Image.Resampling.BICUBIC).save(self.folder / "faces" / f"{i:02d}.png")
            coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(self.folder / "hq" / f"{i:02d}.png")
            coarse.resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(self.folder / "lq" / f"{i:02d}.png")
        ended = run(lambda: new_base(**TINY).save_pretrained(self.folder / "base"), self.folder / "base.txt")
        if ended.code:
            raise RuntimeError(ended.said)

    def training(self, *more: str) -> DictConfig:
        """Return the composed configuration of a run of `STEPS` steps in each stage."""
        steps = [f"stage.{name}.{key}" for name in STAGES for key in (f"max_steps={STEPS}", "batch_size=4")]
        adapter = [f"adapter.{key}={value}" for key, value in ADAPTER.items() if key != "latent_channels"]
        trainer = ["trackers=[]", "log_every=1", "checkpoint_every=2", "validate_every=2", "validation_images=1"]
        places = [f"data.root={self.folder / 'faces'}", f"model.build.folder={self.folder / 'base'}"]
        given = ["run_name=faults", "preflight=false", "data=faces", "loss=latent", f"model.resolution={SIZE}"]
        return composed(
            "train",
            *given,
            *places,
            *steps,
            *adapter,
            *(f"trainer.{key}" for key in trainer),
            "adapter.dead_below=8",
            *more,
        )


@dataclass(frozen=True)
class Ended:
    """What became of a process: its exit code (minus the signal that killed it) and what it printed."""

    code: int | None
    said: str


def run(work: Callable[[], object], output: Path, prepare: Callable[[], object] = lambda: None) -> Ended:
    """Do `work` in a forked process, after `prepare`, as a command does: errors on one line, output in a file."""
    return wait(start(work, output, prepare), output)


def start(work: Callable[[], object], output: Path, prepare: Callable[[], object] = lambda: None) -> Any:
    """Start `work` in a forked process."""
    process = FORK.Process(target=_as_command, args=(work, output, prepare))
    process.start()
    return process


def wait(process: Any, output: Path, patience: float = SLOWEST) -> Ended:
    """Wait for a process; one that does not end is killed, and its code is None."""
    process.join(patience)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return Ended(code, output.read_text(encoding="utf-8", errors="replace"))


def _as_command(work: Callable[[], object], output: Path, prepare: Callable[[], object]) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = ["python scripts/faults.py"]
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    torch.seed()  # nothing may depend on the global random state
    prepare()
    with one_line_errors(as_hydra):
        work()


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def enter_group(rank: int, port: int) -> None:
    """Make this process one of two, as a launcher would."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


class Events:
    """Counts what a run does to files, and its steps; at event number `last` it sends this process a signal.

    A rename is an event before and after, a write to the disk too: a kill falls on both sides of each.
    """

    def __init__(self, last: int, number: int = signal.SIGKILL, count_into: Path | None = None):
        self.seen, self.last, self.number, self.count_into = 0, last, number, count_into

    def happen(self) -> None:
        """Count one."""
        self.seen += 1
        if self.seen == self.last:
            os.kill(os.getpid(), self.number)
            time.sleep(0 if self.number != signal.SIGKILL else 60)
        if self.count_into is not None:
            self.count_into.write_text(str(self.seen), encoding="utf-8")

    def watch(self) -> None:
        """Replace the functions that are counted, in this process."""

        def around(owner: Any, name: str) -> None:
            function = getattr(owner, name)

            def counted(*args: Any, **options: Any) -> Any:
                self.happen()
                result = function(*args, **options)
                self.happen()
                return result

            setattr(owner, name, counted)

        for owner, name in (
            (os, "replace"),
            (lafr.storage, "exchange"),
            (lafr.storage, "sync"),
            (lafr.storage.JsonLines, "append"),
            (lafr.training.loop.Log, "advance"),
            (lafr.training.loop, "mean_terms"),
        ):
            around(owner, name)


def content(folder: Path) -> dict[str, bytes]:
    """Return what a finished run has learned and logged: name -> bytes."""
    found = {}
    for pattern in ("*/final/trained.safetensors", "*/log.jsonl", "model/**/*"):
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found
