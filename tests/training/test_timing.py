"""Seconds and peak memory of a piece of work."""

import time

import pytest
import torch

from lafr.training.timing import measure

CPU = torch.device("cpu")


def test_peak_memory_is_what_the_work_holds_at_once_although_the_allocator_keeps_it():
    kept = []

    def work(pieces: int) -> None:
        held = [torch.ones(25_000_000 // pieces) for _ in range(pieces)]  # 100 MB
        kept.append(torch.ones(1_000))  # on top of the heap: what lies below is not given back by itself
        del held

    for pieces in (1, 10_000):
        assert measure(lambda: work(pieces), CPU, repeats=1).peak_mb == pytest.approx(100, rel=0.1)  # noqa: B023


def test_the_median_is_not_moved_by_one_slow_repeat_and_the_warm_up_does_not_count():
    naps = iter([0.4, 0.01, 0.01, 0.2, 0.01])  # the first is the warm-up, the last measures memory

    cost = measure(lambda: time.sleep(next(naps)), CPU, repeats=3)

    assert cost.fastest <= cost.seconds < 0.1 < 0.2 <= cost.slowest < 0.4
