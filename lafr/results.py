"""Records of runs: the configuration a run started with, and what made a number."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lafr.errors import InputError
from lafr.metrics import DIRECTION

DIGITS = {"psnr_rgb": 2}  # decimals shown; 4 for the others

# Settings that change how a run is executed and shown, not what it computes.
FREE = {"trackers", "log_every", "log_pairs", "latent_cache", "validate_every", "checkpoint_every", "keep_checkpoints",
        "num_workers"}  # fmt: skip


def remember_config(config: dict, run_dir: Path) -> None:
    """Write `config.json`, or check that the run in this folder was started with the same settings."""
    path = run_dir / "config.json"
    if path.exists():
        changed = differences(json.loads(path.read_text()), config)
        if changed:
            raise InputError(
                f"{str(run_dir)!r} was started with other settings ({'; '.join(changed[:4])}); "
                "choose another run_name=NAME or delete the folder"
            )
    write_json(config, path)


def differences(old, new, where: str = "") -> list[str]:
    """Return one line for each setting that differs, except those that are free to change."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted((old.keys() | new.keys()) - (FREE if where == "trainer" else set()))
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{where}.{k}".lstrip("."))]
    return [] if old == new else [f"{where}: {old} -> {new}"]


def provenance(command: str, seed: int) -> dict:
    """Return what a number came from: command, seed, commit, machine and versions."""
    packages = (
        "torch",
        "torchvision",
        "diffusers",
        "peft",
        "accelerate",
        "vector-quantize-pytorch",
        "torchmetrics",
        "numpy",
    )
    return {
        "command": command,
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def write_json(record: dict | list, path: Path) -> None:
    """Write a record aside and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(aside, path)


def _git(*arguments: str) -> str | None:
    here = Path(__file__).resolve().parent
    done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


TRAINED_ON = "†"
LEGEND = f"{TRAINED_ON} scored with a network that this row's model was trained with, or that has a teacher in common."


def shown(record: dict, row: str, metric: str) -> str:
    """Return mean, interval and what limits them: a network trained with, failed measurements."""
    scores = record["rows"][row][metric]
    digits = DIGITS.get(metric, 4)
    text = "failed" if scores["mean"] is None else "{mean:.{d}f} ({low:.{d}f}–{high:.{d}f})".format(**scores, d=digits)
    mark = TRAINED_ON if metric in record.get("trained_on", {}).get(row, ()) else ""
    failed = f" [{scores['failed']} failed]" if scores.get("failed") else ""
    return text + mark + failed


def headings(record: dict) -> dict[str, str]:
    """Return metric -> column heading with the direction's arrow."""
    metrics = next(iter(record["rows"].values()))
    return {metric: f"{metric} {DIRECTION.get(metric, '')}".strip() for metric in metrics}


def best_rows(record: dict) -> dict[str, str]:
    """Return metric -> the row that is best, among the methods: input and ceiling are left out."""
    rows = {name: scores for name, scores in record["rows"].items() if name not in ("LQ input", "codec(HQ)")}
    sign = {"↑": 1, "↓": -1}
    best = {}
    for metric in headings(record):
        measured = {name: scores[metric]["mean"] for name, scores in rows.items() if scores[metric]["mean"] is not None}
        if metric in DIRECTION and measured:
            best[metric] = max(measured, key=lambda name, m=metric, of=measured: sign[DIRECTION[m]] * of[name])
    return best


def markdown_table(record: dict) -> str:
    """Return the rows of a result as a Markdown table; the best method of each column in bold."""
    columns, best = headings(record), best_rows(record)
    lines = ["| row | " + " | ".join(columns.values()) + " |", "|---|" + "---|" * len(columns)]
    for row in record["rows"]:
        cells = [shown(record, row, metric) for metric in columns]
        cells = [f"**{cell}**" if best.get(m) == row else cell for m, cell in zip(columns, cells, strict=True)]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *("\n" + note for note in notes(record))])


def notes(record: dict) -> list[str]:
    """Return what stands under a table: the mark's meaning, and each metric that could not be measured, with why."""
    legend = [LEGEND] if record.get("trained_on") else []
    return legend + [
        f"{metric} was not measured: {reason}." for metric, reason in record.get("not_measured", {}).items()
    ]


def print_table(record: dict) -> None:
    """Print a result's rows, its latents and its size."""
    columns = headings(record)
    table = Table(title=f"{record['benchmark']}: {record['images']} images, mean (95 % bootstrap interval)")
    table.add_column("row")
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for row in record["rows"]:
        table.add_row(row, *(shown(record, row, metric) for metric in columns))
    console = Console(width=None if sys.stdout.isatty() else max(100, 24 + 27 * len(columns)))
    console.print(table)
    for note in notes(record):
        console.print(note)
    console.print(", ".join(f"{name} {value:.4g}" for name, value in record["latents"].items()))
