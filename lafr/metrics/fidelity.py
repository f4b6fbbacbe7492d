"""Pixel-wise fidelity to the ground truth: one number per image, on the 8-bit pixels that a PNG would hold."""

import cv2
import numpy as np
import torch
from torch import Tensor

from lafr.images import to_uint8

WINDOW = 11  # pixels of SSIM's Gaussian window
SIGMA = 1.5
TAPS = cv2.getGaussianKernel(WINDOW, SIGMA)
BT601 = (65.481, 128.553, 24.966)  # of R, G, B in [0, 1]; black is 16, white 235


def psnr_rgb(image: Tensor, hq: Tensor) -> Tensor:
    """Return PSNR in dB `[B]` of `[B, 3, H, W]` in [-1, 1]: RGB, no crop, 8-bit; 100 for equal images.

    NaN, a failed measurement, for an image that is not finite, as of all functions here.
    """
    return _of_finite(_psnr(to_uint8(image).int(), to_uint8(hq).int()), image, hq)


def psnr_y(image: Tensor, hq: Tensor) -> Tensor:
    """Return PSNR in dB `[B]` of the luma of `[B, 3, H, W]` in [-1, 1]: BT.601, 16 to 235, of a range of 255."""
    return _of_finite(_psnr(luma(image), luma(hq)), image, hq)


def ssim_rgb(image: Tensor, hq: Tensor) -> Tensor:
    """Return SSIM `[B]` of `[B, 3, H, W]` in [-1, 1], the mean over R, G and B (Wang et al., TIP 2004).

    It is scikit-image's `structural_similarity` with gaussian_weights, sigma 1.5, use_sample_covariance False and
    data_range 255 on images whose border is mirrored by 5 pixels, so that every pixel counts.
    """
    return _of_finite(_ssim(to_uint8(image), to_uint8(hq)), image, hq)


def ssim_y(image: Tensor, hq: Tensor) -> Tensor:
    """Return SSIM `[B]` of the luma of `[B, 3, H, W]` in [-1, 1]; see `ssim_rgb`, `psnr_y`."""
    return _of_finite(_ssim(luma(image), luma(hq)), image, hq)


def luma(image: Tensor) -> Tensor:
    """Return Y of BT.601 `[B, 1, H, W]`, 16 to 235 in float64, of the 8-bit pixels of `[B, 3, H, W]` in [-1, 1].

    MATLAB's `rgb2ycbcr`, which BasicSR's `test_y_channel` uses; not rounded.
    """
    weights = torch.tensor(BT601, dtype=torch.float64, device=image.device)[:, None, None]
    return 16 + (to_uint8(image).double() / 255 * weights).sum(1, keepdim=True)


def _of_finite(values: Tensor, *images: Tensor) -> Tensor:
    # 8 bits hold no NaN: it becomes a level, black here and another one elsewhere, which may be the ground truth's
    for image in images:
        values = values.masked_fill(~image.isfinite().flatten(1).all(1), float("nan"))
    return values


def _psnr(x: Tensor, y: Tensor) -> Tensor:
    # Not torchmetrics', whose logarithms of range and base are float32 whatever its input: 2e-6 dB off at 40 dB.
    error = (x - y).square().sum((1, 2, 3))  # of whole numbers exact: PyTorch adds them up in int64
    mse = error.double() / x[0].numel() / 255**2  # [B]
    return (-10 * mse.clamp_min(1e-10).log10()).float()  # at most 100 dB, for equal images


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    # Not torchmetrics': at equal precision, float64, that takes a hundred times as long.
    pairs = zip(*(image.double().cpu().numpy() for image in (x, y)), strict=True)
    # channel by channel: what is computed of one stays in the processor's cache
    found = [np.mean([_ssim_of_channel(*channel) for channel in zip(*pair, strict=True)]) for pair in pairs]
    return torch.tensor(found, dtype=torch.float32, device=x.device)


def _ssim_of_channel(x: np.ndarray, y: np.ndarray) -> float:
    # Wang et al., Eq. 13: [(2 mx my + c1) / (mx^2 + my^2 + c1)] [(2 cov + c2) / (vx + vy + c2)]
    # In float64, as variances are small differences of large numbers: in float32 a flat image is 4e-6 off.
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    x_mean, y_mean = _blur(x), _blur(y)
    means, squares = x_mean * y_mean, x_mean * x_mean + y_mean * y_mean
    variances = _blur(x * x + y * y) - squares
    covariance = _blur(x * y) - means
    ratio = (2 * means + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
    return float(ratio.mean())


def _blur(x: np.ndarray) -> np.ndarray:
    # OpenCV's separable filter, many times as fast as weighted sums of shifted tensors
    return cv2.sepFilter2D(x, -1, TAPS, TAPS, borderType=cv2.BORDER_REFLECT_101)
