"""ST-LPIPS: the shift-tolerant perceptual distance (Ghildyal & Liu, ECCV 2022), forward pass only.

Written from the paper and the names in its state dict; the weights come from the `stlpips-pytorch` wheel. It is
not LPIPS and its numbers cannot be compared with LPIPS: both trunks blur before each stride-2 step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafr.weights import load_pickle

# (kind, ...) in the order of the published networks; "tap" marks a layer whose features are compared.
ALEX = [
    ("conv", "net.slice1.0", 2), "blur", "relu", "tap",
    "pool3", "blur", ("conv", "net.slice2.5", 2), "relu", "tap",
    "pool3", "blur", ("conv", "net.slice3.9", 1), "relu", "tap",
    ("conv", "net.slice4.11", 1), "relu", "tap",
    ("conv", "net.slice5.13", 1), "relu", "tap",
]  # fmt: skip
VGG = [
    ("conv", "net.slice1.0", 1), "relu", ("conv", "net.slice1.2", 1), "relu", "tap",
    "pool2", "blur", ("conv", "net.slice2.6", 1), "relu", ("conv", "net.slice2.8", 1), "relu", "tap",
    "pool2", "blur", *[s for i in (12, 14, 16) for s in (("conv", f"net.slice3.{i}", 1), "relu")], "tap",
    "pool2", "blur", *[s for i in (20, 22, 24) for s in (("conv", f"net.slice4.{i}", 1), "relu")], "tap",
    "pool2", "blur", *[s for i in (28, 30, 32) for s in (("conv", f"net.slice5.{i}", 1), "relu")], "tap",
]  # fmt: skip
LAYERS = {"alex": ALEX, "vgg": VGG}


class STLPIPS(nn.Module):
    """Perceptual distance between two batches of images.

    Args:
        trunk: "alex" or "vgg". Train on one and score on the other.
        state: state dict in the published layout; the published weights when None.

    `forward(a, b)` takes `[B, 3, H, W]` in [-1, 1] and returns `[B]`, 0 for equal images. The convolutions follow
    autocast; features are compared in float32.
    """

    def __init__(self, trunk: str, state: dict[str, Tensor] | None = None):
        super().__init__()
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
                case "pool2" | "pool3":
                    x = F.max_pool2d(x, int(layer[-1]), stride=1)
                case "blur":
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
            weight = getattr(self, f"lin{k}_model_1_weight")  # [1, C, 1, 1]
            distance = distance + ((x - y).square() * weight).sum(1).mean((1, 2))
        return distance


def _unit_length(x: Tensor) -> Tensor:
    # 1e-20 under the root keeps the gradient finite where every channel is zero
    return x / ((x.square().sum(1, keepdim=True) + 1e-20).sqrt() + 1e-10)
