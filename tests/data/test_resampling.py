"""The fast blur-and-resize is OpenCV's slow one."""

import cv2
import numpy as np
import pytest

from lafr.data.degradation import resampling
from lafr.data.degradation.kernels import gaussian_kernel
from lafr.data.degradation.resampling import blur_then_resize, outer_products


@pytest.fixture(autouse=True)
def never_opencv(monkeypatch):
    def refuse(*_):
        raise AssertionError("OpenCV was called")

    monkeypatch.setattr(resampling, "opencv_blur_then_resize", refuse)


def slow(image, kernel, size):
    blurred = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return cv2.resize(blurred, size[::-1], interpolation=cv2.INTER_LINEAR)


def test_it_is_opencvs_filter_and_resize_at_any_size_angle_and_factor():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        height, width = rng.integers(60, 200, 2)
        image = rng.random((height, width, 3), np.float32)
        kernel = gaussian_kernel(41, *rng.uniform(0.3, 15, 2), rng.uniform(-3, 3))
        size = tuple(int(side / rng.uniform(6, 30)) for side in (height, width))
        assert np.abs(blur_then_resize(image, kernel, size) - slow(image, kernel, size)).max() < 1e-4, seed


def test_a_picture_smaller_than_the_kernel_is_mirrored_again_and_again():
    image = np.random.default_rng(0).random((30, 9, 3), np.float32)
    kernel = gaussian_kernel(41, 9, 3, 0.4)
    assert np.abs(blur_then_resize(image, kernel, (4, 3)) - slow(image, kernel, (4, 3))).max() < 1e-5


def test_a_lopsided_kernel_is_not_turned():
    kernel = gaussian_kernel(21, 4, 2, 0.7)
    kernel[:, :10] = 0
    kernel /= kernel.sum()
    image = np.random.default_rng(0).random((100, 100, 3), np.float32)
    assert np.abs(blur_then_resize(image, kernel, (9, 8)) - slow(image, kernel, (9, 8))).max() < 1e-5


def test_a_round_gaussian_is_one_product_and_what_is_left_out_is_invisible():
    assert len(outer_products(gaussian_kernel(41, 5, 5, 0))[0]) == 1
    for kernel in (gaussian_kernel(41, 15, 3, 0.8), gaussian_kernel(41, 9, 4, -0.3)):
        columns, rows = outer_products(kernel)
        assert 1 < len(columns) < 41
        assert np.abs(columns.T @ rows - kernel).sum() < 1e-4  # the most that a pixel in [0, 1] can change


def test_small_kernels_and_large_results_are_left_to_opencv():
    image = np.zeros((64, 64, 3), np.float32)
    for size, factor in ((11, 8), (41, 1.1)):
        with pytest.raises(AssertionError, match="OpenCV was called"):
            blur_then_resize(image, gaussian_kernel(size, 3, 1, 0.5), (int(64 / factor),) * 2)
