"""What a recogniser, landmarker or parser is scored by, against independent implementations."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lafr.metrics import recognition as score


def directions(count, dim, seed=0):
    x = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


def test_agreement_is_scipys_spearman_over_pairs_of_different_faces():
    a = directions(20, 8)
    b = torch.nn.functional.normalize(a + 0.5 * directions(20, 8, seed=1), dim=1)
    above = np.triu_indices(20, 1)
    expected = spearmanr((a @ a.T).numpy()[above], (b @ b.T).numpy()[above]).statistic
    assert score.agreement(a @ a.T, b @ b.T) == pytest.approx(expected, abs=1e-6)
    # the diagonal, where every recogniser agrees, does not count
    assert abs(score.agreement(directions(40, 64) @ directions(40, 64).T, torch.randn(40, 40))) < 0.15


def test_a_copy_finds_itself_when_its_own_face_is_the_nearest():
    originals = torch.eye(4)
    copies = originals[[0, 1, 3, 2]]
    assert score.finds_itself(originals, originals) == 1
    assert score.finds_itself(copies, originals) == 0.5


def test_whitened_pixels_have_unit_covariance_and_raw_ones_do_not():
    x = torch.randn(200, 3, 4, 4, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    mean, basis = score.whitening(x, 10)
    white = (x.flatten(1).double() - mean) @ basis
    assert torch.allclose(torch.cov(white.T), torch.eye(10, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(score.as_directions(x, mean, basis).norm(dim=1), torch.ones(200, dtype=torch.float64))


def test_the_normalised_error_is_in_units_of_the_outer_eye_corners():
    truth = torch.zeros(1, 68, 2)
    truth[0, 36], truth[0, 45] = torch.tensor([100.0, 200.0]), torch.tensor([300.0, 200.0])
    assert score.normalised_mean_error(truth + torch.tensor([6.0, 8.0]), truth).item() == pytest.approx(10 / 200)


def test_region_iou_pools_pixels_over_faces():
    truth = torch.tensor([[[0, 0, 1, 1]], [[0, 1, 2, 2]]])
    labels = torch.tensor([[[0, 1, 1, 1]], [[0, 1, 1, 2]]])
    expected = [2 / 3, 3 / 5, 1 / 2]
    assert score.region_iou(labels, truth, 3).tolist() == pytest.approx(expected)
