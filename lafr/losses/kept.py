"""What frozen networks say of images that come back, kept in memory between steps.

The recogniser, landmarker, parser and perceptual features of a ground-truth face are functions of that face and of
whether it is mirrored: computed once, they serve every later step.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

Compute = Callable[[Tensor], Any]  # images [B, 3, H, W] -> tensor, or list or record of tensors, [B, ...] each


class Kept:
    """Outputs by network and key, within a budget of memory on the CPU.

    Every image is computed alone, kept or not: what comes out never depends on what else was in its batch or in
    memory, so that a resumed run computes the same bits. The networks with the smallest outputs are kept first, and
    what no longer fits is computed again at each step.

    Args:
        gigabytes: the budget.
        entries: how many different images will come, at most.
    """

    def __init__(self, gigabytes: float, entries: int):
        self.left, self.entries = gigabytes * 1e9, entries
        self.hits, self.misses = 0, 0
        self._outputs: dict[Compute, dict[int, Any]] = {}
        self._bytes: dict[Compute, int] = {}  # of one image's output
        self._rooms: dict[Compute, int] = {}  # how many outputs are kept

    def __call__(self, compute: Compute, images: Tensor, keys: Sequence[int]) -> Any:
        """Return `compute(images)`, image by image; `keys` identify the images."""
        outputs = self._outputs.setdefault(compute, {})
        # nothing is kept of a network's first batch: the budget is divided when the sizes of all networks are known
        first = compute not in self._bytes
        found = []
        for image, key in zip(images.split(1), keys, strict=True):
            if key in outputs:
                self.hits += 1
                found.append(_mapped(lambda tensor: tensor.to(images.device), outputs[key]))
                continue
            self.misses += 1
            found.append(compute(image))
            if first:
                self._bytes[compute] = bytes_of(found[-1])
            elif len(outputs) < self._room(compute):
                outputs[key] = _mapped(Tensor.cpu, found[-1])
        return _mapped(_joined, *found)

    @property
    def held(self) -> int:
        """Return the bytes that are kept."""
        return sum(self._bytes[compute] * len(outputs) for compute, outputs in self._outputs.items())

    def _room(self, compute: Compute) -> int:
        """Return how many outputs of a network are kept."""
        if compute not in self._rooms:
            for network, size in sorted(self._bytes.items(), key=lambda item: item[1]):
                if network not in self._rooms:
                    self._rooms[network] = min(self.entries, int(self.left // size))
                    self.left -= self._rooms[network] * size
        return self._rooms[compute]


def _mapped(function: Callable, *outputs: Any) -> Any:
    """Apply a function to the tensors at the same place of outputs of one kind."""
    first = outputs[0]
    if isinstance(first, list | tuple):
        return [_mapped(function, *parts) for parts in zip(*outputs, strict=True)]
    if is_dataclass(first) and not isinstance(first, type):
        parts = {field.name: [getattr(output, field.name) for output in outputs] for field in fields(first)}
        return replace(first, **{name: _mapped(function, *values) for name, values in parts.items()})
    return None if first is None else function(*outputs)


def _joined(*parts: Tensor) -> Tensor:
    """Return `[B, ...]` of B tensors `[1, ...]`."""
    return torch.cat(parts)


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of an output: itself, or those of a list or a record."""
    found: list[Tensor] = []
    _mapped(found.append, output)
    return found


def bytes_of(output: Any) -> int:
    """Return the bytes of an output's tensors."""
    return sum(tensor.nbytes for tensor in tensors_of(output))
