"""Seconds and peak memory of a piece of work."""

import time

import pytest
import torch

from lafr.training.timing import measure

CPU = torch.device("cpu")


@pytest.mark.parametrize("pieces", [1, 20_000])
def test_peak_memory_is_what_the_work_holds_at_once_although_the_allocator_keeps_it(pieces):
    kept = []

    def work() -> None:
        held = [torch.ones(50_000_000 // pieces) for _ in range(pieces)]  # 200 MB
        kept.append(torch.ones(1_000))  # on top of the heap: what lies below is not given back by itself
        del held

    assert measure(work, CPU, repeats=1).peak_mb == pytest.approx(200, rel=0.1)


def test_the_median_is_not_moved_by_one_slow_repeat_and_the_warm_up_does_not_count():
    naps = iter([0.5, 0.02, 0.02, 0.3, 0.02])  # the first is the warm-up, the last measures memory

    cost = measure(lambda: time.sleep(next(naps)), CPU, repeats=3)

    assert cost.fastest <= cost.seconds < 0.1 < 0.3 <= cost.slowest < 0.5
