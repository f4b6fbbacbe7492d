"""NIQE, the "completely blind" image quality analyser (Mittal, Soundararajan & Bovik, IEEE SPL 2013).

An image's blocks are described by the statistics of their locally normalised luma; NIQE is the distance of their
Gaussian from that of pristine photographs. Written from the paper; the pristine model is LIVE's, as BasicSR carries it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lafr.errors import InputError
from lafr.images import as_saved
from lafr.metrics.card import hashes
from lafr.metrics.fidelity import luma
from lafr.metrics.registry import METRICS
from lafr.weights import locate

BLOCK = 96  # pixels; half of it at the second scale
WINDOW, SIGMA = 7, 7 / 6  # of the local mean and deviation
SHAPES = torch.arange(200, 10001, dtype=torch.float64) / 1000  # where a generalised Gaussian's shape is looked for
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # right, below and both diagonals


class NIQE:
    """NIQE as BasicSR defines it, `[B]`, 0 for pristine photographs, about 3 to 8 for faces. Needs no ground truth.

    Y of BT.601 is rounded; blocks of 96 px, two a side at least: there is no NIQE at 128 px. In flat, saturated areas
    the normalised luma is rounding noise, whose signs count: there implementations differ by up to 0.03.

    Args:
        pristine: mean `[36]` and covariance `[36, 36]` of the pristine model; LIVE's when None (InputError when its
            file is missing).
    """

    def __init__(self, pristine: tuple[np.ndarray, np.ndarray] | None = None):
        self.weights = hashes("niqe_pristine") if pristine is None else ()
        mean, covariance = read_pristine() if pristine is None else pristine
        self.mean = torch.from_numpy(np.asarray(mean, np.float64)).flatten()
        self.covariance = torch.from_numpy(np.asarray(covariance, np.float64))

    @torch.no_grad()
    def __call__(self, image: Tensor, hq: Tensor | None = None) -> Tensor:
        """Return NIQE `[B]` of `[B, 3, H, W]` in [-1, 1], 8-bit, on the CPU; NaN for an image without texture."""
        height, width = image.shape[-2:]
        if min(height, width) < METRICS["niqe"].min_side:
            raise InputError(
                f"NIQE is undefined for {width} x {height} pixels: blocks of 96, two a side at least, "
                f"make {2 * BLOCK}; score images of 512 px"
            )
        return self.score(as_saved(image)).float().to(image.device)

    def score(self, image: Tensor) -> Tensor:
        """Return NIQE `[B]` of 8-bit images large enough for it."""
        return torch.stack([self._distance(block_features(y)) for y in luma(image).cpu().round()])

    def _distance(self, features: Tensor) -> Tensor:
        features = features[~features.isnan().any(1)]  # flat blocks have no shape
        if len(features) < 2:
            return torch.tensor(torch.nan, dtype=torch.float64)
        difference = self.mean - features.mean(0)
        inverse = torch.linalg.pinv((self.covariance + features.T.cov()) / 2, hermitian=True)
        return (difference @ inverse @ difference).sqrt()  # Eq. 10


def read_pristine() -> tuple[np.ndarray, np.ndarray]:
    """Return mean `[36]` and covariance `[36, 36]` of LIVE's pristine photographs."""
    with np.load(locate("niqe_pristine"), allow_pickle=False) as file:
        return file["mu_pris_param"].ravel(), file["cov_pris_param"]


def block_features(y: Tensor) -> Tensor:
    """Return the features `[blocks, 36]` of a luma image `[1, H, W]`, 0..255: 18 at its size, 18 at half of it."""
    height, width = (side // BLOCK * BLOCK for side in y.shape[-2:])
    y = y[None, :, :height, :width]
    scales = [(y, BLOCK), (_halved(y), BLOCK // 2)]
    return torch.cat([_describe(_blocks(_normalised(image), size)) for image, size in scales], 1)


def _normalised(y: Tensor) -> Tensor:
    # Eq. 1: (I - mean) / (deviation + 1), in a Gaussian window, the border repeated
    axis = torch.arange(WINDOW, dtype=y.dtype) - WINDOW // 2
    window = torch.exp(-0.5 * (axis / SIGMA) ** 2)
    window = (window / window.sum())[None, None, None]  # [1, 1, 1, 7]

    def blur(x: Tensor) -> Tensor:
        x = F.pad(x, (WINDOW // 2,) * 4, mode="replicate")
        return F.conv2d(F.conv2d(x, window), window.mT)

    mean = blur(y)
    return (y - mean) / ((blur(y * y) - mean * mean).abs().sqrt() + 1)


def _halved(y: Tensor) -> Tensor:
    # MATLAB's imresize(y, 0.5): antialiased bicubic, the border mirrored, its edge pixel repeated
    y = torch.cat([y[..., :4].flip(-1), y, y[..., -4:].flip(-1)], -1)
    y = torch.cat([y[..., :4, :].flip(-2), y, y[..., -4:, :].flip(-2)], -2)
    half = F.interpolate(y, (y.shape[-2] // 2, y.shape[-1] // 2), mode="bicubic", antialias=True)
    return half[..., 2:-2, 2:-2]


def _blocks(y: Tensor, size: int) -> Tensor:
    return y.unfold(-2, size, size).unfold(-2, size, size).reshape(-1, size, size)


def _describe(blocks: Tensor) -> Tensor:
    shape, left, right = _asymmetric_gaussian(blocks)
    features = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right = _asymmetric_gaussian(blocks * blocks.roll(shift, (1, 2)))
        mean = (right - left) * ((2 / shape).lgamma() - (1 / shape).lgamma()).exp()  # Eq. 8
        features += [shape, mean, left, right]
    return torch.stack(features, 1)


def _asymmetric_gaussian(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit by moments (Lasmar et al., ICIP 2009): shape, left and right scale, `[N]` each of `[N, H, W]`."""
    x = x.flatten(1)
    square = x * x
    left, right = ((square * side).sum(1).div(side.sum(1)).sqrt() for side in (x < 0, x > 0))
    ratio = left / right
    moments = x.abs().mean(1) ** 2 / square.mean(1)
    moments = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    expected = (2 * (2 / SHAPES).lgamma() - (1 / SHAPES).lgamma() - (3 / SHAPES).lgamma()).exp()  # rises with shape
    shape = SHAPES[(expected - moments[:, None]).abs().argmin(1)]
    scale = (((1 / shape).lgamma() - (3 / shape).lgamma()) / 2).exp()
    return shape, left * scale + 0 * moments, right * scale + 0 * moments  # NaN where a moment is
