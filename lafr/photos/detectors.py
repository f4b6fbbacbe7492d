"""Face detection: boxes and five points. The default detector needs no download.

A detector is called with an upright RGB image and returns `Detection`s from left to right. YuNet is the default: in
scenes with faces at known positions it finds more of the small ones than dlib, is faster, and is shipped in
`data/yunet` (see `tests/photos/test_detectors.py`). Detectors that need a download are in
`lafr.photos.downloaded_detectors`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torchvision.ops import nms

from lafr.errors import InputError
from lafr.networks.dlib_models import FrontalFaces
from lafr.weights import locate

DETECTORS = {
    "yunet": "lafr.photos.detectors.YuNet",
    "dlib": "lafr.photos.detectors.Dlib",
    "retinaface": "lafr.photos.downloaded_detectors.RetinaFace",
    "scrfd": "lafr.photos.downloaded_detectors.SCRFD",
}


LEAST = {"yunet": 0.85}  # of a face seen in a turned image alone; level faces score about 0.93, a mistake scored 0.75


@dataclass(frozen=True)
class Detection:
    """A face: box (x0, y0, x1, y1), points `[5, 2]` (eyes, nose tip, mouth corners; left and right as seen), score.

    In pixels of the upright image; whole numbers are pixel centres.
    """

    box: tuple[float, float, float, float]
    points: np.ndarray
    score: float

    @property
    def size(self) -> float:
        """The longer side of the box in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def centre(self) -> np.ndarray:
        """The middle of the box, `[2]`, in pixels."""
        return np.array([self.box[0] + self.box[2], self.box[1] + self.box[3]]) / 2


Detector = Callable[[Image.Image], list[Detection]]


class YuNet:
    """OpenCV's YuNet at several sizes of the image, as it detects faces of about 10 to 300 px. Offline.

    An image larger than the largest of them is searched at its own size too, in tiles: what it finds of 24
    megapixels is measured by `python -m scripts.benchmarks small_faces`.

    Args:
        threshold: least score of a face.
        sides: longer side in pixels of the copies that it searches; an image is never enlarged beyond the least.
    """

    def __init__(self, threshold: float = 0.7, sides: tuple[int, ...] = (320, 960, 2048)):
        self.threshold, self.sides = threshold, tuple(sides)
        self._network: Any = None  # loaded on first use: aligned faces can be restored without it

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Return the faces; raises InputError when the network's file is missing."""
        if self._network is None:
            logging = getattr(cv2.utils, "logging", None)  # absent before OpenCV 4.13, where the bound may be overruled
            before = logging and logging.setLogLevel(logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of its own default
            model = str(locate("yunet"))
            self._network = cv2.FaceDetectorYN.create(model, "", (320, 320), self.threshold, 0.3, 500)
            if logging:
                logging.setLogLevel(before)
        longest = max(image.size)
        sides = sorted({min(side, max(longest, self.sides[0])) for side in self.sides})
        found = [one for side in sides for one in self._search(image, side)]
        if longest > self.sides[-1]:  # at its own size too, in tiles
            for tile in tiles(image.size, self.sides[-1]):
                seen = self._search(image.crop(tile), max(tile[2] - tile[0], tile[3] - tile[1]))
                found += [moved(one, tile[:2]) for one in seen if not is_cut(one, tile, image.size)]
        return merged(found)

    def _search(self, image: Image.Image, side: int) -> list[Detection]:
        small, per_pixel = resized(image, side)
        self._network.setInputSize(small.size)
        rows = self._network.detect(np.ascontiguousarray(np.asarray(small)[:, :, ::-1]))[1]  # BGR; None without faces
        rows = np.empty((0, 15)) if rows is None else rows
        # in a picture a few pixels wide OpenCV sees boxes without a size, and 4.13 boxes beside it
        centre = rows[:, :2] + rows[:, 2:4] / 2
        rows = rows[(rows[:, 2:4] >= 1).all(1) & (centre >= 0).all(1) & (centre < small.size).all(1)]
        return [seen_in(row[:2], row[:2] + row[2:4], row[4:14], row[14], per_pixel) for row in rows]


class Dlib:
    """dlib's HOG detector and 68-point predictor: frontal faces of 40 px and more. Offline.

    Raises InputError without dlib or its file. The 68 points' licence excludes commercial use.

    Args:
        side: longer side in pixels of the copy that is searched.
    """

    def __init__(self, side: int = 2048):
        self.side, self._faces = side, FrontalFaces()

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Return the faces; the image is doubled once, as it detects faces of 80 px and more."""
        small, per_pixel = resized(image, min(self.side, max(image.size)))
        pixels = np.asarray(small)
        found = []
        for box, score in self._faces.detect(pixels, doublings=1):
            low, high = (box.left(), box.top()), (box.right(), box.bottom())
            found.append(seen_in(low, high, self._faces.five_points(pixels, box), score, per_pixel))
        return merged(found)


def tiles(size: tuple[int, int], side: int, overlap: int = 256) -> list[tuple[int, int, int, int]]:
    """Return boxes (x0, y0, x1, y1; ends excluded) of at most `side` px that cover an image and share `overlap` px."""
    x, y = (range(0, max(1, length - overlap), side - overlap) for length in size)
    return [(left, top, min(left + side, size[0]), min(top + side, size[1])) for left, top in product(x, y)]


def is_cut(one: Detection, tile: tuple[int, int, int, int], size: tuple[int, int], margin: float = 4.0) -> bool:
    """Return whether a face seen in a tile reaches a border that is not the image's: the next tile has it whole."""
    low, high = np.array(one.box[:2]), np.array(one.box[2:])
    begins, ends = np.array(tile[:2]), np.array(tile[2:])
    return bool(((low < margin) & (begins > 0)).any() or ((high > ends - begins - margin) & (ends < size)).any())


def moved(one: Detection, by: tuple[int, int]) -> Detection:
    """Return a detection made in a part of the image that begins at `by`, in the image's own pixels."""
    x0, y0, x1, y1 = one.box
    return Detection((x0 + by[0], y0 + by[1], x1 + by[0], y1 + by[1]), one.points + np.array(by), one.score)


def resized(image: Image.Image, side: float) -> tuple[Image.Image, np.ndarray]:
    """Return an RGB copy whose longer side has `side` px, and the image's pixels per pixel of the copy, `[2]`."""
    scale = side / max(image.size)
    size = (max(8, round(image.width * scale)), max(8, round(image.height * scale)))
    small = image.convert("RGB")
    small = small if size == image.size else small.resize(size, Image.Resampling.BILINEAR)
    return small, np.array(image.size) / size


def seen_in(low: ArrayLike, high: ArrayLike, points: ArrayLike, score: float, per_pixel: np.ndarray) -> Detection:
    """Return a detection made in a resized copy (box corners, points, score) in the image's own pixels."""

    def original(at: ArrayLike) -> np.ndarray:  # pixel centres lie at halves
        return (np.asarray(at, float).reshape(-1, 2) + 0.5) * per_pixel - 0.5

    return Detection((*original(low)[0].tolist(), *original(high)[0].tolist()), original(points), float(score))


def merged(found: list[Detection], overlap: float = 0.4) -> list[Detection]:
    """Return each face once, from left to right: of boxes with an IoU above `overlap` the highest score is kept."""
    if not found:
        return []
    boxes = torch.tensor([one.box for one in found], dtype=torch.float64)
    scores = torch.tensor([one.score for one in found], dtype=torch.float64)
    kept = [found[index] for index in nms(boxes, scores, overlap).tolist()]
    return sorted(kept, key=lambda one: one.centre[0])


def detector_named(name: str) -> Detector:
    """Return the detector called `name` in `DETECTORS`, for faces at any roll; or one's own, given as MODULE:CLASS."""
    from lafr.photos.turning import AnyRoll  # which builds on this file

    if ":" in name:
        return built("detector", name)
    if name not in DETECTORS:
        raise InputError("detector", name, f"one of {', '.join(DETECTORS)}, or MODULE:CLASS of your own")
    module, _, kind = DETECTORS[name].rpartition(".")
    return AnyRoll(getattr(importlib.import_module(module), kind)(), least=LEAST.get(name, 0.0))


def built(parameter: str, name: str) -> Any:
    """Return what MODULE:CLASS names, built without arguments; an InputError of `parameter` where that fails."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(parameter, name, "MODULE:CLASS that can be imported and built", str(error)) from None
