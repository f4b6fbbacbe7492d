"""Checkpoints of a stage: atomic, holding only what was trained, the oldest removed."""

import io
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lafr.storage import atomic_folder, read_json, write_json

TRAINED = "trained.safetensors"
REMEDY = "free space and run the same command again: training resumes from the last checkpoint"


def save_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors."""
    # clone: safetensors refuses tensors that share memory, as views of one buffer do
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, path)


def random_state() -> dict:
    """Return the state of every global generator of this process, in types that a weights-only load reads."""
    # NumPy's legacy global generator; LAFR itself passes numpy.random.Generator
    numpy_state = np.random.get_state(legacy=False)["state"]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy_key": torch.from_numpy(numpy_state["key"].astype(np.int64)),
        "numpy_position": int(numpy_state["pos"]),
        "python": list(random.getstate()[1]),
    }


def set_random_state(state: dict) -> None:
    """Set every global generator to what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    key = state["numpy_key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, state["numpy_position"], 0, 0.0))
    # 3: the version of Python's state; None: no Gaussian number is left over
    random.setstate((3, tuple(state["python"]), None))


class Checkpoints:
    """The checkpoints of one stage in `folder`: `step_00000500/` and so on, and at the end `final/`."""

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, ascending."""
        # folders under construction are hidden (".step_..."): atomic_folder
        return sorted(int(path.name[5:]) for path in self.folder.glob("step_*") if path.name[5:].isdigit())

    def save(self, step: int, trained: dict[str, Tensor], state: dict, random_states: list[dict]) -> None:
        """Write the checkpoint of `step` and remove all but the newest `keep`."""

        def fill(path: Path) -> None:
            save_tensors(trained, path / TRAINED)  # separate, so that weights can be read without torch's pickle
            # into memory first: on a full disk torch's own file writer fails with an error that does not say so
            buffer = io.BytesIO()
            torch.save({"step": step, "random": random_states, **state}, buffer)
            (path / "state.pt").write_bytes(buffer.getbuffer())

        # the new one is complete before an old one is removed: a kill at any time leaves a checkpoint
        atomic_folder(self.folder / f"step_{step:08d}", fill, REMEDY)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"step_{old:08d}", ignore_errors=True)

    def load_latest(self) -> tuple[dict[str, Tensor], dict] | None:
        """Return (trained tensors, state) of the newest checkpoint, or None.

        The state holds what `save` was given, and `step` and `random`.
        """
        if not self.steps():
            return None
        path = self.folder / f"step_{self.steps()[-1]:08d}"
        return load_file(path / TRAINED), torch.load(path / "state.pt", weights_only=True, map_location="cpu")

    def finish(self, trained: dict[str, Tensor], summary: dict) -> None:
        """Write the stage's result and remove its checkpoints."""

        def fill(path: Path) -> None:
            save_tensors(trained, path / TRAINED)
            write_json(summary, path / "summary.json")

        atomic_folder(self.folder / "final", fill, REMEDY)
        for step in self.steps():
            shutil.rmtree(self.folder / f"step_{step:08d}", ignore_errors=True)

    def load_final(self) -> tuple[dict[str, Tensor], dict] | None:
        """Return (trained tensors, summary) of a finished stage, or None."""
        path = self.folder / "final"
        if not path.is_dir():
            return None
        return load_file(path / TRAINED), read_json(path / "summary.json")
