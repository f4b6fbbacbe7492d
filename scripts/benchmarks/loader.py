"""How many training pairs a second the data loader makes, compared with how many training consumes."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median

import cv2
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from lafr.data.faces import Faces
from lafr.data.packaged import PackagedFaces
from lafr.data.stream import PairStream
from lafr.errors import InputError
from lafr.evaluation import markdown
from lafr.images import list_images, write_image
from lafr.models.restorer import Restorer
from lafr.storage import read_json
from lafr.training.objectives import RestorationObjective
from lafr.training.timing import measure

TRAINING = Path(__file__).resolve().parents[2] / "results" / "benchmarks" / "training.json"
PATIENCE = 600  # seconds until processes that wait for one which failed end


def loader(cfg: DictConfig) -> dict:
    """Return pairs per second for each number of workers, at first visits and later ones, from a folder of PNG."""
    degradation = instantiate(cfg.degradation, _convert_="all")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        if cfg.data.root is None:
            batches_of(cfg.images, cfg.batch_size)  # before they are written
            packaged = PackagedFaces(cfg.resolution)
            for i in range(cfg.images):  # copies: what is read is as large as a set of this size
                write_image(packaged[i % len(packaged)], Path(folder) / f"{i:03d}.png")
        paths = list_images(cfg.data.root or folder)[: cfg.images]
        steps = batches_of(len(paths), cfg.batch_size)
        for workers in tqdm(cfg.workers, desc="loader", unit="setting"):
            pairs = PairStream(Faces(paths, cfg.resolution), degradation, cfg.seed)
            seconds = timed(pairs.loader(0, 2 * steps, cfg.batch_size, num_workers=workers), steps, workers)
            rows[str(workers)] = {name: steps * cfg.batch_size / value for name, value in seconds.items()}
        pairs = PairStream(Faces(paths, cfg.resolution), degradation, cfg.seed)
        processes = side_by_side(pairs, cfg.processes, 4 * steps)  # half a second or so: a process takes time to wake
    return {
        "pairs_per_second": rows,
        "processes": processes,
        "eaten": {"miniature, 128 px, here": eaten_by_miniature(cfg)},
        "resolution": cfg.resolution,
        "images": len(paths),
        "batch_size": cfg.batch_size,
    }


def batches_of(images: int, batch_size: int) -> int:
    """Return the number of whole batches; raises InputError for fewer than two: with workers the first is not timed."""
    if images < 2 * batch_size:
        raise InputError("images", images, f"two batches at least, {2 * batch_size}")
    return images // batch_size


def timed(batches: Iterable, steps: int, workers: int) -> dict[str, float]:
    """Return the seconds of the first `steps` batches, in which every face is decoded, and of the next `steps`."""
    stream = iter(batches)
    if workers:
        next(stream)  # the processes have started
    started, seconds = time.perf_counter(), {}
    for name, count in (("first visit", steps - bool(workers)), ("later visits", steps)):
        for _ in range(count):
            next(stream)
        seconds[name] = (time.perf_counter() - started) * steps / count
        started = time.perf_counter()
    return seconds


def side_by_side(pairs: PairStream, processes: int, count: int) -> dict:
    """Return pairs a second of several processes together, OpenCV on every core in each, and on its share of them.

    In turn, three times each; `count` pairs a process, whose faces are decoded before the clock runs.
    """
    share = max(1, (os.cpu_count() or 1) // processes)
    ways = {"every core": os.cpu_count() or 1, "its share": share}
    found: dict[str, list[float]] = {way: [] for way in ways}
    context = multiprocessing.get_context("spawn")
    for _ in range(3):
        for way, threads in ways.items():
            began, ended = (context.Barrier(processes + 1) for _ in range(2))
            how = (pairs, threads, count, began, ended)
            makers = [context.Process(target=make_pairs, args=how, daemon=True) for _ in range(processes)]
            for maker in makers:
                maker.start()
            began.wait(PATIENCE)
            started = time.perf_counter()
            ended.wait(PATIENCE)
            found[way].append(processes * count / (time.perf_counter() - started))
            for maker in makers:
                maker.join()
    ratios = [share / every for every, share in zip(found["every core"], found["its share"], strict=True)]
    spread = {"ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return {"count": processes, "threads": share, **{way: median(rates) for way, rates in found.items()}, **spread}


def make_pairs(pairs: PairStream, threads: int, count: int, began: Barrier, ended: Barrier) -> None:
    """Make the first pairs twice, OpenCV on so many threads; the second time, from faces in memory, is timed."""
    cv2.setNumThreads(threads)
    torch.set_num_threads(1)
    for barrier in (began, ended):
        for n in range(count):
            pairs[n]
        barrier.wait(PATIENCE)


def eaten_by_miniature(cfg: DictConfig) -> float:
    """Return the pairs per second that the miniature's restoration stage trains on here."""
    objective = RestorationObjective(Restorer.from_pretrained("mini"), instantiate(cfg.loss, _convert_="all")).train()
    side = objective.restorer.resolution
    lq, hq = torch.rand(2, 4, 3, side, side, generator=torch.Generator().manual_seed(cfg.seed)) * 2 - 1
    batch = {"lq": lq, "hq": hq, "n": torch.arange(4)}

    def step() -> None:
        objective.total(objective(batch)).backward()

    return 4 / measure(step, torch.device("cpu"), repeats=3).seconds


def loader_table(record: dict) -> str:
    """Return pairs a second by workers, as multiples of no worker, and what training needs of that."""
    rows = record["pairs_per_second"]
    unit = next(iter(rows.values()))["later visits"]
    side = record["resolution"]
    lines = []
    for workers, row in rows.items():
        lines.append([f"{workers} workers", *(f"{row[name] / unit:.2f}" for name in ("first visit", "later visits"))])
    for name, value in record["eaten"].items():
        lines.append([f"training needs: {name}", "", f"{value / unit:.3f}"])
    for name, card in read_json(TRAINING)["hours"].items():
        lines.append([f"training would need: 512 px, {name}, estimated", "", f"{card['pairs_per_second'] / unit:.2f}"])
    table = markdown.table([f"loader at {side} px", "first visit", "later visits"], lines)
    text = f"{table}\n\nPairs a second, in units of one process that has seen every face."
    if "processes" in record:
        own = record["processes"]
        gain = f"{own['ratio']:.2f}x ({own['lowest']:.2f}–{own['highest']:.2f})"
        text += (
            f" {own['count']} processes together make {gain} as many pairs where OpenCV has its share of the cores "
            f"({own['threads']} thread each, as `lafr train` sets it) as where it takes all in each."
        )
    return text
