"""What a run left, `results/studies/STUDY/ROW_SEED.json`, and the note that a test set was looked at."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from lafr.errors import InputError
from lafr.results import write_json
from lafr.studies.plan import Run, Step

PROBLEMS = "not_run.json"
REFERENCES = "references.json"  # benchmark -> what stands above and below every row


def record_path(results: str | Path, run: Run) -> Path:
    """Return where a run's record lies."""
    return Path(results) / run.study / f"{run.row}_{run.seed}.json"


def read_record(results: str | Path, run: Run) -> dict | None:
    """Return a run's record, if there is one of just these settings."""
    path = record_path(results, run)
    if run.problem is not None or not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if record["key"] == run.key else None


def is_scored(results: str | Path, run: Run, benchmark: str) -> bool:
    """Return whether a run is trained, with just these settings, and scored on a benchmark."""
    record = read_record(results, run)
    return record is not None and benchmark in record["scores"]


def read_records(results: str | Path, study: str) -> list[dict]:
    """Return a study's records, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted((Path(results) / study).glob("*_*.json"))]


def note_problems(results: str | Path, problems: dict[str, str], settled: Iterable[str]) -> None:
    """Keep why runs are missing, by run; those that are `settled` have no problem any more."""
    path = Path(results) / PROBLEMS
    known = json.loads(path.read_text()) if path.is_file() else {}
    known = {name: why for name, why in (known | problems).items() if name not in set(settled) - set(problems)}
    if known or path.is_file():
        write_json(dict(sorted(known.items())), path)


class OnceOnly:
    """The note that a test set was used: which models it scored, and when; there is no second time.

    A model is named by its key, so that a stopped scoring goes on with the same models and no others.
    """

    def __init__(self, results: str | Path, benchmark: str):
        self.path, self.benchmark = Path(results) / f"{benchmark}_once.json", benchmark

    def begin(self, runs: Iterable[Run], force: bool = False) -> list[str]:
        """Return the names of the runs to score, and note them before the first is.

        Raises InputError when the set was used before; a stopped use goes on, `force` starts another.
        """
        models = {run.name: run.key for run in runs}
        noted = json.loads(self.path.read_text()) if self.path.is_file() else None
        if noted and not force:
            if noted["finished"]:
                raise InputError(
                    f"{self.benchmark} was scored on {noted['finished']} ({len(noted['models'])} runs) and is used "
                    f"once; choose on val, or give force=true and say in the results that you did"
                )
            return [name for name, key in models.items() if noted["models"].get(name) == key]
        if not models:
            raise InputError(f"no finished run to score on {self.benchmark}; run scripts/studies.py first")
        uses = (noted["uses"] if noted else 0) + 1
        write_json({"benchmark": self.benchmark, "uses": uses, "started": today(), "finished": None,
                    "models": models}, self.path)  # fmt: skip
        return list(models)

    def finish(self) -> None:
        """Note that every model was scored."""
        write_json(json.loads(self.path.read_text()) | {"finished": today()}, self.path)


def today() -> str:
    """Return the date."""
    return datetime.now(UTC).date().isoformat()


def step_summary(folder: Path, step: Step, shared: bool) -> dict:
    """Return what a trained step said of itself, and its held-out points.

    `seconds` are of optimiser steps alone; `wall_seconds` of everything, start and validation included. A stage that
    had nothing to train took no steps. `shared`: it was trained when this run came to it.
    """
    path = folder / step.stage / "final" / "summary.json"
    empty = {"steps": 0, "seconds": 0.0, "batch_size": 0, "trained_parameters": 0, "validation": {}}
    own = json.loads(path.read_text()) if path.is_file() else empty
    clock = folder / "clock.json"
    wall = json.loads(clock.read_text())["wall_seconds"] if clock.is_file() else own["seconds"]
    per_step = own["seconds"] / own["steps"] if own["steps"] else 0.0
    return {
        "stage": step.stage,
        "key": step.key,
        **own,
        "seconds_per_step": round(per_step, 4),
        "wall_seconds": wall,
        "shared": shared,
        "held_out": held_out(folder / step.stage / "log.jsonl", dict(step.loss_weights), per_step),
    }


def changed_validations(record: Mapping, run: Run, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return stage -> {"noted", "again"} validations of those steps in `folder` that are not the ones of a record."""
    pairs = {
        step.stage: {"noted": noted["validation"], "again": step_summary(folder / step.name, step, True)["validation"]}
        for step, noted in zip(run.steps, record["steps"], strict=True)
    }
    return {stage: pair for stage, pair in pairs.items() if pair["noted"] != pair["again"]}


def held_out(log: Path, weights: dict[str, float], per_step: float) -> list[dict]:
    """Return each validation as {"step", "seconds", "loss", "psnr_rgb"}; `loss` is the weighted sum that is trained."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if weights and log.is_file() else []
    points = []
    for line in lines:
        terms = {k.removeprefix("validation/"): v for k, v in line.items() if k.startswith("validation/")}
        if terms:
            loss = sum(weight * terms[name] for name, weight in weights.items() if weight)
            points.append({"step": line["step"], "seconds": round(line["step"] * per_step, 1), "loss": loss,
                           "psnr_rgb": terms.get("psnr_rgb")})  # fmt: skip
    return points


def trained_values(model: Path, steps: list[dict]) -> int:
    """Return how many values a run learned: its adapter's, codes included, where a stage trained it, and the rest."""
    from lafr.models.restorer import load_adapter

    index = json.loads((model / "lafr.json").read_text())
    adapter = load_adapter(model / "adapter", index["adapter"]).size() if len(steps) > 1 else 0
    return adapter + steps[-1]["trained_parameters"]
