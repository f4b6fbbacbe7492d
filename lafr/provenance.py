"""Records of runs: the configuration a run started with, and what made a number."""

import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from lafr.errors import InputError
from lafr.storage import write_json

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
        # Runs write into results/ one after another: what lies there is no change to what they run.
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/results")),
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _git(*arguments: str) -> str | None:
    here = Path(__file__).resolve().parent
    done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = fields.get("model name", "unknown processor")
    kind = [
        f"{key} {fields[field]}" for key, field in (("family", "cpu family"), ("model", "model")) if field in fields
    ]
    return f"{name} ({' '.join(kind)})" if kind else name  # a rented machine's name may hide which one it is
