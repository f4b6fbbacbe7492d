"""What a network says of the ground truth, computed once for all rows of a table, and kept for other runs if asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lafr.storage import atomic_write, sha256_of_tensors


class OfReference:
    """Keeps what was last seen in the last ground-truth batch: the rows of a table share it."""

    def __init__(self):
        self._pixels: Tensor | None = None
        self._seen: Any = None
        self._folder: Path | None = None

    def keep_in(self, folder: Path) -> None:
        """Keep what is seen as files in `folder` too, one a batch, and look there first.

        Only where `look` returns one tensor, and is the same function for all who use the folder.
        """
        self._folder = folder

    def __call__(self, look: Callable[[Tensor], Any], hq: Tensor) -> Any:
        """Return `look(hq)`; `look` must be the same function at every call."""
        if self._pixels is None or not torch.equal(self._pixels, hq):
            self._seen = look(hq) if self._folder is None else self._kept(look, hq)
            self._pixels = hq.clone()
        return self._seen

    def _kept(self, look: Callable[[Tensor], Tensor], hq: Tensor) -> Tensor:
        path = self._folder / f"{sha256_of_tensors({'': hq})}.safetensors"
        if path.is_file():
            try:
                return load_file(path)["seen"].to(hq.device)
            except (SafetensorError, KeyError):  # damaged: look again
                pass
        seen = look(hq)
        atomic_write(path, lambda aside: save_file({"seen": seen.contiguous()}, aside))
        return seen
