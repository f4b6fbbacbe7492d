"""How long the evaluation takes to score another method's images, and how much memory, as a user starts it.

The images are drawn from photographs that scikit-image carries: crops, flips and colours, all different.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from lafr.errors import InputError
from lafr.evaluation import markdown

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
)
KINDS = ("hq", "lq", "method")


def evaluation(cfg: DictConfig) -> dict:
    """Return seconds and peak memory of each run of `cfg.runs`, and of the same command given again; and of listing."""
    rows = {}
    with tempfile.TemporaryDirectory(dir=cfg.folder) as place:
        whole = Path(place) / "all"
        write_images(whole, max(run.images for run in cfg.runs.values()), cfg.resolution, cfg.seed)
        for name, run in cfg.runs.items():
            folder = Path(place) / name
            link_images(whole, folder, run.images)
            first, again = (scored(folder, list(run.metrics), run.get("report", False)) for _ in range(2))
            asked = {"images": run.images, "metrics": list(run.metrics)}
            rows[name] = asked | first | {"again_seconds": again["seconds"]}
            if run.get("report", False):
                rows[name]["report_opens_seconds"] = opens(folder / "run" / "speed" / "report.html")
            shutil.rmtree(folder)
        listing = listed(Path(place) / "ffhq", cfg.listed)
    return {"runs": rows, "listing": listing, "resolution": cfg.resolution, "rows_scored": 2}


def write_images(folder: Path, images: int, side: int, seed: int) -> None:
    """Write `images` different files of each kind: hq, lq (an eighth of the pixels, noisy) and method (between)."""
    import skimage

    data = Path(skimage.__file__).parent / "data"
    photographs = [cv2.imread(str(data / name)) for name in PHOTOGRAPHS]  # [H, W, 3], 8-bit
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
    for number in tqdm(range(images), desc="images", unit="image"):
        rng = np.random.default_rng([seed, number])
        hq = drawn(photographs[number % len(photographs)], side, rng)
        small = cv2.resize(hq, (side // 8, side // 8), interpolation=cv2.INTER_AREA)
        lq = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
        lq = cv2.add(lq, rng.integers(0, 16, lq.shape, np.uint8))
        method = cv2.addWeighted(cv2.GaussianBlur(hq, (0, 0), 2), 0.7, lq, 0.3, 0)
        for kind, image in zip(KINDS, (hq, lq, method), strict=True):
            cv2.imwrite(str(folder / kind / f"{number:05d}.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def drawn(photograph: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return a square part of a photograph, perhaps mirrored, in other colours."""
    height, width = photograph.shape[:2]
    part = int(rng.integers(min(height, width) // 2, min(height, width)))
    top, left = rng.integers(0, height - part + 1), rng.integers(0, width - part + 1)
    image = cv2.resize(photograph[top : top + part, left : left + part], (side, side), interpolation=cv2.INTER_CUBIC)
    image = image[:, ::-1] if rng.random() < 0.5 else image
    return (image * rng.uniform(0.7, 1.0, 3)).astype(np.uint8)


def link_images(whole: Path, folder: Path, images: int) -> None:
    """Make a folder of the first images of another."""
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        for number in range(images):
            os.link(whole / kind / f"{number:05d}.png", folder / kind / f"{number:05d}.png")


def scored(folder: Path, metrics: list[str], report: bool) -> dict[str, float]:
    """Run `lafr eval` on the images; return its seconds and its peak memory in MB."""
    arguments = [
        f"data.lq={folder / 'lq'}",
        f"data.hq={folder / 'hq'}",
        f"outputs={folder / 'method'}",
        "device=cpu",
        f"report={report}",
        f"output={folder / 'run'}",
        f"+protocol={{name: speed, metrics: [{', '.join(metrics)}]}}",
    ]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lafr", "eval", "benchmark=pair", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise InputError("the evaluation failed; its own line above says why")
    return {"seconds": time.perf_counter() - started, "peak_mb": usage.ru_maxrss / 1000}


def opens(report: Path) -> float | None:
    """Return the seconds in which Chromium, started already, opens a report; None where it or playwright is missing."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if browser is None:
        return None
    with sync_playwright() as started:
        page = started.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        begun = time.perf_counter()
        page.goto(report.absolute().as_uri(), wait_until="load")
        return time.perf_counter() - begun


def listed(root: Path, images: int) -> dict:
    """Return the seconds of what comes before the first image of a large set: files named as FFHQ's, without pixels."""
    from lafr.data.benchmarks import match_by_stem
    from lafr.data.degradation.first_order import Degradation
    from lafr.data.faces import Faces
    from lafr.data.faces.selection import training_and_held_out
    from lafr.data.faces.sources import folder
    from lafr.data.stream import PairStream

    for number in range(images):
        path = root / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    seconds = {}
    mark = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal mark
        seconds[name] = time.perf_counter() - mark
        mark = time.perf_counter()

    items = folder(str(root))
    lap("list and name the files")
    training_and_held_out(items, "images", num_images=min(600, images // 2))
    lap("draw 600 and hold 5 % out")
    training, _ = training_and_held_out(items, "images")
    faces = Faces(training, 512)
    lap("hold 5 % out of all")
    stream = PairStream(faces, Degradation(), 0)
    for n in range(16 * 1000):
        stream.face_index(n)
    lap("the faces of 1,000 steps of 16")
    match_by_stem([item.path for item in items], [item.path for item in items])
    lap("match as many pairs by name")
    return {"images": images, "seconds": seconds}


def evaluation_table(record: dict) -> str:
    """Return minutes and memory of each run, and the seconds of listing a large set."""
    columns = ["scored", "pairs", "minutes", "images a second", "peak memory, GB", "the same command again, minutes"]
    rows = []
    for run in record["runs"].values():
        speed = record["rows_scored"] * run["images"] / run["seconds"]
        minutes, again = run["seconds"] / 60, run["again_seconds"] / 60
        memory = f"{run['peak_mb'] / 1000:.2f}"
        metrics = ", ".join(run["metrics"])
        rows.append([metrics, f"{run['images']:,}", f"{minutes:.1f}", f"{speed:.1f}", memory, f"{again:.1f}"])
    side, threads = record["resolution"], record["threads"]
    parts = [markdown.table(columns, rows)]
    parts.append(
        f"LQ and another method's images of {side} px against HQ, on the CPU, {threads} threads, start included."
    )
    for run in record["runs"].values():
        if run.get("report_opens_seconds"):
            parts.append(f"Chromium opens the report of {run['images']:,} in {run['report_opens_seconds']:.1f} s.")
    if listing := record.get("listing"):
        steps = [[step, f"{value:.2f}"] for step, value in listing["seconds"].items()]
        parts += [markdown.table([f"before the first of {listing['images']:,} images", "seconds"], steps)]
    return "\n\n".join(parts)
