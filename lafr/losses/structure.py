"""Structure: the shape and place of eyes, nose and mouth, by a landmarker and a parser."""

from collections.abc import Collection, Mapping
from math import inf

import torch.nn.functional as F
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.losses.multilevel import Restoration
from lafr.networks.crops import resize
from lafr.networks.deep3d import Coefficients
from lafr.networks.parsers import region_mask

REGION_WEIGHTS = {"eyes": 1.0, "nose": 1.0, "mouth": 1.0}
COEFFICIENT_WEIGHTS = {"identity": 1.0, "expression": 1.0, "angle": 1.0}
SMALLEST_REGION = 1e-3  # of the image: an absent region must not count through its probability's noise


def known_weights(weights: Mapping[str, float], known: Collection[str]) -> dict[str, float]:
    """Return weights as a dictionary; raises InputError unless all are of `known` names, 0 or more, and one is above.

    Their sum divides, and a NaN among them would end a run with the advice to lower its learning rate.
    """
    fits = all(name in known and 0 <= weight < inf for name, weight in weights.items())
    if not fits or not any(weights.values()):
        raise InputError("weights", dict(weights), f"some of {', '.join(known)}, each 0 or more and one above")
    return dict(weights)


class LandmarkHeatmap(nn.Module):
    """Mean squared error of a landmarker's heatmaps (FSRNet, Chen et al., CVPR 2018; the paper's structure level).

    Args:
        network: maps images to `lafr.networks.landmarkers.Landmarks` with heatmaps.

    Raises InputError for a landmarker that has none.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, r: Restoration) -> Tensor:
        """Return the mean over images, points and positions; heatmaps peak near 1 and are 0 nearly everywhere."""
        restored, hq = r.through(self.network)  # heatmaps [B, K, h, w]
        if restored.heatmaps is None:
            name = type(self.network).__name__
            raise InputError(f"{name} has no heatmaps", remedy="compare its points: LandmarkDistance")
        return F.mse_loss(restored.heatmaps, hq.heatmaps)


class LandmarkDistance(nn.Module):
    """Mean distance of a landmarker's points: `lmd` as a loss.

    Args:
        network: maps images to `lafr.networks.landmarkers.Landmarks` whose points carry a gradient.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, r: Restoration) -> Tensor:
        """Return the mean L2 over images and points, in pixels of the 512 crop."""
        restored, hq = r.through(self.network)  # points [B, K, 2]
        # unlike a root of a sum, torch's norm has gradient 0 where points agree, not NaN
        return (restored.points - hq.points).norm(dim=-1).mean()


class ParsingSoftLabel(nn.Module):
    """Divergence of the restored face's parsing from the HQ face's, whose probabilities are the soft labels.

    Args:
        network: maps images to logits `[B, C, h, w]`.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, r: Restoration) -> Tensor:
        """Return KL(HQ || restored), cross-entropy less the labels' own entropy, in nats a pixel."""
        restored, hq = (logits.log_softmax(1) for logits in r.through(self.network))  # [B, C, h, w]
        # KL(p || q) = sum_c p (log p - log q). Soft labels, as a hard argmax is noise at the borders of regions.
        return F.kl_div(restored, hq, reduction="none", log_target=True).sum(1).mean()


class RegionL1(nn.Module):
    """Mean absolute error of the pixels inside parts of the face, each part counting alike whatever its size.

    Args:
        network: maps images to logits `[B, C, h, w]`; `network.regions` maps a part's name to its classes.
        weights: part -> weight.
    """

    def __init__(self, network: nn.Module, weights: Mapping[str, float] = REGION_WEIGHTS):
        super().__init__()
        self.network, self.weights = network, known_weights(weights, network.regions)

    def forward(self, r: Restoration) -> Tensor:
        """Return the weighted mean over parts; 2 is the whole range [-1, 1]. Parts are the HQ face's, soft-edged."""
        hq = r.hq_through(self.network)  # the parts of the restored face would move with the errors they weigh
        error = (r.restored.float() - r.hq).abs().mean(1, keepdim=True)  # [B, 1, H, H]
        total = 0.0
        for name, weight in self.weights.items():
            # sum(error * mask) / sum(mask), so that eyes count as much as a mouth of thrice their area
            mask = resize(region_mask(hq, self.network.regions[name]), error.shape[-1])  # [B, 1, H, H]
            inside = (error * mask).mean((1, 2, 3)) / mask.mean((1, 2, 3)).clamp_min(SMALLEST_REGION)  # [B]
            total = total + weight * inside.mean()
        return total / sum(self.weights.values())


class Structure3D(nn.Module):
    """Mean squared error of the coefficients of a three-dimensional face model (second-hand: "3-D features").

    Args:
        network: maps images to `lafr.networks.deep3d.Coefficients`.
        weights: coefficient -> weight. Those of texture, light and translation hardly tell of structure.
    """

    def __init__(self, network: nn.Module, weights: Mapping[str, float] = COEFFICIENT_WEIGHTS):
        super().__init__()
        self.network, self.weights = network, known_weights(weights, Coefficients.__dataclass_fields__)

    def forward(self, r: Restoration) -> Tensor:
        """Return the weighted sum over kinds of the mean over images and coefficients.

        Identity and expression are in standard deviations of the model's faces, angles in radians.
        """
        restored, hq = r.through(self.network)  # [B, n] a kind
        errors = {name: F.mse_loss(getattr(restored, name), getattr(hq, name)) for name in self.weights}
        return sum(weight * errors[name] for name, weight in self.weights.items())
