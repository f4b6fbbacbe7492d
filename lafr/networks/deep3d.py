"""Deep3DFaceRecon's regressor: the coefficients of a three-dimensional face model, from one image (Deng et al., 2019).

The coefficients themselves are compared, so that the face model's bases, which need a licence of their own, are not.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from lafr.alignment import FFHQ_512
from lafr.networks.crops import SimilarityCrop
from lafr.networks.perceptual import without_initialisation
from lafr.weights import load_pickle

SIZE = 224
# The same five points as in `lafr.alignment`, of the mean face in the model's own units; y points up.
MEAN_FACE = np.array(
    [
        (-0.31148657, 0.29036078, 0.13377953),
        (0.30979887, 0.28972036, 0.13179526),
        (0.0032535, -0.04617932, 0.55244243),
        (-0.25216928, -0.38133916, 0.22405732),
        (0.2484662, -0.38128236, 0.22235769),
    ]
)
RESCALE = 102.0  # pixels of the crop a unit of the mean face
# Heads in the order of `final_layers`: coefficients of shape, expression and albedo; Euler angles about x, y, z in
# radians; nine spherical harmonics a channel; translation in x and y, and in depth.
HEADS = {"identity": 80, "expression": 64, "texture": 80, "angle": 3, "light": 27, "shift": 2, "depth": 1}


@dataclass(frozen=True)
class Coefficients:
    """What the regressor says, `[B, n]` each: n = 80, 64, 80, 3 (radians), 27, 3."""

    identity: Tensor
    expression: Tensor
    texture: Tensor
    angle: Tensor
    light: Tensor
    translation: Tensor


def crop_points() -> tuple[np.ndarray, np.ndarray]:
    """Return two points of the 512 crop and where Deep3DFaceRecon's alignment puts them in its own, `[2, 2]` each.

    Its `align_img` fits an affine camera to the five points, and keeps the scale and translation: no rotation.
    """
    points = np.stack([FFHQ_512[:, 0], 511 - FFHQ_512[:, 1]], 1)  # y points up
    design = np.hstack([MEAN_FACE, np.ones((5, 1))])  # [5, 4]
    camera = np.linalg.lstsq(design, points, rcond=None)[0]  # [4, 2]: a row of the camera's matrix for x and y, then t
    scale = RESCALE / np.linalg.norm(camera[:3], axis=0).mean()
    centre = np.array([camera[3, 0], 512 - camera[3, 1]])  # of the crop; y points down again
    source = np.array([(0.0, 0.0), (511.0, 511.0)])
    return source, (source + 0.5 - centre) * scale + SIZE / 2 - 0.5


class Deep3DFace(nn.Module):
    """ResNet-50 and seven linear heads: `[B, 3, H, W]` in [-1, 1], FFHQ-aligned, to `Coefficients`.

    Reads its own 224 px crop, RGB in [0, 1]. Names are those of `net_recon` in `epoch_20.pth`.
    """

    name = "deep3d"
    origins = frozenset({"deep3d"})

    def __init__(self, state: dict[str, Tensor] | None = None):
        super().__init__()
        source, target = crop_points()
        self.crop = SimilarityCrop(source, target, size=SIZE)
        # 24 million values need not be drawn where a state replaces them
        with nullcontext() if state is None else without_initialisation():
            self.backbone = resnet50(weights=None)
        self.backbone.fc = nn.Identity()  # 2,048 features, averaged over positions
        self.final_layers = nn.ModuleList(nn.Conv2d(2048, size, 1) for size in HEADS.values())
        if state is not None:
            self.load_state_dict(state.get("net_recon", state))
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls) -> "Deep3DFace":
        """Load the network with the user's `epoch_20.pth`; raises InputError when that is missing."""
        return cls(load_pickle(cls.name))

    def train(self, mode: bool = True) -> "Deep3DFace":
        """Stay in eval mode: batch statistics belong to its own training."""
        return super().train(False)

    def prepare(self, image: Tensor) -> Tensor:
        """Return the crop `[B, 3, 224, 224]` in [0, 1]."""
        return (self.crop(image) + 1) / 2

    def forward(self, image: Tensor) -> Coefficients:
        """Return the coefficients."""
        features = self.backbone(self.prepare(image.float()))[:, :, None, None]  # [B, 2048, 1, 1]
        identity, expression, texture, angle, light, shift, depth = (
            head(features).flatten(1) for head in self.final_layers
        )
        return Coefficients(identity, expression, texture, angle, light, torch.cat([shift, depth], 1))
