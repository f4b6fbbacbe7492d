"""A run is a chain of stages; each is named by all that decides it, so that runs share what they have in common."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lafr.errors import InputError
from lafr.results import FREE

SKIP = "skip"  # in a row, instead of a stage's settings: this row has no such stage


@dataclass(frozen=True)
class Step:
    """One stage of a chain: `key` is a hash of what decides its weights, `arguments` are those of scripts/train.py."""

    stage: str
    key: str
    arguments: tuple[str, ...]
    loss_weights: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"{self.stage}_{self.key}"


@dataclass(frozen=True)
class Run:
    """A row of a study under one seed: its steps in order, or the `problem` that keeps it from being one."""

    study: str
    row: str
    seed: int
    steps: tuple[Step, ...] = ()
    problem: str | None = None

    @property
    def name(self) -> str:
        """Return the name that lists and logs use."""
        return f"{self.study}/{self.row}, seed {self.seed}"

    @property
    def key(self) -> str:
        """Return the hash of its last step: the hash of the trained model."""
        return self.steps[-1].key


def planned(
    study: str,
    row: str,
    seed: int,
    stages: Mapping[str, Mapping[str, object]],
    changes: Mapping[str, Sequence[str] | str],
    common: Sequence[str],
    compose: Callable[[Sequence[str]], dict],
    folder: str | Path,
) -> Run:
    """Return a run; one whose settings do not compose carries the reason instead of steps.

    Args:
        study: its name.
        row: its name.
        seed: of everything.
        stages: stage -> its settings, such as max_steps, in order.
        changes: stage -> this row's further arguments of scripts/train.py, or "skip". What is built in a row's first
            stage, the adapter, goes on; every other setting must stand with each stage that it concerns.
        common: arguments of every step.
        compose: maps arguments to the whole resolved configuration; raises InputError where that is not possible.
        folder: that holds the steps' folders.
    """
    if unknown := sorted(set(changes) - set(stages)):
        raise InputError(f"study {study}, row {row}: stages {unknown} are not among {list(stages)}; correct the row")
    steps: list[Step] = []
    built = ""  # class of the adapter
    for stage, settings in stages.items():
        own = changes.get(stage, ())
        if own == SKIP:
            continue
        arguments = [*common, f"stages=[{stage}]", f"seed={seed}"]
        arguments += [f"stage.{stage}.{key}={value}" for key, value in settings.items()]
        arguments += own
        if steps:
            adapter = Path(folder) / steps[-1].name / "model" / "adapter"
            arguments.append(f'model.build.adapter={{_target_:{LOADER},folder:"{adapter.as_posix()}",name:{built}}}')
        try:
            config = compose([*arguments, "run_name=planned"])
        except InputError as problem:
            return Run(study, row, seed, problem=str(problem))
        built = built or config["model"]["build"]["adapter"]["_target_"]
        key = key_of(config, stage, steps[-1].key if steps else None)
        steps.append(Step(stage, key, tuple(arguments), loss_weights(config, stage)))
    if not steps:
        raise InputError(f"study {study}, row {row} has no stage; give it one of {list(stages)}")
    return Run(study, row, seed, tuple(steps))


LOADER = "lafr.models.restorer.load_adapter"


def key_of(config: Mapping, stage: str, previous: str | None) -> str:
    """Return the hash, 16 hex digits, of what decides a stage's weights.

    That is its whole resolved configuration, but for the other stages, its name and folder and what only changes how
    a run is shown, and the hash of the stage before it.
    """
    decisive = copy.deepcopy({k: v for k, v in config.items() if k not in ("run_name", "run_dir", "loss", "adapter")})
    decisive["stage"] = {stage: config["stage"][stage]}
    decisive["trainer"] = {k: v for k, v in config["trainer"].items() if k not in FREE}
    if previous is not None:
        decisive["model"]["build"]["adapter"] = "that of the stage before"
    text = json.dumps([decisive, previous], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def loss_weights(config: Mapping, stage: str) -> tuple[tuple[str, float], ...]:
    """Return (term, weight) of a stage's loss, where it has one: what its held-out loss is the sum of."""
    weights = config["stage"][stage]["objective"].get("loss", {}).get("weights", {})
    return tuple((name, float(weight)) for name, weight in weights.items())


def distinct_steps(runs: Sequence[Run]) -> dict[str, Step]:
    """Return name -> step of all that the runs need, each once."""
    return {step.name: step for run in runs for step in run.steps}
