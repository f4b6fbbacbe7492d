"""The miniature's losses on real faces: every term of `configs/loss/multilevel_mini.yaml` and `aligned_mini.yaml`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy.ndimage import gaussian_filter

from lafr.data.packaged import PackagedFaces
from lafr.losses.identity import IdentityCosine
from lafr.losses.multilevel import Restoration
from lafr.networks import load

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WEIGHTED = (
    "pixel_l1",
    "perceptual",
    "latent_l1",
    "aligned_l1",
    "identity",
    "landmark_distance",
    "parsing",
    "region_l1",
)
NAMES = (*WEIGHTED, "landmark_heatmap")


@pytest.fixture(scope="module")
def loss():
    with initialize_config_dir(str(CONFIGS / "loss"), version_base=None):
        loss = instantiate(compose("multilevel_mini"), _convert_="all")
        aligned = instantiate(compose("aligned_mini"), _convert_="all")
    loss.terms["aligned_l1"], loss.weights["aligned_l1"] = aligned.terms["aligned_l1"], aligned.weights["aligned_l1"]
    return loss


@pytest.fixture(scope="module")
def faces():
    return torch.stack([PackagedFaces(128)[i] for i in range(7)])


def blurred(faces, sigma):
    """Blur `[B, 3, H, W]` with a Gaussian of `sigma` pixels."""
    return torch.from_numpy(gaussian_filter(faces.numpy(), (0, 0, sigma, sigma))) if sigma else faces


def test_the_loss_holds_the_terms_that_these_tests_know(loss):
    assert set(loss.terms) == set(NAMES)
    assert {name for name, weight in loss.weights.items() if weight} == set(WEIGHTED)


def test_a_term_is_zero_for_the_same_face_and_pulls_at_a_blurred_one(loss, faces):
    for name in NAMES:
        for count in [1, 3]:
            hq, term = faces[:count], loss.terms[name]
            z = torch.randn(count, 4, 32, 32, generator=torch.Generator().manual_seed(0))
            same = hq.clone().requires_grad_()
            assert abs(float(term(Restoration(same, hq, z, z, z_aligned=z)).detach())) < 1e-6
            restored, z_restored = blurred(hq, 2.0).requires_grad_(), (z + 0.1).requires_grad_()
            value = term(Restoration(restored, hq, z_restored, z, z_aligned=z_restored))
            assert value.shape == () and value > 0
            value.backward()
            gradient = (z_restored if name in ("latent_l1", "aligned_l1") else restored).grad
            assert gradient.isfinite().all()
            assert (gradient.flatten(1).abs().sum(1) > 0).all()  # of every face in the batch


@torch.no_grad()
def test_identity_falls_with_sharpness_on_every_face(faces):
    term = IdentityCosine(load("mini_recogniser"))
    copies = [blurred(faces, sigma) for sigma in (0, 1, 2, 3, 4)]  # pixels of 128
    for i in range(len(faces)):
        loss = [float(term(Restoration(c[i : i + 1], faces[i : i + 1], None, None))) for c in copies]
        assert (np.diff(loss) > 0).all(), loss
