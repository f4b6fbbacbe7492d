"""torchvision's trunks with random weights: the published ones are not at hand, those of the comparisons are."""

from functools import cache

import torch
import torchvision
from torch import nn
from torchvision.models.vgg import cfgs, make_layers


class Trunk(nn.Module):
    """The convolutions of a classifier, which alone a perceptual distance reads; their names are torchvision's."""

    def __init__(self, features: nn.Sequential):
        super().__init__()
        self.features = features


@cache
def untrained(name: str) -> Trunk:
    """Return "vgg" or "alex" with weights that keep the activations' size through the layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = make_layers(cfgs["D"]) if name == "vgg" else torchvision.models.alexnet(weights=None).features
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.normal_(layer.bias, std=0.1)
    return Trunk(features).eval()
