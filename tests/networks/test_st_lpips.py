"""ST-LPIPS, written from the paper: the numbers of the package it replaces, and gradients that stay finite."""

import sys
import types

import pytest
import torch

from lafr.errors import InputError
from lafr.networks.perceptual import LAYERS, STLPIPS


@pytest.fixture(scope="module", params=sorted(LAYERS))
def trunk(request):
    return request.param


@pytest.fixture(scope="module")
def network(trunk):
    return STLPIPS(trunk)


def images(count: int, side: int) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def published(trunk, monkeypatch):
    """The package's own network; its import asks for two modules that its forward pass does not use."""
    for name in ("IPython", "torchsummary"):
        stub = types.ModuleType(name)
        stub.embed = stub.summary = None
        monkeypatch.setitem(sys.modules, name, stub)
    before = set(sys.modules)
    stlpips = pytest.importorskip("stlpips_pytorch.stlpips", reason="needs the stlpips-pytorch wheel")
    yield stlpips.LPIPS(net=trunk, variant="shift_tolerant", verbose=False)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_it_equals_the_package(network, published):
    for side in [64, 101]:
        a, b = images(4, side).chunk(2)
        b = torch.stack([b[0], 0.9 * a[1] + 0.1 * b[1]])  # a far pair and a near one
        with torch.no_grad():
            theirs = published(a, b).flatten()
            ours = network(a, b)
        assert ours.shape == (2,)
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=0)


def test_equal_images_are_at_distance_zero_and_others_are_not(network):
    a, b = images(2, 64).chunk(2)
    assert float(network(a, a)) == 0
    assert float(network(a, b)) > 0.01


def test_the_distance_of_a_pair_does_not_depend_on_its_batch(network):
    a, b = images(4, 64).chunk(2)
    assert torch.allclose(network(a, b), torch.cat([network(a[:1], b[:1]), network(a[1:], b[1:])]), rtol=1e-5)


def test_the_gradient_is_finite_where_features_vanish_or_agree(network):
    for case in ["black", "equal", "flat gray"]:
        flat = {"black": -1.0, "flat gray": 0.0}
        b = images(1, 64)
        a = (torch.full_like(b, flat[case]) if case in flat else b.clone()).requires_grad_()
        network(a, b).sum().backward()
        assert a.grad.isfinite().all()


def test_the_gradient_flows_to_the_first_image_alone_and_to_no_weight(network):
    a, b = (image.clone().requires_grad_() for image in images(2, 64).chunk(2))
    network(a, b).sum().backward()
    assert a.grad.abs().sum() > 0
    assert b.grad is None
    assert not list(network.parameters())


def test_an_unknown_trunk_is_refused():
    with pytest.raises(InputError, match="trunk must be one of vgg, alex"):
        STLPIPS("vgg16")


def test_the_weights_stay_out_of_checkpoints(network):
    assert network.state_dict() == {}
