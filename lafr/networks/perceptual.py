"""Perceptual distances of two images: ST-LPIPS, LPIPS and DISTS, which compare a classifier's features.

None of their numbers can be compared with another's. Trunks are AlexNet or VGG16, trained on ImageNet; weights that are
missing are an InputError, never a download.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafr.errors import InputError, need
from lafr.weights import load_pickle

TRUNKS = {"vgg": "vgg16", "alex": "alexnet"}  # the name in LPIPS -> torchvision's

# ST-LPIPS: (kind, ...) in the order of the published networks; "tap" marks a layer whose features are compared.
Layer = str | tuple[str, str, int]
ALEX: list[Layer] = [
    ("conv", "net.slice1.0", 2), "blur", "relu", "tap",
    "pool3", "blur", ("conv", "net.slice2.5", 2), "relu", "tap",
    "pool3", "blur", ("conv", "net.slice3.9", 1), "relu", "tap",
    ("conv", "net.slice4.11", 1), "relu", "tap",
    ("conv", "net.slice5.13", 1), "relu", "tap",
]  # fmt: skip
VGG: list[Layer] = [
    ("conv", "net.slice1.0", 1), "relu", ("conv", "net.slice1.2", 1), "relu", "tap",
    "pool2", "blur", ("conv", "net.slice2.6", 1), "relu", ("conv", "net.slice2.8", 1), "relu", "tap",
    "pool2", "blur", *[s for i in (12, 14, 16) for s in (("conv", f"net.slice3.{i}", 1), "relu")], "tap",
    "pool2", "blur", *[s for i in (20, 22, 24) for s in (("conv", f"net.slice4.{i}", 1), "relu")], "tap",
    "pool2", "blur", *[s for i in (28, 30, 32) for s in (("conv", f"net.slice5.{i}", 1), "relu")], "tap",
]  # fmt: skip
LAYERS: dict[str, list[Layer]] = {"alex": ALEX, "vgg": VGG}


class STLPIPS(nn.Module):
    """ST-LPIPS, the shift-tolerant LPIPS (Ghildyal & Liu, ECCV 2022): its trunks blur before each stride-2 step.

    Written from the paper and the names in its state dict; the weights come from the `stlpips-pytorch` wheel, whose
    own modules have a non-commercial part and are never imported.

    Args:
        trunk: "alex" or "vgg". Train on one and score on the other.
        state: state dict in the published layout; the published weights when None.

    `forward(a, b)` takes `[B, 3, H, W]` in [-1, 1] and returns `[B]`, 0 for equal images. The convolutions follow
    autocast; features are compared in float32.
    """

    def __init__(self, trunk: str, state: dict[str, Tensor] | None = None):
        super().__init__()
        trunk_file(trunk)  # refuses an unknown one
        self.origins = frozenset({f"st_lpips_{trunk}"})
        state = load_pickle(f"st_lpips_{trunk}") if state is None else state
        self.layers = LAYERS[trunk]
        for key, value in state.items():
            if not key.endswith(".filt"):
                self.register_buffer(key.replace(".", "_"), value.float(), persistent=False)
        tent = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("tent", (tent[:, None] * tent[None, :] / 16)[None, None], persistent=False)

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the five feature maps of `[B, 3, H, W]`, each of unit length along its channels."""
        x = (image - self.scaling_layer_shift) / self.scaling_layer_scale
        taps = []
        for layer in self.layers:
            match layer:
                case "relu":
                    x = F.relu(x)
                case "pool2" | "pool3":  # stride 1: the blur after it takes every second pixel
                    x = F.max_pool2d(x, int(layer[-1]), stride=1)
                case "blur":  # a binomial filter against aliasing: what makes the distance shift-tolerant
                    tent = self.tent.to(x.dtype).expand(x.shape[1], -1, -1, -1)
                    x = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), tent, stride=2, groups=x.shape[1])
                case "tap":
                    taps.append(_unit_length(x.float()))
                case ("conv", name, padding):
                    name = name.replace(".", "_")
                    x = F.conv2d(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"), padding=padding)
        return taps

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance `[B]`; the gradient flows to `a` alone."""
        with torch.no_grad():
            reference = self.features(b)
        return self.compare(self.features(a), reference)

    def compare(self, features: list[Tensor], reference: list[Tensor]) -> Tensor:
        """Return the distance `[B]` of two images' features."""
        distance = 0.0
        for k, (x, y) in enumerate(zip(features, reference, strict=True)):
            weight = getattr(self, f"lin{k}_model_1_weight")  # [1, C, 1, 1], learned from human judgements
            distance = distance + ((x - y).square() * weight).sum(1).mean((1, 2))
        return distance


def _unit_length(x: Tensor) -> Tensor:
    # 1e-20 under the root keeps the gradient finite where every channel is zero
    return x / ((x.square().sum(1, keepdim=True) + 1e-20).sqrt() + 1e-10)


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Build layers without drawing initial weights, which are loaded afterwards.

    VGG16 with its classifier has 138 million: seconds, and the global random state would move.
    """
    with ExitStack() as stack:
        for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "trunc_normal_"):
            stack.enter_context(patch.object(nn.init, name, lambda tensor, *_, **__: tensor))
        yield


def trunk_file(trunk: str) -> str:
    """Return the name, in `lafr.weights`, of a trunk's published weights; raises InputError for an unknown trunk."""
    if trunk not in TRUNKS:
        raise InputError("trunk", trunk, f"one of {', '.join(TRUNKS)}")
    return f"torchvision_{TRUNKS[trunk]}"


def lpips_network(trunk: str, state: dict[str, Tensor] | None = None) -> nn.Module:
    """Return LPIPS 0.1 (Zhang et al., CVPR 2018) of the `lpips` package, frozen and in eval mode.

    It maps two batches of RGB `[B, 3, H, W]` in [-1, 1] to `[B, 1, 1, 1]`.

    Args:
        trunk: "vgg" or "alex", whose distances are not comparable.
        state: state dict of torchvision's trunk; None for the published one. Raises InputError when that or the
            package is missing.
    """
    file = trunk_file(trunk)
    package = need("lpips", "lpips")
    state = load_pickle(file) if state is None else state
    # `pnet_rand`: asked for a trained trunk, the package would download it. It calls torchvision by an old keyword,
    # hence the warnings.
    with warnings.catch_warnings(action="ignore", category=UserWarning), without_initialisation():
        network = package.LPIPS(net=trunk, pnet_rand=True, verbose=False)
    # "slice2.5.weight" of lpips is torchvision's "features.5.weight"
    network.net.load_state_dict({n: state[f"features.{n.split('.', 1)[1]}"] for n in network.net.state_dict()})
    network.origins = frozenset({f"lpips_{trunk}", f"imagenet_{TRUNKS[trunk]}"})
    return network.requires_grad_(False).eval()


def untrained_lpips(trunk: str) -> nn.Module:
    """Return LPIPS of the `lpips` package with random weights: what it costs, not what it measures."""
    package = need("lpips", "lpips")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # lpips calls torchvision by an old keyword
        network = package.LPIPS(pretrained=False, net=trunk, pnet_rand=True, verbose=False)
    return network.requires_grad_(False).eval()


class DISTS(nn.Module):
    """DISTS, deep image structure and texture similarity (Ding et al., TPAMI 2022): its features and their distance.

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
        self.network = _dists_network(trunk)
        self.requires_grad_(False).eval()
        alpha, beta = self.network.alpha.flatten(), self.network.beta.flatten()  # [1475], a weight a channel
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", alpha / total, persistent=False)
        self.register_buffer("beta", beta / total, persistent=False)

    @classmethod
    def from_pretrained(cls) -> "DISTS":
        """Load the network with torchvision's trunk; raises InputError when that is missing."""
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
            texture = _ratio(x_mean * y_mean, x_mean.square(), y_mean.square())
            structure = _ratio((x * y).mean((2, 3)), x.square().mean((2, 3)), y.square().mean((2, 3)))
            similarity = similarity + (alpha * texture + beta * structure).sum(1)
        return 1 - similarity


def edge_image(image: Tensor) -> Tensor:
    """Return the edges of `[B, 3, H, W]` in [-1, 1] as an image of the same shape and convention, black where flat.

    The edge map of edge-aware DISTS (D3SR, Li et al., 2024) as OSDFace's `edge_aware_dists_demo.py` has it:
    `sobel` of the channels' mean in [0, 1], in three equal channels. It can reach 4.5 on that scale.
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


def _ratio(product: Tensor, x: Tensor, y: Tensor) -> Tensor:
    # SSIM's ratio: 1 where x and y agree; c1 = c2 = 1e-6 keep it finite where both vanish
    return (2 * product + 1e-6) / (x + y + 1e-6)


def _dists_network(trunk: dict[str, Tensor] | None) -> nn.Module:
    # torchmetrics' constructor has torchvision download the trained trunk: give it ours instead
    from torchmetrics.functional.image import dists
    from torchvision.models.vgg import cfgs, make_layers

    features = make_layers(cfgs["D"])  # VGG16 without its classifier
    if trunk is not None:
        state = {name: value for name, value in trunk.items() if name.startswith("features.")}
        features.load_state_dict({name.removeprefix("features."): value for name, value in state.items()})
    with patch.object(dists, "vgg16", lambda weights: SimpleNamespace(features=features)):
        # on the meta device (to be counted) there are no values to load
        return dists.DISTSNetwork(load_weights=torch.get_default_device().type != "meta")
