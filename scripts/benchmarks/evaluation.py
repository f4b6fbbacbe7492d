"""How long the evaluation takes to score another method's images, and how much memory, as a user starts it."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from lafr.errors import InputError
from lafr.evaluation import markdown
from lafr.images import write_image


def evaluation(cfg: DictConfig) -> dict:
    """Return seconds and peak memory of each run of `cfg.runs`, and of the same command given again."""
    rows = {}
    with tempfile.TemporaryDirectory(dir=cfg.folder) as place:
        for name, run in cfg.runs.items():
            folder = Path(place) / name
            write_images(folder, run.images, cfg.different, cfg.resolution, cfg.seed)
            first, again = (scored(folder, list(run.metrics)) for _ in range(2))
            asked = {"images": run.images, "metrics": list(run.metrics)}
            rows[name] = asked | first | {"again_seconds": again["seconds"]}
    return {"runs": rows, "resolution": cfg.resolution, "rows_scored": 2}


def write_images(folder: Path, images: int, different: int, side: int, seed: int) -> None:
    """Write `images` files of each kind, lq, hq and method: `different` ones of noise at four scales, and links."""
    for number in tqdm(range(images), desc="images", unit="image"):
        hq = None
        for kind, strength in (("hq", 0), ("lq", 0.2), ("method", 0.1)):
            path = folder / kind / f"{number:05d}.png"
            if number >= different:
                os.link(path.with_name(f"{number % different:05d}.png"), path)
                continue
            rng = np.random.default_rng([seed, number, int(100 * strength)])
            noise = [rng.standard_normal((1, 3, s, s), np.float32) for s in (4, 16, 64, side)]
            noise = [torch.nn.functional.interpolate(torch.from_numpy(n), side, mode="bicubic")[0] for n in noise]
            image = sum(n * weight for n, weight in zip(noise, (0.4, 0.2, 0.1, 0.02), strict=True))
            hq = image if hq is None else hq
            write_image(hq + strength * image, path)


def scored(folder: Path, metrics: list[str]) -> dict[str, float]:
    """Run `lafr eval` on the images; return its seconds and its peak memory in MB."""
    arguments = [
        f"data.lq={folder / 'lq'}",
        f"data.hq={folder / 'hq'}",
        f"outputs={folder / 'method'}",
        "device=cpu",
        f"output={folder / 'run'}",
        f"+protocol={{name: speed, metrics: [{', '.join(metrics)}]}}",
    ]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lafr", "eval", "benchmark=pair", "report=false", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise InputError("the evaluation failed; its own line above says why")
    return {"seconds": time.perf_counter() - started, "peak_mb": usage.ru_maxrss / 1000}


def evaluation_table(record: dict) -> str:
    """Return minutes and memory of each run."""
    columns = ["scored", "pairs", "minutes", "images a second", "peak memory, GB", "the same command again, minutes"]
    rows = []
    for run in record["runs"].values():
        speed = record["rows_scored"] * run["images"] / run["seconds"]
        minutes, again = run["seconds"] / 60, run["again_seconds"] / 60
        memory = f"{run['peak_mb'] / 1000:.2f}"
        metrics = ", ".join(run["metrics"])
        rows.append([metrics, f"{run['images']:,}", f"{minutes:.1f}", f"{speed:.1f}", memory, f"{again:.1f}"])
    side, threads = record["resolution"], record["threads"]
    note = f"LQ and another method's images of {side} px against HQ, on the CPU, {threads} threads, start included."
    return "\n".join([markdown.table(columns, rows), "", note])
