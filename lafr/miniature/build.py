"""Build the shipped miniature: train the base, the restorer and its controls, and pack them in half precision.

    lafr build-mini            # resumable; everything in runs/, then packed into data/mini/

About 4 h on two CPU cores: the seconds in `data/mini/training.json`. Needs the faces of
`configs/data/congress_omi.yaml`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lafr.provenance import provenance
from lafr.storage import write_json

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "data" / "mini"
# experiment -> folder in data/mini; each is trained on what stands before it, as shipped
PARTS = {
    "mini_base": "base",
    "mini_networks": "networks",
    "mini_appearance": "appearance",
    "mini_multilevel": "lafr",
    "mini_none": "none",
    "mini_conv": "conv",
}


def pack(source: Path, target: Path) -> None:
    """Copy a model folder, its floating-point weights in half precision."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for path in target.rglob("*.safetensors"):
        state = {k: v.half() if v.dtype == torch.float32 else v for k, v in load_file(path).items()}
        with safe_open(path, "pt") as file:
            metadata = file.metadata()  # a LoRA's alpha stands there
        save_file(state, path, metadata=metadata)
        path.chmod(0o644)


def summaries(experiment: str) -> dict[str, dict]:
    """Return what each finished stage of an experiment says of itself, in order."""
    files = (ROOT / "runs" / experiment).glob("*/final/summary.json")
    return {
        path.parent.parent.name: json.loads(path.read_text()) for path in sorted(files, key=lambda p: p.stat().st_mtime)
    }


def main() -> None:
    """Train what is not trained yet, then pack it."""
    for experiment, folder in PARTS.items():
        train = [sys.executable, "scripts/train.py", f"+experiment={experiment}"]
        if subprocess.run(train, cwd=ROOT, check=False).returncode:
            sys.exit(f"stopped in {experiment}; run the same command again to go on")
        pack(ROOT / "runs" / experiment / "model", MINI / folder)
    made_by = provenance("lafr build-mini", seed=0)
    write_json({"experiments": {name: summaries(name) for name in PARTS}, "made_by": made_by}, MINI / "training.json")
    size = sum(path.stat().st_size for path in MINI.rglob("*.safetensors")) / 1e6
    print(f"packed {', '.join(PARTS.values())} into {MINI.relative_to(ROOT)}: {size:.1f} MB")


if __name__ == "__main__":
    main()
