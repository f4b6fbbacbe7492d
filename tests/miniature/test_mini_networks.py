"""The miniature's recogniser, landmarker and parser: what they learn from, and that the shipped ones do their work."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from skimage.transform import SimilarityTransform
from test_labelled import face_points
from torch import nn

from lafr import networks
from lafr.alignment import ARCFACE_112, FFHQ_512
from lafr.data.degradation.first_order import Degradation
from lafr.data.packaged import PackagedFaces, aligned
from lafr.errors import InputError
from lafr.miniature.network_objectives import LandmarkerObjective, ParserObjective, RecogniserObjective, gaussians
from lafr.networks.landmarkers import centre_of_mass
from lafr.networks.mini import REGIONS, MiniNetworks
from lafr.networks.mobilefacenet import MobileFaceNet, load_onnx
from lafr.weights import MINI_VARIABLE, locate, mini_folder

CLEAR = Degradation(blur_sigma=(3, 3), down=(4, 4), noise_sigma=(3, 3), jpeg_quality=(90, 91))
NAMES = ("recogniser", "landmarker", "parser")


@pytest.fixture(scope="module")
def faces():
    return torch.stack([PackagedFaces(128)[i] for i in range(7)])


@pytest.fixture(scope="module")
def untrained():
    return MiniNetworks(seed=0)


def test_the_shipped_networks_are_at_most_6_mb():
    assert sum(path.stat().st_size for path in (mini_folder() / "networks").iterdir()) < 6e6


def test_a_name_gives_one_frozen_network_and_an_unknown_name_is_refused():
    one = networks.load("mini_parser")
    assert one is networks.load("mini_parser") and not one.training
    assert not any(p.requires_grad for p in one.parameters())
    for known in (networks.load, networks.hollow):
        with pytest.raises(InputError, match=r"mini_recogniser.*'nobody'"):
            known("nobody")


def test_a_setting_or_weights_that_a_network_has_not_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="sface computes no gradient"):  # as a part of a loss that is counted
        networks.hollow("sface")
    with pytest.raises(InputError, match=r"mini_parser .*'folder'"):
        networks.load("mini_parser", folder="x")
    others = (mini_folder() / "networks" / "landmarker.safetensors").read_bytes()
    (tmp_path / "networks").mkdir()
    monkeypatch.setenv(MINI_VARIABLE, str(tmp_path))
    for content in (None, b"torn", others):
        if content is not None:
            (tmp_path / "networks" / "parser.safetensors").write_bytes(content)
        with pytest.raises(InputError, match="network mini_parser cannot be built"):
            networks.load.__wrapped__("mini_parser")


def test_degraded_copies_are_nearest_to_their_own_face(faces):
    recogniser = networks.load("mini_recogniser")
    copies = torch.stack([CLEAR(face, np.random.default_rng(i)) for i, face in enumerate(faces)])
    near = recogniser(copies.flip(-1)) @ recogniser(faces).T  # mirrored, too
    assert near.argmax(1).tolist() == list(range(7))


def test_points_and_regions_agree_with_the_stored_eyes_and_mouth(faces):
    points = networks.load("mini_landmarker")(faces).points
    found = np.stack([points[:, 36:42].mean(1), points[:, 42:48].mean(1), points[:, 48], points[:, 54]], 1)
    frontal = [0, 1, 3, 6]  # of the others one is near profile
    assert np.linalg.norm(found - FFHQ_512[[0, 1, 3, 4]], axis=-1)[frontal].mean() < 0.06 * 126
    labels = networks.load("mini_parser")(faces).argmax(1)
    for i in frontal:
        x, y = np.round(FFHQ_512[:2].mean(0) / 4).astype(int)
        assert labels[i, y, x] in (REGIONS.index("skin"), REGIONS.index("nose"))
        for ex, ey in np.round(FFHQ_512[:2] / 4).astype(int):
            assert (labels[i, ey - 3 : ey + 4, ex - 5 : ex + 6] == REGIONS.index("eyes")).float().mean() > 0.2


@pytest.mark.parametrize("name", NAMES)
def test_a_network_takes_any_size_and_batch_and_passes_a_gradient_to_the_image(untrained, name):
    network = getattr(untrained, name)
    image = (torch.rand(3, 3, 160, 160, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    out = network(image)
    out = out.points if name == "landmarker" else out
    assert out.shape == {"recogniser": (3, 512), "landmarker": (3, 68, 2), "parser": (3, 7, 128, 128)}[name]
    out.square().mean().backward() if name != "recogniser" else out[:, 0].sum().backward()
    assert image.grad.isfinite().all() and (image.grad.flatten(1).abs().sum(1) > 0).all()
    alone = network(image[:1])
    assert torch.allclose(alone.points if name == "landmarker" else alone, out[:1], rtol=1e-4, atol=1e-4)


def test_the_read_out_of_a_gaussian_is_its_point():
    points = torch.from_numpy(face_points()).float()[None]
    assert torch.allclose(centre_of_mass(gaussians(points, 64)), points, atol=0.1)


@torch.no_grad()
def test_distillation_is_over_when_the_student_equals_the_teacher(faces):
    teacher, student = networks.load("mini_recogniser"), MiniNetworks()
    student.recogniser.load_state_dict(teacher.state_dict())
    same = RecogniserObjective(student, teacher, {"cosine": 1.0, "relation": 1.0})
    batch = {"hq": faces, "lq": faces}
    assert all(abs(float(value)) < 1e-6 for value in same(batch).values())
    assert all(float(value) > 1e-4 for value in same(batch | {"lq": faces.flip(0)}).values())
    assert same.trained_state().keys() == {f"network.{name}" for name in teacher.state_dict()}
    # cosines are not rounded to bfloat16, of which 0.6 is 0.6016
    angles = torch.tensor([0.0, 0.9273])
    pair = torch.stack([angles.cos(), angles.sin()], 1)
    same.network, same.teacher = Says(pair), Says(torch.eye(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert float(same(batch)["relation"]) == pytest.approx(2 * 0.6**2 / 4, rel=1e-4)


def test_what_is_saved_lies_between_the_teacher_and_the_trained_recogniser(untrained, tmp_path):
    mixed = MiniNetworks.from_teacher(untrained.recogniser, trained_share=0.25)
    with torch.no_grad():
        for parameter in mixed.recogniser.parameters():
            parameter.add_(4.0)
    mixed.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "recogniser.safetensors")
    assert all(torch.allclose(saved[k], v + 1, atol=1e-5) for k, v in untrained.recogniser.state_dict().items())


def test_the_landmarkers_terms_vanish_at_the_truth_and_measure_pixels(untrained):
    objective = LandmarkerObjective(untrained, {"heatmap": 1.0})
    points = torch.from_numpy(face_points()).float()[None]
    exact = gaussians(points, 64).clamp_min(1e-12).log()
    objective.network.logits = lambda image: exact
    at = objective({"lq": None, "points": points})
    assert float(at["heatmap"]) < 1e-3 and float(at["distance"]) < 0.1
    off = objective({"lq": None, "points": points + torch.tensor([6.0, 8.0])})
    assert float(off["distance"]) == pytest.approx(10, abs=0.1)
    # two Gaussians of equal width: divergence = squared distance / 2 sigma squared, in heatmap pixels
    assert float(off["heatmap"]) == pytest.approx((10 / 8) ** 2 / (2 * 1.5**2), rel=0.02)
    del objective.network.logits


class Says(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, image):
        return self.answer


def test_the_parsers_terms_vanish_for_sure_and_right_logits(untrained):
    objective = ParserObjective(untrained, {"dice": 1.0})
    regions = torch.randint(0, 7, (2, 128, 128), generator=torch.Generator().manual_seed(0))
    objective.network = Says(50 * F.one_hot(regions, 7).movedim(-1, 1).float())
    assert all(abs(float(v)) < 1e-5 for v in objective({"lq": None, "regions": regions}).values())
    wrong = objective({"lq": None, "regions": (regions + 1) % 7})
    assert float(wrong["dice"]) == pytest.approx(1, abs=1e-4) and float(wrong["cross_entropy"]) > 40


def written_as_onnx(network, path):
    """Write a MobileFaceNet's layers as an ONNX graph, node by node."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    nodes, stored = [], []

    def add(kind, *inputs, **attributes):
        nodes.append(onnx.helper.make_node(kind, list(inputs), [f"x{len(nodes)}"], **attributes))
        return f"x{len(nodes) - 1}"

    def weight(value):
        stored.append(onnx.numpy_helper.from_array(value.detach().numpy(), f"w{len(stored)}"))
        return f"w{len(stored) - 1}"

    def layer(module, x):
        if isinstance(module, nn.Conv2d):
            sizes = {"kernel_shape": module.kernel_size, "strides": module.stride, "pads": module.padding * 2}
            return add("Conv", x, weight(module.weight), weight(module.bias), group=module.groups, **sizes)
        if isinstance(module, nn.PReLU):
            return add("PRelu", x, weight(module.weight[:, None, None]))
        y = x
        for inner in module:
            y = layer(inner, y)
        return add("Add", y, x) if module.skip else y

    x = "input"
    for module in network.layers:
        x = layer(module, x)
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [tensor("input", 1, ["b", 3, 112, 112])], [tensor(x, 1, None)], initializer=stored
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


def test_weights_read_from_onnx_answer_as_onnxruntime_does_and_other_shapes_are_refused(untrained, tmp_path):
    written_as_onnx(untrained.recogniser, tmp_path / "random.onnx")
    other = pytest.importorskip("onnx").load(tmp_path / "random.onnx")
    other.graph.initializer[0].dims[:] = [64, 27, 1, 1]  # as many values
    pytest.importorskip("onnx").save(other, tmp_path / "other.onnx")
    with pytest.raises(InputError, match=r"other\.onnx"):
        load_onnx(MobileFaceNet(), tmp_path / "other.onnx")
    read = MobileFaceNet()
    load_onnx(read, tmp_path / "random.onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "random.onnx"), providers=["CPUExecutionProvider"])
    pixels = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = torch.from_numpy(session.run(None, {"input": pixels.numpy()})[0])
    with torch.no_grad():
        found = read.layers(pixels)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_the_teacher_is_onnxruntimes_answer_to_the_published_input():
    try:
        teacher = networks.load("faceplugin_feature")
    except InputError as error:
        pytest.skip(str(error))
    photo = np.asarray(aligned("astronaut"))
    matrix = SimilarityTransform.from_estimate(FFHQ_512, ARCFACE_112).params[:2]
    sigma = (1 / np.sqrt(abs(np.linalg.det(matrix[:, :2]))) - 1) / 2
    smooth = cv2.GaussianBlur(photo.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    crop = cv2.warpAffine(smooth, matrix, (112, 112), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    fed = ((crop - 127) / 128).transpose(2, 0, 1)[None].astype(np.float32)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(locate("faceplugin_feature")), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"input": fed})[0][0]
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    assert float(teacher(image)[0] @ torch.from_numpy(expected / np.linalg.norm(expected))) > 0.999
