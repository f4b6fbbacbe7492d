"""Fidelity to the ground truth, one number an image, on the 8-bit pixels that a PNG would hold."""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lafr.images import as_saved
from lafr.metrics.reference import OfReference
from lafr.networks import origins
from lafr.networks.st_lpips import STLPIPS


def psnr_rgb(image: Tensor, hq: Tensor) -> Tensor:
    """Return PSNR in dB `[B]` of `[B, 3, H, W]` in [-1, 1]: RGB, no crop, 8-bit; 100 for equal images."""
    mse = (as_saved(image).double() - as_saved(hq).double()).square().mean((1, 2, 3)) / 4
    return (-10 * mse.clamp_min(1e-10).log10()).float()


def ssim_rgb(image: Tensor, hq: Tensor) -> Tensor:
    """Return SSIM `[B]` by torchmetrics: RGB, Gaussian window 11 of sigma 1.5, 8-bit."""
    # on 0..1: SSIM's luminance term is not the same around a middle gray of 0
    x, y = (as_saved(image).double() + 1) / 2, (as_saved(hq).double() + 1) / 2
    return structural_similarity_index_measure(x, y, data_range=1.0, reduction="none", gaussian_kernel=True).float()


class PerceptualDistance:
    """ST-LPIPS with one trunk, `[B]`: `st_lpips_vgg` to score a model that trained on the alex trunk."""

    def __init__(self, trunk: str):
        self.network = STLPIPS(trunk)
        self.origins = origins(self.network)
        self._reference = OfReference()

    @torch.no_grad()
    def __call__(self, image: Tensor, hq: Tensor) -> Tensor:
        """Return the distance `[B]` of `[B, 3, H, W]` in [-1, 1], 8-bit."""
        network = self.network.to(image.device)
        reference = self._reference(network.features, as_saved(hq))
        return network.compare(network.features(as_saved(image)), reference)
