"""Faces at any roll: lying, or standing on their heads. Detectors know upright ones, and take others for upright."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from lafr.alignment import FFHQ_512, similarity
from lafr.photos.detectors import Detection, Detector, merged, resized, seen_in

ROTATIONS = {  # quarters counterclockwise -> Pillow's name
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}
AROUND = 3.0  # side of the picture that is turned to look again, in sides of the face's box
SMALLEST, LARGEST = 320, 960  # pixels of its side
OVERLAP = 0.4  # intersection over union from which two looks are at one face
LOOKS = 6  # at most: each finds what the one before left over
LEFT = 1.0  # degrees that are good enough
STEP = 1.5  # of what is found: detectors find half of a roll to all of it
CLEAR = 0.92  # score of a level face that no other look is compared with; on its head it has less
PRIOR = 0.03  # added to the score of an upright face


@dataclass(frozen=True)
class _Look:
    """A face as it was seen in the `upright` image, or in a turned one."""

    one: Detection
    upright: bool

    @property
    def weight(self) -> float:
        """What looks at one face are sorted by."""
        return self.one.score + PRIOR * self.upright


class AnyRoll:
    """A detector that finds faces at every roll, by looking at the four turns of the image and turning it level.

    For each look at a face, in one turn or several, its surroundings are turned by the roll found and looked at again,
    as a detector's points are off by half of a roll of 40 degrees. The highest score is kept. A face that was seen in a
    turned image alone and is not confirmed is none.

    Args:
        detector: of upright faces.
        side: longer side in pixels from which on the turned images are shrunk, to a half at most; the upright one is
            searched whole.
        level: degrees of roll up to which the first look is taken.
        least: score of a level face that was seen in a turned image alone; turned images bring their own mistakes.
    """

    def __init__(self, detector: Detector, side: int = 960, level: float = 3.0, least: float = 0.0):
        self.detector, self.side, self.level, self.least = detector, side, level, least

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Return the faces of an RGB image from left to right; points are in the order of the upright face."""
        found = [_Look(one, True) for one in self.detector(image)]
        side = max(self.side, max(image.size) // 2)  # half costs a quarter, three times
        small, per_pixel = (image, np.ones(2)) if max(image.size) <= side else resized(image, side)
        for quarter, rotation in ROTATIONS.items():
            for one in self.detector(small.transpose(rotation)):
                back = turned_back(one, quarter, small.size)
                found.append(_Look(seen_in(back.box[:2], back.box[2:], back.points, back.score, per_pixel), False))
        best = [self._best(image, looks) for looks in _of_one_face(found)]
        return merged([one for one in best if one is not None])

    def _best(self, image: Image.Image, looks: "list[_Look]") -> Detection | None:
        """Return the best of the levelled looks at one face, which are sorted by score; None when none is confirmed."""
        first = looks[0]
        if first.upright and first.one.score >= CLEAR and abs(roll_of(first.one.points)) <= self.level:
            return first.one
        scored = []
        for look in looks:
            one = self._levelled(image, look)
            if one is not None:
                # blurred faces score about alike in two turns: people are upright unless another is clearly better
                prior = PRIOR if abs(roll_of(one.points)) < 45 else 0.0
                scored.append((one.score + prior, one))
                if one.score >= CLEAR:
                    break
        return max(scored, key=lambda pair: pair[0])[1] if scored else None

    def _levelled(self, image: Image.Image, look: "_Look") -> Detection | None:
        """Return a face as it is seen when its surroundings are turned by its roll; None when it is not seen then."""
        one, confirmed = look.one, look.upright
        if confirmed and abs(roll_of(one.points)) <= self.level:
            return one
        angle = roll_of(one.points)
        for _ in range(LOOKS):
            again = self.look(image, one, angle)
            if again is None:
                break
            one, confirmed = again, True
            left = _wrapped(roll_of(one.points) - angle)
            if abs(left) <= LEFT:
                break
            angle += STEP * left
        return one if look.upright or (confirmed and one.score >= self.least) else None

    def look(self, image: Image.Image, one: Detection, angle: float) -> Detection | None:
        """Look at the surroundings of a face, turned by `angle` degrees; its box is as large as it is seen there."""
        scale = np.clip(AROUND * one.size, SMALLEST, LARGEST) / (AROUND * one.size)
        side = round(AROUND * one.size * scale)
        turn = np.radians(angle)
        linear = scale * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        shift = (side - 1) / 2 - linear @ one.centre
        matrix = np.column_stack([linear, shift])
        flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        turned = cv2.warpAffine(np.asarray(image), matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        middle = (side - 1) / 2
        near = [
            seen for seen in self.detector(Image.fromarray(turned)) if np.abs(seen.centre - middle).max() < 0.15 * side
        ]
        if not near:
            return None
        best = max(near, key=lambda seen: seen.score)
        inverse = np.linalg.inv(linear)
        points, centre = ((at - shift) @ inverse.T for at in (best.points, best.centre))
        half = (np.array(best.box[2:]) - best.box[:2]) / 2 / scale
        return Detection((*(centre - half).tolist(), *(centre + half).tolist()), points, best.score)


def _of_one_face(found: list[_Look]) -> list[list[_Look]]:
    """Return the looks at each face, sorted by weight: those whose boxes overlap."""
    faces: list[list[_Look]] = []
    for look in sorted(found, key=lambda look: -look.weight):
        same = [face for face in faces if iou(face[0].one.box, look.one.box) > OVERLAP]
        if same:
            same[0].append(look)
        else:
            faces.append([look])
    return faces


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes (x0, y0, x1, y1)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / both if both > 0 else 0.0


def roll_of(points: np.ndarray) -> float:
    """Return by how many degrees a face with these five points `[5, 2]` is turned clockwise, as seen; -180..180."""
    matrix = similarity(points, FFHQ_512)
    return float(np.degrees(np.arctan2(-matrix[1, 0], matrix[0, 0])))


def turned_back(one: Detection, quarter: int, size: tuple[int, int]) -> Detection:
    """Return a detection made in an image turned by `quarter` quarters counterclockwise; `size` is the upright one."""
    width, height = size

    def back(at: np.ndarray) -> np.ndarray:
        u, v = np.moveaxis(np.asarray(at, float), -1, 0)
        places = {1: (width - 1 - v, u), 2: (width - 1 - u, height - 1 - v), 3: (v, height - 1 - u)}
        return np.stack(places[quarter], -1)

    corners = back(np.reshape(one.box, (2, 2)))
    return Detection((*corners.min(0).tolist(), *corners.max(0).tolist()), back(one.points), one.score)


def _wrapped(degrees: float) -> float:
    return (degrees + 180) % 360 - 180
