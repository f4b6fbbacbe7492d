"""Where a command runs."""

import torch

from lafr.errors import InputError


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; "auto" takes CUDA, then MPS, then the CPU."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in found.items() if there))
    kind = str(name).split(":")[0]
    if not found.get(kind):
        raise InputError(f"device={name} is not available here; use one of {[k for k, v in found.items() if v]}")
    return torch.device(name)
