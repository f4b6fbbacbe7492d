"""Crops of an FFHQ-aligned face by a fixed similarity: no detector inside a loss."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafr.alignment import ARCFACE_112, FFHQ_512, similarity


class SimilarityCrop(nn.Module):
    """The crop that a fixed similarity cuts out of an aligned face; differentiable and antialiased.

    Args:
        source: five points `[5, 2]` in pixels of the `source_size` image.
        target: the same points in pixels of the crop.
        source_size: side of the image that `source` is written for; images of another side are taken to show the
            same content.
        size: side of the crop in pixels.

    Where the crop shrinks the image it is first blurred by a Gaussian (sigma = (shrink - 1) / 2 pixels, as
    scikit-image's antialiasing), then sampled bilinearly. Outside the image the border is repeated.
    """

    def __init__(
        self,
        source: np.ndarray = FFHQ_512,
        target: np.ndarray = ARCFACE_112,
        source_size: int = 512,
        size: int = 112,
    ):
        super().__init__()
        self.size, self.source_size = size, source_size
        forward = np.vstack([similarity(source, target), [0, 0, 1]])
        self.shrink = 1 / math.hypot(forward[0, 0], forward[1, 0])  # pixels of the source image a pixel of the crop
        self.register_buffer("inverse", torch.from_numpy(np.linalg.inv(forward)[:2]).float(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return `[B, 3, size, size]` of `[B, 3, S, S]`, same range."""
        side = image.shape[-1]
        scale = side / self.source_size
        image = antialias(image, self.shrink * scale)
        return F.grid_sample(
            image,
            self._grid(side, scale).to(image).expand(len(image), -1, -1, -1),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )

    def _grid(self, side: int, scale: float) -> Tensor:
        # Pixel centres lie at whole numbers, as in OpenCV; at another scale the centre of pixel 0 moves.
        axis = torch.arange(self.size, dtype=torch.float32, device=self.inverse.device)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        points = torch.stack([x, y, torch.ones_like(x)], -1) @ self.inverse.T  # in the source image
        points = (points + 0.5) * scale - 0.5  # in this image
        return ((points + 0.5) * (2 / side) - 1)[None]


def antialias(image: Tensor, shrink: float) -> Tensor:
    """Blur `[B, C, H, W]` before it is sampled at every `shrink`-th pixel; no blur when that enlarges."""
    sigma = (shrink - 1) / 2
    if sigma <= 0:
        return image
    half = max(1, math.ceil(3 * sigma))
    axis = torch.arange(-half, half + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (axis / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, 1, -1)
    channels = image.shape[1]
    image = F.conv2d(F.pad(image, (half, half, 0, 0), mode="replicate"), kernel, groups=channels)
    return F.conv2d(F.pad(image, (0, 0, half, half), mode="replicate"), kernel.transpose(2, 3), groups=channels)


def resize(image: Tensor, size: int) -> Tensor:
    """Return `[B, C, size, size]`: bilinear, antialiased where it shrinks."""
    if image.shape[-1] == size:
        return image
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)
