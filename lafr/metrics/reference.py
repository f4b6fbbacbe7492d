"""What a network says of the ground truth, computed once for all rows of a table."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class OfReference:
    """Keeps what was last seen in the last ground-truth batch: the rows of a table share it."""

    def __init__(self):
        self._pixels: Tensor | None = None
        self._seen: Any = None

    def __call__(self, look: Callable[[Tensor], Any], hq: Tensor) -> Any:
        """Return `look(hq)`; `look` must be the same function at every call."""
        if self._pixels is None or not torch.equal(self._pixels, hq):
            self._seen = look(hq)
            self._pixels = hq.clone()
        return self._seen
