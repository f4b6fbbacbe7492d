"""How long commands take to their first result, compared with importing what they are built on."""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from omegaconf import DictConfig
from tqdm import tqdm

from lafr.errors import InputError
from lafr.evaluation import markdown
from lafr.weights import locate, mini_folder

REFERENCE = "import torch, diffusers, and read the weights"
READ = """
import sys, torch, {diffusers}
from safetensors.torch import load_file
for path in sys.argv[1:]:
    load_file(path)
"""
BOUND = "the same, with the classes of the two models"  # diffusers imports what it holds on first use
CLASSES = "diffusers\nfrom diffusers import AutoencoderKL, UNet2DConditionModel"
# command -> at most this often the reference's time
GOALS = {"lafr restore one.jpg": 1.5, "lafr --help": 0.2, "lafr restore --wrong": 0.2, "lafr train wrong=1": 0.2}


def startup(cfg: DictConfig) -> dict:
    """Return the seconds of each command, elapsed and of processor time, and ratios to the reference in its turn."""
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        photo = Path(place) / "one.jpg"
        write_photo(photo)
        for turn in tqdm(range(cfg.repeats + 1), desc="startup", unit="turn"):
            for name, command in commands(photo, Path(place) / str(turn)).items():
                found = timed(command)
                if turn:  # the first reads the disk
                    seconds.setdefault(name, []).append(found)
    rows: dict[str, dict[str, float | None]] = {}
    for name, own in seconds.items():
        ratios, of_processor = (
            [ours[clock] / reference[clock] for ours, reference in zip(own, seconds[REFERENCE], strict=True)]
            for clock in (0, 1)
        )
        rows[name] = {"seconds": median(turn[0] for turn in own), "processor": median(of_processor)}
        rows[name] |= {"ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios), "goal": GOALS.get(name)}
    return {"commands": rows, "repeats": cfg.repeats}


def commands(photo: Path, output: Path) -> dict[str, list[str]]:
    """Return each command's arguments by its name."""
    weights = [mini_folder() / "base" / part / "diffusion_pytorch_model.safetensors" for part in ("vae", "unet")]
    weights += sorted((mini_folder() / "lafr").rglob("*.safetensors"))
    lafr = [sys.executable, "-m", "lafr"]
    return {
        REFERENCE: [sys.executable, "-c", READ.format(diffusers="diffusers"), *map(str, weights)],
        BOUND: [sys.executable, "-c", READ.format(diffusers=CLASSES), *map(str, weights)],
        "lafr restore one.jpg": [*lafr, "restore", str(photo), "-o", str(output), "--quiet"],
        "lafr --help": [*lafr, "--help"],
        "lafr restore --wrong": [*lafr, "restore", str(photo), "-o", str(output), "--wrong"],
        "lafr train wrong=1": [*lafr, "train", "+experiment=mini", "wrong=1"],
    }


def write_photo(path: Path) -> None:
    """Write the astronaut as a JPEG of 512 px."""
    from PIL import Image

    Image.open(locate("astronaut")).convert("RGB").save(path, quality=92)


def timed(command: list[str]) -> tuple[float, float]:
    """Return the seconds of a command, elapsed and of processor time.

    Raises InputError when it fails otherwise than by a wrong argument.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    wrong = any("wrong" in argument for argument in command)
    if bool(done.returncode) != wrong:
        raise InputError(f"{' '.join(command[1:4])} ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def startup_table(record: dict) -> str:
    """Return each command's time relative to the reference."""
    rows = []
    for name, found in record["commands"].items():
        goal = "" if found["goal"] is None else f"{found['goal']:g}x"
        spread = f"{found['lowest']:.2f}–{found['highest']:.2f}x"
        rows.append([name, f"{found['ratio']:.2f}x", spread, f"{found['processor']:.2f}x", goal])
    table = markdown.table(["command", "time", "lowest–highest", "processor time", "goal, at most"], rows)
    return f"{table}\n\nRelative to the first line in the same turn, median of {record['repeats']}; the miniature."
