"""Convert photographs to the form of a dataset: find the face's points, warp once to FFHQ's alignment, resize."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import PIL
from PIL import Image

from lafr.alignment import crop
from lafr.errors import InputError, setting
from lafr.images import read_pil, require_square
from lafr.networks.dlib_models import FrontalFaces

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
DETECTION_SIDE = 1024  # pixels of the longer side for detection


class FaceFinder:
    """The five points of a photograph's largest face, by dlib's detector and 68-point predictor.

    Raises InputError without dlib or its file. The 68 points' licence excludes commercial use.
    """

    def __init__(self) -> None:
        self.faces = FrontalFaces()
        self.version = self.faces.version

    def __call__(self, image: Image.Image) -> tuple[np.ndarray | None, int]:
        """Return eyes, nose tip and mouth corners `[5, 2]` in pixels, or None, and the number of faces.

        Looks for faces of about 80 of 1024 px first, then for those of half the size.
        """
        shrink = max(1.0, max(image.size) / DETECTION_SIDE)
        size = (round(image.width / shrink), round(image.height / shrink))
        small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        pixels = np.asarray(small)
        found = self.faces.detect(pixels, doublings=0) or self.faces.detect(pixels, doublings=1)
        if not found:
            return None, 0
        largest = max((box for box, _ in found), key=lambda box: box.area())
        scale = np.array(image.size) / size
        return (self.faces.five_points(pixels, largest) + 0.5) * scale - 0.5, len(found)


@cache
def face_finder() -> FaceFinder:
    """Return the finder, loaded once per process."""
    return FaceFinder()


class Converter:
    """Converts an image to the form of a dataset: RGB, square, `resolution` px, aligned.

    Args:
        resolution: side in pixels.
        filter: lanczos, bicubic or bilinear, antialiased.
        aligned: the faces are aligned already; otherwise they are found and aligned.
    """

    def __init__(self, resolution: int, filter: str, aligned: bool):
        if filter not in FILTERS:
            raise InputError("filter", filter, f"one of {', '.join(FILTERS)}")
        if resolution < 1:
            raise InputError("resolution", resolution, "1 or more pixels")
        self.resolution, self.resample = resolution, FILTERS[filter]
        self.finder = None if aligned else face_finder()
        self.versions = {"pillow": PIL.__version__}
        if self.finder:
            self.versions |= {"opencv": cv2.__version__, "dlib": self.finder.version}

    def __call__(self, path: Path) -> tuple[Image.Image | None, dict]:
        """Return the image, None where no face is found, and facts for the index.

        An image that has the size already keeps its pixels bit for bit; a smaller one raises InputError.
        """
        picture = read_pil(path)
        facts = {"original_size": list(picture.size)}
        if self.finder:
            points, faces = self.finder(picture)
            if points is None:
                return None, facts | {"left_out": "no face found"}
            face, native_size = crop(picture, points, self.resolution, self.resample)
            return face, facts | {"faces": faces, "native_size": round(native_size, 1)}
        require_square(picture, str(path))
        if min(picture.size) < self.resolution:
            raise InputError(
                f"{str(path)!r} is {picture.width} x {picture.height}, smaller than {self.resolution} px; "
                f"get it larger, or give {setting('resolution', min(picture.size))}"
            )
        size = (self.resolution, self.resolution)
        return picture if picture.size == size else picture.resize(size, self.resample), facts
