"""Blur kernels: each a normalised float32 array `[size, size]`, `size` odd, sigmas in pixels, angles in radians.

The families are Real-ESRGAN's (Wang et al., ICCVW 2021, section 3.1).
"""

from collections.abc import Callable

import numpy as np
import torch

from lafr.errors import InputError


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, theta: float) -> np.ndarray:
    """Return an anisotropic Gaussian.

    Args:
        size: side in pixels, odd.
        sigma_x: standard deviation in pixels along the axis turned by `theta`.
        sigma_y: standard deviation in pixels across it.
        theta: angle in radians, from the x axis towards the y axis (downwards).
    """
    return _normalised(np.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, theta)))


def generalized_kernel(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float) -> np.ndarray:
    """Return a generalised Gaussian, exp(-d^(2 beta) / 2): flatter than Gaussian for beta > 1, peaked for beta < 1."""
    return _normalised(np.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, theta) ** beta))


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float) -> np.ndarray:
    """Return a plateau, 1 / (1 + d^(2 beta))."""
    return _normalised(1 / (1 + _squared_distance(size, sigma_x, sigma_y, theta) ** beta))


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """Return the circular low-pass filter w J1(w r) / (2 pi r), which causes ringing (Real-ESRGAN, Eq. 6).

    `cutoff` w is in radians per pixel, at most pi.
    """
    y, x = _grid(size)
    r = np.hypot(x, y)
    centre = r == 0
    r[centre] = 1  # any number but 0; the limit is set below
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * r)).numpy()
    kernel = cutoff * bessel / (2 * np.pi * r)
    kernel[centre] = cutoff**2 / (4 * np.pi)  # J1(x) -> x / 2
    return _normalised(kernel)


FAMILIES: dict[str, Callable[..., np.ndarray]] = {
    "gaussian": gaussian_kernel,
    "generalized": generalized_kernel,
    "plateau": plateau_kernel,
    "sinc": sinc_kernel,
}


def make_kernel(family: str, size: int, **shape: float) -> np.ndarray:
    """Return the kernel that a record describes; raises InputError for an unknown family."""
    if family not in FAMILIES:
        raise InputError("family", family, f"one of {', '.join(FAMILIES)}")
    return FAMILIES[family](size, **shape)


def _grid(size: int) -> np.ndarray:
    """Return y and x from the kernel's centre, `[2, size, size]`."""
    half = size // 2
    return np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)


def _squared_distance(size: int, sigma_x: float, sigma_y: float, theta: float) -> np.ndarray:
    y, x = _grid(size)
    # (x, y) rotated by -theta: along and across the kernel's first axis
    along = x * np.cos(theta) + y * np.sin(theta)
    across = -x * np.sin(theta) + y * np.cos(theta)
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)
