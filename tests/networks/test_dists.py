"""DISTS, edge-aware DISTS and LPIPS: the numbers of torchmetrics, OpenCV and `lpips`, and nothing downloaded."""

import cv2
import numpy as np
import pytest
import torch
from trunks import untrained

import lafr.networks.perceptual
from lafr.data.packaged import aligned
from lafr.errors import InputError
from lafr.images import resize_pil
from lafr.losses.appearance import PerceptualDISTS, PerceptualEdgeDISTS, PerceptualLPIPS
from lafr.losses.multilevel import Restoration
from lafr.networks import origins
from lafr.networks.perceptual import DISTS, edge_image, sobel


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.delenv("LAFR_WEIGHTS", raising=False)
    for place in ("torch.hub.load_state_dict_from_url", "torchvision.models._api.load_state_dict_from_url"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("tried to download"))


@pytest.fixture(scope="module")
def vgg16():
    return untrained("vgg")


@pytest.fixture(scope="module")
def network(vgg16):
    return DISTS(vgg16.state_dict())


@pytest.fixture(scope="module")
def pixels():
    """Three pairs (degraded, sharp) `[3, 48, 48, 3]` of RGB pixels 0..255: a blurred, a noisy and a dark copy."""
    sharp = np.stack([np.array(resize_pil(aligned("astronaut"), 48))] * 3)
    noise = np.random.default_rng(0).normal(0, 20, sharp[1].shape)
    degraded = [cv2.GaussianBlur(sharp[0], (0, 0), 2), np.clip(sharp[1] + noise, 0, 255), sharp[2] * 0.7]
    return np.stack(degraded).astype(np.uint8), sharp


def images(pixels):
    """What the loss sees: [-1, 1]."""
    return tuple(torch.from_numpy(p.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1 for p in pixels)


def torchmetrics_dists(vgg16, degraded, sharp, monkeypatch):
    """torchmetrics' own function, of RGB in [0, 1] as it asks for."""
    from torchmetrics.functional.image import dists

    monkeypatch.setattr(dists, "vgg16", lambda weights: vgg16)
    degraded, sharp = (torch.from_numpy(p.transpose(0, 3, 1, 2) / 255).float() for p in (degraded, sharp))
    return dists.deep_image_structure_and_texture_similarity(degraded, sharp)


@torch.no_grad()
def test_dists_is_torchmetrics(network, vgg16, pixels, monkeypatch):
    restored, hq = images(pixels)
    theirs = torchmetrics_dists(vgg16, *pixels, monkeypatch)
    assert theirs.min() > 1e-3
    found = network.distance(network(restored), network(hq))
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=2e-7)  # a difference from 1 in float32


@torch.no_grad()
def test_a_batch_of_one_gives_one_number(network, pixels):
    restored, hq = (network(image) for image in images(pixels))
    three = network.distance(restored, hq)
    one = network.distance([x[:1] for x in restored], [y[:1] for y in hq])
    assert three.shape == (3,) and one.shape == (1,)
    torch.testing.assert_close(one, three[:1])


def edges_by_opencv(pixels):
    gray = pixels.astype(np.float64).mean(2) / 255
    dx, dy = (cv2.Sobel(gray, cv2.CV_64F, *axis, ksize=3, borderType=cv2.BORDER_REPLICATE) for axis in ((1, 0), (0, 1)))
    return np.sqrt(dx**2 + dy**2 + 1e-6)


def test_the_edges_are_opencvs_sobel_of_the_mean_channel(pixels):
    found = edge_image(images(pixels)[1])
    assert found.shape == (3, 3, 48, 48)
    expected = torch.from_numpy(edges_by_opencv(pixels[1][0])).float()
    for channel in found[0]:
        torch.testing.assert_close((channel + 1) / 2, expected, rtol=1e-5, atol=1e-6)


def test_a_step_of_one_between_two_columns_gives_four_and_the_border_nothing():
    step = torch.zeros(1, 1, 5, 6)
    step[..., 3:] = 1
    torch.testing.assert_close(sobel(step)[0, 0, :, 2:4], torch.full((5, 2), 4.0))
    assert sobel(step)[0, 0, :, [0, 1, 4, 5]].max() < 1.1e-3


@torch.no_grad()
def test_edge_dists_adds_torchmetrics_dists_of_opencvs_edges(network, vgg16, pixels, monkeypatch):
    edges = [np.stack([edges_by_opencv(p)[..., None].repeat(3, 2) * 255 for p in side]) for side in pixels]
    expected = sum(torchmetrics_dists(vgg16, *pair, monkeypatch) for pair in (pixels, edges)).mean()
    found = PerceptualEdgeDISTS(network)(Restoration(*images(pixels), None, None))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.fixture(scope="module")
def trunks(vgg16):
    """lpips's name -> torchvision's network."""
    return {"vgg": vgg16, "alex": untrained("alex")}


@pytest.fixture(scope="module")
def lpips_terms(trunks):
    pytest.importorskip("lpips", reason="LPIPS is the package's; it is a development requirement")
    states = {"torchvision_vgg16": trunks["vgg"].state_dict(), "torchvision_alexnet": trunks["alex"].state_dict()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lafr.networks.perceptual, "load_pickle", states.get)
        return {trunk: PerceptualLPIPS(trunk) for trunk in trunks}


@pytest.fixture(scope="module", params=["dists", "edge_dists", "vgg", "alex"])
def term(request):
    kind = {"dists": PerceptualDISTS, "edge_dists": PerceptualEdgeDISTS}.get(request.param)
    return kind(request.getfixturevalue("network")) if kind else request.getfixturevalue("lpips_terms")[request.param]


def test_a_perceptual_term_is_zero_for_equal_images_and_has_a_gradient_otherwise(term, pixels):
    for count in [1, 3]:
        restored, hq = (image[:count].clone().requires_grad_() for image in images(pixels))
        assert term(Restoration(hq, hq, None, None)).abs() < 1e-6
        value = term(Restoration(restored, hq, None, None))
        assert value.shape == () and value > 1e-3
        value.backward()
        assert restored.grad.isfinite().all() and all(one.abs().sum() > 0 for one in restored.grad)
        assert hq.grad is None
        assert all(weight.grad is None for weight in term.parameters())


def test_the_gradient_stays_finite_where_images_are_flat_or_equal(term, pixels):
    for case in ["flat", "equal"]:
        hq = images(pixels)[1][:1]
        restored = (torch.zeros_like(hq) if case == "flat" else hq.clone()).requires_grad_()
        term(Restoration(restored, hq, None, None)).backward()
        assert restored.grad.isfinite().all()


@torch.no_grad()
def test_a_perceptual_term_is_computed_in_float32_under_autocast(term, pixels):
    r = Restoration(*images(pixels), None, None)
    expected = term(r)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(term(Restoration(r.restored, r.hq, None, None)), expected, rtol=1e-6, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["vgg", "alex"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lpips_is_the_packages_own_number(trunk, trunks, lpips_terms, pixels, monkeypatch):
    import lpips

    name = {"vgg": "vgg16", "alex": "alexnet"}[trunk]
    monkeypatch.setattr(f"torchvision.models.{name}", lambda pretrained: trunks[trunk])
    theirs = lpips.LPIPS(net=trunk, verbose=False)  # as the package documents it
    degraded, sharp = (torch.from_numpy(p.transpose(0, 3, 1, 2) / 255).float() for p in pixels)
    expected = theirs(degraded, sharp, normalize=True).mean()  # it maps [0, 1] to [-1, 1] itself
    assert expected > 1e-3
    found = lpips_terms[trunk](Restoration(*images(pixels), None, None))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_absent_trunks_are_one_clear_error_and_no_download():
    for make, file in (
        (DISTS.from_pretrained, "vgg16"),
        (PerceptualLPIPS, "vgg16"),
        (lambda: PerceptualLPIPS("alex"), "alexnet"),
    ):
        with pytest.raises(InputError, match=f"torchvision_{file} is missing"):
            make()
    with pytest.raises(InputError, match=r"vgg, alex.*'squeeze'"):
        PerceptualLPIPS("squeeze")


def test_terms_name_their_trunks_data(network, lpips_terms):
    assert origins(PerceptualDISTS(network)) == {"dists", "imagenet_vgg16"}
    assert origins(lpips_terms["vgg"]) == {"lpips_vgg", "imagenet_vgg16"}
    assert origins(lpips_terms["alex"]) == {"lpips_alex", "imagenet_alexnet"}
