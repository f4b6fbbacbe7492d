"""Aligning: the right face, at the right place, without aliasing; resizing as Pillow does it, or not at all."""

import cv2
import numpy as np
import pytest
from PIL import Image

from lafr.alignment import FFHQ_512, crop, similarity
from lafr.data.packaged import LANDMARKS, aligned
from lafr.errors import InputError
from lafr.images import read_pil
from lafr.preparation.aligning import Converter, face_finder
from lafr.weights import locate


@pytest.fixture(scope="module")
def astronaut():
    return read_pil(locate("astronaut"))


def test_the_whole_photo_of_the_astronaut_comes_out_as_the_packaged_crop(astronaut):
    points, faces = face_finder()(astronaut)
    assert faces == 1
    stored = np.array(LANDMARKS["astronaut"])
    assert np.linalg.norm(points - stored, axis=1).max() < 1.5  # pixels of the photo
    matrix = similarity(points, FFHQ_512)
    in_crop = stored @ matrix[:, :2].T + matrix[:, 2]
    by_stored = similarity(stored, FFHQ_512)
    assert np.linalg.norm(in_crop - (stored @ by_stored[:, :2].T + by_stored[:, 2]), axis=1).max() < 4  # of the crop
    face, native_size = crop(astronaut, points, 512)
    assert native_size == pytest.approx(512 / np.hypot(*by_stored[:, 0]), rel=0.02)
    assert np.abs(np.asarray(face, float) - np.asarray(aligned("astronaut"), float)).mean() < 3  # of 255


def test_enlarging_is_one_warp_of_the_photos_own_pixels(astronaut):
    face, _ = crop(astronaut, np.array(LANDMARKS["astronaut"]), 512)
    assert np.array_equal(np.asarray(face), np.asarray(aligned("astronaut")))


@pytest.mark.parametrize(("scale", "resolution"), [(0.4, 512), (1.3, 512), (1.0, 128)])
def test_points_land_on_the_template_at_every_scale(scale, resolution):
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]) * scale
    points = FFHQ_512 @ turn.T + 220 * scale
    side = int(900 * scale)
    y, x = np.mgrid[:side, :side]
    dots = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (8 * scale) ** 2)) for px, py in points)
    face, native_size = crop(Image.fromarray((255 * dots).astype(np.uint8)).convert("RGB"), points, resolution)
    seen = np.asarray(face, float)[..., 0]
    rows, columns = np.mgrid[:resolution, :resolution]
    for target in (FFHQ_512 + 0.5) * resolution / 512 - 0.5:  # pixel centres are whole numbers
        near = seen * (np.hypot(columns - target[0], rows - target[1]) < resolution / 14)
        centre = np.array([(near * columns).sum(), (near * rows).sum()]) / near.sum()
        assert np.abs(centre - target).max() < 0.1
    assert native_size == pytest.approx(512 * scale)


@pytest.mark.parametrize("shrink", [1.5, 4.0])
def test_shrinking_does_not_alias(shrink):
    side = int(600 * shrink)
    stripes = np.where(np.arange(side) % 2, 255, 0).astype(np.uint8)
    photo = Image.fromarray(np.broadcast_to(stripes, (side, side))).convert("RGB")
    points = FFHQ_512 * shrink * 1.01 + 7
    face, _ = crop(photo, points, 512)
    naive = cv2.warpAffine(np.asarray(photo), similarity(points, FFHQ_512), (512, 512), flags=cv2.INTER_CUBIC)
    inner = np.s_[20:-20, 20:-20]
    assert np.asarray(naive, float)[inner].std() > 30  # the stripes come back as a coarse pattern
    assert np.asarray(face, float)[inner].std() < 4
    assert np.asarray(face, float)[inner].mean() == pytest.approx(127.5, abs=1)


def test_of_several_faces_the_largest_is_taken(astronaut):
    photo = Image.new("RGB", (1300, 800), "gray")
    photo.paste(astronaut.resize((410, 410)), (10, 200))
    photo.paste(astronaut.resize((800, 800)), (480, 0))
    points, faces = face_finder()(photo)
    assert faces == 2
    expected = np.array(LANDMARKS["astronaut"]) * 800 / 512 + [480, 0]
    assert np.linalg.norm(points - expected, axis=1).max() < 5


def test_a_large_photo_is_searched_small_and_its_points_are_the_photos(astronaut):
    points, _ = face_finder()(astronaut.resize((3072, 3072), Image.Resampling.BICUBIC))
    expected = (np.array(LANDMARKS["astronaut"]) + 0.5) * 6 - 0.5
    assert np.linalg.norm(points - expected, axis=1).max() < 2 * 6


def test_a_picture_without_a_face_is_left_out_and_says_so(tmp_path):
    Image.radial_gradient("L").save(tmp_path / "a.png")
    image, facts = Converter(64, "lanczos", aligned=False)(tmp_path / "a.png")
    assert image is None and facts["left_out"] == "no face found"


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png", pixels


def test_a_picture_of_the_right_size_keeps_its_pixels_bit_for_bit(picture):
    path, pixels = picture
    image, facts = Converter(96, "bilinear", aligned=True)(path)
    assert np.array_equal(np.asarray(image), pixels) and facts["original_size"] == [96, 96]


@pytest.mark.parametrize("name", ["lanczos", "bicubic", "bilinear"])
def test_the_filter_that_is_named_resizes(name, picture):
    path, pixels = picture
    image, _ = Converter(31, name, aligned=True)(path)
    expected = Image.fromarray(pixels).resize((31, 31), getattr(Image.Resampling, name.upper()))
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_what_is_no_aligned_face_of_that_size_is_refused(picture, tmp_path):
    with pytest.raises(InputError, match=r"96 x 96, smaller than 128 px.*resolution=96"):
        Converter(128, "lanczos", aligned=True)(picture[0])
    Image.new("RGB", (96, 80)).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match="96 x 80, not square"):
        Converter(64, "lanczos", aligned=True)(tmp_path / "wide.png")
    with pytest.raises(InputError, match=r"filter .*lanczos, bicubic, bilinear.*nearest"):
        Converter(64, "nearest", aligned=True)


def test_a_small_face_is_found_at_the_second_look(astronaut):
    small = astronaut.resize((256, 256))
    assert not face_finder().faces.detect(np.asarray(small), doublings=0)
    points, _ = face_finder()(small)
    assert np.linalg.norm(points - (np.array(LANDMARKS["astronaut"]) + 0.5) / 2 + 0.5, axis=1).max() < 3
