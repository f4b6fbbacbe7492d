"""Quality without ground truth by pyiqa's networks: the optional extra `iqa`, which is for non-commercial use only.

pyiqa fetches whatever it misses, trusts every pickle and moves the random state. Here it gets its weights from
`lafr.weights`, and nothing is fetched: a missing file or package is an InputError that says how to get it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from lafr.errors import InputError, need
from lafr.images import as_saved
from lafr.metrics.card import hashes
from lafr.metrics.niqe import NIQE
from lafr.weights import FOLDER_VARIABLE, load_pickle, locate

INSTALL = "'lafr[iqa]' (pyiqa is for non-commercial use only)"

# name -> pyiqa's name, our entry in EXTERNAL, settings that keep it from loading anything itself
NETWORKS: dict[str, tuple[str, str, dict]] = {
    "musiq": ("musiq", "musiq_koniq", {"pretrained": False}),
    "maniqa": ("maniqa", "maniqa_koniq", {"pretrained": False}),
    "topiq_face": (
        "topiq_nr-face",
        "topiq_cgfiqa",
        {"pretrained": False, "backbone_pretrain": False, "align_crop_face": False},
    ),
    "clipiqa": ("clipiqa", "clip_rn50", {"pretrained": False}),
}


class PyIQA:
    """One of pyiqa's no-reference networks, `[B]`, higher is better: musiq, maniqa, clipiqa, topiq_face.

    `topiq_face` is pyiqa's `topiq_nr-face` without its own detection and alignment: the images are aligned already.

    Args:
        name: the metric. Raises InputError when pyiqa or the network's weights are missing.
        state: state dict in the published layout, instead of the published weights (not for clipiqa).
    """

    package = "pyiqa"

    def __init__(self, name: str, state: dict[str, Tensor] | None = None):
        if name not in NETWORKS:
            raise InputError("name", name, f"one of {', '.join(NETWORKS)}")
        theirs, file, settings = NETWORKS[name]
        pyiqa = need("pyiqa", INSTALL)
        self.weights = hashes(file) if state is None else ()
        if name == "clipiqa":  # CLIP itself, a TorchScript archive; the prompts are words
            settings = settings | {"backbone": str(locate(file))}
        elif state is None:
            state = load_pickle(file)
        with _offline():
            self.network = pyiqa.create_metric(theirs, device=torch.device("cpu"), **settings)
        if state is not None:
            self.network.net.load_state_dict(_inside(state))
        self.origins = frozenset({f"{name}_pyiqa"})

    @torch.no_grad()
    def __call__(self, image: Tensor, hq: Tensor | None = None) -> Tensor:
        """Return the score `[B]` of `[B, 3, H, W]` in [-1, 1], RGB, 8-bit."""
        # one by one: they crop and resize an image by its size, and MUSIQ packs patches of whole batches
        network = self.network.to(image.device)
        return torch.stack([network(one[None]).flatten()[0].float() for one in _unit(as_saved(image))])


class PyIQANIQE(NIQE):
    """NIQE as pyiqa defines it (`niqe_pyiqa`): the luma of YIQ, 0 to 255, where BasicSR takes 16 to 235."""

    package = "pyiqa"

    def __init__(self, pristine: tuple[np.ndarray, np.ndarray] | None = None):
        super().__init__(pristine)
        self.function = need("pyiqa.archs.niqe_arch", INSTALL).calculate_niqe

    def score(self, image: Tensor) -> Tensor:
        """Return NIQE `[B]` of 8-bit images large enough for it."""
        pristine = {"mu_pris_param": self.mean[None], "cov_pris_param": self.covariance[None]}
        return torch.stack([self.function(one[None], **pristine).reshape(()) for one in _unit(image).cpu()])


def _unit(image: Tensor) -> Tensor:
    return ((image + 1) / 2).clamp(0, 1)


def _inside(state: dict) -> dict[str, Tensor]:
    state = state.get("params", state)
    return {name.removeprefix("module."): value for name, value in state.items()}


@contextmanager
def _offline() -> Iterator[None]:
    """Build a pyiqa network without its backbone's trained weights (checkpoints hold them), and fetch nothing."""
    timm = need("timm", INSTALL)
    create = timm.create_model

    def untrained(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        return create(name, pretrained=False, **settings)

    def refuse(address: str, *_: Any, **__: Any) -> None:
        raise InputError(f"pyiqa asked for {address}; nothing is fetched here: put it into ${FOLDER_VARIABLE}")

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(patch.object(timm, "create_model", untrained))
        stack.enter_context(patch("pyiqa.archs.topiq_arch.FaceRestoreHelper", lambda *_, **__: None))
        for place in ("pyiqa.utils.download_util.download_url_to_file", "pyiqa.archs.clip_model._download"):
            stack.enter_context(patch(place, refuse))
        yield
