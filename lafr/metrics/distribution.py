"""Distances of a set of restored images from a set of sharp ones: FID and KID, by torch-fidelity.

A set metric has two steps: `features(image) -> [B, D]` batch by batch, then `score(features, reference_features, seed)`
once. One that `needs_reference` gets the features of the set's HQ images; else it has read stored statistics.
"""

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from lafr.errors import InputError, need
from lafr.images import as_saved, to_uint8
from lafr.metrics.card import ReferenceSet, hashes
from lafr.metrics.statistics import Statistics, load_statistics
from lafr.metrics.statistics import build_statistics as build_statistics
from lafr.weights import load_pickle

HQ = ReferenceSet("the set's HQ images")


class Inception(nn.Module):
    """TensorFlow's Inception of 2015-12-05 by torch-fidelity: `[B, 3, H, W]` in [-1, 1] to its pool `[B, 2048]`.

    It resizes 8-bit pixels to 299 px as TensorFlow 1 does: bilinear, without antialiasing.

    Args:
        state: state dict in torch-fidelity's layout; the published weights when None (InputError when missing).
    """

    name = "inception_2015_pool2048"
    origins = frozenset({"inception_2015"})

    def __init__(self, state: dict[str, Tensor] | None = None):
        super().__init__()
        extractor = need("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")
        self.weights = hashes("inception_2015") if state is None else ()
        state = load_pickle("inception_2015") if state is None else state
        # its constructor downloads weights: give it ours instead
        with patch.object(extractor, "load_state_dict_from_url", lambda *_, **__: state), torch.random.fork_rng([]):
            self.network = extractor.FeatureExtractorInceptionV3(self.name, ["2048"])

    def forward(self, image: Tensor) -> Tensor:
        """Return the features in float32."""
        return self.network(to_uint8(image))[0]


class SetMetric:
    """What FID and KID share: features of 8-bit images, and the reference they are compared with."""

    package = "torch-fidelity"
    needs_reference = True
    compared_with = HQ

    def __init__(self, network: nn.Module | None = None):
        self.network = Inception() if network is None else network
        self.weights = getattr(self.network, "weights", ())
        self.origins: frozenset[str] = getattr(self.network, "origins", frozenset())

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """Return the features `[B, D]`, float32 on the CPU, of `[B, 3, H, W]` in [-1, 1]."""
        return self.network.to(image.device)(as_saved(image)).float().cpu()


class FID(SetMetric):
    """Fréchet distance of two sets' features, each taken for Gaussian (Heusel et al., NeurIPS 2017).

    FID falls as the number of images grows: compare sets of equal size only. Resampling repeats images, which raises
    FID, so the 95 % confidence interval is the value ± 1.96 standard deviations over resampled sets.

    Args:
        statistics: file of `build_statistics` to compare with; None for the set's own HQ images.
        sha256: of that file; another file is refused.
        resamples: resampled sets for the interval; each costs an eigenvalue problem of the features' size.
        network: maps `[B, 3, H, W]` in [-1, 1] to `[B, D]`, with a `name`; Inception when None.
    """

    def __init__(
        self,
        statistics: str | None = None,
        sha256: str | None = None,
        resamples: int = 20,
        network: nn.Module | None = None,
    ):
        if statistics is None:
            super().__init__(network)
            self.statistics = None
        else:  # read first: a missing file is reported before a large network is built
            name = Inception.name if network is None else network.name
            self.statistics = load_statistics(statistics, name, sha256)
            super().__init__(network)
            self.statistics.require(self.weights)
            self.needs_reference = False
            self.compared_with = ReferenceSet(
                self.statistics.name, self.statistics.images, self.statistics.sha256, self.statistics.resized
            )
        self.resamples = resamples

    def score(self, features: Tensor, reference_features: Tensor | None = None, seed: int = 0) -> dict[str, float]:
        """Return FID of `features [N, D]` as mean, low and high."""
        fid = need("torch_fidelity.metric_fid", "torch-fidelity")
        features = _at_least(2, features)
        reference = self.statistics or Statistics.of(_at_least(2, reference_features))
        theirs = {"mu": reference.mean, "sigma": reference.covariance}
        found = fid.fid_statistics_to_metric(fid.fid_features_to_statistics(features), theirs, verbose=False)
        value = found[fid.KEY_METRIC_FID]  # ||m1 - m2||^2 + tr(S1 + S2 - 2 (S1 S2)^1/2)
        root, rng = _root(reference.covariance), np.random.default_rng(seed)
        picks = rng.integers(0, len(features), (self.resamples, len(features)))
        again = [_frechet(features[chosen].numpy(), reference.mean, root) for chosen in picks]
        spread = 1.96 * float(np.std(again, ddof=1)) if self.resamples > 1 else float("nan")
        return {"mean": value, "low": max(0.0, value - spread), "high": value + spread}


class KID(SetMetric):
    """Kernel distance of two sets' features, cubic polynomial (Bińkowski et al., ICLR 2018); unbiased, may be negative.

    The mean over subsets is torch-fidelity's. Its interval resamples the restored images: quantiles of the whole
    sets' distance, counting no pair of an image with its own copy.

    Args:
        subsets: how many subsets are averaged over.
        subset_size: images in each; all of them where the set has fewer.
        resamples: resampled sets for the interval.
        network: as for `FID`.
    """

    def __init__(
        self, subsets: int = 100, subset_size: int = 1000, resamples: int = 1000, network: nn.Module | None = None
    ):
        super().__init__(network)
        self.subsets, self.subset_size, self.resamples = subsets, subset_size, resamples

    def score(self, features: Tensor, reference_features: Tensor, seed: int = 0) -> dict[str, float]:
        """Return KID of `features [N, D]` to `reference_features [M, D]` as mean, low and high."""
        kid = need("torch_fidelity.metric_kid", "torch-fidelity")
        x, y = (_at_least(2, each) for each in (features, reference_features))
        size = min(self.subset_size, len(x), len(y))
        settings = {"kid_subsets": self.subsets, "kid_subset_size": size, "rng_seed": seed, "verbose": False}
        value = kid.kid_features_to_metric(x, y, **settings)[kid.KEY_METRIC_KID_MEAN]
        low, high = np.quantile(self._resampled(kid.kernel_poly, x.numpy(), y.numpy(), seed), [0.025, 0.975])
        return {"mean": value, "low": float(low), "high": float(high)}

    def _resampled(self, kernel: Callable, x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
        n, m = len(x), len(y)
        own, cross, theirs = kernel(x, x), kernel(x, y).mean(1), kernel(y, y)
        within = (theirs.sum() - np.trace(theirs)) / (m * (m - 1))
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(n, np.full(n, 1 / n), self.resamples).astype(np.float64)  # [resamples, N]
        # image i occurs counts[i] times: of n^2 pairs, the counts[i]^2 of an image with its copies are left out
        pairs = ((counts @ own) * counts).sum(1) - counts**2 @ np.diag(own)
        return pairs / (n**2 - (counts**2).sum(1)) + within - 2 * counts @ cross / n


def _at_least(count: int, features: Tensor | None) -> Tensor:
    if features is None or len(features) < count:
        given = "none are" if features is None else f"{len(features)} given"
        raise InputError(f"a distance of sets needs features of at least {count} images on each side, {given}")
    return features.double()


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def _frechet(x: np.ndarray, mean: np.ndarray, root: np.ndarray) -> float:
    # tr (S1 S2)^1/2 = tr (R S1 R)^1/2 with R R = S2, which is symmetric: ten times as fast as torch-fidelity's at 2048
    centred = (x - x.mean(0)) @ root
    values = np.linalg.eigvalsh(centred.T @ centred / (len(x) - 1)).clip(0)
    difference = x.mean(0) - mean
    spread = ((x - x.mean(0)) ** 2).sum() / (len(x) - 1)
    return float(difference @ difference + spread + np.square(root).sum() - 2 * np.sqrt(values).sum())
