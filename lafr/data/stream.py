"""The training stream: pair n depends on (seed, n) alone."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lafr.data.degradation.operators import Degrade, Recipe, apply, degraded, target
from lafr.data.faces.sources import FaceSet
from lafr.errors import InputError

MIRRORED = 0.5  # share of pairs


class PairStream(Dataset):
    """An endless sequence of training pairs: `stream[n]` is `{"hq", "lq", "n"}`.

    Epoch e visits every face once in an order drawn from (seed, e); mirroring and degradation of pair n are drawn
    from (seed, n). Nothing else is random, so any process can make any pair at any time: the same pairs for any number
    of processes and workers, and a resumed run continues with the pair that it stopped at.

    >>> import torch
    >>> from lafr import Degradation, PairStream
    >>> stream = PairStream([torch.zeros(3, 64, 64)], Degradation(), seed=0)
    >>> torch.equal(stream[7]["lq"], stream[7]["lq"])
    True

    Attributes:
        latents: of each face, plain and mirrored, `[N, 2, C, h, w]` (`lafr.data.latents`); where they are set, a pair
            also holds `z_hq [C, h, w]`, the latent of its own `hq`.
        identified: whether a pair also holds `face`, a number that two pairs share if they have the same `hq`.
    """

    latents: Tensor | None = None
    identified = False

    def __init__(self, faces: FaceSet, degradation: Degrade, seed: int):
        self.faces, self.degradation, self.seed = faces, degradation, seed

    def face_index(self, n: int) -> int:
        """Return the index of the face of pair `n`."""
        # a permutation an epoch: every face is seen equally often, and no state has to be saved
        epoch, position = divmod(n, len(self.faces))
        # the second number keeps the streams apart: 0 order, 1 training pairs, 2 validation pairs
        return int(np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.faces))[position])

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        index, mirrored, rng = self._drawn(n)
        hq = self.faces[index]  # [3, R, R] in [-1, 1]
        if mirrored:
            hq = hq.flip(-1)
        # a recipe may change hq too: a gray photo is restored gray
        hq, lq = degraded(hq, self.degradation, rng)
        pair = {"hq": hq, "lq": lq, "n": torch.tensor(n)}
        if self.identified:
            pair["face"] = torch.tensor(2 * index + mirrored)
        return pair if self.latents is None else pair | {"z_hq": self.latents[index, int(mirrored)]}

    def _drawn(self, n: int) -> tuple[int, bool, np.random.Generator]:
        """Return the face of pair `n`, whether it is mirrored, and the generator of its degradation."""
        rng = np.random.default_rng([self.seed, 1, n])
        return self.face_index(n), bool(rng.random() < MIRRORED), rng

    def record(self, n: int) -> dict:
        """Return the random parameters of pair `n`, for JSON; `rebuilt` makes the pair from them.

        Raises InputError unless the degradation is a `Recipe`.
        """
        if not isinstance(self.degradation, Recipe):
            raise InputError("degradation", self.degradation, "a recipe whose `draw` returns a record")
        index, mirrored, rng = self._drawn(n)
        height, width = self.faces[index].shape[-2:]
        return {
            "n": n,
            "face": self.faces.name(index),
            "mirrored": mirrored,
            "degradation": self.degradation.draw(height, width, rng),
        }

    def held_out(self, faces: FaceSet) -> "HeldOut":
        """Return the validation pairs of `faces`."""
        return HeldOut(faces, self.degradation, self.seed)

    def loader(
        self,
        first_step: int,
        max_steps: int,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
    ) -> DataLoader:
        """Return this process's micro-batches for optimiser steps `first_step` .. `max_steps` - 1.

        Step s uses pairs [s * batch_size, (s + 1) * batch_size) whatever the number of processes: each of its
        `accumulation` micro-batches is a contiguous range of pairs, divided among the processes in rank order.
        """
        # more workers than processors only wait for each other
        num_workers = min(num_workers, os.cpu_count() or 1)
        if num_workers:
            cv2.setNumThreads(1)  # here, as long as its threads are there to be ended; see `start_worker`
            leaving = multiprocessing.RawValue("b", 0)
            Finalize(None, leave, (leaving,), exitpriority=1)  # before the loader processes that are left are ended
        return DataLoader(
            self,
            batch_sampler=_Steps(first_step, max_steps, batch_size, accumulation, rank, world),
            num_workers=num_workers,
            # workers keep their decoded faces for the whole stage
            persistent_workers=num_workers > 0,
            worker_init_fn=partial(start_worker, leaving) if num_workers else None,
            generator=torch.Generator(),  # by default DataLoader draws a seed from the global random state
        )


def start_worker(leaving: Any, _: int) -> None:
    """Prepare a loader process."""
    outlive_signals(leaving)
    # torch gives a worker one thread; OpenCV would start one for each core. A forked one has its parent's setting, and
    # must not change it: OpenCV would wait for the parent's threads, which it has not got
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)


def outlive_signals(leaving: Any) -> None:
    """Let a loader process outlive the signals that its whole group gets: the main process still saves its step.

    SIGTERM ends it once `leaving` is set, as the main process ends its loaders by that when it exits.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if leaving.value else None)


def leave(leaving: Any) -> None:
    """Let loader processes end."""
    leaving.value = 1


def rebuilt(record: dict, face: Tensor) -> dict[str, Tensor]:
    """Return the pair {"hq", "lq", "n"} from a `PairStream.record` and the face that it names, `[3, H, W]`."""
    # the same steps in the same order as `PairStream.__getitem__`
    hq = face.flip(-1) if record["mirrored"] else face
    steps = record["degradation"]
    return {"hq": target(steps, hq), "lq": apply(steps, hq), "n": torch.tensor(record["n"])}


class HeldOut:
    """Validation pairs: face i, not mirrored, degraded by the generator (seed, 2, i): the same at every step."""

    def __init__(self, faces: FaceSet, degradation: Degrade, seed: int):
        self.faces, self.degradation, self.seed = faces, degradation, seed

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        # a generator of its own for each face: the pairs don't depend on how many are validated
        hq, lq = degraded(self.faces[i], self.degradation, np.random.default_rng([self.seed, 2, i]))
        return {"hq": hq, "lq": lq, "n": torch.tensor(i)}


class _Steps:
    """Batch sampler: the pair numbers of each micro-batch of this process, see `PairStream.loader`."""

    def __init__(self, first_step: int, max_steps: int, batch_size: int, accumulation: int, rank: int, world: int):
        if batch_size % (accumulation * world):
            whole = f"a multiple of {accumulation * world}: {world} processes x {accumulation} accumulation steps"
            raise InputError("PairStream.batch_size", batch_size, whole)
        self.steps, self.batch_size, self.accumulation = range(first_step, max_steps), batch_size, accumulation
        self.rank, self.share = rank, batch_size // (accumulation * world)

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        micro = self.batch_size // self.accumulation  # pairs of one micro-batch over all processes
        for step in self.steps:
            # [start, start + micro) are the pairs of one micro-batch, of which this process takes its share
            for start in range(step * self.batch_size, (step + 1) * self.batch_size, micro):
                first = start + self.rank * self.share
                yield list(range(first, first + self.share))
