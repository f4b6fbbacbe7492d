"""Pixel-wise fidelity to the ground truth: one number per image, on the 8-bit pixels that a PNG would hold."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lafr.images import to_uint8

WINDOW = 11  # pixels of SSIM's Gaussian window
SIGMA = 1.5
BT601 = (65.481, 128.553, 24.966)  # of R, G, B in [0, 1]; black is 16, white 235


def psnr_rgb(image: Tensor, hq: Tensor) -> Tensor:
    """Return PSNR in dB `[B]` of `[B, 3, H, W]` in [-1, 1]: RGB, no crop, 8-bit; 100 for equal images.

    NaN, a failed measurement, for an image that is not finite, as of all functions here.
    """
    return _of_finite(_psnr(to_uint8(image).double(), to_uint8(hq).double()), image, hq)


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
    mse = (x - y).square().mean((1, 2, 3)) / 255**2  # [B]
    return (-10 * mse.clamp_min(1e-10).log10()).float()  # at most 100 dB, for equal images


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    # Not torchmetrics': at equal precision, float64, that takes 69 times as long (2.0 s against 0.03 s for an image of
    # 512 px on one core), in float32 4 times as long.
    # In float32 the squares of 8-bit pixels are exact, so SSIM is right to 1e-6 once middle gray is subtracted, which
    # leaves variances unchanged; luma is no whole number and needs float64.
    x, y = (image.float() if image.dtype == torch.uint8 else image for image in (x, y))
    return torch.stack([_ssim_of_one(a - 128, b - 128) for a, b in zip(x, y, strict=True)]).float()


def _ssim_of_one(x: Tensor, y: Tensor) -> Tensor:
    # Wang et al., Eq. 13: [(2 mx my + c1) / (mx^2 + my^2 + c1)] [(2 cov + c2) / (vx + vy + c2)]
    x_mean, y_mean, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    x_variance, y_variance, covariance = xx - x_mean**2, yy - y_mean**2, xy - x_mean * y_mean
    x_mean, y_mean = x_mean + 128, y_mean + 128
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * x_mean * y_mean + c1) / (x_mean**2 + y_mean**2 + c1)
    structure = (2 * covariance + c2) / (x_variance + y_variance + c2)
    return (luminance * structure).mean(dtype=torch.float64)


def _blur(x: Tensor) -> Tensor:
    # Weighted sums of shifted views: on a CPU six times as fast as a convolution of single channels.
    half = WINDOW // 2
    side = torch.exp(-0.5 * (torch.arange(half, 0, -1) / SIGMA).double() ** 2)
    side = (side / (1 + 2 * side.sum())).float().tolist()
    x = F.pad(x, (half,) * 4, mode="reflect")
    for axis in (-1, -2):
        views = [x.narrow(axis, start, x.shape[axis] - 2 * half) for start in range(WINDOW)]
        x = views[half] * (1 - 2 * sum(side))  # the taps, as float32 holds them, add up to 1
        for i, tap in enumerate(side):
            x.add_(views[i], alpha=tap).add_(views[WINDOW - 1 - i], alpha=tap)
    return x
