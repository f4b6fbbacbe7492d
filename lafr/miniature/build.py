"""Build the shipped miniature: train the base, the restorer and its controls, and pack them in half precision.

`data/mini/training.json` holds the seconds of each stage, on two CPU cores. Needs the faces of
`configs/data/congress_omi.yaml`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lafr.errors import InputError, Stopped
from lafr.provenance import provenance
from lafr.storage import atomic_folder, read_json, write_json
from lafr.training.record import settings_of
from lafr.weights import MINI_VARIABLE

# experiment -> folder of the miniature; each is trained on those before it, as packed
PARTS = {
    "mini_base": "base",
    "mini_prior": "base",  # the same base, its prior trained further
    "mini_networks": "networks",
    "mini": "lafr",
    "mini_paper": "paper",
    "mini_none": "none",
    "mini_conv": "conv",
    "mini_decoder": "tiny",
}


def build(
    output: Path, runs: Path = Path("runs"), overrides: Sequence[str] = (), command: str = "lafr build-mini"
) -> float:
    """Train what is not trained yet, pack it, and return the miniature's size in MB; run again, it resumes.

    Args:
        output: folder of the miniature.
        runs: folder of the experiments' runs.
        overrides: of every experiment, as `lafr train` takes them, such as "data.root=FOLDER".
        command: what is run, for the record.

    Raises InputError, or Stopped, when a part does not reach its end.
    """
    output.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {MINI_VARIABLE: str(output.resolve())}  # later experiments start from the packed parts
    for experiment, folder in PARTS.items():
        run_dir = runs / experiment
        train = [sys.executable, "-m", "lafr", "train", f"+experiment={experiment}", f"run_dir={run_dir}", *overrides]
        code = subprocess.run(train, env=environment, check=False).returncode
        if code:
            kind = Stopped if code == Stopped.CODE else InputError
            raise kind(f"stopped in {experiment}; run the same command again to resume")
        pack(run_dir / "model", output / folder)
    experiments = {name: summaries(runs / name) for name in PARTS}
    write_json({"experiments": experiments, "made_by": provenance(command, seed=0)}, output / "training.json")
    return sum(path.stat().st_size for path in output.rglob("*.safetensors")) / 1e6


def pack(source: Path, target: Path) -> None:
    """Copy a model folder, its floating-point weights in half precision; `target` is replaced when that is whole."""

    def fill(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        for path in folder.rglob("*.safetensors"):
            given = source / path.relative_to(folder)  # not the copy: its tensors would be read while it is written
            state = {k: v.half() if v.dtype == torch.float32 else v for k, v in load_file(given).items()}
            with safe_open(given, "pt") as file:
                metadata = file.metadata()  # holds a LoRA's alpha
            save_file(state, path, metadata=metadata)
            path.chmod(0o644)

    atomic_folder(target, fill)


def summaries(run_dir: Path) -> dict[str, dict]:
    """Return the summary of each finished stage of a run, in the order of its settings."""
    stages = settings_of(run_dir)["stage"]  # the times of files say nothing of a run that was copied
    files = {name: run_dir / name / "final" / "summary.json" for name in stages}
    return {name: read_json(path) for name, path in files.items() if path.is_file()}
