"""Identity, pose, expression and landmarks against the ground truth, `[B]`, on the 8-bit pixels that a PNG would hold.

Each takes `(image, hq)`, `[B, 3, H, W]` in [-1, 1], FFHQ-aligned, and returns `[B]`; NaN where no face was found or the
pair is left out, which an evaluation counts and never averages in. `origins` names the networks behind a metric.
"""

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from lafr.images import as_saved, to_uint8
from lafr.metrics.card import hashes_of_network
from lafr.metrics.truth_cache import TruthCache
from lafr.networks import load, origins
from lafr.networks.landmarkers import argmax_points
from lafr.networks.recognisers import shrink


class FaceMetric:
    """A comparison of a network's outputs for two faces.

    Args:
        network: the network, or its name in `lafr.networks.NETWORKS`.
    """

    def __init__(self, network: nn.Module | str):
        self.network = load(network) if isinstance(network, str) else network
        self.origins = origins(self.network)
        self.weights = hashes_of_network(network) if isinstance(network, str) else ()
        self._truth = TruthCache()

    def keep_truth_in(self, folder: Path) -> None:
        """Cache the network's outputs for the ground truth in `folder`, for other runs of this very metric."""
        self._truth.keep_in(folder)

    def look(self, image: Tensor) -> Tensor:
        """Return the network's output for `[B, 3, H, W]`, one row per image."""
        return self.network(image)

    def compare(self, restored: Tensor, hq: Tensor) -> Tensor:
        """Return `[B]` of two outputs of `look`."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, image: Tensor, hq: Tensor) -> Tensor:
        """Return the measure `[B]` in float32."""
        self.network.to(image.device)
        truth = self._truth(self.look, as_saved(hq))
        return self.compare(self.look(as_saved(image)).double(), truth.double()).float()


class IdentityCosine(FaceMetric):
    """Cosine of a recogniser's embeddings, 1 for the same face: `identity_cos_sface`.

    Args:
        network: the recogniser, or its name.
        to_input: compare with the LQ image, given in the place of `hq`, as where a set has no ground truth.
    """

    def __init__(self, network: nn.Module | str, to_input: bool = False):
        super().__init__(network)
        self.to_input = to_input

    def compare(self, restored: Tensor, hq: Tensor) -> Tensor:
        """Return the cosine."""
        return torch.cosine_similarity(restored, hq, dim=1)


class IdentityDistance(FaceMetric):
    """Euclidean distance of embeddings that are not of unit length, as dlib's: `identity_distance_dlib`."""

    def compare(self, restored: Tensor, hq: Tensor) -> Tensor:
        """Return the distance."""
        return (restored - hq).norm(dim=1)


class LMD(FaceMetric):
    """Mean L2 between the landmarks of two faces in pixels at 512, not normalised (VQFR: 98 points of AWing FAN).

    Args:
        network: maps images to `lafr.networks.landmarkers.Landmarks`; NaN points where it found no face.
        peaks: read the heatmaps' largest values as facexlib does (`argmax_points`); else the network's own points.
    """

    def __init__(self, network: nn.Module | str = "awing_fan", peaks: bool = False):
        super().__init__(network)
        self.peaks = peaks

    def look(self, image: Tensor) -> Tensor:
        """Return the points `[B, K, 2]`."""
        seen = self.network(image)
        return argmax_points(seen.heatmaps) if self.peaks else seen.points

    def compare(self, restored: Tensor, hq: Tensor) -> Tensor:
        """Return the mean distance over the points."""
        return (restored - hq).norm(dim=2).mean(1)


class CoefficientDistance(FaceMetric):
    """Euclidean distance of one kind of a three-dimensional face model's coefficients.

    Args:
        network: maps images to `lafr.networks.deep3d.Coefficients`.
    """

    kind: str
    scale = 1.0

    def __init__(self, network: nn.Module | str = "deep3d"):
        super().__init__(network)

    def look(self, image: Tensor) -> Tensor:
        """Return the coefficients `[B, n]`."""
        return getattr(self.network(image), self.kind) * self.scale

    def compare(self, restored: Tensor, hq: Tensor) -> Tensor:
        """Return the distance."""
        return (restored - hq).norm(dim=1)


class PoseDistance(CoefficientDistance):
    """Euclidean distance of two heads' Euler angles in degrees."""

    kind, scale = "angle", 180 / math.pi


class ExpressionDistance(CoefficientDistance):
    """Euclidean distance of two faces' 64 expression coefficients."""

    kind = "expression"


class Deg(FaceMetric):
    """Angle in degrees between the embeddings of ArcFace's gray ResNet-18 (VQFR, `calculate_cos_dist.py`).

    The pixels are VQFR's: the 8-bit gray as which OpenCV reads a PNG (0.299 R + 0.587 G + 0.114 B in whole numbers,
    rounded down by libpng), OpenCV's bilinear resize of the whole crop to 128 px on 8 bits, (x - 127.5) / 127.5.

    Args:
        exclude_below: pairs at a smaller angle give NaN; VQFR's protocol leaves out those under 1 degree.
    """

    def __init__(self, network: nn.Module | str = "arcface_resnet18", exclude_below: float | None = None):
        super().__init__(network)
        self.exclude_below = exclude_below

    def look(self, image: Tensor) -> Tensor:
        """Return the embeddings `[B, 512]`."""
        # OpenCV resizes 8-bit pixels in fixed point: torch's bilinear resize would round otherwise
        gray = np.stack([cv2.resize(face, (128, 128)) for face in png_gray(image).cpu().numpy()])
        return self.network.embed((torch.from_numpy(gray)[:, None].to(image) - 127.5) / 127.5)

    def compare(self, restored: Tensor, hq: Tensor) -> Tensor:
        """Return the angle, 0 to 180."""
        angle = _radians(restored, hq) * (180 / math.pi)
        if self.exclude_below is not None:
            angle = angle.masked_fill(angle < self.exclude_below, math.nan)
        return angle


class IdaRad(FaceMetric):
    """The same angle in radians as RestoreFormer's and DAEFR's `cal_identity_distance.py` take it.

    They read files with OpenCV and do not turn BGR to RGB, so 0.2989 weighs blue and 0.114 red, and feed 0..1 instead
    of -1..1: not comparable with `deg`.
    """

    def __init__(self, network: nn.Module | str = "arcface_resnet18"):
        super().__init__(network)

    def look(self, image: Tensor) -> Tensor:
        """Return the embeddings `[B, 512]`."""
        return self.network.embed(shrink((image + 1) / 2, (0.114, 0.587, 0.2989)))

    def compare(self, restored: Tensor, hq: Tensor) -> Tensor:
        """Return the angle, 0 to pi."""
        return _radians(restored, hq)


def png_gray(image: Tensor) -> Tensor:
    """Return the gray `[B, H, W]`, 0..255 in uint8, as which OpenCV reads a PNG of `[B, 3, H, W]`."""
    # libpng's png_set_rgb_to_gray: 0.299 and 0.587 of 32768, rounded down; blue has the rest
    weights = torch.tensor([9797, 19234, 3737], device=image.device)[:, None, None]
    return ((to_uint8(image) * weights).sum(1) >> 15).to(torch.uint8)


def _radians(a: Tensor, b: Tensor) -> Tensor:
    # between unit vectors 2 atan2(|a - b|, |a + b|): exact near 0, where arccos is not
    a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
    return 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))
