"""What stops LAFR, and what it does in silence: faults tried, held, silent and lost, a module for each kind.

A module `scripts.benchmarks.faults.KIND` has `trials(count, seed, folder)`, which yields a `Trial` for each fault. Its
name and the number of its trials stand in `configs/benchmark_faults.yaml`. Kinds that a run leaves out keep what the
record says of them.
"""

import importlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig
from tqdm import tqdm

from lafr.commands.launch import command_line
from lafr.errors import InputError
from lafr.evaluation import markdown
from lafr.provenance import provenance
from lafr.storage import read_json

OUTCOMES = ("held", "silent", "lost")
SHOWN = 20  # faults that were not held, described in the record
LONGEST = 400  # characters of what was said


@dataclass(frozen=True)
class Trial:
    """One fault and what came of it.

    Args:
        what: the table's row: "killed, two processes".
        case: the fault itself: "kill -9 while step_00000004 is written".
        outcome: "held" (the right result, or one line that names the fault and what to do), "silent" (a wrong result
            and no word), "lost" (a traceback, work that is gone, a run that cannot go on).
        said: the line that was printed, or what is wrong.
    """

    what: str
    case: str
    outcome: str
    said: str = ""


def faults(cfg: DictConfig) -> dict:
    """Return the record: kind -> row -> how many faults were tried, held, silent and lost."""
    kinds = list(cfg.kinds or cfg.count)
    if cfg.kinds is None and not os.environ.get("LAFR_FAULTS_INPUTS"):
        kinds.remove("bugs")  # their folder is not in the repository
    if unknown := [kind for kind in kinds if kind not in cfg.count]:
        raise InputError("kinds", unknown, f"some of {', '.join(cfg.count)}")
    written = Path(cfg.output) / "faults.json"
    found = read_json(written)["kinds"] if written.is_file() else {}
    for kind in kinds:
        module = importlib.import_module(f"scripts.benchmarks.faults.{kind}")
        with TemporaryDirectory(prefix=f"faults_{kind}_") as folder:
            trials = module.trials(cfg.count[kind], cfg.seed, Path(folder))
            shown = list(tqdm(trials, desc=kind, total=cfg.count[kind], unit="fault", dynamic_ncols=True))
        found[kind] = counted(shown) | {"made_by": provenance(command_line(), cfg.seed)}
    return {"kinds": {kind: found[kind] for kind in cfg.count if kind in found}}


def counted(trials: Iterable[Trial]) -> dict:
    """Return the counts of each row, and the faults that were not held."""
    trials = list(trials)
    rows: dict[str, Counter] = {}
    for trial in trials:
        rows.setdefault(trial.what, Counter({outcome: 0 for outcome in OUTCOMES}))[trial.outcome] += 1
    bad = [trial for trial in trials if trial.outcome != "held"]
    described = [f"{trial.outcome}: {trial.what}: {trial.case}: {trial.said[:LONGEST]}" for trial in bad[:SHOWN]]
    return {"rows": {what: {"tried": row.total(), **row} for what, row in rows.items()}, "not_held": described}


def faults_table(record: dict) -> str:
    """Return the Markdown table of a record, a line for each row and one for all."""
    lines = []
    total: Counter[str] = Counter()
    for kind, found in record["kinds"].items():
        for what, row in found["rows"].items():
            lines.append([kind, what, *(row[key] for key in ("tried", *OUTCOMES))])
            total.update(row)
    lines.append(["**all**", "", *(total[key] for key in ("tried", *OUTCOMES))])
    bad = [text for found in record["kinds"].values() for text in found["not_held"]]
    table = markdown.table(["kind", "fault", "tried", *OUTCOMES], lines)
    return "\n\n".join([table, *(markdown.escaped(text) for text in bad)])
