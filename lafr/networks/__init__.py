"""Frozen pretrained networks used by losses, metrics and detectors.

Each takes images `[B, 3, H, W]` in [-1, 1], aligned to the FFHQ template, at any square size, and does its own crop,
resize, colour order and range. `origins` names it and every network it was distilled from: a score by a network that
shares an origin with the loss says so.
"""

import importlib
from functools import cache

from torch import nn

from lafr.errors import InputError

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


@cache
def load(name: str, **settings: str) -> nn.Module:
    """Return the published or shipped network called `name`, frozen and in eval mode: one copy per process.

    Terms and metrics that name the same network share it, and its output for a batch is computed once. `settings` are
    those of its `from_pretrained`: CLIP's `folder`.
    """
    if name not in NETWORKS:
        raise InputError("name", name, f"one of {', '.join(NETWORKS)}")
    module, _, kind = NETWORKS[name].rpartition(".")
    network = getattr(importlib.import_module(module), kind).from_pretrained(**settings)
    return network.requires_grad_(False).eval()


def origins(module: nn.Module) -> frozenset[str]:
    """Return the origins of every network inside `module`."""
    return frozenset().union(*(getattr(part, "origins", ()) for part in module.modules()))
