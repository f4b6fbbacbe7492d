"""Where a command runs, and on how many cores."""

import os
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
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise InputError("device", name, f"one of this machine's, cuda:0 to cuda:{count - 1}")
    return device


def share_cores() -> None:
    """Give each process of a launch its share of this machine's cores, in torch and in OpenCV, which would take all.

    A lower number of torch's threads (OMP_NUM_THREADS) holds for OpenCV too.
    """
    import cv2
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(min(share, torch.get_num_threads()))
    cv2.setNumThreads(torch.get_num_threads())
