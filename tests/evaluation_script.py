"""`scripts/eval.py` on the tiny model, in a process that the tests start."""

import gc
import os
import runpy
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "eval.py"
NETWORKS = ("st_lpips_vgg", "st_lpips_alex", "identity_cos_sface", "identity_distance_dlib", "lmd_68")
FAST = [f"~metrics.{name}" for name in NETWORKS] + ["batch_size=3", "report=false", "device=cpu", "run_name=tiny"]


class MeanColour:
    """A metric of the set: the distance of its mean colour from the ground truth's."""

    def features(self, image):
        """Return each image's mean colour `[B, 3]`."""
        return image.mean((2, 3))

    def score(self, features, reference, seed):
        """Return the distance; it has no spread."""
        distance = float((features.mean(0) - reference.mean(0)).norm())
        return {"mean": distance, "low": distance, "high": distance}


COLOUR = "+metrics.mean_colour={_target_: evaluation_script.MeanColour}"


def run_eval(arguments, folder, output=os.devnull):
    """Run the script in this process as the shell would in `folder`, one thread, its output in a file."""
    torch.set_num_threads(1)
    torch.seed()  # nothing may depend on the global generators
    gc.freeze()  # or every collection walks, and copies, all that the forked server had imported
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.argv = [str(SCRIPT), *arguments]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def run_here(monkeypatch, capfd, *arguments: str) -> tuple[int, str, str]:
    """Run the script in this process and folder, its imports done; return exit code, error output and output."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *FAST, *arguments])
    capfd.readouterr()
    code, said = 0, ""
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        code, said = 1, str(stop.code)
    out = capfd.readouterr()
    return code, said or out.err, out.out
