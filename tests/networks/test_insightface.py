"""insightface's IResNet: equal to onnxruntime and to a description of ArcFace-torch's network, with a gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_recognisers import arcface_crop, assert_same, batch, random_weights
from torch import nn

from lafr.data.packaged import aligned
from lafr.errors import InputError
from lafr.images import from_pil
from lafr.losses.identity import IdentityCosine
from lafr.losses.multilevel import Restoration
from lafr.networks import NETWORKS, load
from lafr.networks.held_out import InsightFace
from lafr.networks.insightface import UNITS, ArcFaceTorch, IResNet

# packs were written by that exporter
pytestmark = pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export")

SMALL = (1, 2, 1, 1)  # units; the depth does not change what a layer is


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(aligned("astronaut"))


@pytest.fixture(scope="module")
def image(photo):
    return from_pil(aligned("astronaut"))[None]


@pytest.fixture(scope="module")
def network() -> IResNet:
    return random_weights(IResNet(SMALL, origin="own"))


class Pixels(nn.Module):
    """What a pack's graph holds: the network from the 112 px crop on."""

    def __init__(self, network: IResNet):
        super().__init__()
        self.network = network

    def forward(self, pixels):
        return self.network.embed(pixels)


@pytest.fixture(scope="module")
def pack(network, tmp_path_factory):
    """The network as the exporter of the packs writes it: names of numbers, batch normalisation merged."""
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"needs {name}")
    path = tmp_path_factory.mktemp("pack") / "w600k_r50.onnx"
    export = dict(input_names=["input.1"], opset_version=13, dynamo=False)
    torch.onnx.export(Pixels(network), torch.zeros(1, 3, 112, 112), str(path), **export)
    return path


def described(x: torch.Tensor, state: dict[str, torch.Tensor], units: tuple[int, ...]) -> torch.Tensor:
    """ArcFace-torch's IResNet as functions of the names in its state dict."""

    def norm(x, key):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{key}.{name}"] for name in names))

    x = F.prelu(norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1"), state["prelu.weight"])
    for stage, count in enumerate(units, 1):
        for unit in range(count):
            key, stride = f"layer{stage}.{unit}", 1 if unit else 2
            y = F.conv2d(norm(x, f"{key}.bn1"), state[f"{key}.conv1.weight"], padding=1)
            y = F.prelu(norm(y, f"{key}.bn2"), state[f"{key}.prelu.weight"])
            y = norm(F.conv2d(y, state[f"{key}.conv2.weight"], stride=stride, padding=1), f"{key}.bn3")
            if stride == 2:
                x = norm(F.conv2d(x, state[f"{key}.downsample.0.weight"], stride=2), f"{key}.downsample.1")
            x = x + y
    x = F.linear(norm(x, "bn2").flatten(1), state["fc.weight"], state["fc.bias"])
    return norm(x, "features")


def test_backbone_pth_gives_what_its_description_does_on_rgb_by_127_5(network, photo, image):
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    loaded = IResNet.from_state(state)
    crop = (arcface_crop(photo) - 127.5) / 127.5
    with torch.no_grad():
        assert_same(loaded(image), described(batch(crop), network.state_dict(), SMALL))
        loaded.bgr = True
        assert_same(loaded(image), described(batch(crop[..., ::-1]), network.state_dict(), SMALL))


def test_a_packs_graph_gives_what_onnxruntime_does_and_its_values_are_found_without_names(pack, photo, image):
    import onnx

    graph = onnx.load(pack).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("BatchNormalization") == sum(SMALL) + 2  # the others are merged, as in the packs
    ours, theirs = IResNet.from_onnx(pack), InsightFace(pack)
    with torch.no_grad():
        assert_same(ours(image), theirs(image))
        crop = batch((arcface_crop(photo) - 127.5) / 127.5)
        assert_same(F.normalize(ours.embed(crop)), theirs.session.run(None, {"input.1": crop.numpy()})[0])


def test_a_graph_with_every_normalisation_of_its_own_gives_the_same(network, image, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    path = tmp_path / "unmerged.onnx"
    mode = torch.onnx.TrainingMode.PRESERVE  # keeps batch normalisation apart
    export = dict(input_names=["input.1"], opset_version=13, dynamo=False, training=mode, do_constant_folding=False)
    torch.onnx.export(Pixels(network), torch.zeros(1, 3, 112, 112), str(path), **export)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("BatchNormalization") == 3 * sum(SMALL) + 3 + 4
    with torch.no_grad():
        assert_same(IResNet.from_onnx(path)(image), network(image))


def graph_whose_weights_are_computed():
    import onnx

    nodes = [onnx.helper.make_node("Conv", ["x", "w"], ["y"])]
    ends = [onnx.helper.make_tensor_value_info(name, 1, None) for name in "xwy"]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:2], ends[2:]))


def test_another_networks_graph_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    export = dict(input_names=["input.1"], opset_version=13, dynamo=False)
    torch.onnx.export(nn.Conv2d(3, 64, 3, 1, 1), torch.zeros(1, 3, 112, 112), str(tmp_path / "a.onnx"), **export)
    onnx.save(graph_whose_weights_are_computed(), tmp_path / "b.onnx")
    for name in ("a", "b"):
        with pytest.raises(InputError, match=rf"{name}\.onnx"):
            IResNet.from_onnx(tmp_path / f"{name}.onnx")


def test_sizes_are_those_of_r50_and_r100():
    with torch.device("meta"):
        sizes = {depth: sum(p.numel() for p in IResNet(units).parameters()) for depth, units in UNITS.items()}
    # 43.6 M and 65.2 M, as ArcFace-torch's get_model
    assert sizes == {50: 43_590_848, 100: 65_156_160}


def test_the_term_is_zero_on_the_same_face_and_its_gradient_is_finite(network, image):
    term, latents = IdentityCosine(network), torch.zeros(1, 4, 8, 8)
    hq = image[..., 128:384, 128:384]
    restored = hq.flip(2).requires_grad_()
    assert abs(float(term(Restoration(hq, hq.clone(), latents, latents)))) < 1e-6
    loss = term(Restoration(restored, hq, latents, latents))
    loss.backward()
    assert loss > 1e-4 and restored.grad.isfinite().all() and restored.grad.abs().sum() > 0


def test_weights_in_the_users_folder_are_loaded_by_name(network, monkeypatch, tmp_path):
    import hashlib

    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    digest = hashlib.sha256((tmp_path / "backbone.pth").read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  backbone.pth\n", encoding="utf-8")
    monkeypatch.setenv("LAFR_WEIGHTS", str(tmp_path))
    found = load.__wrapped__("arcface_torch")
    assert isinstance(found, ArcFaceTorch) and found.origins == {"arcface_torch"}
    assert torch.equal(found.fc.weight, network.fc.weight)
    assert {"insightface_r50", "insightface_r100", "arcface_torch"} <= NETWORKS.keys()
