"""Where a command runs."""

from typing import TYPE_CHECKING

from lafr.commands.doors import require_device_name
from lafr.errors import InputError

if TYPE_CHECKING:
    import torch


def choose_device(name: str = "auto") -> "torch.device":
    """Return the device called `name`; "auto" takes CUDA, then MPS, then the CPU."""
    require_device_name(name)
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name.split(":")[0]]:
        here = ", ".join(kind for kind, there in available.items() if there)
        raise InputError("device", name, f"available on this machine, which has {here}")
    return torch.device(name)
