"""Loading what LAFR saved: exactly the keys that a module has, no more and no fewer."""

from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from lafr.errors import InputError


def existing(path: Path) -> Path:
    """Return `path`; raises InputError when there is no such file."""
    if not path.is_file():
        raise InputError(f"{str(path)!r} is missing; give a folder that LAFR saved")
    return path


def load_exactly(path: Path, wanted: Iterable[str]) -> dict[str, Tensor]:
    """Return the safetensors at `path`; raises InputError unless its keys are exactly `wanted`."""
    state, wanted = load_file(existing(path)), set(wanted)
    missing, unexpected = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or unexpected:
        raise InputError(
            f"weights in {str(path.parent)!r} do not fit: {len(missing)} missing {missing[:2]}, "
            f"{len(unexpected)} unexpected {unexpected[:2]}"
        )
    return state
