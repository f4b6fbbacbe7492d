"""Faces that lie or stand on their heads are found upright, whatever their roll."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage import data

from lafr.photos.detectors import Detection, YuNet
from lafr.photos.turning import ROTATIONS, AnyRoll, roll_of, turned_back
from lafr.preparation.aligning import face_finder

BLUR = 1.5


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(data.astronaut()).crop((80, 0, 370, 240)).filter(ImageFilter.GaussianBlur(BLUR))


def rolled(photo: Image.Image, degrees: float) -> Image.Image:
    """Return a photo turned counterclockwise on a larger square."""
    side = 400
    canvas = Image.new("RGB", (side, side), (128, 128, 128))
    canvas.paste(photo, ((side - photo.width) // 2, (side - photo.height) // 2))
    return canvas.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))


def place(points: np.ndarray, degrees: float, side: int = 400) -> np.ndarray:
    """Return where points of a square of `side` px lie after it was turned counterclockwise around its middle."""
    turn = np.radians(degrees)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    middle = (side - 1) / 2
    return (points - middle) @ matrix.T + middle


@pytest.mark.parametrize("finder", ["yunet", "prepare"])
def test_the_points_of_a_face_are_its_own_at_every_roll(photo, finder):
    def points_in(image: Image.Image) -> np.ndarray:
        if finder == "prepare":
            points, faces = face_finder()(image)
            assert faces == 1
            return points
        (one,) = AnyRoll(YuNet())(image)
        return one.points

    expected = points_in(rolled(photo, 0))
    assert abs(roll_of(expected)) < 15
    errors = []
    for degrees in (10, 45, 90, 135, 180, 240, 300):
        points, wanted = points_in(rolled(photo, degrees)), place(expected, degrees)
        errors.append(abs((roll_of(points) - roll_of(wanted) + 180) % 360 - 180))
        assert np.linalg.norm(points - wanted, axis=1).mean() < 7, degrees  # pixels; the face is 90 px large
    assert np.median(errors) < 3 and max(errors) < 9


def test_what_is_seen_in_a_turned_image_alone_and_not_confirmed_is_no_face():
    upright = Image.new("RGB", (300, 200))
    points = np.array([(20, 20), (40, 20), (30, 30), (22, 40), (38, 40)], float)

    def sees_in_portraits(image):
        return [Detection((10, 10, 50, 50), points, 0.9)] if image.height > image.width else []

    assert AnyRoll(sees_in_portraits)(upright) == []


def test_a_place_in_a_turned_image_is_turned_back():
    values = np.arange(35, dtype=np.uint8).reshape(5, 7)
    image = Image.fromarray(values)
    for quarter in (1, 2, 3):
        turned = np.asarray(image.transpose(ROTATIONS[quarter]))
        v, u = (int(at[0]) for at in np.nonzero(turned == values[1, 5]))
        back = turned_back(Detection((u, v, u, v), np.array([(u, v)] * 5), 0.9), quarter, image.size)
        assert back.box == (5, 1, 5, 1) and back.points[0].tolist() == [5, 1]
