"""Build the shipped miniature: train the base, the restorer and its controls, and pack them in half precision.

About 10 h on two CPU cores: the seconds in `data/mini/training.json`. Needs the faces of
`configs/data/congress_omi.yaml`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lafr.errors import InputError
from lafr.provenance import provenance
from lafr.storage import write_json
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


def build(output: Path, runs: Path = Path("runs"), overrides: Sequence[str] = ()) -> float:
    """Train what is not trained yet, pack it, and return the miniature's size in MB; run again, it resumes.

    Args:
        output: folder of the miniature.
        runs: folder of the experiments' runs.
        overrides: of every experiment, as `lafr train` takes them, such as "data.root=FOLDER".
    """
    output.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {MINI_VARIABLE: str(output.resolve())}  # later experiments start from the packed parts
    for experiment, folder in PARTS.items():
        run_dir = runs / experiment
        train = [sys.executable, "-m", "lafr", "train", f"+experiment={experiment}", f"run_dir={run_dir}", *overrides]
        if subprocess.run(train, env=environment, check=False).returncode:
            raise InputError(f"stopped in {experiment}; run the same command again to resume")
        pack(run_dir / "model", output / folder)
    experiments = {name: summaries(runs / name) for name in PARTS}
    write_json({"experiments": experiments, "made_by": provenance("lafr build-mini", seed=0)}, output / "training.json")
    return sum(path.stat().st_size for path in output.rglob("*.safetensors")) / 1e6


def pack(source: Path, target: Path) -> None:
    """Copy a model folder, its floating-point weights in half precision."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for path in target.rglob("*.safetensors"):
        state = {k: v.half() if v.dtype == torch.float32 else v for k, v in load_file(path).items()}
        with safe_open(path, "pt") as file:
            metadata = file.metadata()  # holds a LoRA's alpha
        save_file(state, path, metadata=metadata)
        path.chmod(0o644)


def summaries(run_dir: Path) -> dict[str, dict]:
    """Return the summary of each finished stage of a run, in the order in which they were finished."""
    files = sorted(run_dir.glob("*/final/summary.json"), key=lambda path: path.stat().st_mtime)
    return {path.parent.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in files}
