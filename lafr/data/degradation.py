"""First-order degradation: blur -> bilinear down -> Gaussian noise -> JPEG -> bilinear up.

One function per operator on float32 RGB `[H, W, 3]` in [0, 1]; `Degradation` draws their parameters and chains them.
The order is GFPGAN's (Wang et al., CVPR 2021, Eq. 8), the default ranges are OSEDiff's for faces.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

Range = tuple[float, float]


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, theta: float) -> np.ndarray:
    """Return a normalised anisotropic Gaussian `[size, size]`.

    Args:
        size: side in pixels, odd.
        sigma_x: standard deviation in pixels along the axis turned by `theta`.
        sigma_y: standard deviation in pixels across it.
        theta: angle in radians.
    """
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    along = x * np.cos(theta) + y * np.sin(theta)
    across = -x * np.sin(theta) + y * np.cos(theta)
    kernel = np.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2))
    return (kernel / kernel.sum()).astype(np.float32)


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve with `kernel`; the border is mirrored."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def downscale(image: np.ndarray, factor: float) -> np.ndarray:
    """Shrink both sides by `factor`, bilinear without antialiasing (as the field does)."""
    height, width = image.shape[:2]
    size = max(1, int(width / factor)), max(1, int(height / factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def add_noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Add white Gaussian noise of standard deviation `sigma` in 1/255."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image + noise * np.float32(sigma / 255), 0, 1)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress and decompress at JPEG `quality` (1..100)."""
    bgr = cv2.cvtColor(np.round(image * 255).astype(np.uint8), cv2.COLOR_RGB2BGR)
    _, coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.float32) / 255


@dataclass(frozen=True)
class Degradation:
    """The first-order chain; pure in (image, generator).

    Args:
        blur_sigma: range in pixels at `reference_resolution`.
        down: range of the downscale factor at `reference_resolution`.
        noise_sigma: range in 1/255.
        jpeg_quality: range, 1..100.
        kernel_size: side of the blur kernel in pixels at `reference_resolution`, odd.
        isotropic: probability that the blur is round.
        reference_resolution: side in pixels that the ranges are written for. At another resolution r, blur sigma,
            kernel and downscale factor are multiplied by r / reference (factors not under 1): the same content is
            lost. Noise and JPEG act on pixel values and stay.
    """

    blur_sigma: Range = (1, 15)
    down: Range = (1, 30)
    noise_sigma: Range = (0, 20)
    jpeg_quality: tuple[int, int] = (30, 100)
    kernel_size: int = 41
    isotropic: float = 0.5
    reference_resolution: int = 512

    def __call__(self, hq: Tensor, rng: np.random.Generator) -> Tensor:
        """Return `lq`, degraded `hq`: both `[3, H, W]` in [-1, 1], 8-bit levels, same size."""
        scale = hq.shape[-1] / self.reference_resolution
        sigma_x, sigma_y = rng.uniform(*self.blur_sigma, 2) * scale
        if rng.random() < self.isotropic:
            sigma_y = sigma_x
        theta = rng.uniform(-np.pi, np.pi)
        factor = max(1.0, rng.uniform(*self.down) * scale)
        noise_sigma = rng.uniform(*self.noise_sigma)
        quality = int(rng.integers(self.jpeg_quality[0], self.jpeg_quality[1], endpoint=True))

        image = ((hq.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).contiguous().numpy()
        size = image.shape[1], image.shape[0]
        kernel_size = max(3, 2 * round((self.kernel_size * scale - 1) / 2) + 1)  # the nearest odd number
        image = blur(image, gaussian_kernel(kernel_size, sigma_x, sigma_y, theta))
        image = downscale(image, factor)
        image = add_noise(image, noise_sigma, rng)
        image = jpeg(image, quality)
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        image = np.round(image * 255).clip(0, 255).astype(np.float32)
        return torch.from_numpy(image).permute(2, 0, 1).contiguous() / 127.5 - 1
