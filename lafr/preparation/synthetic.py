"""Make a test set of LQ images from any HQ faces, with the same bytes on every machine."""

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from lafr.data.benchmarks import own_generator
from lafr.data.degradation.batched import CHAIN, apply_batch
from lafr.data.degradation.first_order import first_order, odd
from lafr.data.degradation.operators import Recipe, Record, apply, as_text, target
from lafr.data.faces import Faces
from lafr.data.faces.sources import File, distinct, folder
from lafr.errors import InputError, require_whole
from lafr.images import to_pil, write_image, write_stored_png
from lafr.preparation.indexes import (
    INDEX,
    read_index,
    require_same,
    sha256_of,
    sha256_of_names,
    sha256_of_pixels,
    verify,
)
from lafr.preparation.sheet import set_sheet
from lafr.preparation.unfinished import Unfinished
from lafr.storage import write_sealed

# DifFace (Yue & Loy, TPAMI 2024), scripts/prepare_testing_restoration.py: in this order, the last changing fastest.
GRID = {
    "jpeg_quality": (30, 40, 50, 60, 70),
    "down": (4, 8, 12, 16, 20, 24, 28, 32, 36, 40),
    "noise_sigma": (1, 5, 10, 15, 20),  # 1/255
    "sigma_x": (4, 8, 12, 16),  # pixels at 512
    "theta": tuple(quarter * math.pi for quarter in (0, 0.25, 0.5, 0.75)),
}
GRID_SEED = 10_000  # DifFace's, for sigma_y

Draw = Callable[[int, str, int, int], Record]  # number, name, height, width


def difface_grid() -> list[dict]:
    """Return DifFace's 4,000 settings in its order; sigma_y is drawn as there, by Python's generator."""
    draw = random.Random(GRID_SEED)
    cells = (dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values()))
    return [cell | {"sigma_y": draw.choice(GRID["sigma_x"])} for cell in cells]


def grid_draw(images: int, seed: int) -> Draw:
    """Return how image number i is degraded by DifFace's grid: by cell i when there are 4,000 images.

    For fewer images the seed chooses as many cells, in the grid's order. The noise field of an image depends on
    (seed, its name).
    """
    cells = difface_grid()
    if images > len(cells):
        raise InputError("count", images, f"at most {len(cells)}, the number of settings of DifFace's grid")
    chosen = sorted(np.random.default_rng(seed).choice(len(cells), images, replace=False))

    def draw(number: int, name: str, height: int, width: int) -> Record:
        cell, rng = cells[chosen[number]], own_generator(seed, name, 0)
        scale = width / 512
        return first_order(
            height,
            width,
            odd(41 * scale),
            cell["sigma_x"] * scale,
            cell["sigma_y"] * scale,
            cell["theta"],
            max(1.0, cell["down"] * scale),
            cell["noise_sigma"],
            cell["jpeg_quality"],
            as_text(rng),
        )

    return draw


def recipe_draw(degradation: Recipe, seed: int, number_of_draw: int = 0) -> Draw:
    """Return how an image is degraded by a recipe: by the generator (seed, its name, sample), as in benchmarks."""

    def draw(_number: int, name: str, height: int, width: int) -> Record:
        return degradation.draw(height, width, own_generator(seed, name, number_of_draw))

    return draw


def degrade_exactly(hq: Tensor, record: Record) -> Tensor:
    """Return `lq [3, H, W]`; of a first-order record the same on every machine and with every JPEG library."""
    if [step["op"] for step in record[:4]] == CHAIN:
        return apply_batch([record], hq[None].double())[0].float()
    return apply(record, hq)


@dataclass(frozen=True)
class SyntheticPreparation:
    """How a test set is made from HQ faces: `preparation(output, made_by)` makes it.

    Args:
        name: of the dataset.
        source: folder of aligned HQ faces.
        grid: degrade by DifFace's grid.
        degradation: the recipe otherwise: a dataclass with `draw(height, width, rng)`.
        resolution: side in pixels; faces are resized to it (Lanczos).
        count: the first so many faces by name; all when None.
        seed: of the degradations.
    """

    name: str
    source: str | None
    grid: bool = True
    degradation: Any = None
    resolution: int = 512
    count: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(0, seed=self.seed)
        # of -1 a slice would take all faces but the last
        require_whole(1, resolution=self.resolution, **({} if self.count is None else {"count": self.count}))

    def __call__(self, output: str, made_by: Mapping) -> str:
        """Make `output`/{hq,lq} and an index, and return a summary for the user.

        PNGs are stored without compression (0.8 MB per face at 512 px), so that no compressor's version can change a
        byte. An interrupted run resumes, and a finished set is verified.

        Args:
            output: folder to make.
            made_by: command, date and versions, for the index.
        """
        work, done = Unfinished(Path(output)), read_index(Path(output))
        items = self._items()
        job = self._job(items)
        if done is not None:
            require_same(done, job, work.target)
            verify(work.target, done)
            return f"{work.target} is complete: {done['images']} images, every file as it was written"
        draw = grid_draw(len(items), self.seed) if self.grid else recipe_draw(self.degradation, self.seed)
        with work.locked():
            return self._make_all(items, draw, job, work, made_by)

    def _make_all(self, items: Sequence[File], draw: Any, job: dict, work: Unfinished, made_by: Mapping) -> str:
        """Write the pairs, the sheet and the index; return a summary."""
        work.begin(job)
        with work.discarded():
            files = _make(items, draw, self.resolution, work)
        pixels = sha256_of_pixels_of(files)
        record = {"images": len(items), "pixels_sha256": pixels, "files": files, "made_by": made_by}
        write_image(set_sheet(files, work.set), work.set / "sheet.png")
        write_sealed(job | record, work.set / INDEX)
        work.finish()
        return (
            f"made {len(items)} pairs at {self.resolution} px in {work.target}, "
            f"pixels {pixels[:16]} (look at {work.target / 'sheet.png'})"
        )

    def _items(self) -> list[File]:
        if self.source is None or not Path(self.source).is_dir():
            raise InputError("source", self.source, "a folder of aligned HQ faces")
        items = folder(self.source)[: self.count]
        if self.count is not None and len(items) < self.count:
            raise InputError("count", self.count, f"at most {len(items)}, the number of images in {self.source!r}")
        # images of subfolders lie in one folder of the set; some file systems ignore case
        distinct(items, lambda item: flat(item.name).casefold())
        return items

    def _job(self, items: Sequence[File]) -> dict:
        """Return what the set depends on: two jobs that are equal make the same bytes."""
        source = Path(str(self.source))
        sizes = {item.path.relative_to(source).as_posix(): item.path.stat().st_size for item in items}
        recipe = "difface_grid" if self.grid else asdict(self.degradation)
        settings = dict(recipe=recipe, resolution=self.resolution, count=len(items), seed=self.seed)
        made_from = {"name": source.resolve().name, "sha256": sha256_of_names(sizes)}
        return {"dataset": self.name, "settings": settings, "sources": {"": made_from}}


def flat(name: str) -> str:
    """Return the name of a face of a subfolder as that of a file."""
    return name.replace("/", "_")


def _make(items: Sequence[File], draw: Draw, resolution: int, work: Unfinished) -> list[dict]:
    """Write the pairs that are not yet written; return the records of all."""
    faces = Faces(items, resolution, memory_gb=0)
    for number, item in enumerate(tqdm(items, desc="synthetic_test", unit="pair")):
        if {("hq", item.name), ("lq", item.name)} <= work.done.keys():
            continue
        hq = faces[number]
        record = draw(number, item.name, resolution, resolution)
        for part, image in (("hq", target(record, hq)), ("lq", degrade_exactly(hq, record))):
            file = f"{part}/{flat(item.name)}.png"
            write_stored_png(image, work.set / file)
            facts = {
                "part": part,
                "name": item.name,
                "file": file,
                "sha256": sha256_of(work.set / file),
                "pixels_sha256": sha256_of_pixels(to_pil(image)),
            }
            drawn = {"reference": file.replace("lq/", "hq/", 1), "degradation": record} if part == "lq" else {}
            work.note(facts | drawn)
    return [work.done[part, item.name] for part in ("hq", "lq") for item in items]


def sha256_of_pixels_of(files: Sequence[Mapping]) -> str:
    """Return one hash of the pixels of all files, in their order, by which two machines compare their sets."""
    return hashlib.sha256("".join(file["pixels_sha256"] for file in files).encode()).hexdigest()
