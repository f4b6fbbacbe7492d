"""Deep3DFaceRecon's regressor: its crop, its layers, and the term and the metrics that compare coefficients."""

import hashlib
import math

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from test_recognisers import random_weights
from torch import nn

from lafr.alignment import FFHQ_512
from lafr.data.packaged import aligned
from lafr.errors import InputError
from lafr.images import from_pil
from lafr.losses.multilevel import Restoration
from lafr.losses.structure import Structure3D
from lafr.metrics.face import ExpressionDistance, PoseDistance
from lafr.networks import load
from lafr.networks.deep3d import HEADS, MEAN_FACE, Coefficients, Deep3DFace

KINDS = ("identity", "expression", "texture", "angle", "light", "translation")


@pytest.fixture(scope="module")
def network() -> Deep3DFace:
    return random_weights(Deep3DFace())


@pytest.fixture(scope="module")
def face() -> Image.Image:
    return aligned("astronaut")


@pytest.fixture(scope="module")
def image(face):
    return from_pil(face)[None]


def described_crop(face: Image.Image) -> np.ndarray:
    """Deep3DFaceRecon_pytorch's `align_img` for the five points of an FFHQ-aligned face, in [0, 1]."""
    points = FFHQ_512.copy()
    points[:, 1] = 511 - points[:, 1]
    a, b = np.zeros((10, 8)), points.reshape(10, 1)
    a[0::2, 0:3], a[0::2, 3], a[1::2, 4:7], a[1::2, 7] = MEAN_FACE, 1, MEAN_FACE, 1
    k = np.linalg.lstsq(a, b, rcond=None)[0][:, 0]
    scale = 102 / ((np.linalg.norm(k[0:3]) + np.linalg.norm(k[4:7])) / 2)
    side = int(512 * scale)
    left = int(side / 2 - 112 + (k[3] - 256) * scale)
    top = int(side / 2 - 112 + (256 - k[7]) * scale)
    small = face.resize((side, side), Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    return np.asarray(small, np.float32) / 255


def test_the_crop_is_deep3ds_within_its_rounding_to_whole_pixels(network, face, image):
    ours = network.prepare(image)[0].permute(1, 2, 0).numpy()
    theirs = described_crop(face)
    inside = np.s_[16:-16, 16:-16]  # theirs is black outside the photograph
    distance = {
        (dy, dx): np.abs(ours - np.roll(theirs, (dy, dx), (0, 1)))[inside].mean()
        for dy in range(-3, 4)
        for dx in range(-3, 4)
    }
    best = min(distance, key=distance.get)
    assert max(map(abs, best)) <= 1 and distance[best] < 0.02
    assert ours.min() >= 0 and ours.max() <= 1


def test_the_layers_are_torchvisions_resnet50_and_seven_linear_heads(network, image):
    reference = torchvision.models.resnet50(weights=None)
    state = {k.removeprefix("backbone."): v for k, v in network.state_dict().items() if k.startswith("backbone.")}
    reference.load_state_dict(state, strict=False)
    found = {}
    reference.eval().avgpool.register_forward_hook(lambda *call: found.update(features=call[2].flatten(1)))
    with torch.no_grad():
        reference(network.prepare(image))
        ours = network(image)
    heads = [nn.functional.linear(found["features"], h.weight.flatten(1), h.bias) for h in network.final_layers]
    theirs = torch.cat(heads, 1).split([80, 64, 80, 3, 27, 3], 1)  # as their `split_coeff`
    for kind, value in zip(KINDS, theirs, strict=True):
        torch.testing.assert_close(getattr(ours, kind), value, rtol=1e-5, atol=1e-5)
    assert sum(HEADS.values()) == 257


def test_a_checkpoint_of_the_repository_is_read_with_or_without_its_optimiser(network, monkeypatch, tmp_path):
    torch.save({"net_recon": network.state_dict(), "opt_00": {"lr": 1e-4}}, tmp_path / "epoch_20.pth")
    digest = hashlib.sha256((tmp_path / "epoch_20.pth").read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  epoch_20.pth\n", encoding="utf-8")
    monkeypatch.setenv("LAFR_WEIGHTS", str(tmp_path))
    loaded = load.__wrapped__("deep3d")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in network.state_dict().items())
    assert not any(p.requires_grad for p in loaded.parameters())


class Fixed(nn.Module):
    """Coefficients that are the image's first values: the term and the metrics by hand."""

    origins = frozenset()

    def forward(self, image):
        values = image.flatten(1)[:, :257]
        *rest, shift, depth = values.split(list(HEADS.values()), 1)
        return Coefficients(*rest, torch.cat([shift, depth], 1))


def test_the_term_is_the_weighted_sum_of_mean_squares_and_zero_for_equal_faces():
    images = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    r = Restoration(images[0], images[1], torch.zeros(1), torch.zeros(1))
    a, b = Fixed()(images[0]), Fixed()(images[1])
    weights = {"identity": 0.5, "angle": 2.0}
    expected = sum(w * (getattr(a, k) - getattr(b, k)).square().mean() for k, w in weights.items())
    torch.testing.assert_close(Structure3D(Fixed(), weights)(r), expected)
    assert float(Structure3D(Fixed())(Restoration(images[0], images[0], torch.zeros(1), torch.zeros(1)))) == 0
    with pytest.raises(InputError, match="pose"):
        Structure3D(Fixed(), {"pose": 1.0})


def test_its_gradient_is_finite_and_reaches_the_image(network, image):
    restored = image.flip(3).requires_grad_()
    loss = Structure3D(network)(Restoration(restored, image, torch.zeros(1), torch.zeros(1)))
    loss.backward()
    assert loss > 0 and restored.grad.isfinite().all() and restored.grad.abs().sum() > 0


def test_the_metrics_are_distances_of_angles_in_degrees_and_of_expressions():
    images = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    as_saved = ((images + 1) * 127.5).round() / 127.5 - 1
    a, b = Fixed()(as_saved[0]), Fixed()(as_saved[1])
    pose, expression = PoseDistance(Fixed()), ExpressionDistance(Fixed())
    torch.testing.assert_close(pose(*images), (a.angle - b.angle).norm(dim=1) * 180 / math.pi)
    torch.testing.assert_close(expression(*images), (a.expression - b.expression).norm(dim=1))
    assert float(pose(images[0], images[0]).max()) == 0
