"""Appearance terms: pixel, perceptual and latent distance."""

import torch.nn.functional as F
from torch import Tensor, nn

from lafr.losses.multilevel import Restoration
from lafr.networks.st_lpips import STLPIPS


class PixelMSE(nn.Module):
    """Mean squared error of the images (OSEDiff, weight 1)."""

    def forward(self, r: Restoration) -> Tensor:
        """Return a scalar; 4 is the square of the whole range [-1, 1]."""
        return F.mse_loss(r.restored.float(), r.hq)


class PixelL1(nn.Module):
    """Mean absolute error of the images."""

    def forward(self, r: Restoration) -> Tensor:
        """Return a scalar; 2 is the whole range [-1, 1]."""
        return F.l1_loss(r.restored.float(), r.hq)


class LatentL1(nn.Module):
    """Mean absolute error of the latents: keeps the restored latent where the decoder has been."""

    def forward(self, r: Restoration) -> Tensor:
        """Return a scalar in units of the scaled latent (standard deviation about 1)."""
        return F.l1_loss(r.z_restored.float(), r.z_hq)


class PerceptualSTLPIPS(nn.Module):
    """ST-LPIPS distance; the miniature's perceptual term, from weights that an installed wheel carries."""

    def __init__(self, trunk: str = "alex"):
        super().__init__()
        self.network = STLPIPS(trunk)

    def forward(self, r: Restoration) -> Tensor:
        """Return the batch mean."""
        return self.network(r.restored, r.hq).mean()


class PerceptualLPIPS(nn.Module):
    """LPIPS (Zhang et al., CVPR 2018) by the `lpips` package; its trunk's weights are torchvision's (a download)."""

    def __init__(self, trunk: str = "vgg"):
        super().__init__()
        import lpips

        self.network = lpips.LPIPS(net=trunk, verbose=False)

    def forward(self, r: Restoration) -> Tensor:
        """Return the batch mean."""
        return self.network(r.restored, r.hq).mean()
