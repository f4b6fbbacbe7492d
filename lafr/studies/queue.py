"""The queue: runs in order, each within its minutes, all within a budget; what is done is not done again."""

import fcntl
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from lafr.errors import InputError
from lafr.results import write_json
from lafr.studies.plan import Run, Step

TRAINED = "model/lafr.json"  # in a step's folder, once it is trained
CLOCK = "clock.json"  # in a step's folder: wall-clock seconds, over all attempts


class RunFailed(Exception):
    """A run that could not be done; the message says why, and the queue goes on."""


class Clock:
    """Wall-clock seconds that add up in a file over attempts, however they end; at most a tick is lost."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.before = json.loads(self.path.read_text())["wall_seconds"] if self.path.is_file() else 0.0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return all seconds so far."""
        return self.before + time.monotonic() - self.started

    def tick(self) -> None:
        """Write them."""
        write_json({"wall_seconds": round(self.seconds, 1)}, self.path)


def read_clock(path: str | Path) -> float:
    """Return the seconds in a clock's file."""
    return json.loads(Path(path).read_text())["wall_seconds"] if Path(path).is_file() else 0.0


@contextmanager
def sole_owner(path: Path) -> Iterator[int]:
    """Hold a lock on a file, and yield its descriptor, to hand on to a process that then holds it too.

    So what a killed queue leaves running still owns its step, and the next queue waits for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def trained_chain(
    run: Run, folder: str | Path, train: Callable[[Step, Path, float, int], None], seconds: float
) -> list[str]:
    """Train what is missing of a run's chain; return the names of the steps that were trained already.

    Args:
        run: with its steps.
        folder: that holds the steps' folders.
        train: trains a step into a folder, within seconds, with a lock's descriptor to hand on; raises RunFailed.
        seconds: of wall-clock for the whole chain, over all attempts, shared steps included.
    """
    found = []
    for step in run.steps:
        own = Path(folder) / step.name
        with sole_owner(own.with_name(f".{step.name}.lock")) as lock:
            if (own / TRAINED).is_file():
                found.append(step.name)
                continue
            left = seconds - sum(read_clock(Path(folder) / s.name / CLOCK) for s in run.steps)
            if left <= 0:
                raise RunFailed(f"{seconds / 60:g} minutes are over before {step.stage} is done; raise run_minutes")
            train(step, own, left, lock)
            if not (own / TRAINED).is_file():
                raise RunFailed(f"{step.stage} left no model in {str(own)!r}")
    return found


@dataclass
class Outcome:
    """What became of the runs: names of those done now, done before and not started, and why others failed."""

    done: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def work_through(
    runs: Sequence[Run],
    is_done: Callable[[Run], bool],
    do: Callable[[Run], None],
    clock: Clock,
    budget_seconds: float,
    run_seconds: float,
    jobs: int = 1,
    tick_seconds: float = 5.0,
    stop: threading.Event | None = None,
) -> Outcome:
    """Do the runs in order, `jobs` at a time; a run is started only while its whole time still fits the budget.

    Args:
        runs: those with a problem are not tried.
        is_done: whether a run needs nothing more.
        do: does a run; raises RunFailed or InputError, and the others go on.
        clock: of the queue, over all its attempts.
        budget_seconds: of wall-clock in all.
        run_seconds: that a run may take.
        jobs: runs at a time.
        tick_seconds: between two writings of the clock.
        stop: once set, no run is started; one that then ends in RunFailed is left, not failed.
    """
    stop = stop or threading.Event()
    outcome = Outcome(failed={run.name: run.problem for run in runs if run.problem is not None})
    possible = [run for run in runs if run.problem is None]
    outcome.before = [run.name for run in possible if is_done(run)]
    waiting = [run for run in possible if run.name not in set(outcome.before)]
    running: dict[Future, Run] = {}
    bar = tqdm(total=len(possible), initial=len(outcome.before), desc="studies", unit="run", dynamic_ncols=True)
    with bar, ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            while waiting and len(running) < jobs and clock.seconds + run_seconds <= budget_seconds:
                if stop.is_set():
                    break
                run = waiting.pop(0)
                bar.set_postfix_str(f"{run.name}; {max(0, budget_seconds - clock.seconds) / 3600:.1f} h of budget")
                running[pool.submit(do, run)] = run
            if not running:
                break
            for future in wait(running, tick_seconds, FIRST_COMPLETED).done:
                run = running.pop(future)
                try:
                    future.result()
                    outcome.done.append(run.name)
                    bar.update()
                except (RunFailed, InputError) as error:
                    if stop.is_set():
                        outcome.left.append(run.name)
                    else:
                        outcome.failed[run.name] = str(error)
            clock.tick()
    outcome.left += [run.name for run in waiting]
    return outcome
