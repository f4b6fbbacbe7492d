"""Photos to try the page on, from installed packages: degraded when asked for, and never written to the disk.

Only pictures in the public domain: scikit-image's astronaut (Eileen Collins, NASA) and matplotlib's Grace Hopper
(US Navy); and scikit-image's cat (CC0), in which no face should be found.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lafr.data.degradation.operators import Degrade
from lafr.images import from_pil, read_pil, to_pil

FILES = {
    "Astronaut": ("skimage", "data/astronaut.png"),
    "Grace Hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "Cat (no face)": ("skimage", "data/chelsea.png"),
}
GROUP = "Two people"
HEIGHT = 512  # pixels of each person in the group


def installed_examples(degradation: Degrade, seed: int = 0) -> dict[str, Callable[[], Image.Image]]:
    """Return label -> a function that makes the degraded photo, for each photo that an installed package carries."""
    found = {label: path for label, place in FILES.items() if (path := _path(*place))}
    photos = {label: partial(read_pil, path) for label, path in found.items()}
    people = [label for label in found if label in ("Astronaut", "Grace Hopper")]
    if len(people) == 2:
        photos[GROUP] = partial(_side_by_side, [found[label] for label in people])
    return {label: partial(_degraded, photo, degradation, seed) for label, photo in photos.items()}


def _path(package: str, inside: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    places = [Path(place) / inside for place in (spec.submodule_search_locations or [])] if spec else []
    return next((path for path in places if path.is_file()), None)


def _side_by_side(paths: list[Path]) -> Image.Image:
    photos = [read_pil(path) for path in paths]
    photos = [photo.resize((round(photo.width * HEIGHT / photo.height), HEIGHT)) for photo in photos]
    group = Image.new("RGB", (sum(photo.width for photo in photos), HEIGHT))
    left = 0
    for photo in photos:
        group.paste(photo, (left, 0))
        left += photo.width
    return group


def _degraded(photo: Callable[[], Image.Image], degradation: Degrade, seed: int) -> Image.Image:
    return to_pil(degradation(from_pil(photo()), np.random.default_rng(seed)))
