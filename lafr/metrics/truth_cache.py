"""A cache of networks' outputs for the ground truth: computed once for all methods of a table, stored if asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lafr.storage import read_tensors, sha256_of_tensors, write_tensors


class TruthCache:
    """Holds a network's output for the last ground-truth batch: a table scores each method on it in turn."""

    def __init__(self) -> None:
        self._pixels: Tensor | None = None
        self._output: Any = None
        self._folder: Path | None = None

    def keep_in(self, folder: Path) -> None:
        """Also store outputs as files in `folder`, one per batch, and read them from there.

        Only for functions that return one tensor; all that share a folder must compute the same.
        """
        self._folder = folder

    def __call__(self, compute: Callable[[Tensor], Any], hq: Tensor) -> Any:
        """Return `compute(hq)`; `compute` must be the same function at every call."""
        if self._pixels is None or not torch.equal(self._pixels, hq):
            self._output = compute(hq) if self._folder is None else _stored(self._folder, compute, hq)
            self._pixels = hq.clone()  # the caller may reuse the batch's memory
        return self._output


def _stored(folder: Path, compute: Callable[[Tensor], Tensor], hq: Tensor) -> Tensor:
    image = sha256_of_tensors({"": hq})
    path = folder / f"{image}.safetensors"
    stored = read_tensors(path, {"image": image})  # None where it is damaged: it is computed again
    if stored is not None:
        return stored["seen"].to(hq.device)
    output = compute(hq)
    write_tensors(path, {"seen": output}, {"image": image})
    return output
