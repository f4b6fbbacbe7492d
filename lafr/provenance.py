"""Records of runs: the configuration that a run started with, and the origin of a number."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from lafr.errors import InputError, setting
from lafr.storage import read_json, write_json

# Trainer settings that may change between a run and its continuation: they do not change what is computed.
FREE = {
    "trackers",
    "tracking",
    "log_every",
    "log_pairs",
    "latent_cache",
    "validate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "num_workers",
}
PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "peft",
    "accelerate",
    "vector-quantize-pytorch",
    "torchmetrics",
    "numpy",
)


def remember_config(config: dict, run_dir: Path) -> None:
    """Write `config.json`; raises InputError if the run in this folder was started with other settings."""
    path = run_dir / "config.json"
    if path.exists() and (changed := differences(read_json(path), config)):
        raise InputError(
            f"{str(run_dir)!r} was started with other settings ({'; '.join(changed[:4])})",
            remedy=f"choose another {setting('run_name')} or delete the folder",
        )
    write_json(config, path)


def differences(old: object, new: object, where: str = "") -> list[str]:
    """Return one line for each setting that differs, except those that are free to change."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted((old.keys() | new.keys()) - (FREE if where == "trainer" else set())):
            found += differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        return found
    return [] if old == new else [f"{where}: {old} -> {new}"]


def provenance(command: str, seed: int) -> dict:
    """Return the origin of a number: command, seed, commit, machine and versions."""
    return {
        "command": command,
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _git("rev-parse", "HEAD"),
        # runs write into results/ one after another: files there do not change what the next one computes
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/results")),
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _git(*arguments: str) -> str | None:
    here = Path(__file__).resolve().parent
    done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    pairs = [line.split(":", 1) for line in reversed(lines) if ":" in line]  # the first processor's come last
    fields = {key.strip(): value.strip() for key, value in pairs}
    name = fields.get("model name", "unknown processor")
    # a virtual machine's model name may hide the processor; family and model do not
    numbers = {"family": fields.get("cpu family"), "model": fields.get("model")}
    kind = " ".join(f"{key} {number}" for key, number in numbers.items() if number)
    return f"{name} ({kind})" if kind else name
