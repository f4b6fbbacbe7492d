"""Seconds and peak memory of a computation, measured."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Cost:
    """Median seconds with the fastest and slowest repeat, and peak memory above rest in MB."""

    seconds: float
    fastest: float
    slowest: float
    peak_mb: float


def measure(work: Callable[[], object], device: torch.device, repeats: int = 5, warm_up: int = 1) -> Cost:
    """Run `work` and return its cost: resident memory on the CPU (Linux), allocated memory on a GPU.

    `repeats` runs are timed; memory is measured in one more, so that measuring it costs no time.
    """
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - started)
    # a run of its own: resetting the peak and collecting garbage take time
    peak_mb = first_call(work, device)[1]
    # the median: a busy machine slows single repeats, never speeds one up
    return Cost(statistics.median(times), min(times), max(times), peak_mb)


def first_call(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Run `work` once; return its seconds and its peak memory above rest in MB."""
    rest = _reset_peak(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started, max(0.0, (_peak(device) - rest) / 1e6)


def wait(device: torch.device) -> None:
    """CUDA runs asynchronously: without this only the launch of the kernels would be timed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # glibc keeps freed memory, which would hide what the work needs
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the kernel's high-water mark
    return _peak(device)


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # VmHWM: peak resident memory, in KiB
    return 1024 * float(status.split("VmHWM:")[1].split()[0])
