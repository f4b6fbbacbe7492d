"""Landmarkers: facexlib's and dlib's own numbers, and points that carry a gradient."""

import sys

import cv2
import numpy as np
import pytest
import torch

from lafr.data.packaged import aligned
from lafr.errors import InputError
from lafr.images import from_pil, from_uint8, resize_pil
from lafr.networks.dlib_models import Dlib68
from lafr.networks.landmarkers import AWingFAN, argmax_points, soft_argmax

HEATMAP_PIXEL = 512 / 64  # in pixels of the 512 crop


@pytest.fixture(scope="module")
def photo():
    return np.array(aligned("astronaut"))  # RGB, 0..255


@pytest.fixture(scope="module")
def fan():
    pytest.importorskip("facexlib.alignment.awing_arch", reason="needs facexlib")
    torch.manual_seed(0)
    landmarker = AWingFAN()
    for norm in landmarker.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return landmarker


def bumps(centres, sigma=1.5, size=64):
    """Gaussians of peak 1 around `centres [K, 2]` (x, y), in heatmap pixels: `[1, K, size, size]`."""
    axis = torch.arange(size, dtype=torch.float32)
    x, y = (torch.exp(-0.5 * ((axis - centres[:, i : i + 1]) / sigma) ** 2) for i in (0, 1))
    return (y[:, :, None] * x[:, None, :])[None]


def inner_centres(count=200):
    return 6 + 52 * torch.rand(count, 2, generator=torch.Generator().manual_seed(0))


def in_crop(centres):
    return (centres + 0.5) * HEATMAP_PIXEL - 0.5


def facexlibs(fan, pixels):
    # float: facexlib's resize would round to 8 bits
    return fan.network.get_landmarks(pixels[..., ::-1].astype(np.float32))


def ours(pixels):
    return from_uint8(torch.from_numpy(pixels).permute(2, 0, 1))[None]


def test_the_heatmaps_are_those_of_facexlibs_own_call(fan, photo, monkeypatch):
    architecture = sys.modules["facexlib.alignment.awing_arch"]
    seen = []
    monkeypatch.setattr(architecture, "calculate_points", lambda h: seen.append(h) or np.zeros((*h.shape[:2], 2)))
    facexlibs(fan, photo)
    with torch.no_grad():
        found = fan(ours(photo))
    theirs = torch.from_numpy(seen[0])
    assert found.heatmaps.shape == (1, 98, 64, 64) and found.points.shape == (1, 98, 2)
    assert theirs.std((2, 3)).min() > 0.01
    torch.testing.assert_close(found.heatmaps, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("side", [128, 300, 1024])
def test_the_fan_reads_what_facexlib_feeds_it_at_any_size(fan, photo, side, monkeypatch):
    read = []
    monkeypatch.setattr(fan.network, "forward", lambda x: read.append(x) or ([torch.rand(1, 99, 64, 64)], None))
    monkeypatch.setattr(sys.modules["facexlib.alignment.awing_arch"], "calculate_points", lambda h: np.zeros((98, 2)))
    face = cv2.resize(photo, (side, side))
    facexlibs(fan, face)
    fan(ours(face))
    theirs, found = read
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-6)


def test_the_fans_gradient_reaches_the_image_and_no_weight(fan, photo):
    image = ours(cv2.resize(photo, (64, 64))).requires_grad_()
    fan.train()
    assert not any(part.training for part in fan.modules())
    fan(image).points.square().sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in fan.parameters())


def test_soft_points_lie_on_the_centres_of_gaussians():
    for sigma, tolerance in [(1.0, 0.16), (1.5, 0.05), (2.0, 0.05)]:
        centres = inner_centres()
        off = (soft_argmax(bumps(centres, sigma))[0] - in_crop(centres)).abs().max() / HEATMAP_PIXEL
        assert off < tolerance


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_soft_points_agree_with_facexlibs_read_out(sigma, monkeypatch):
    architecture = pytest.importorskip("facexlib.alignment.awing_arch", reason="needs facexlib")
    monkeypatch.setattr(np, "float", float, raising=False)  # removed from NumPy 1.24
    heatmaps = bumps(inner_centres(), sigma)
    theirs = torch.from_numpy(architecture.calculate_points(heatmaps.numpy())).float() * HEATMAP_PIXEL - 0.5
    torch.testing.assert_close(argmax_points(heatmaps), theirs)
    assert (soft_argmax(heatmaps) - theirs).abs().max() <= 0.3 * HEATMAP_PIXEL


def test_a_peak_at_the_border_moves_no_other_point():
    inner = bumps(torch.tensor([[20.3, 30.4]]))
    both = torch.cat([inner, bumps(torch.tensor([[40.0, 0.0]]))], 1)
    assert torch.equal(argmax_points(both)[:, :1], argmax_points(inner))
    assert torch.equal(argmax_points(inner)[0, 0], in_crop(torch.tensor([20.25, 30.25])))


def test_a_second_lower_bump_far_off_does_not_pull():
    centre = torch.tensor([[20.3, 30.4]])
    heatmaps = bumps(centre) + 0.9 * bumps(torch.tensor([[50.0, 10.0]]))
    assert (soft_argmax(heatmaps)[0] - in_crop(centre)).abs().max() < 0.05 * HEATMAP_PIXEL


def test_the_gradient_of_a_soft_point_is_finite_and_not_zero():
    for case in ["inside", "corner", "flat"]:
        heatmaps = {
            "inside": bumps(torch.tensor([[20.3, 30.4]])),
            "corner": bumps(torch.tensor([[0.0, 63.0]])),
            "flat": torch.zeros(1, 1, 64, 64),
        }[case].requires_grad_()
        soft_argmax(heatmaps).sum().backward()
        assert heatmaps.grad.isfinite().all() and heatmaps.grad.abs().sum() > 0


def test_a_missing_facexlib_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "facexlib.alignment.awing_arch", None)
    with pytest.raises(InputError, match=r"awing_arch.*pip install --no-deps --require-hashes"):
        AWingFAN()


@pytest.fixture(scope="module")
def dlib_68():
    pytest.importorskip("dlib", reason="needs dlib-bin")
    try:
        return Dlib68.from_pretrained()
    except InputError as missing:
        pytest.skip(str(missing))


def test_dlibs_points_are_its_predictors_own(dlib_68, photo):
    import dlib

    found = dlib_68.predictor(photo, dlib.rectangle(120, 150, 390, 420))
    theirs = torch.tensor([(p.x, p.y) for p in found.parts()], dtype=torch.float32)
    landmarks = dlib_68(ours(photo))
    assert landmarks.heatmaps is None
    assert torch.equal(landmarks.points[0], theirs)


def test_dlibs_points_are_in_pixels_of_the_512_crop_and_on_the_face(dlib_68):
    face = aligned("astronaut")
    large, small = (dlib_68(from_pil(resize_pil(face, side))[None]).points[0] for side in (512, 256))
    assert (large - small).norm(dim=1).mean() < 4
    for eye, x in ((range(36, 42), 193), (range(42, 48), 319)):  # FFHQ's template
        assert (large[list(eye)].mean(0) - torch.tensor([x, 240.0])).norm() < 10
