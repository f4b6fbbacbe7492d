"""Structure terms: exact values on networks of fixed outputs, gradients through a small one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lafr.errors import InputError
from lafr.losses.multilevel import Restoration
from lafr.losses.structure import LandmarkDistance, LandmarkHeatmap, ParsingSoftLabel, RegionL1, Structure3D
from lafr.networks.landmarkers import Landmarks, soft_argmax

SIDE = 32
TERMS = [LandmarkHeatmap, LandmarkDistance, ParsingSoftLabel, RegionL1]


class Stub(nn.Module):
    """A landmarker and parser in one: a fixed random convolution."""

    regions = {"eyes": (1,), "nose": (2,), "mouth": (3, 4)}  # noqa: RUF012

    def __init__(self, kind):
        super().__init__()
        self.kind, self.asked = kind, 0
        weight = torch.randn(5, 3, 5, 5, generator=torch.Generator().manual_seed(1)) / 3
        self.register_buffer("weight", weight)

    def forward(self, image):
        self.asked += 1
        maps = F.conv2d(image, self.weight, padding=2)
        return Landmarks(maps, soft_argmax(maps)) if self.kind.__name__.startswith("Landmark") else maps


class Fixed(nn.Module):
    """Says `restored` where gradients are on, `hq` where they are off."""

    regions = Stub.regions

    def __init__(self, restored, hq):
        super().__init__()
        self.restored, self.hq = restored, hq

    def forward(self, image):
        return self.restored if torch.is_grad_enabled() else self.hq


def faces(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, SIDE, SIDE, generator=draw) * 2 - 1


def restoration(restored, hq):
    return Restoration(restored, hq, None, None)


def test_a_term_is_zero_for_equal_images_and_has_a_gradient_otherwise():
    for count in [1, 3]:
        for kind in TERMS:
            term, hq = kind(Stub(kind)), faces(count).requires_grad_()
            assert term(restoration(hq.detach(), hq.detach())).abs() < 1e-6
            restored = faces(count, seed=1).requires_grad_()
            value = term(restoration(restored, hq.detach()))
            assert value.shape == () and value > 1e-4
            value.backward()
            assert restored.grad.isfinite().all()
            assert all(one.abs().sum() > 0 for one in restored.grad)


def test_the_gradient_is_finite_where_images_are_equal():
    for kind in TERMS:
        restored = faces(1).requires_grad_()
        kind(Stub(kind))(restoration(restored, restored.detach())).backward()
        assert restored.grad.isfinite().all()


@pytest.mark.parametrize("kinds", [TERMS[:2], TERMS[2:]])
def test_terms_that_share_a_network_ask_it_once_an_image(kinds):
    network = Stub(kinds[0])
    r = restoration(faces(1), faces(1, seed=1))
    for kind in kinds:
        kind(network)(r)
    assert network.asked == 2


def test_landmark_distance_is_in_pixels_of_the_512_crop():
    points = torch.rand(2, 7, 2) * 512
    shift = torch.zeros(2, 7, 2)
    shift[0, 0], shift[1, 3] = torch.tensor([3.0, 4.0]), torch.tensor([0.0, -9.0])
    fixed = Fixed(Landmarks(None, points + shift), Landmarks(None, points))
    torch.testing.assert_close(LandmarkDistance(fixed)(restoration(faces(2), faces(2))), torch.tensor((5 + 9) / 14))


def test_soft_label_term_is_cross_entropy_less_the_labels_entropy():
    restored, hq = torch.randn(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0)) * 2
    label = hq.softmax(1)
    expected = F.cross_entropy(restored, label) - F.cross_entropy(hq, label)
    torch.testing.assert_close(ParsingSoftLabel(Fixed(restored, hq))(restoration(faces(3), faces(3))), expected)


def parsed(side=16):
    """Logits that are sure: eyes at the top left (4 x 4 of 16 x 16), nose in the middle, no mouth, else class 0."""
    labels = torch.zeros(1, side, side, dtype=torch.long)
    labels[:, :4, :4] = 1
    labels[:, 6:10, 6:10] = 2
    return F.one_hot(labels, 5).movedim(-1, 1) * 50.0


@pytest.mark.parametrize(("side", "tolerance"), [(16, 1e-5), (64, 0.13)])  # enlarged, the regions' edges are soft
def test_region_l1_is_the_mean_error_inside_each_region_whatever_its_size(side, tolerance):
    quarter = side // 4
    hq = torch.zeros(1, 3, side, side)
    restored = hq.clone()
    restored[..., :quarter, :quarter] = 0.3  # eyes
    restored[..., -quarter:, -quarter:] = 2.0  # background: not looked at
    term = RegionL1(Fixed(parsed(), parsed()), {"eyes": 3.0, "nose": 1.0})
    torch.testing.assert_close(term(restoration(restored, hq)), torch.tensor(0.3 * 3 / 4), rtol=tolerance, atol=0)


def test_region_l1_of_one_error_everywhere_is_that_error_and_an_absent_part_counts_for_nothing():
    hq, restored = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.5)
    fixed = Fixed(parsed(), parsed())
    torch.testing.assert_close(RegionL1(fixed, {"eyes": 1, "nose": 2})(restoration(restored, hq)), torch.tensor(0.5))
    assert RegionL1(fixed, {"mouth": 1})(restoration(restored, hq)) < 1e-6


def test_regions_are_the_hq_faces_not_the_restored_ones():
    restored = torch.zeros(1, 3, 16, 16)
    restored[..., :4, :4] = 1.0
    nothing = F.one_hot(torch.zeros(1, 16, 16, dtype=torch.long), 5).movedim(-1, 1) * 50.0
    r = restoration(restored, torch.zeros(1, 3, 16, 16))
    assert RegionL1(Fixed(nothing, parsed()), {"eyes": 1})(r) > 0.99
    assert RegionL1(Fixed(parsed(), nothing), {"eyes": 1})(r) < 1e-6


def test_region_l1_does_not_parse_the_restored_face():
    network = Stub(RegionL1)
    RegionL1(network)(restoration(faces(1), faces(1, seed=1)))
    assert network.asked == 1


def test_a_region_that_the_parser_does_not_have_and_weights_that_cannot_be_summed_are_refused():
    for wrong in ({"ears": 1.0, "eyes": 1.0}, {}, {"eyes": 0.0}, {"eyes": float("nan")}, {"eyes": 2.0, "nose": -2.0}):
        with pytest.raises(InputError, match=r"weights must be some of eyes, nose, mouth"):
            RegionL1(Stub(RegionL1), wrong)
    with pytest.raises(InputError, match="weights must be some of identity, expression"):
        Structure3D(Stub(RegionL1), {"smile": 1.0})


def test_a_landmarker_without_heatmaps_is_named():
    only_points = LandmarkHeatmap(lambda image: Landmarks(None, image.mean(-1)[..., :2]))
    with pytest.raises(InputError, match="has no heatmaps"):
        only_points(Restoration(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1)))
