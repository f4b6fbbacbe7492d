"""Frozen pretrained networks used by losses, metrics and detectors.

Each takes images `[B, 3, H, W]` in [-1, 1], aligned to the FFHQ template, at any square size, and does its own crop,
resize, colour order and range. `origins` names it and every network it was distilled from: a score by a network that
shares an origin with the loss says so.
"""

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from lafr.errors import InputError, reason_of

NETWORKS = {
    # shipped in data/mini, trained here
    "mini_recogniser": "lafr.networks.mini.MiniRecogniser",
    "mini_landmarker": "lafr.networks.mini.MiniLandmarker",
    "mini_parser": "lafr.networks.mini.MiniParser",
    # recognisers
    "arcface_irse50": "lafr.networks.recognisers.ArcFaceIRSE50",
    "arcface_resnet18": "lafr.networks.recognisers.ArcFaceResNet18",
    "faceplugin_feature": "lafr.networks.mobilefacenet.FacePluginFeature",
    "clip": "lafr.networks.recognisers.CLIPImage",
    "sface": "lafr.networks.held_out.SFace",
    "dlib": "lafr.networks.dlib_models.DlibResNet",
    "insightface": "lafr.networks.held_out.InsightFace",
    "insightface_r50": "lafr.networks.insightface.InsightFaceR50",
    "insightface_r100": "lafr.networks.insightface.InsightFaceR100",
    "arcface_torch": "lafr.networks.insightface.ArcFaceTorch",
    "adaface": "lafr.networks.held_out.AdaFace",
    # structure
    "awing_fan": "lafr.networks.landmarkers.AWingFAN",
    "dlib_68": "lafr.networks.dlib_models.Dlib68",
    "deep3d": "lafr.networks.deep3d.Deep3DFace",
    "parsenet": "lafr.networks.parsers.ParseNet",
    "bisenet": "lafr.networks.parsers.BiSeNet",
    # perceptual
    "dists": "lafr.networks.perceptual.DISTS",
}


@dataclass(frozen=True)
class Needs:
    """What a network is built of besides LAFR: names in `lafr.weights.EXTERNAL`, and modules of optional packages."""

    files: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


NEEDS = {  # of the networks above, and of those that only a term of the loss or a metric builds
    **dict.fromkeys(("mini_recogniser", "mini_landmarker", "mini_parser"), Needs()),  # shipped
    "arcface_irse50": Needs(("arcface_irse50",), ("facexlib",)),
    "arcface_resnet18": Needs(("arcface_resnet18",)),
    "faceplugin_feature": Needs(("faceplugin_feature",), ("onnx",)),
    # the weights of these two come from a folder or the hub
    **dict.fromkeys(("clip", "vision_transformer"), Needs(packages=("transformers",))),
    "sface": Needs(("sface",), ("onnx", "onnxruntime")),
    "dlib": Needs(("dlib_resnet", "dlib_5_points"), ("dlib",)),
    "insightface": Needs(("insightface_w600k_r50",), ("onnxruntime",)),
    "insightface_r50": Needs(("insightface_w600k_r50",), ("onnx",)),
    "insightface_r100": Needs(("insightface_glintr100",), ("onnx",)),
    "arcface_torch": Needs(("arcface_torch",)),
    "adaface": Needs(("adaface",)),
    "deep3d": Needs(("deep3d",)),
    "awing_fan": Needs(("awing_fan",), ("facexlib",)),
    "dlib_68": Needs(("dlib_68_points",), ("dlib",)),
    "parsenet": Needs(("parsenet",), ("facexlib",)),
    "bisenet": Needs(("bisenet",), ("facexlib",)),
    "dists": Needs(("torchvision_vgg16", "dists_comparison")),
    "lpips_vgg": Needs(("lpips_vgg", "torchvision_vgg16"), ("lpips",)),
    "lpips_alex": Needs(("lpips_alex", "torchvision_alexnet"), ("lpips",)),
    "st_lpips_vgg": Needs(("st_lpips_vgg",)),
    "st_lpips_alex": Needs(("st_lpips_alex",)),
    "inception_2015": Needs(("inception_2015",), ("torch_fidelity",)),
    **{name: Needs((name,), ("pyiqa",)) for name in ("musiq_koniq", "maniqa_koniq", "topiq_cgfiqa", "clip_rn50")},
}


@cache
def load(name: str, **settings: str) -> nn.Module:
    """Return the published or shipped network called `name`, frozen and in eval mode: one copy per process.

    Terms and metrics that name the same network share it, and its output for a batch is computed once. `settings` are
    those of its `from_pretrained`: CLIP's `folder`.

    Raises InputError when it cannot be had, and when its file holds another network's weights.
    """
    kind = _kind_of(name)
    try:
        return kind.from_pretrained(**settings).requires_grad_(False).eval()
    except InputError:
        raise
    except Exception as error:  # of weights that do not fit: RuntimeError, KeyError, EOFError, SafetensorError, ...
        raise InputError(f"network {name} cannot be built of its settings and weights: {reason_of(error)}") from error


@cache
def hollow(name: str, **settings: str) -> nn.Module:
    """Return the network called `name` without weights or files, to count what it costs: one copy a process.

    Raises InputError for networks that compute no gradient and read their shape from a file.
    """
    kind = _kind_of(name)
    if name == "clip":
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512))  # the default: ViT-B/32
        return kind(vision).requires_grad_(False).eval()
    try:
        return kind().requires_grad_(False).eval()
    except TypeError:  # it takes the path of its file
        raise InputError(f"{name} computes no gradient", remedy="choose another network for the loss") from None


def _kind_of(name: str) -> Any:
    if name not in NETWORKS:
        raise InputError("name", name, f"one of {', '.join(NETWORKS)}")
    module, _, kind = NETWORKS[name].rpartition(".")
    return getattr(importlib.import_module(module), kind)


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network that `load` returned: whoever shares it may have moved it."""
    return next(iter(network.parameters())).device


def origins(module: nn.Module) -> frozenset[str]:
    """Return the origins of every network inside `module`."""
    return frozenset().union(*(getattr(part, "origins", ()) for part in module.modules()))
