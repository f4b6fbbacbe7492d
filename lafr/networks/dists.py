"""DISTS: deep image structure and texture similarity (Ding et al., TPAMI 2022), by torchmetrics' network."""

from types import SimpleNamespace
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor, nn

from lafr.weights import load_pickle


class DISTS(nn.Module):
    """The features that DISTS compares, and their distance.

    Maps `[B, 3, H, H]` in [-1, 1] to six maps (the image itself and five of VGG16's), so that `lafr.networks.load`'s
    one copy computes those of the ground truth once. `distance` compares two images' features.

    Args:
        trunk: state dict of torchvision's `vgg16`; random weights when None. The weights of the comparison come with
            torchmetrics.
    """

    name = "dists"
    origins = frozenset({"dists", "imagenet_vgg16"})

    def __init__(self, trunk: dict[str, Tensor] | None = None):
        super().__init__()
        self.network = _network(trunk)
        self.requires_grad_(False).eval()
        alpha, beta = self.network.alpha.flatten(), self.network.beta.flatten()  # [1475], a weight a channel
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", alpha / total, persistent=False)
        self.register_buffer("beta", beta / total, persistent=False)

    @classmethod
    def from_pretrained(cls) -> "DISTS":
        """Return it with torchvision's trunk; raises InputError when that is missing."""
        return cls(load_pickle("torchvision_vgg16"))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of `[B, 3, H, H]` in [-1, 1]: `[B, C, h, w]` each."""
        return self.network.forward_once((image.float() + 1) / 2)

    def distance(self, features: list[Tensor], reference: list[Tensor]) -> Tensor:
        """Return DISTS `[B]`, 0 for equal features (the paper's equations 3 to 5)."""
        similarity = 0.0
        channels = self.network.chns
        weights = zip(self.alpha.split(channels), self.beta.split(channels), strict=True)
        for x, y, (alpha, beta) in zip(features, reference, weights, strict=True):
            x_mean, y_mean = x.mean((2, 3)), y.mean((2, 3))  # [B, C]
            x, y = x - x_mean[..., None, None], y - y_mean[..., None, None]
            texture = _similarity(x_mean * y_mean, x_mean.square(), y_mean.square())
            structure = _similarity((x * y).mean((2, 3)), x.square().mean((2, 3)), y.square().mean((2, 3)))
            similarity = similarity + (alpha * texture + beta * structure).sum(1)
        return 1 - similarity


def edge_image(image: Tensor) -> Tensor:
    """Return the edges of `[B, 3, H, W]` in [-1, 1] as an image of the same shape and convention, black where flat.

    The edge map of edge-aware DISTS (D3SR, Li et al., 2024) as OSDFace's `edge_aware_dists_demo.py` draws it: `sobel`
    of the channels' mean in [0, 1], in three equal channels. It can reach 4.5 on that scale.
    """
    return 2 * sobel((image.float().mean(1, keepdim=True) + 1) / 2).expand_as(image) - 1


def sobel(gray: Tensor) -> Tensor:
    """Return the length of the gradient `[B, 1, H, W]` of `[B, 1, H, W]` by Sobel's unnormalised kernels.

    A step of 1 between two columns gives 4. As in OSDFace 1e-6 is added under the root, which keeps the gradient
    finite at flat places (1e-3 there). The border is repeated; OSDFace puts zeros, an edge around every image.
    """
    padded = F.pad(gray, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., :, 2:] - padded[..., :, :-2]  # [B, 1, H + 2, W]
    dy = padded[..., 2:, :] - padded[..., :-2, :]  # [B, 1, H, W + 2]
    dx = dx[..., :-2, :] + 2 * dx[..., 1:-1, :] + dx[..., 2:, :]
    dy = dy[..., :, :-2] + 2 * dy[..., :, 1:-1] + dy[..., :, 2:]
    return (dx.square() + dy.square() + 1e-6).sqrt()


def _similarity(product: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (2 * product + 1e-6) / (x + y + 1e-6)


def _network(trunk: dict[str, Tensor] | None) -> nn.Module:
    # torchmetrics' constructor asks torchvision for the trained trunk, which downloads it: hand it ours instead
    from torchmetrics.functional.image import dists
    from torchvision.models.vgg import cfgs, make_layers

    features = make_layers(cfgs["D"])  # VGG16 without its classifier
    if trunk is not None:
        state = {name: value for name, value in trunk.items() if name.startswith("features.")}
        features.load_state_dict({name.removeprefix("features."): value for name, value in state.items()})
    with patch.object(dists, "vgg16", lambda weights: SimpleNamespace(features=features)):
        return dists.DISTSNetwork()
