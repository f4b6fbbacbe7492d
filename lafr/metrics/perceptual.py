"""Perceptual distance to the ground truth: one number per image, on the 8-bit pixels that a PNG would hold.

`origins` names the networks behind a metric; weights that are missing are an InputError, never a download.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lafr.images import as_saved
from lafr.metrics.card import hashes, hashes_of_network
from lafr.metrics.truth_cache import TruthCache
from lafr.networks import load, origins
from lafr.networks.perceptual import STLPIPS, lpips_network, trunk_file

PIXELS = 512 * 512  # in one forward pass of a trunk: more takes memory, and no less time on a CPU


def parts(images: Tensor) -> tuple[Tensor, ...]:
    """Return `[B, 3, H, W]` in parts of at most `PIXELS` pixels, or of one image."""
    return images.split(max(1, PIXELS // (images.shape[-2] * images.shape[-1])))


class FeatureDistance:
    """A distance of features, `[B]`: the ground truth's are cached, and a batch is computed in `parts`.

    A subclass has a `network`, the function `features` of images and the distance `compare` of features.
    """

    network: nn.Module
    features: Callable[[Tensor], Any]
    compare: Callable[[Any, Any], Tensor]

    def __init__(self) -> None:
        self._truth = TruthCache()

    @torch.no_grad()
    def __call__(self, image: Tensor, hq: Tensor) -> Tensor:
        """Return the distance `[B]` of `[B, 3, H, W]` in [-1, 1], 8-bit."""
        self.network.to(image.device)
        references = self._truth(self._features_of_parts, as_saved(hq))
        pairs = zip(parts(as_saved(image)), references, strict=True)
        return torch.cat([self.compare(self.features(part), reference) for part, reference in pairs])

    def _features_of_parts(self, images: Tensor) -> list:
        return [self.features(part) for part in parts(images)]


class ShiftTolerantLPIPS(FeatureDistance):
    """ST-LPIPS with one trunk, `[B]`: `st_lpips_vgg` to score a model that trained on the alex trunk."""

    def __init__(self, trunk: str):
        super().__init__()
        self.network = STLPIPS(trunk)
        self.features, self.compare = self.network.features, self.network.compare
        self.origins = origins(self.network)
        self.weights = hashes(f"st_lpips_{trunk}")


class LPIPS:
    """LPIPS 0.1 (Zhang et al., CVPR 2018) by the `lpips` package; `trunk` is "vgg" or "alex", not comparable.

    Args:
        trunk: the trunk's name; raises InputError when the package or the trunk's weights are missing.
        state: state dict of torchvision's trunk, instead of the published one.
    """

    package = "lpips"

    def __init__(self, trunk: str, state: dict[str, Tensor] | None = None):
        file = trunk_file(trunk)
        self.network = lpips_network(trunk, state)
        self.weights = hashes(f"lpips_{trunk}", *([file] if state is None else []))
        self.origins = origins(self.network)

    @torch.no_grad()
    def __call__(self, image: Tensor, hq: Tensor) -> Tensor:
        """Return the distance `[B]` of `[B, 3, H, W]` in [-1, 1], RGB, 8-bit."""
        pairs = zip(parts(as_saved(image)), parts(as_saved(hq)), strict=True)
        return torch.cat([self.network.to(image.device)(*pair).flatten() for pair in pairs])


class DISTS(FeatureDistance):
    """DISTS (Ding et al., TPAMI 2022) by torchmetrics' network and weights, VGG16 by torchvision.

    Args:
        network: a `lafr.networks.perceptual.DISTS`; None for the published one (InputError when its trunk is missing).
    """

    package = "torchmetrics"

    def __init__(self, network: nn.Module | None = None):
        super().__init__()
        self.network = load("dists") if network is None else network
        self.features, self.compare = self.network, self.network.distance
        self.weights = hashes_of_network("dists") if network is None else ()
        self.origins = origins(self.network)
