"""Photos a second of `lafr restore FOLDER`, compared with one photo after another, and the share of each part."""

import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from tqdm import tqdm

from lafr.data.degradation.operators import Degrade
from lafr.images import from_pil, to_pil
from lafr.models.fast import memory_kept, optimised
from lafr.models.restorer import Restorer
from lafr.photos import restoring
from lafr.photos.restorer import PhotoRestorer

PHOTOGRAPHS = ("coffee.png", "rocket.jpg", "motorcycle_left.png", "chelsea.png", "brick.png")
FACE = (130, 20, 320, 210)  # the astronaut's head, in pixels of scikit-image's photograph
# part -> what does it, in the order of a photo's way
PARTS: dict[str, tuple[object, str]] = {
    "read": (restoring, "read_photo"),
    "detect": (PhotoRestorer, "judge"),
    "restore": (PhotoRestorer, "restore_crops"),
    "paste": (PhotoRestorer, "_paste"),
    "check identity": (PhotoRestorer, "_checked"),
    "write": (restoring, "write_photo"),
}


def folder(cfg: DictConfig) -> dict:
    """Return photos a second of both ways, their ratio in each turn, and the seconds of each part, alone."""
    restorer = Restorer.from_pretrained(cfg.model.folder, merged=True)
    if cfg.fast:
        optimised(restorer)
    photos = PhotoRestorer(restorer, batch_size=cfg.batch_size)
    seconds: dict[str, list[float]] = {"one after another": [], "folder": []}
    parts: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as place, memory_kept():
        given = Path(place) / "in"
        write_photos(given, cfg.photos, cfg.width, instantiate(cfg.degradation, _convert_="all"), cfg.seed)
        files = sorted(given.iterdir())
        restoring.restore_files(photos, files[:1], Path(place) / "first", progress=False)
        faces = 0
        for _ in tqdm(range(cfg.repeats), desc="folder", unit="turn"):
            taken: dict[str, float] = defaultdict(float)
            started = time.perf_counter()
            with timed(taken):
                for path in files:  # each alone: nothing runs next to anything else
                    restoring.restore_files(photos, [path], Path(place) / "alone", progress=False)
            seconds["one after another"].append(time.perf_counter() - started)
            for name, value in taken.items():
                parts[name].append(value)
            parts["everything else"].append(seconds["one after another"][-1] - sum(taken.values()))
            started = time.perf_counter()
            outcome = restoring.restore_files(photos, [given], Path(place) / "out", progress=False)
            seconds["folder"].append(time.perf_counter() - started)
            faces = outcome.faces
            require_equal(Path(place) / "alone", Path(place) / "out")
            for name in ("alone", "out"):
                shutil.rmtree(Path(place) / name)
    ratios = [alone / both for alone, both in zip(*seconds.values(), strict=True)]
    return {
        "photos": len(files),
        "faces": faces,
        "width": cfg.width,
        "photos_per_second": {name: len(files) / median(values) for name, values in seconds.items()},
        "ratio": {"ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "parts_seconds": {name: median(values) for name, values in parts.items()},
        "repeats": cfg.repeats,
        "model": str(cfg.model.folder),
        "resolution": restorer.resolution,
        "fast": cfg.fast,
    }


def write_photos(folder: Path, count: int, width: int, degradation: Degrade, seed: int) -> None:
    """Write photos with one to three degraded faces each, as JPEG; all from (seed, number)."""
    import skimage

    source = Path(skimage.__file__).parent / "data"
    astronaut = Image.open(source / "astronaut.png").convert("RGB").crop(FACE)
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        size = (width, width * 3 // 4) if number % 4 else (width * 3 // 4, width)
        photo = Image.open(source / PHOTOGRAPHS[number % len(PHOTOGRAPHS)]).convert("RGB").resize(size)
        columns = rng.permutation(3)[: 1 + number % 3]
        for column in columns:
            side = int(rng.integers(size[0] // 6, size[0] // 3))
            face = astronaut.resize((128, 128), Image.Resampling.LANCZOS)
            face = to_pil(degradation(from_pil(face), rng)).resize((side, side), Image.Resampling.BICUBIC)
            photo.paste(face, (column * size[0] // 3, int(rng.integers(0, size[1] - side))))
        photo.save(folder / f"{number:03d}.jpg", quality=92)


@contextmanager
def timed(taken: dict[str, float]) -> Iterator[None]:
    """Add to `taken` the seconds of each part while this lasts."""

    def of(part: str, function: Callable) -> Callable:
        def measured(*args: object, **kwargs: object) -> object:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                taken[part] += time.perf_counter() - started

        return measured

    patches = [patch.object(owner, name, of(part, getattr(owner, name))) for part, (owner, name) in PARTS.items()]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def require_equal(one: Path, other: Path) -> None:
    """Raise ValueError unless two folders hold the same images, byte for byte."""
    names = [sorted(path.relative_to(root) for path in root.rglob("*.png")) for root in (one, other)]
    if names[0] != names[1] or any((one / name).read_bytes() != (other / name).read_bytes() for name in names[0]):
        raise ValueError(f"{one} and {other} differ")


def folder_table(record: dict) -> str:
    """Return the share of each part, photos a second and their ratio."""
    from lafr.evaluation import markdown

    parts = record["parts_seconds"]
    whole = sum(parts.values())
    rows = [[name, f"{100 * value / whole:.0f} %"] for name, value in parts.items()]
    rates, ratio = record["photos_per_second"], record["ratio"]
    return (
        f"{markdown.table(['part, one photo after another', 'share of the time'], rows)}\n\n"
        f"{record['photos']} photos {record['width']} px wide with {record['faces']} restored faces, "
        f"`{record['model']}` ({record['resolution']} px{', fast' if record['fast'] else ''}), before | after images "
        f"included: {rates['one after another']:.1f} photos a second one after another, {rates['folder']:.1f} as a "
        f"folder: **{ratio['ratio']:.2f}x** ({ratio['lowest']:.2f}–{ratio['highest']:.2f}, {record['repeats']} turns), "
        "the same files to the byte."
    )
