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
from lafr.photos.detectors import Detection, detector_named
from lafr.photos.turning import OVERLAP, AnyRoll, iou, roll_of

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
DETECTION_SIDE = 1024  # pixels of the longer side for detection
ROLLED = 15.0  # degrees of roll that dlib's points follow
SURE = 0.5  # dlib's score of an upright face from which no rolled one is looked for


class FaceFinder:
    """The five points of a photograph's largest face, by dlib's detector and 68-point predictor.

    Where dlib sees no face or is not sure of it, YuNet looks for one at any roll, and dlib looks again at its
    surroundings turned level (dlib sees no face that is rolled by 45 degrees in any quarter turn).

    Raises InputError without dlib or its file. The 68 points' licence excludes commercial use.
    """

    def __init__(self) -> None:
        self.faces = FrontalFaces()
        self.version = self.faces.version
        self._at_any_roll, self._levelled = detector_named("yunet"), AnyRoll(self._upright)

    def __call__(self, image: Image.Image) -> tuple[np.ndarray | None, int]:
        """Return eyes, nose tip and mouth corners `[5, 2]` in pixels, or None, and the number of faces.

        Looks for faces of about 80 of 1024 px first, then for those of half the size.
        """
        shrink = max(1.0, max(image.size) / DETECTION_SIDE)
        size = (round(image.width / shrink), round(image.height / shrink))
        small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        found = self._upright(small)
        if not any(one.score >= SURE and abs(roll_of(one.points)) <= ROLLED for one in found):
            found = self._rolled(small, found)
        if not found:
            return None, 0
        largest = max(found, key=lambda one: one.size)
        scale = np.array(image.size) / size
        return (largest.points + 0.5) * scale - 0.5, len(found)

    def _rolled(self, image: Image.Image, upright: list[Detection]) -> list[Detection]:
        """Return the rolled faces, unless dlib saw a larger one `upright` somewhere else."""
        rolled = [one for one in self._at_any_roll(image) if abs(roll_of(one.points)) > ROLLED]
        elsewhere = [one for one in upright if all(iou(one.box, other.box) < OVERLAP for other in rolled)]
        if not rolled or max(one.size for one in rolled) < max((one.size for one in elsewhere), default=0):
            return upright
        return [self._levelled.look(image, one, roll_of(one.points)) or one for one in rolled]

    def _upright(self, image: Image.Image) -> list[Detection]:
        pixels = np.asarray(image)
        found = self.faces.detect(pixels, doublings=0) or self.faces.detect(pixels, doublings=1)
        corners = [((box.left(), box.top(), box.right(), box.bottom()), box, score) for box, score in found]
        return [Detection(at, self.faces.five_points(pixels, box), score) for at, box, score in corners]


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
