"""LPIPS and DISTS on photographed faces: the numbers of `lpips`, pyiqa and torchmetrics, and nothing downloaded."""

import warnings

import pytest
import torch
from torch import nn
from trunks import untrained

from lafr.data.packaged import aligned
from lafr.errors import InputError
from lafr.images import as_saved, from_pil, resize_pil
from lafr.metrics import perceptual
from lafr.metrics.perceptual import DISTS, LPIPS, ShiftTolerantLPIPS
from lafr.networks import perceptual as networks
from lafr.weights import locate

NON_COMMERCIAL = "needs the non-commercial extra: pip install 'lafr[iqa]'"

torchvision = pytest.importorskip("torchvision", reason="LPIPS and DISTS have torchvision's trunks")
lpips = pytest.importorskip("lpips", reason="needs pip install lpips")


@pytest.fixture(autouse=True)
def offline(monkeypatch, no_network):
    monkeypatch.delenv("LAFR_WEIGHTS", raising=False)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **_):
        pytest.fail(f"asked for the network: {arguments}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.fixture(scope="module")
def trunks():
    return {name: untrained(name) for name in ("vgg", "alex")}


@pytest.fixture(scope="module")
def ours(trunks):
    """Our metric with those trunks."""
    return {trunk: LPIPS(trunk, network.state_dict()) for trunk, network in trunks.items()}


@pytest.fixture(scope="module")
def faces():
    """Three degraded faces and the sharp ones, 8-bit, `[3, 3, 96, 96]` in [-1, 1]."""
    hq = torch.stack([from_pil(resize_pil(aligned(name), 96)) for name in ("astronaut", "t1_0", "t1_1")])
    lq = (
        torch.nn.functional.avg_pool2d(hq, 5, 1, 2, count_include_pad=False)
        * torch.tensor([1, 1, 0.6])[:, None, None, None]
    )
    return as_saved(lq), as_saved(hq)


def the_packages_lpips(trunk: str, trunks, monkeypatch) -> nn.Module:
    """`lpips.LPIPS` as it builds itself, given our trunk where it would download one."""
    name = {"vgg": "vgg16", "alex": "alexnet"}[trunk]
    monkeypatch.setattr(f"torchvision.models.{name}", lambda *_, **__: trunks[trunk])
    with warnings.catch_warnings(action="ignore"):
        return lpips.LPIPS(net=trunk, verbose=False)


@pytest.mark.parametrize("trunk", ["vgg", "alex"])
@torch.no_grad()
def test_lpips_of_faces_is_the_packages_number_of_rgb_in_minus_one_to_one(trunk, trunks, ours, faces, monkeypatch):
    found = ours[trunk](*faces)
    theirs = the_packages_lpips(trunk, trunks, monkeypatch)
    assert found.shape == (3,) and found.min() > 0.005
    torch.testing.assert_close(found, theirs(*faces).flatten(), rtol=1e-5, atol=0)
    unit = (theirs(*((face + 1) / 2 for face in faces)).flatten() - found).abs() / found
    assert unit.min() > 1e-3  # fed [0, 1], as some do, it gives other numbers


@pytest.mark.parametrize("trunk", ["vgg", "alex"])
@torch.no_grad()
def test_lpips_of_faces_is_pyiqas(trunk, trunks, ours, faces, monkeypatch):
    arch = pytest.importorskip(
        "pyiqa.archs.lpips_arch", reason="needs the non-commercial extra: pip install 'lafr[iqa]'"
    )
    monkeypatch.setattr(f"torchvision.models.{'vgg16' if trunk == 'vgg' else 'alexnet'}", lambda **_: trunks[trunk])
    comparison = f"{lpips.__path__[0]}/weights/v0.1/{trunk}.pth"
    theirs = arch.LPIPS(net=trunk, pretrained_model_path=comparison).eval()
    torch.testing.assert_close(
        ours[trunk](*faces), theirs(*((face + 1) / 2 for face in faces)).flatten(), rtol=1e-5, atol=0
    )


@torch.no_grad()
def test_dists_of_faces_is_torchmetrics_and_pyiqas(trunks, faces, monkeypatch):
    from torchmetrics.functional.image import dists as theirs

    unit = [(face + 1) / 2 for face in faces]
    ours = DISTS(networks.DISTS(trunks["vgg"].state_dict()))(*faces)
    assert ours.shape == (3,) and ours.min() > 0.005
    monkeypatch.setattr(theirs, "vgg16", lambda weights: trunks["vgg"])
    torch.testing.assert_close(ours, theirs.deep_image_structure_and_texture_similarity(*unit), rtol=1e-4, atol=0)
    arch = pytest.importorskip(
        "pyiqa.archs.dists_arch", reason="needs the non-commercial extra: pip install 'lafr[iqa]'"
    )
    monkeypatch.setattr("torchvision.models.vgg16", lambda **_: trunks["vgg"])
    network = arch.DISTS(pretrained_model_path=str(locate("dists_comparison"))).eval()
    torch.testing.assert_close(ours, network(*unit).flatten(), rtol=1e-4, atol=0)


def test_without_the_trunks_weights_lpips_says_how_to_get_them_and_asks_no_network():
    for trunk in ["vgg", "alex"]:
        with pytest.raises(InputError, match=r"download https://download.pytorch.org/models/\S+ into .*LAFR_"):
            LPIPS(trunk)


def test_an_unknown_trunk_is_named_with_the_known_ones():
    with pytest.raises(InputError, match=r"vgg, alex.*'squeeze'"):
        LPIPS("squeeze")


def test_building_lpips_leaves_the_random_state_where_it_was(trunks):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    LPIPS("alex", trunks["alex"].state_dict())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_lpips_names_what_it_looks_through_and_its_file_of_the_comparison(ours):
    metric = ours["alex"]
    assert metric.origins == {"lpips_alex", "imagenet_alexnet"}  # a loss by the same trunk marks the score
    assert [file for file, _ in metric.weights] == ["alex.pth"]


def test_a_batch_is_looked_at_in_parts_of_few_pixels_and_scored_the_same(ours, trunks, faces, monkeypatch):
    image, hq = faces
    metrics = [ShiftTolerantLPIPS("alex"), ours["alex"], DISTS(networks.DISTS(trunks["vgg"].state_dict()))]
    whole = [metric(image, hq) for metric in metrics]
    monkeypatch.setattr(perceptual, "PIXELS", 1)
    sizes = []
    for metric, expected in zip(metrics, whole, strict=True):
        for layer in metric.network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        metric._truth = perceptual.TruthCache()
        torch.testing.assert_close(metric(image, hq), expected, rtol=1e-4, atol=1e-6)
    assert len(image) > 1 and set(sizes) == {1}
