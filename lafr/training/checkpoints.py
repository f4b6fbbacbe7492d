"""Checkpoints of a stage: atomic, checked before they are loaded, holding only what was trained, the oldest removed."""

import io
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lafr.errors import InputError, require_whole
from lafr.storage import DamagedError, JsonLines, atomic_folder, read_json, seal, unsealed, write_json

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
    """The checkpoints of one stage in `folder`: `step_00000500/` and so on, and at the end `final/`.

    Each is sealed: a manifest, written last, holds the sha256 of its files, and what the stage's logs were when it was
    written. A damaged one is never loaded.
    """

    LOGS = ("log.jsonl", "pairs.jsonl")

    def __init__(self, folder: str | Path, keep: int = 2):
        require_whole(1, keep_checkpoints=keep)  # of 0 or -1, slices below would remove none, or the newest
        self.folder, self.keep = Path(folder), keep

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, ascending."""
        # folders under construction are hidden (".step_..."): atomic_folder
        return sorted(int(path.name[5:]) for path in self.folder.glob("step_*") if path.name[5:].isdigit())

    def path(self, step: int) -> Path:
        """Return the folder of a checkpoint."""
        return self.folder / f"step_{step:08d}"

    def save(self, step: int, trained: dict[str, Tensor], state: dict, random_states: list[dict]) -> None:
        """Write the checkpoint of `step` and remove all but the newest `keep`."""

        def fill(path: Path) -> None:
            save_tensors(trained, path / TRAINED)  # separate, so that weights can be read without torch's pickle
            # into memory first: on a full disk torch's own file writer fails with an error that does not say so
            buffer = io.BytesIO()
            torch.save({"step": step, "random": random_states, **state}, buffer)
            (path / "state.pt").write_bytes(buffer.getbuffer())
            self._seal(path)

        # the new one is complete before an old one is removed: a kill at any time leaves a checkpoint
        atomic_folder(self.path(step), fill, REMEDY)
        self._remove(self.steps()[: -self.keep])

    def newest_whole(self) -> tuple[int, list[str]]:
        """Return the step of the newest checkpoint that is as it was written, 0 without any, and what is damaged.

        Damaged ones are renamed, so that later ones are counted without them. Raises InputError when none is whole.
        """
        damage = []
        for step in reversed(self.steps()):
            try:
                unsealed(self.path(step))
            except DamagedError as error:
                damage.append(error.args[0])
                continue
            for later in [other for other in self.steps() if other > step]:
                aside = self.folder / f"damaged_{self.path(later).name}"
                shutil.rmtree(aside, ignore_errors=True)
                self.path(later).rename(aside)
            return step, damage
        if damage:
            raise InputError(
                f"no checkpoint in {str(self.folder)!r} can be used: {'; '.join(damage)}",
                remedy="restore one from a copy, or delete the folder to train this stage from its start",
            )
        return 0, damage

    def load(self, step: int) -> tuple[dict[str, Tensor], dict]:
        """Return (trained tensors, state) of a checkpoint.

        The state holds what `save` was given, and `step` and `random`.
        """
        path = self.path(step)
        return load_file(path / TRAINED), torch.load(path / "state.pt", weights_only=True, map_location="cpu")

    def finish(self, trained: dict[str, Tensor], summary: dict) -> None:
        """Write the stage's result and remove its checkpoints but the newest.

        That one is what `final/` is made from again where it is damaged, or where the stage is given more steps.
        """

        def fill(path: Path) -> None:
            save_tensors(trained, path / TRAINED)
            write_json(summary, path / "summary.json")
            self._seal(path)

        atomic_folder(self.folder / "final", fill, REMEDY)
        self._remove(self.steps()[:-1])
        for damaged in self.folder.glob("damaged_step_*"):
            shutil.rmtree(damaged, ignore_errors=True)

    def final_is_whole(self) -> tuple[bool, list[str]]:
        """Return whether the stage is finished and its result as it was written, and what is damaged.

        Raises InputError when a damaged result cannot be made again.
        """
        if not (self.folder / "final").is_dir():
            return False, []
        try:
            marks = unsealed(self.folder / "final")["logs"]
        except DamagedError as error:
            if not self.steps():
                remedy = "restore it from a copy, or delete the folder to train this stage again"
                raise InputError(
                    f"{error.args[0]}, and there is no checkpoint to make it from", remedy=remedy
                ) from None
            return False, [error.args[0]]
        logs = {name: JsonLines(self.folder / name) for name in marks}
        return True, [f"{str(log.path)!r} has changed" for name, log in logs.items() if log.mark() != marks[name]]

    def load_final(self) -> tuple[dict[str, Tensor], dict]:
        """Return (trained tensors, summary) of a finished stage."""
        path = self.folder / "final"
        return load_file(path / TRAINED), read_json(path / "summary.json")

    def cut_back_logs(self, step: int) -> list[str]:
        """Drop what the logs hold from after the checkpoint of `step` (0: from after the start); return the damage."""
        marks = unsealed(self.path(step))["logs"] if step else {}
        damage = []
        for name in self.LOGS:
            log = JsonLines(self.folder / name)
            if not log.cut_back(*marks.get(name, (0, ""))):
                damage.append(f"{str(log.path)!r} is missing or damaged: it continues without its beginning")
        return damage

    def _seal(self, path: Path) -> None:
        logs = [JsonLines(self.folder / name) for name in self.LOGS]
        seal(path, logs={log.path.name: log.mark() for log in logs if log.path.is_file()})

    def _remove(self, steps: list[int]) -> None:
        for step in steps:
            shutil.rmtree(self.path(step), ignore_errors=True)
