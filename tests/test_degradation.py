"""The first-order chain: each operator against an independent one, then their order and their draws."""

import io
from collections import defaultdict

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from lafr.data import degradation as ops
from lafr.data.degradation import Degradation
from lafr.images import as_saved


@pytest.fixture
def hq():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(coarse)).permute(2, 0, 1) / 127.5 - 1


def test_the_same_generator_gives_the_same_pixels_and_the_input_stays(hq, degradation):
    before = hq.clone()
    first, second, other = (degradation(hq, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(hq, before)


def test_global_random_states_are_neither_read_nor_moved(hq, degradation):
    np.random.seed(0)
    torch.manual_seed(0)
    first = degradation(hq, np.random.default_rng(3))
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0)))
    assert np.random.rand() == np.random.RandomState(0).rand()
    assert torch.equal(first, degradation(hq, np.random.default_rng(3)))


def test_a_round_kernel_is_opencvs():
    line = cv2.getGaussianKernel(21, 2.5)
    assert np.allclose(ops.gaussian_kernel(21, 2.5, 2.5, 0.7), line @ line.T, atol=1e-7)


def test_any_kernel_sums_to_one():
    for sigma_x, sigma_y, theta in [(0.3, 0.3, 0), (5, 1, 1), (30, 2, -2)]:
        assert ops.gaussian_kernel(41, sigma_x, sigma_y, theta).sum() == pytest.approx(1, abs=1e-5)


def test_a_quarter_turn_swaps_the_sigmas():
    turned = ops.gaussian_kernel(21, 4, 1.5, np.pi / 2)
    assert np.allclose(turned, ops.gaussian_kernel(21, 1.5, 4, 0), atol=1e-7)
    assert not np.allclose(turned, ops.gaussian_kernel(21, 4, 1.5, 0), atol=1e-4)


def test_the_first_sigma_runs_along_the_angle():
    # theta = 0 is the x axis: columns; the second moment along it is sigma_x squared
    kernel = ops.gaussian_kernel(41, 4, 1.5, 0).astype(np.float64)
    offsets = np.arange(-20, 21)
    assert np.sqrt((kernel.sum(0) * offsets**2).sum()) == pytest.approx(4, rel=1e-2)
    assert np.sqrt((kernel.sum(1) * offsets**2).sum()) == pytest.approx(1.5, rel=1e-2)


def test_noise_has_the_given_deviation():
    gray = np.full((200, 200, 3), 0.5, np.float32)
    noise = ops.add_noise(gray, 12.0, np.random.default_rng(0)) - gray
    assert noise.std() * 255 == pytest.approx(12, rel=0.01)
    assert abs(noise.mean() * 255) < 0.1


def test_noise_stays_within_black_and_white():
    noisy = ops.add_noise(np.zeros((20, 20, 3), np.float32), 50, np.random.default_rng(0))
    assert noisy.min() == 0
    assert noisy.max() <= 1


@pytest.mark.parametrize("quality", [30, 70, 95])
def test_jpeg_is_pillows_at_the_same_quality_with_channels_in_order(hq, quality):
    image = ((hq.permute(1, 2, 0) + 1) / 2).numpy()
    file = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    reference = np.asarray(Image.open(file)).astype(np.float32)
    assert np.abs(ops.jpeg(image, quality) * 255 - reference).mean() < 1  # two builds of one codec


def test_downscaling_takes_no_average():
    # antialiasing would turn this pattern into gray; bilinear sampling at pixel centres keeps stripes of 1 in 3
    stripes = np.zeros((9, 9, 3), np.float32)
    stripes[:, 1::3] = 1
    assert np.array_equal(ops.downscale(stripes, 3), np.ones((3, 3, 3), np.float32))


@pytest.mark.parametrize("seed", range(4))
def test_the_chain_is_blur_down_noise_jpeg_up(hq, degradation, seed):
    rng = np.random.default_rng(seed)
    scale = 64 / 512
    sigma_x, sigma_y = rng.uniform(1, 15, 2) * scale
    sigma_y = sigma_x if rng.random() < 0.5 else sigma_y
    theta = rng.uniform(-np.pi, np.pi)
    factor = max(1, rng.uniform(1, 30) * scale)
    noise = rng.uniform(0, 20)
    quality = int(rng.integers(30, 101))
    image = (hq.permute(1, 2, 0).numpy() + 1) / 2
    # by hand: OpenCV for every operator, the noise by the same generator
    kernel = ops.gaussian_kernel(5, sigma_x, sigma_y, theta)  # 41 px at 512 is 5 px at 64
    image = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    side = int(64 / factor)
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    image = np.clip(image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(noise / 255), 0, 1)
    image = cv2.resize(ops.jpeg(image, quality), (64, 64), interpolation=cv2.INTER_LINEAR)
    expected = torch.from_numpy(np.round(image * 255)).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(degradation(hq, np.random.default_rng(seed)), expected)


def test_the_result_has_the_input_size_and_sits_on_8_bit_levels(hq, degradation):
    for seed in range(5):
        lq = degradation(hq, np.random.default_rng(seed))
        assert lq.shape == hq.shape
        assert torch.equal(lq, as_saved(lq))


def drawn(monkeypatch, chain: Degradation, side: int, count: int) -> dict[str, np.ndarray]:
    """Return what `count` calls drew, recorded at the operators."""
    seen = defaultdict(list)

    def record(name, *keys):
        original = getattr(ops, name)

        def operator(*arguments):
            for key, place in keys:
                seen[key].append(arguments[place])
            return original(*arguments)

        monkeypatch.setattr(ops, name, operator)

    record("gaussian_kernel", ("size", 0), ("sigma_x", 1), ("sigma_y", 2), ("theta", 3))
    record("downscale", ("factor", 1))
    record("add_noise", ("noise", 1))
    record("jpeg", ("quality", 1))
    image = torch.zeros(3, side, side)
    for n in range(count):
        chain(image, np.random.default_rng(n))
    return {key: np.array(values) for key, values in seen.items()}


def test_draws_fill_their_ranges_and_half_of_the_blurs_are_round(monkeypatch):
    draws = drawn(monkeypatch, Degradation(reference_resolution=32), side=32, count=400)
    ranges = {"sigma_x": (1, 15), "sigma_y": (1, 15), "factor": (1, 30), "noise": (0, 20), "quality": (30, 100)}
    for name, (low, high) in ranges.items():
        values, slack = draws[name], (high - low) * 0.03
        assert low <= values.min() < low + slack, name
        assert high - slack < values.max() <= high, name
    round_share = np.mean(draws["sigma_x"] == draws["sigma_y"])
    assert abs(round_share - 0.5) < 0.1
    assert np.abs(draws["theta"]).max() <= np.pi


def test_blur_and_downscale_follow_the_resolution_and_noise_and_jpeg_do_not(monkeypatch):
    small = drawn(monkeypatch, Degradation(reference_resolution=128), side=32, count=50)
    monkeypatch.undo()
    full = drawn(monkeypatch, Degradation(reference_resolution=32), side=32, count=50)
    assert np.allclose(small["sigma_x"], full["sigma_x"] / 4)
    assert np.allclose(small["sigma_y"], full["sigma_y"] / 4)
    assert np.allclose(small["factor"], np.maximum(1, full["factor"] / 4))
    assert np.array_equal(small["noise"], full["noise"])
    assert np.array_equal(small["quality"], full["quality"])
    assert set(full["size"]) == {41}
    assert set(small["size"]) == {11}  # 41 / 4 to the nearest odd number


def test_both_ends_of_the_jpeg_range_are_drawn(monkeypatch):
    draws = drawn(monkeypatch, Degradation(jpeg_quality=(98, 100)), side=8, count=30)
    assert set(draws["quality"]) == {98, 99, 100}


@pytest.mark.parametrize("size", [21, 41, 43])
def test_at_the_reference_resolution_the_kernel_has_the_size_that_was_asked_for(monkeypatch, size):
    draws = drawn(monkeypatch, Degradation(kernel_size=size, reference_resolution=32), side=32, count=1)
    assert draws["size"].tolist() == [size]
