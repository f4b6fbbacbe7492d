"""What two records differ in, the training set of a run, and the origin of a number."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lafr.storage import read_json, write_json

TRAINING_SET = "training_set.json"  # in a run's folder and in its model's
LARGEST_RECORD = 100_000  # bytes
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


def changes(old: object, new: object, where: str = "") -> list[tuple[str, Any, Any]]:
    """Return dotted name, old and new value of each setting that differs; None for one that is not there."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += changes(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        return found
    return [] if old == new else [(where, old, new)]


def differences(old: object, new: object) -> list[str]:
    """Return one line for each setting that differs."""
    return [f"{name}: {before} -> {now}" for name, before, now in changes(old, new)]


def versions() -> dict[str, str]:
    """Return the version of each package that numbers depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def write_training_set(record: Mapping, folder: Path) -> None:
    """Write the record into the folder of a run or of a model."""
    write_json(record, folder / TRAINING_SET)


def read_training_set(folder: Path) -> dict | None:
    """Return the record in the folder of a run or of a model; None where there is none that LAFR wrote."""
    path = folder / TRAINING_SET
    try:
        record = read_json(path) if path.stat().st_size <= LARGEST_RECORD else None
        return record if record and training_set_in_words(record) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def training_set_in_words(record: Mapping) -> str:
    """Return a record as a phrase: "600 faces of ffhq_600, 512 px by a lanczos filter, and 8 variants of each"."""
    phrases = []
    for one in record["sets"]:
        # a model from elsewhere may hold anything: no markup reaches a table
        name = re.sub(r"[^\w .+-]", "_", str(one["name"]))[:80]
        filtered = re.sub(r"\W", "_", str(one.get("filter", "")))[:20]
        phrases.append(f"{name}, {int(one['resolution'])} px by a {filtered} filter" if filtered else name)
    sides = {one.get("resolution") for one in record["sets"]}
    # a set prepared at the model's side keeps its pixels; other images are resized as they are read
    resized = "" if sides == {record["resolution"]} else f", read at {int(record['resolution'])} px"
    number = int(record.get("variants", 0))
    variants = f", and {number} variants of each" if number else ""
    return f"{int(record['faces']):,} faces of {' and '.join(phrases)}{resized}{variants}"


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
        "versions": versions(),
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
