"""LPIPS (Zhang et al., CVPR 2018) by the `lpips` package, whose trunk is torchvision's."""

import warnings

import torch
from torch import Tensor, nn

from lafr.errors import InputError, need
from lafr.weights import load_pickle

TRUNKS = {"vgg": "vgg16", "alex": "alexnet"}  # lpips's name -> torchvision's


def trunk_file(trunk: str) -> str:
    """Return the name, in `lafr.weights`, of a trunk's published weights; raises InputError for an unknown trunk."""
    if trunk not in TRUNKS:
        raise InputError(f"LPIPS trunk {trunk!r} is not known; known are {', '.join(TRUNKS)}")
    return f"torchvision_{TRUNKS[trunk]}"


def lpips_network(trunk: str, state: dict[str, Tensor] | None = None) -> nn.Module:
    """Return the package's LPIPS 0.1, frozen and in eval mode; it takes RGB `[B, 3, H, W]` in [-1, 1].

    Args:
        trunk: "vgg" or "alex", whose distances are not comparable.
        state: state dict of torchvision's trunk; None for the published one. Raises InputError when that or the
            package is missing.
    """
    file = trunk_file(trunk)
    package = need("lpips", "lpips")
    state = load_pickle(file) if state is None else state
    with warnings.catch_warnings(action="ignore", category=UserWarning), torch.random.fork_rng(devices=[]):
        # a random trunk, since the package would download its own; it calls torchvision the old way
        network = package.LPIPS(net=trunk, pnet_rand=True, verbose=False)
    # "slice2.5.weight" of lpips is torchvision's "features.5.weight"
    network.net.load_state_dict({n: state[f"features.{n.split('.', 1)[1]}"] for n in network.net.state_dict()})
    network.origins = frozenset({f"lpips_{trunk}", f"imagenet_{TRUNKS[trunk]}"})
    return network.requires_grad_(False).eval()
