"""Labelled faces: points, regions and pixels move together; item n depends on (seed, n) alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from lafr.data.degradation.first_order import Degradation
from lafr.data.faces import Faces
from lafr.errors import InputError
from lafr.miniature.labelled import MIRROR, LabelledStream, mirrored, random_affine, read_landmarks, warped
from lafr.miniature.regions import draw_regions


def face_points() -> np.ndarray:
    """The 68 points of a schematic face, symmetric about the middle of the 512 crop."""
    points = np.zeros((68, 2))
    angle = np.linspace(np.pi, 0, 17)
    points[:17] = np.stack([255.5 + 150 * np.cos(angle), 250 + 190 * np.sin(angle)], 1)
    x = np.linspace(-110, -30, 5)
    points[17:22] = np.stack([255.5 + x, 190 - 10 * np.sin(np.linspace(0, np.pi, 5))], 1)
    points[22:27] = np.stack([255.5 - x[::-1], points[17:22, 1][::-1]], 1)
    points[27:31] = np.stack([np.full(4, 255.5), np.linspace(220, 300, 4)], 1)
    points[31:36] = np.stack([255.5 + np.linspace(-25, 25, 5), [310, 315, 318, 315, 310]], 1)
    eye = np.array([(-30, 0), (-10, -12), (10, -12), (30, 0), (10, 12), (-10, 12)])
    points[36:42], points[42:48] = eye + np.array([192.5, 240]), eye + np.array([318.5, 240])
    outer = np.linspace(np.pi, -np.pi, 13)[:12]
    points[48:60] = np.stack([255.5 + 55 * np.cos(outer), 370 - 25 * np.sin(outer)], 1)
    inner = np.linspace(np.pi, -np.pi, 9)[:8]
    points[60:68] = np.stack([255.5 + 40 * np.cos(inner), 370 - 10 * np.sin(inner)], 1)
    return points


@pytest.fixture
def labelled(tmp_path):
    """Three noise pictures in a folder `some`, with a landmarks file next to it."""
    rng = np.random.default_rng(0)
    (tmp_path / "some").mkdir()
    names = [f"{i}.png" for i in range(3)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "some" / name)
    points = np.stack([face_points() + i for i in range(3)]).astype(np.float32)
    np.savez(tmp_path / "some_landmarks68.npz", names=names, landmarks=points, detected=[True, True, False])
    return tmp_path


def stream(root, count=2, **settings) -> LabelledStream:
    faces = Faces([root / "some" / f"{i}.png" for i in range(count)], 64)
    return LabelledStream(faces, Degradation(), 0, read_landmarks(root, ["some"]), **settings)


def test_mirroring_twice_gives_the_face_back_and_a_symmetric_face_is_its_own_mirror():
    points = face_points()
    assert np.allclose(mirrored(mirrored(points + np.arange(68)[:, None])), points + np.arange(68)[:, None])
    assert sorted(MIRROR) == list(range(68))
    assert np.allclose(mirrored(points), points, atol=1e-6)


@pytest.mark.parametrize("side", [128, 256])
def test_a_warp_moves_pixels_to_where_it_moves_points(side):
    matrix = random_affine(np.random.default_rng(3), 1.0)
    y, x = np.mgrid[:side, :side]
    for point in ([200.0, 250.0], [300.0, 330.0]):
        centre = (np.array(point) + 0.5) * side / 512 - 0.5
        dot = torch.from_numpy(np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 8)).float().expand(3, -1, -1)
        moved = warped(dot.contiguous(), matrix)[0].numpy()
        found = np.array([(moved * x).sum(), (moved * y).sum()]) / moved.sum()
        expected = (matrix[:, :2] @ point + matrix[:, 2] + 0.5) * side / 512 - 0.5
        assert np.allclose(found, expected, atol=0.05)


def test_an_item_depends_on_seed_and_number_alone(labelled):
    first, again = stream(labelled, mix=0.5), stream(labelled, mix=0.5)
    for n in (5, 0, 5):
        for key, value in first[n].items():
            assert torch.equal(value, again[n][key]), key
    assert not torch.equal(first[0]["hq"], first[2]["hq"])  # the same face, warped differently


def test_the_student_sees_the_face_itself_or_a_degraded_copy(labelled):
    clean, degraded = stream(labelled, degraded=0.0), stream(labelled, degraded=1.0)
    assert torch.equal(clean[1]["lq"], clean[1]["hq"])
    assert not torch.equal(degraded[1]["lq"], degraded[1]["hq"])
    assert torch.equal(degraded[1]["points"], clean[1]["points"])


def test_a_blend_is_of_two_faces_and_never_in_validation(labelled):
    still = {"warp": 0.0, "degraded": 0.0}
    blended, plain = stream(labelled, mix=1.0, **still), stream(labelled, mix=0.0, **still)
    assert blended[0]["hq"].std() < 0.9 * plain[0]["hq"].std()  # the mean of two noises
    held_out = stream(labelled, mix=1.0, **still).held_out(blended.faces)
    assert held_out.mix == 0 and len(held_out) == 2


def test_a_face_without_landmarks_is_named(labelled):
    with pytest.raises(InputError, match=r"1 faces have no landmarks, first .*2\.png"):
        stream(labelled, count=3)
    with pytest.raises(InputError, match="missing"):
        read_landmarks(labelled, ["other"])
    path = labelled / "some_landmarks68.npz"
    whole = path.read_bytes()
    for damaged in (b"", b"no archive", whole[:-40], whole[:200] + b"\0" * 50 + whole[250:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"some_landmarks68\.npz' are damaged"):
            read_landmarks(labelled, ["some"])


@pytest.mark.parametrize("size", [64, 128, 512])
def test_regions_cover_their_polygons(size):
    labels = draw_regions(face_points(), size)
    share = [(labels == k).mean() * 512 * 512 for k in range(7)]
    eye = 60 * 12 + 20 * 12  # the hexagon drawn above, by the shoelace formula: 960
    assert share[3] == pytest.approx(2 * eye, rel=0.25 if size == 64 else 0.15)
    mouth = 0.5 * 12 * np.sin(np.pi / 6) * 55 * 25  # a regular twelve-gon, stretched
    assert share[5] + share[6] == pytest.approx(mouth, rel=0.12)
    assert share[1] > 10 * share[3] and share[0] > share[1] / 2 and min(share) > 0


def test_regions_are_the_same_content_at_every_size():
    small, large = draw_regions(face_points(), 128), draw_regions(face_points(), 512)
    assert (large[2::4, 2::4] == small).mean() > 0.97
