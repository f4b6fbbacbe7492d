"""Blur and bilinear resize as one linear map, computed only at the pixels that the resize reads.

A kernel is a sum of outer products, K = sum_i u_i v_i^T (its singular value decomposition; one term for a round
Gaussian, a handful for a rotated one). Blur and bilinear sampling along one axis are then one banded matrix per term,
and the result is sum_i A_i X B_i^T: the cost falls with the number of rows and columns that are read.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

DIRECT = 11  # up to this size OpenCV filters directly and is as fast; above, it computes an FFT of the whole image
TOLERANCE = 1e-4  # largest error of a pixel in [0, 1] from the terms left out: 1/40 of an 8-bit level


def blur_then_resize(image: np.ndarray, kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return `image [H, W, 3]` filtered with `kernel [k, k]` and bilinearly resized to `size` (height, width).

    Equals OpenCV's `filter2D` (mirrored border) and `resize` (INTER_LINEAR) up to rounding and `TOLERANCE`. These two
    are called where they are faster: for small kernels, and where as many values are read as there are pixels.
    """
    if kernel.shape[0] <= DIRECT:
        return opencv_blur_then_resize(image, kernel, size)
    columns, rows = outer_products(kernel)
    if len(rows) * size[0] * size[1] > image.shape[0] * image.shape[1]:
        return opencv_blur_then_resize(image, kernel, size)
    planes = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, 2, 0)))  # [3, H, W]
    height, width = planes.shape[1:]
    across, along = sampling(rows, width, size[1]), sampling(columns, height, size[0])  # [r, w', W], [r, h', H]

    # The matrices are banded: each block of samples is multiplied with the pixels that it reads alone.
    block = 16 if len(rows) == 1 else 8  # measured: the fastest
    lines = planes.flatten(0, 1)  # [3 H, W]
    wide = torch.empty(len(lines), len(rows), size[1])
    for start, stop, low, high in bands(width, size[1], kernel.shape[0], block):
        band = across[:, start:stop, low:high].flatten(0, 1)  # [r b, span]
        wide[..., start:stop] = (lines[:, low:high] @ band.T).unflatten(1, (len(rows), -1))
    wide = wide.view(3, -1, size[1])  # [3, H r, w']
    out = torch.empty(3, *size)
    for start, stop, low, high in bands(height, size[0], kernel.shape[0], block):
        band = along[:, start:stop, low:high].permute(1, 2, 0).flatten(1)  # [b, span r]
        torch.bmm(band.expand(3, -1, -1), wide[:, low * len(rows) : high * len(rows)], out=out[:, start:stop])
    return out.permute(1, 2, 0).numpy()


def opencv_blur_then_resize(image: np.ndarray, kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the same result by filtering every pixel."""
    blurred = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return cv2.resize(blurred, size[::-1], interpolation=cv2.INTER_LINEAR)


def outer_products(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return u `[r, k]` and v `[r, k]` with sum_i u_i v_i^T = kernel, within `TOLERANCE` after filtering [0, 1]."""
    # PyTorch's SVD uses one thread in a loader's worker process, NumPy's would use all cores
    u, s, v = (part.numpy() for part in torch.linalg.svd(torch.from_numpy(kernel).double()))
    # a term s u v^T changes a pixel in [0, 1] by at most s |u|_1 |v|_1
    change = s * np.abs(u).sum(0) * np.abs(v).sum(1)
    # keep the terms until what all the later ones can change together is under the tolerance
    terms = max(1, int((np.cumsum(change[::-1])[::-1] > TOLERANCE).sum()))
    root = np.sqrt(s[:terms])
    return u.T[:terms] * root[:, None], v[:terms] * root[:, None]


def bilinear(length: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the pixel before each sample and the weight of the pixel after it.

    Pixel centres lie at halves (OpenCV's INTER_LINEAR, PyTorch's align_corners=False); samples beyond the border take
    the border's value.
    """
    position = ((np.arange(samples) + 0.5) * (length / samples) - 0.5).clip(0, length - 1)
    before = np.minimum(position.astype(np.int64), max(0, length - 2))
    return before, position - before


def pixels_read(length: int, samples: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels that each sample reads `[samples, size + 1]`, mirrored at the border, and its bilinear weight.

    A sample lies between two pixels, and a filter of `size` taps around each of them reads size + 1 pixels.
    """
    before, weight = bilinear(length, samples)
    position = before[:, None] + np.arange(-(size // 2), size // 2 + 2)
    period = max(1, 2 * (length - 1))
    position = position % period
    return np.minimum(position, period - position) if length > 1 else position * 0, weight


def sampling(taps: np.ndarray, length: int, samples: int) -> Tensor:
    """Return `[r, samples, length]`: filter with each of `taps [r, k]` under a mirrored border, sample bilinearly."""
    terms, size = taps.shape
    pixels, weight = pixels_read(length, samples, size)
    # (1 - weight) times the taps around the pixel before a sample, plus weight times those around the pixel after it
    pair = np.zeros((terms, samples, size + 1))
    pair[..., :-1] += taps[:, None] * (1 - weight)[:, None]
    pair[..., 1:] += taps[:, None] * weight[:, None]
    matrix = torch.zeros(terms, samples, length)
    # add, not assign: at a mirrored border several taps read one pixel
    return matrix.scatter_add_(2, torch.from_numpy(pixels).expand(terms, -1, -1), torch.from_numpy(pair).float())


def bands(length: int, samples: int, size: int, block: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, stop) of each `block` of samples and (low, high) of the pixels that it reads."""
    pixels, _ = pixels_read(length, samples, size)
    for start in range(0, samples, block):
        read = pixels[start : start + block]
        yield start, start + len(read), int(read.min()), int(read.max()) + 1
