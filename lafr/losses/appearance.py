"""Appearance terms: pixel, perceptual and latent distance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafr.losses.multilevel import Restoration
from lafr.networks.perceptual import STLPIPS, edge_image, lpips_network


class PixelMSE(nn.Module):
    """Mean squared error of the images (OSEDiff, weight 1)."""

    def forward(self, r: Restoration) -> Tensor:
        """Return a scalar; 4 is the square of the whole range [-1, 1]."""
        # `restored` may be in half precision; the square of a small error would underflow there
        return F.mse_loss(r.restored.float(), r.hq)


class PixelL1(nn.Module):
    """Mean absolute error of the images."""

    def forward(self, r: Restoration) -> Tensor:
        """Return a scalar; 2 is the whole range [-1, 1]."""
        return F.l1_loss(r.restored.float(), r.hq)


class LatentL1(nn.Module):
    """Mean absolute error of the latents: keeps the restored latent where the decoder has been."""

    sees_latents_only = True

    def forward(self, r: Restoration) -> Tensor:
        """Return a scalar in units of the scaled latent (standard deviation about 1)."""
        # the only term whose gradient does not pass through the decoder: cheap, and exact where pixels are ambiguous
        return F.l1_loss(r.z_restored.float(), r.z_hq)


class AlignedL1(nn.Module):
    """Mean absolute error of the aligned latents: keeps an extractor that trains on with the LoRA aligned.

    A constant where the adapter is frozen.
    """

    sees_latents_only = True

    def forward(self, r: Restoration) -> Tensor:
        """Return a scalar in units of the scaled latent; raises ValueError where no aligned latents are given."""
        if r.z_aligned is None:
            raise ValueError("aligned latents are known in the restoration stage alone")
        return F.l1_loss(r.z_aligned.float(), r.z_hq)


class PerceptualSTLPIPS(nn.Module):
    """ST-LPIPS distance: the miniature's perceptual term, whose weights a package carries.

    Args:
        trunk: "alex" or "vgg". Train on one and score on the other.
    """

    def __init__(self, trunk: str = "alex"):
        super().__init__()
        self.network = STLPIPS(trunk)

    def forward(self, r: Restoration) -> Tensor:
        """Return the batch mean."""
        features, reference = r.through(self.network.features, autocast=True)  # five maps [B, C, h, w] each
        return self.network.compare(features, reference).mean()


class PerceptualLPIPS(nn.Module):
    """LPIPS (Zhang et al., CVPR 2018) by the `lpips` package, in float32; the trunk's weights are torchvision's.

    Args:
        trunk: "vgg" or "alex". Raises InputError when the package or the trunk's weights are missing.
    """

    def __init__(self, trunk: str = "vgg"):
        super().__init__()
        self.network = lpips_network(trunk)

    def forward(self, r: Restoration) -> Tensor:
        """Return the batch mean."""
        # Distances of nearly equal features cancel: bfloat16's 8 bits of mantissa are too few.
        with torch.autocast(r.hq.device.type, enabled=False):
            return self.network(r.restored.float(), r.hq.detach().float()).mean()


class PerceptualDISTS(nn.Module):
    """DISTS (Ding et al., TPAMI 2022): texture and structure of VGG16's features.

    Args:
        network: a `lafr.networks.perceptual.DISTS`.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, r: Restoration) -> Tensor:
        """Return the batch mean, 0 to about 1."""
        restored, hq = r.through(self.network)  # six maps [B, C, h, w] each
        return self.network.distance(restored, hq).mean()


class PerceptualEdgeDISTS(PerceptualDISTS):
    """Edge-aware DISTS: DISTS of the images plus DISTS of their Sobel maps (D3SR, Li et al., 2024; OSDFace)."""

    def forward(self, r: Restoration) -> Tensor:
        """Return the batch mean, 0 to about 2."""
        # OSDFace, EA-DISTS: D(x, y) + D(S(x), S(y)), S the Sobel gradient's length in three equal channels.
        # A Restoration of its own, since `through` caches one output per network.
        edges = Restoration(edge_image(r.restored), edge_image(r.hq), r.z_restored, r.z_hq)
        return super().forward(r) + super().forward(edges)
