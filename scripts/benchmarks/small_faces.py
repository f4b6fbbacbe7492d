"""How many faces of each size and roll `lafr restore`'s detector finds in a photo of 24 megapixels."""

from collections.abc import Sequence

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from skimage import data
from tqdm import tqdm

from lafr.data.packaged import LANDMARKS, aligned
from lafr.errors import InputError
from lafr.evaluation import markdown
from lafr.photos.detectors import Detection, detector_named

WIDTH, HEIGHT = 6000, 4000
CELL = 400  # pixels between the centres of two faces
BOX = 0.62  # a face's box, of an aligned face's side

Place = tuple[int, float, float]  # side of the box, centre of the face


def small_faces(cfg: DictConfig) -> dict:
    """Return roll -> size -> faces found, of as many as there are packaged faces, and boxes that hold none of them."""
    room = (WIDTH // CELL) * (HEIGHT // CELL) // len(LANDMARKS)  # sizes of which every face has a cell of its own
    if not 0 < len(cfg.sides) <= room or not 0 < min(cfg.sides) <= max(cfg.sides) <= BOX * CELL:
        raise InputError("sides", list(cfg.sides), f"1 to {room} sizes of at most {BOX * CELL:.0f} px")
    detector, found = detector_named(cfg.detector), {}
    for roll in tqdm(cfg.rolls, desc="photos", unit="photo"):
        photo, places = scene(cfg.sides, roll, cfg.seed)
        found[str(roll)] = counted(detector(photo), places)
    return {"detector": cfg.detector, "faces": len(LANDMARKS), "megapixels": WIDTH * HEIGHT / 1e6, "found": found}


def scene(sides: Sequence[int], roll: float, seed: int) -> tuple[Image.Image, list[Place]]:
    """Return a photo with every packaged face in every size, turned by `roll` degrees, and where they are."""
    rng = np.random.default_rng(seed)
    background = np.asarray(Image.fromarray(data.coffee()).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), float)
    grain = rng.normal(0, 4, (HEIGHT, WIDTH, 1))
    photo = Image.fromarray((background + grain).clip(0, 255).astype(np.uint8))
    cells = [(x + CELL // 2, y + CELL // 2) for y in range(0, HEIGHT, CELL) for x in range(0, WIDTH, CELL)]
    wanted = [(side, name) for side in sides for name in LANDMARKS]
    places = []
    for (side, name), number in zip(wanted, rng.permutation(len(cells)), strict=False):
        width, (x, y) = round(side / BOX), cells[number]
        face = aligned(name).resize((width, width), Image.Resampling.LANCZOS).rotate(roll, Image.Resampling.BICUBIC)
        photo.paste(face, (x - width // 2, y - width // 2), disc(width))
        places.append((side, float(x), float(y)))
    return photo, places


def disc(width: int) -> Image.Image:
    """Return the mask of a disc with a soft edge."""
    at = (np.arange(width) + 0.5) / width - 0.5
    distance = np.hypot(*np.meshgrid(at, at))
    return Image.fromarray((np.clip((0.5 - distance) / 0.04, 0, 1) * 255).astype(np.uint8))


def counted(found: Sequence[Detection], places: Sequence[Place]) -> dict:
    """Return how many faces of each size were found, and how many boxes lie at no face."""
    by_size: dict[str, int] = {str(side): 0 for side, _, _ in places}
    at_faces: set[int] = set()
    for side, x, y in places:
        near = [i for i, one in enumerate(found) if np.abs(one.centre - (x, y)).max() < 0.35 * side / BOX]
        by_size[str(side)] += bool(near)
        at_faces |= set(near)
    return {"by_size": by_size, "elsewhere": len(found) - len(at_faces)}


def small_faces_table(record: dict) -> str:
    """Return the counts as Markdown."""
    sizes = list(next(iter(record["found"].values()))["by_size"])
    rows = []
    for roll, own in record["found"].items():
        rows.append([f"{roll}°", *(str(own["by_size"][size]) for size in sizes), str(own["elsewhere"])])
    head = ["roll", *(f"{size} px" for size in sizes), "boxes elsewhere"]
    of = f"of {record['faces']} of each size, in {record['megapixels']:.0f} megapixels, by `{record['detector']}`"
    return f"{markdown.table(head, rows)}\n\nFaces found {of}."
