"""How long the evaluation takes to score another method's images, and how much memory, as a user starts it.

The images are drawn from photographs that scikit-image carries: crops, flips and colours, all different.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from lafr.errors import InputError
from lafr.evaluation import markdown
from lafr.storage import atomic_write, sha256_of_file, write_text
from lafr.weights import EXTERNAL
from scripts.benchmarks.parts import once

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
    """Return seconds and peak memory of preparing the pairs, of each run of `cfg.runs` and of it again; and of listing.

    Where `cfg.folder` is given, what is done is kept there and not done again: a stopped benchmark resumes.
    """
    with nullcontext(cfg.folder) if cfg.folder else tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pairs = max(run.images for run in cfg.runs.values())
        write_images(folder, pairs, cfg.resolution, cfg.seed)
        write_trunks(folder / "weights")
        asked = {"images": pairs, "resolution": cfg.resolution, "seed": cfg.seed}
        prepared = once(folder, "prepared", asked, partial(prepare, folder, pairs, cfg.resolution))
        rows = {}
        for name, run in cfg.runs.items():
            chosen = {"images": run.images, "metrics": list(run.metrics), "report": run.get("report", False)}
            measure = partial(measured, folder, name, chosen, limited=run.images < pairs)
            rows[name] = once(folder, name, asked | chosen, measure)
        listing = once(folder, "listing", {"images": cfg.listed}, partial(listed, folder / "ffhq", cfg.listed))
    return {"prepared": prepared, "runs": rows, "listing": listing, "resolution": cfg.resolution, "rows_scored": 2}


def write_trunks(folder: Path) -> None:
    """Write random weights in the layout of those that LPIPS reads, and vouch for them: they cost the same."""
    import torch
    import torchvision

    folder.mkdir(exist_ok=True)
    lines = []
    for trunk in ("vgg16", "alexnet"):
        path = folder / EXTERNAL[f"torchvision_{trunk}"].name
        if not path.is_file():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                features = getattr(torchvision.models, trunk)(weights=None).features.state_dict()
            state = {f"features.{key}": value for key, value in features.items()}
            atomic_write(path, partial(torch.save, state))
        lines.append(f"{sha256_of_file(path)}  {path.name}")
    write_text(folder / "SHA256SUMS", "\n".join(lines) + "\n")


def prepare(folder: Path, pairs: int, side: int) -> dict:
    """Make the test set of the images by `lafr prepare`; return its seconds and its peak memory in MB."""
    shutil.rmtree(folder / "prepared", ignore_errors=True)
    sources = [f"source={folder / 'lq'}", f"source_hq={folder / 'hq'}", f"output={folder / 'prepared'}"]
    return started(folder, "prepare", "dataset=celeba_test", *sources, f"count={pairs}", f"resolution={side}")


def measured(folder: Path, name: str, chosen: dict, limited: bool) -> dict[str, float | None]:
    """Score the method's images, twice; return seconds, peak memory, seconds of the second time and of the report."""
    output = folder / "runs" / name
    shutil.rmtree(output, ignore_errors=True)
    arguments = [
        f"data.root={folder / 'prepared'}",
        f"benchmark.build.count={len(list((folder / 'prepared' / 'lq').iterdir()))}",
        f"outputs={folder / 'method'}",
        "device=cpu",
        f"report={chosen['report']}",
        f"output={output}",
        f"+protocol={{name: speed, metrics: [{', '.join(chosen['metrics'])}]}}",
        *([f"limit={chosen['images']}"] if limited else []),
    ]
    first, again = (started(folder, "eval", "benchmark=celeba_test", *arguments) for _ in range(2))
    found: dict[str, float | None] = {**first, "again_seconds": again["seconds"]}
    if chosen["report"]:
        found["report_opens_seconds"] = opens(next(output.rglob("report.html")))
    return found


def started(folder: Path, *arguments: str) -> dict[str, float]:
    """Run a command of `lafr` as a user starts it; return its seconds and its peak memory in MB."""
    begun = time.perf_counter()
    environment = os.environ | {"LAFR_WEIGHTS": str(folder / "weights")}
    process = subprocess.Popen([sys.executable, "-m", "lafr", *arguments], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise InputError(f"lafr {arguments[0]} failed; its own line above says why")
    return {"seconds": time.perf_counter() - begun, "peak_mb": usage.ru_maxrss * 1024 / 1e6}  # given in KiB


def write_images(folder: Path, images: int, side: int, seed: int) -> None:
    """Write `images` different files of each kind: hq, lq (an eighth of the side, brighter) and method (between)."""
    import skimage

    data = Path(skimage.__file__).parent / "data"
    photographs = [cv2.imread(str(data / name)) for name in PHOTOGRAPHS]  # [H, W, 3], 8-bit
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    # the last kind is written last
    missing = [number for number in range(images) if not (folder / KINDS[-1] / f"{number:05d}.png").is_file()]
    for number in tqdm(missing, desc="images", unit="image"):
        rng = np.random.default_rng([seed, number])
        hq = drawn(photographs[number % len(photographs)], side, rng)
        small = cv2.resize(hq, (side // 8, side // 8), interpolation=cv2.INTER_AREA)
        lq = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
        # other brightness: as far from HQ as the severe set's, and no sharper
        lq = cv2.add(lq, np.full_like(lq, 20))
        method = cv2.addWeighted(cv2.GaussianBlur(hq, (0, 0), 2), 0.7, lq, 0.3, 0)
        for kind, image in zip(KINDS, (hq, lq, method), strict=True):
            # renamed when it is whole: a stopped benchmark resumes
            cv2.imwrite(str(folder / "part.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            (folder / "part.png").replace(folder / kind / f"{number:05d}.png")


def drawn(photograph: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return a square part of a photograph, perhaps mirrored, in other colours."""
    height, width = photograph.shape[:2]
    part = int(rng.integers(min(height, width) // 2, min(height, width)))
    top, left = rng.integers(0, height - part + 1), rng.integers(0, width - part + 1)
    image = cv2.resize(photograph[top : top + part, left : left + part], (side, side), interpolation=cv2.INTER_CUBIC)
    image = image[:, ::-1] if rng.random() < 0.5 else image
    return (image * rng.uniform(0.7, 1.0, 3)).astype(np.uint8)


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
            path.parent.mkdir(parents=True, exist_ok=True)
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
    shutil.rmtree(root)
    return {"seconds": seconds}


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
    if prepared := record.get("prepared"):
        minutes, memory = prepared["seconds"] / 60, prepared["peak_mb"] / 1000
        made = f"`lafr prepare` of the {prepared['images']:,} pairs: {minutes:.1f} minutes, {memory:.2f} GB."
        parts.append(f"{made} LPIPS has random weights in the published layout, which cost the same.")
    for run in record["runs"].values():
        if run.get("report_opens_seconds"):
            parts.append(f"Chromium opens the report of {run['images']:,} in {run['report_opens_seconds']:.1f} s.")
    if listing := record.get("listing"):
        steps = [[step, f"{value:.2f}"] for step, value in listing["seconds"].items()]
        parts += [markdown.table([f"before the first of {listing['images']:,} images", "seconds"], steps)]
    return "\n\n".join(parts)
