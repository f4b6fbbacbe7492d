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

ARROWS = {"psnr_rgb": "↑", "ssim_rgb": "↑", "st_lpips_vgg": "↓", "st_lpips_alex": "↓"}
DIGITS = {"psnr_rgb": 2, "ssim_rgb": 4, "st_lpips_vgg": 4, "st_lpips_alex": 4}

# Settings that change how a run is executed and shown, not what it computes.
FREE = {"trackers", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "num_workers"}


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
    run_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


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


def write_json(record: dict, path: Path) -> None:
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


def markdown_table(record: dict) -> str:
    """Return the rows of a result as a Markdown table; best in bold among the methods, ceiling and input left out."""
    metrics = list(next(iter(record["rows"].values())))
    methods = [row for row in record["rows"] if row not in ("LQ input", "codec(HQ)")]
    lines = [
        "| row | " + " | ".join(f"{m} {ARROWS[m]}" for m in metrics) + " |",
        "|---|" + "---|" * len(metrics),
    ]
    best = {m: (min if ARROWS[m] == "↓" else max)(record["rows"][r][m]["mean"] for r in methods) for m in metrics}
    for row, scores in record["rows"].items():
        cells = []
        for metric in metrics:
            s = scores[metric]
            text = f"{s['mean']:.{DIGITS[metric]}f}"
            text = f"**{text}**" if row in methods and s["mean"] == best[metric] else text
            cells.append(f"{text} ({s['low']:.{DIGITS[metric]}f}–{s['high']:.{DIGITS[metric]}f})")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def print_table(record: dict) -> None:
    """Print a result's rows, its latents and its size."""
    table = Table(title=f"{record['benchmark']}: {record['images']} images, mean (95 % bootstrap interval)")
    metrics = list(next(iter(record["rows"].values())))
    table.add_column("row")
    for metric in metrics:
        table.add_column(f"{metric} {ARROWS[metric]}", justify="right")
    for row, scores in record["rows"].items():
        cells = (scores[m] | {"d": DIGITS[m]} for m in metrics)
        table.add_row(row, *("{mean:.{d}f} ({low:.{d}f}–{high:.{d}f})".format(**cell) for cell in cells))
    console = Console(width=max(100, 24 + 25 * len(metrics)) if not sys.stdout.isatty() else None)
    console.print(table)
    console.print(", ".join(f"{name} {value:.4g}" for name, value in record["latents"].items()))
