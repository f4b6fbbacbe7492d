"""Training on two processes that is stopped by signals, and started again: the result is that of an unbroken run."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from scripts.benchmarks.faults import Trial
from scripts.benchmarks.faults.kills import TWO, VARIANTS, chained, unbroken
from scripts.benchmarks.faults.runs import Workshop

CHAIN = 2  # signals to one run, before its result is compared


def trials(count: int, seed: int, folder: Path) -> Iterator[Trial]:
    """Send `count` signals, each to one of the two processes at a random event."""
    rng, shop = np.random.default_rng(seed), Workshop(folder)
    shop.fill(seed)
    config = partial(shop.training, *VARIANTS[TWO])
    whole, events = unbroken(TWO, config(f"run_dir={folder / 'whole'}"), folder)
    tried = 0
    while tried < count:
        chain = list(chained(TWO, config, folder, whole, events, min(CHAIN, count - tried), rng, signals=True))
        yield from chain
        tried += len(chain)
    shutil.rmtree(folder / "whole")
