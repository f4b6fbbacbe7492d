"""Faces that do not exist: training faces bent and recoloured at random, so that few are not learned by heart.

A miniature trained on 1,444 faces draws those it knows into the ones it does not. Bent by a smooth random field a face
is another person's, and as sharp.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from pathlib import PurePath

import cv2
import numpy as np
from PIL import Image

from lafr.data.faces.sources import Item, number_of
from lafr.errors import InputError

# points of a random field along a side -> its standard deviation, in sides of the picture
FIELDS = {4: 0.013, 7: 0.007}
STRETCH, GAMMA, GAIN = 0.04, 0.15, 0.05  # standard deviations of the logarithms


@dataclass(frozen=True)
class Variant:
    """An item's picture, bent and recoloured: a function of (seed, its name, number)."""

    original: Item
    number: int
    seed: int

    @property
    def name(self) -> str:
        """Return the original's name with the number."""
        return f"{self.original.name}~{self.number}"

    @property
    def path(self) -> PurePath:
        """Return a path beside the original's, at which there is no file."""
        path = self.original.path
        return path.with_name(f"{path.stem}~{self.number}{path.suffix}")

    def picture(self) -> Image.Image:
        """Return the upright 8-bit RGB image, of the original's size."""
        rng = np.random.default_rng([self.seed, 4, number_of(self.original.name), self.number])
        image = np.asarray(self.original.picture(), np.float32) / 255
        return Image.fromarray((255 * recoloured(bent(image, rng), rng)).round().astype(np.uint8))

    def __str__(self) -> str:
        return f"variant {self.number} of {self.original}"


def with_variants(items: Sequence[Item], number: int, seed: int) -> list[Item]:
    """Return `items` and `number` variants of each behind them."""
    if not isinstance(number, int) or number < 0:
        raise InputError("variants", number, "a whole number, 0 or more")
    return [*items, *(Variant(item, k + 1, seed) for k in range(number) for item in items)]


def bent(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `image [H, W, 3]` stretched about its centre and moved by smooth random fields; the border is mirrored."""
    height, width = image.shape[:2]
    size = np.array([width, height], np.float32)
    at: np.ndarray = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    centre = (size - 1) / 2
    at = (at - centre) * np.exp(rng.normal(0, STRETCH, 2)).astype(np.float32) + centre
    for points, deviation in FIELDS.items():
        field = rng.normal(0, deviation, (points, points, 2)).astype(np.float32)
        at += size * cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.remap(image, at, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `image [H, W, 3]` in [0, 1] with another gamma and colour balance, in [0, 1]."""
    gain = np.exp(rng.normal(0, GAIN, 3)).astype(np.float32)
    return (image.clip(0, 1) ** exp(rng.normal(0, GAMMA)) * gain).clip(0, 1)
