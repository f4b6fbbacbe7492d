"""A restored face goes back where it came from, without a seam; everything else keeps its pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from lafr.alignment import FFHQ_512, crop, template_distance, yaw
from lafr.data.packaged import LANDMARKS
from lafr.errors import InputError
from lafr.images import read_pil
from lafr.photos import guard
from lafr.photos.canvas import Canvas, enlarged
from lafr.photos.pasting import ParsedMask, Place, ellipse, mask_named, match_colours, rivalry, share_of
from lafr.weights import locate

POINTS = np.array(LANDMARKS["astronaut"])


@pytest.fixture(scope="module")
def astronaut():
    return read_pil(locate("astronaut"))


def put_back(photo: Image.Image, points: np.ndarray, face: np.ndarray, scale: int = 1) -> Canvas:
    canvas, place = Canvas(photo, scale), Place.of(points, scale)
    box = place.box(canvas.size)
    mask = ellipse(torch.zeros(3, *face.shape[:2]))
    canvas.blend(box, place.warp(face, box), share_of(place, mask, [], box))
    return canvas


@pytest.mark.parametrize("degrees", [0, 30, 170])
@pytest.mark.parametrize("side", [192, 256])
def test_a_face_aligned_and_put_back_unrestored_is_the_photo_within_40_db(astronaut, degrees, side):
    photo = astronaut.rotate(degrees, Image.Resampling.BICUBIC)  # about (256, 256), the y axis points down
    angle = np.radians(-degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (POINTS - 255.5) @ turn.T + 255.5
    face, native = crop(photo, points, side)
    assert native < side  # the crop holds all that the photo does
    canvas = put_back(photo, points, np.asarray(face))
    seen = Place.of(points).radius((0, 0, 512, 512)) < 1
    assert peak_signal_noise_ratio(canvas.before[seen], canvas.after[seen], data_range=255) >= 40


def test_a_place_in_an_enlarged_photo_is_that_of_the_enlarged_points():
    for scale in (2, 4):
        there = Place.of((POINTS + 0.5) * scale - 0.5).to_crop(128, (30, 20))
        np.testing.assert_allclose(Place.of(POINTS, scale).to_crop(128, (30, 20)), there, atol=1e-9)


def test_the_crop_lies_in_its_box_and_touches_its_four_sides():
    place = Place.of(POINTS)
    x0, y0, x1, y1 = place.box((512, 512))
    inverse = np.linalg.inv(np.vstack([place.matrix, [0, 0, 1]]))
    corners = np.array([(-0.5, -0.5, 1), (511.5, -0.5, 1), (511.5, 511.5, 1), (-0.5, 511.5, 1)]) @ inverse[:2].T
    low, high = corners.min(0), corners.max(0)
    assert (low - (x0, y0) >= 0).all() and (low - (x0, y0) < 1).all()
    assert ((x1 - 1, y1 - 1) - high >= 0).all() and ((x1 - 1, y1 - 1) - high < 1).all()


def test_pixels_outside_the_ellipse_are_untouched_and_those_inside_are_the_faces(astronaut):
    canvas = put_back(astronaut, POINTS, np.full((64, 64, 3), 200, np.uint8))
    radius = Place.of(POINTS).radius((0, 0, 512, 512))
    assert np.array_equal(canvas.after[radius >= 1], canvas.before[radius >= 1])
    assert (canvas.after[radius < 0.7] == 200).all()


def test_a_shrunk_face_does_not_alias():
    grain = np.random.default_rng(0).normal(128, 40, (512, 512))  # finer than the photo can show
    small = Place.of((FFHQ_512 + 0.5) / 8 - 0.5)
    shown = small.warp(grain, (8, 8, 56, 56))
    assert abs(shown.mean() - 128) < 1 and shown.std() < 1.5 * 40 / 8  # the mean of 8 x 8 grains has 40 / 8


def test_colours_and_light_come_from_the_photo_and_detail_from_the_face():
    rng = np.random.default_rng(0)
    before = np.tile(np.linspace(60, 160, 128)[None, :, None], (128, 1, 3)) + np.array([20, 0, -20])
    face = np.full((128, 128, 3), 230.0)
    face[60:66, 60:66] -= 100  # a detail
    result = match_colours(face + rng.normal(0, 1, face.shape), before)
    away = np.s_[8:40, 8:120]
    assert abs(result[away] - before[away]).mean(axis=(0, 1)).max() < 2
    assert result[62, 62].mean() < result[62, 40].mean() - 60


def test_where_faces_overlap_shares_sum_to_one_and_each_keeps_its_middle():
    left, right = Place.of(POINTS), Place.of(POINTS + np.array([60, 10]))
    box = (100, 0, 420, 300)
    mine, yours = rivalry(left, [right], box), rivalry(right, [left], box)
    both = (left.radius(box) < 1) & (right.radius(box) < 1)
    np.testing.assert_allclose((mine + yours)[both], 1, atol=1e-5)
    assert mine[left.radius(box) < 0.05].min() > 0.7 and yours[left.radius(box) < 0.05].max() < 0.3
    assert (rivalry(left, [], box) == 1).all()


def test_a_parsed_mask_stays_inside_the_ellipse_and_holds_the_features(astronaut):
    face = torch.from_numpy(np.array(crop(astronaut, POINTS, 128)[0])).permute(2, 0, 1) / 127.5 - 1
    mask = ParsedMask()(face)
    assert (mask <= ellipse(face)).all()
    for x, y in FFHQ_512 / 4:
        assert mask[round(y), round(x)] > 0.95
    assert mask[:, :16].max() < 0.05  # outside the head
    assert mask_named("parsing").network is not None
    with pytest.raises(InputError, match=r"mask .*ellipse or parsing.*oval"):
        mask_named("oval")


RESTORED = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_gray_photo_gets_the_lightness_that_pillow_makes_of_the_face(astronaut, mode):
    gray = astronaut.convert("L")
    photo = {
        "L": gray,
        "LA": gray.convert("LA"),
        "I;16": Image.fromarray(np.asarray(gray).astype(np.uint16) * 257),
    }[mode]
    shown = put_back(photo, POINTS, RESTORED).image()
    assert shown.mode == mode
    expected = put_back(astronaut.convert("L").convert("RGB"), POINTS, RESTORED).image()
    assert (np.ptp(np.asarray(expected), axis=2) == 0).all()  # RGB without colour stays without
    values = np.asarray(shown)[..., 0] if mode == "LA" else np.asarray(shown) / (257 if mode == "I;16" else 1)
    assert abs(values - np.asarray(expected)[..., 0]).max() <= 1


def test_sixteen_bits_are_not_rounded_to_eight():
    values = np.random.default_rng(0).integers(0, 65536, (512, 512), dtype=np.uint16)
    canvas = put_back(Image.fromarray(values), POINTS, RESTORED)
    far = Place.of(POINTS).radius((0, 0, 512, 512)) >= 1
    assert np.array_equal(np.asarray(canvas.image())[far], values[far])
    assert (np.asarray(canvas.image()) % 257 != 0).mean() > 0.9


def test_alpha_is_kept_and_what_is_transparent_keeps_its_colour(astronaut):
    photo = astronaut.convert("RGBA")
    alpha = Image.new("L", photo.size, 255)
    alpha.paste(0, (0, 0, 225, 512))  # the left half of the face
    photo.putalpha(alpha)
    shown = np.asarray(put_back(photo, POINTS, RESTORED).image())
    assert np.array_equal(shown[..., 3], np.asarray(alpha))
    assert np.array_equal(shown[:, :225], np.asarray(photo)[:, :225])
    opaque = np.asarray(put_back(astronaut, POINTS, RESTORED).image())
    assert np.array_equal(shown[:, 225:, :3], opaque[:, 225:])


def test_cmyk_keeps_its_black_and_shows_the_same_face(astronaut):
    photo = astronaut.convert("CMYK")
    black = (np.asarray(photo)[..., :3].min(2) * 0.6).astype(np.uint8)  # a printer's separation
    light = np.maximum(255.0 - black, 1)[..., None]
    inks = 255 - np.clip((255.0 - np.asarray(photo)[..., :3]) * 255 / light, 0, 255)
    photo = Image.fromarray(np.dstack([inks.round().astype(np.uint8), black]), "CMYK")
    face = np.asarray(crop(astronaut, POINTS, 128)[0])[:, ::-1]  # mirrored: colours that these blacks can show
    face = np.minimum(face, 140)
    canvas = put_back(photo, POINTS, face)
    shown = canvas.image()
    assert shown.mode == "CMYK" and np.array_equal(np.asarray(shown)[..., 3], black)
    inside = (Place.of(POINTS).radius((0, 0, 512, 512)) < 0.7) & (black < 100)
    expected = np.asarray(put_back(photo.convert("RGB"), POINTS, face).image())
    assert abs(np.asarray(shown.convert("RGB"), int) - expected)[inside].max() <= 2


@pytest.mark.parametrize(("mode", "becomes"), [("P", "RGB"), ("1", "L"), ("I", "I;16"), ("PA", "RGBA"), ("HSV", "RGB")])
def test_a_mode_that_cannot_hold_a_face_becomes_the_nearest_that_can(mode, becomes):
    photo = Image.radial_gradient("L").convert("RGB").convert("RGBA" if mode == "PA" else "RGB").convert(mode)
    assert Canvas(photo).image().mode == becomes


def test_floats_of_unknown_range_are_an_error():
    with pytest.raises(InputError, match="32-bit floats"):
        Canvas(Image.new("F", (8, 8)))


def test_the_background_is_enlarged_by_lanczos_or_by_what_is_given(astronaut):
    small = astronaut.resize((100, 80))
    assert enlarged(small, 2).tobytes() == small.resize((200, 160), Image.Resampling.LANCZOS).tobytes()
    asked = []

    def upscaler(image, scale):
        asked.append((image.mode, scale))
        return Image.new("RGB", (image.width * scale, image.height * scale), "red")

    shown = enlarged(small.convert("RGBA"), 4, upscaler)
    assert asked == [("RGB", 4)] and shown.mode == "RGBA" and shown.getpixel((9, 9)) == (255, 0, 0, 255)
    with pytest.raises(InputError, match="the upscaler made 100 x 80 px where 200 x 160 were asked for"):
        enlarged(small, 2, lambda image, scale: image)


def test_a_turned_face_is_known_by_where_its_nose_stands():
    for degrees in (0, 30, 60):
        a = np.radians(degrees)
        head = np.array([(-31, 0, 0), (31, 0, 0), (0, 40, 28), (-25, 75, 8), (25, 75, 8)], float)  # mm; z to the viewer
        seen = np.stack([head[:, 0] * np.cos(a) + head[:, 2] * np.sin(a), head[:, 1]], 1)
        assert yaw(seen) == pytest.approx(degrees, abs=5)
        b = np.radians(20)  # tilted as well
        assert yaw(seen @ np.array([[np.cos(b), np.sin(b)], [-np.sin(b), np.cos(b)]])) == pytest.approx(
            yaw(seen), abs=20
        )


def test_the_distance_from_the_template_counts_in_sides_of_the_picture():
    assert template_distance(FFHQ_512, (512, 512)) == pytest.approx(0, abs=1e-9)
    assert template_distance((FFHQ_512 + 0.5) / 4 - 0.5, (128, 129)) == pytest.approx(0, abs=1e-9)
    assert template_distance(FFHQ_512 + np.array([51.2, 0]), (512, 512)) == pytest.approx(0.1)


class OnItsOwnDevice(nn.Module):
    """A network that a loss or a metric has moved: it takes no image of another device."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, device="meta"))

    def forward(self, image):
        assert image.device == self.weight.device
        return torch.ones(len(image), 7, *image.shape[2:])


def test_a_shared_network_is_asked_where_it_is(monkeypatch):
    for place in ("guard", "pasting"):
        monkeypatch.setattr(f"lafr.photos.{place}.load", lambda name: OnItsOwnDevice())
    face = torch.zeros(3, 16, 16)
    assert ParsedMask()(face).shape == (16, 16)
    assert len(guard.likeness(face[None], face[None])) == 1
