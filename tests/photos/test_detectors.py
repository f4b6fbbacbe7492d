"""Every detector says where faces are in the photo's own pixels, whatever size it looks at."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lafr.data.packaged import LANDMARKS, aligned
from lafr.errors import InputError
from lafr.images import read_pil
from lafr.photos.detectors import Detection, Dlib, YuNet, detector_named, merged
from lafr.weights import EXTERNAL, locate


@pytest.fixture(scope="module")
def group():
    """The six faces of insightface's sample, and their points as stored with the project."""
    return read_pil(locate("insightface_t1")), [np.array(p) for name, p in LANDMARKS.items() if name != "astronaut"]


def off(found: list[Detection], points: np.ndarray) -> float:
    """Return how far the nearest detection's points lie from these, in sides of the face's crop."""
    eyes = np.linalg.norm(points[:2].mean(0) - points[3:].mean(0))
    return min((np.linalg.norm(one.points - points, axis=1).mean() for one in found), default=np.inf) / (3.9 * eyes)


@pytest.mark.parametrize(("detector", "least"), [(YuNet, 6), (Dlib, 5)])
def test_the_faces_of_a_group_are_found_once_each_from_left_to_right(group, detector, least):
    photo, faces = group
    found = detector()(photo)
    assert len(found) in (least, 6)
    assert sum(off(found, points) < 0.06 for points in faces) >= least
    assert [one.box[0] for one in found] == sorted(one.box[0] for one in found)
    for one in found:
        x0, y0, x1, y1 = one.box
        assert x0 < one.points[:, 0].mean() < x1 and y0 < one.points[:, 1].mean() < y1


def test_yunet_finds_faces_of_40_and_of_600_pixels_once_in_a_photo_of_24_megapixels():
    scene = Image.new("RGB", (6000, 4000), (120, 130, 110))
    places = [("astronaut", 1100, 40, 60), ("t1_0", 72, 1300, 100), ("t1_2", 72, 5600, 3700), ("t1_5", 260, 1700, 1700)]
    for name, side, x, y in places:
        scene.paste(aligned(name).resize((side, side), Image.Resampling.LANCZOS), (x, y))
    found = YuNet()(scene)
    assert len(found) == 4
    for one, (_, side, x, y) in zip(
        sorted(found, key=lambda d: -d.size), sorted(places, key=lambda p: -p[1]), strict=True
    ):
        centre = np.array(one.box).reshape(2, 2).mean(0)
        assert np.linalg.norm(centre - (x + side / 2, y + 0.55 * side)) < 0.1 * side
        assert 0.4 * side < one.size < 0.9 * side


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (640, 2)])
def test_a_picture_of_any_shape_can_be_looked_at(size):
    assert YuNet()(Image.new("RGB", size, "gray")) == []


def test_a_missing_model_is_said_when_it_is_first_needed(monkeypatch, tmp_path):
    monkeypatch.setattr("lafr.weights._candidates", lambda file: [])
    detector = YuNet()
    with pytest.raises(InputError, match=r"yunet is missing: pip install .*lafr"):
        detector(Image.new("RGB", (64, 64)))


def test_of_boxes_with_too_large_an_iou_the_best_is_kept():
    box = Detection((0, 0, 10, 10), np.zeros((5, 2)), 0.9)
    near = Detection((1, 1, 11, 11), np.zeros((5, 2)), 0.8)  # IoU 81 / 119
    far = Detection((8, 0, 18, 10), np.zeros((5, 2)), 0.95)
    touching = Detection((18, 0, 28, 10), np.zeros((5, 2)), 0.2)
    assert merged([near, touching, far, box]) == [box, far, touching]
    assert merged([near, box], overlap=0.69) == [box, near]
    assert merged([]) == []


def small_retinaface(folder: Path) -> None:
    """Write random weights of facexlib's architecture, with the published file's name and its `module.` prefixes."""
    from facexlib.detection.retinaface import RetinaFace

    torch.manual_seed(0)
    network = RetinaFace(network_name="resnet50", device="cpu").train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(2, 3, 160, 160) * 60)  # statistics with which scores differ
    for head in network.ClassHead:
        head.conv1x1.weight.data.normal_(0, 0.002)
    state = network.state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()}, folder / "detection_Resnet50_Final.pth")


def known(monkeypatch, folder: Path, name: str) -> None:
    from dataclasses import replace

    from lafr.weights import sha256

    monkeypatch.setenv("LAFR_WEIGHTS", str(folder))
    monkeypatch.setitem(EXTERNAL, name, replace(EXTERNAL[name], sha256=sha256(folder / EXTERNAL[name].name)))


@pytest.mark.slow  # a ResNet-50 on a thread: 12 s
def test_retinaface_reads_the_published_layout_and_agrees_with_facexlibs_own_call(tmp_path, monkeypatch, group):
    import lafr.photos.downloaded_detectors as downloaded

    small_retinaface(tmp_path)
    known(monkeypatch, tmp_path, "retinaface_resnet50")
    detector = downloaded.RetinaFace(side=320)
    photo = group[0]
    small = photo.resize((320, round(320 * photo.height / photo.width)), Image.Resampling.BILINEAR)
    with torch.no_grad():
        pixels = detector.network.transform(small, True)[0] - detector.network.mean_tensor
        detector.threshold = float(detector.network(pixels)[1][0, :, 1].sort().values[-10])
    rows = detector.network.detect_faces(small, detector.threshold)
    found = detector(photo)
    assert len(rows) >= 1 and len(found) >= 1
    scale = np.array(photo.size) / small.size
    for one in found:
        row = min(rows, key=lambda r: abs(r[4] - one.score))
        np.testing.assert_allclose(one.points, (row[5:].reshape(5, 2) + 0.5) * scale - 0.5, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(one.box[2:], (row[2:4] + 0.5) * scale - 0.5, rtol=1e-5, atol=1e-3)


def small_scrfd(folder: Path) -> None:
    """Write a network of SCRFD's nine outputs that sees one face: where its input is brightest in red at stride 32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, outputs, constants = [], [], {}
    for stride in (8, 16, 32):
        nodes.append(
            helper.make_node(
                "AveragePool", ["input.1"], [f"pool{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
    # score: red minus blue at both anchors; box: 16 px each way; points: a cross of 4 px around the anchor
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[:, 0], weight[:, 2] = 1, -1
    constants["score_w"] = weight
    for width, name in ((1, "score"), (4, "bbox"), (10, "kps")):
        if width > 1:
            constants[f"{name}_w"] = np.zeros((2 * width, 3, 1, 1), np.float32)
            bias = np.tile(np.full(4, 1.0) if width == 4 else np.array([-4, -4, 4, -4, 0, 0, -4, 4, 4, 4]) / 8, 2)
            constants[f"{name}_b"] = bias.astype(np.float32)
        constants[f"{name}_shape"] = np.array([-1, width], np.int64)
        for stride in (8, 16, 32):
            parts = [f"pool{stride}", f"{name}_w", *([f"{name}_b"] if width > 1 else [])]
            out = f"{name}_{stride}"
            nodes.append(helper.make_node("Conv", parts, [f"{out}_map"]))
            nodes.append(helper.make_node("Transpose", [f"{out}_map"], [f"{out}_last"], perm=[0, 2, 3, 1]))
            nodes.append(helper.make_node("Reshape", [f"{out}_last", f"{name}_shape"], [out]))
            outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, [None, width]))
    graph = helper.make_graph(
        nodes,
        "scrfd",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, "?", "?"])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, folder / "det_10g.onnx")


def test_scrfd_reads_rgb_and_places_what_the_network_sees_in_the_photos_own_pixels(tmp_path, monkeypatch):
    import lafr.photos.downloaded_detectors as downloaded

    small_scrfd(tmp_path)
    known(monkeypatch, tmp_path, "scrfd_10g")
    photo = Image.new("RGB", (1280, 960), "black")
    photo.paste((255, 0, 0), (640, 320, 656, 336))  # one cell of stride 8 in the 640 px view
    (one,) = downloaded.SCRFD(threshold=0.9, sides=(640,))(photo)
    assert one.score == pytest.approx(255 / 128, abs=0.01)
    np.testing.assert_allclose(np.array(one.box).reshape(2, 2).mean(0), (640, 320), atol=1)
    np.testing.assert_allclose(one.points - (640, 320), [(-8, -8), (8, -8), (0, 0), (-8, 8), (8, 8)], atol=1)
    photo.paste((0, 0, 255), (0, 0, 1280, 960))
    assert downloaded.SCRFD(threshold=0.9, sides=(640,))(photo) == []


@pytest.mark.parametrize("name", ["retinaface", "scrfd"])
def test_missing_weights_are_named_with_where_to_get_them(name, monkeypatch, tmp_path):
    monkeypatch.setenv("LAFR_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"is missing: download https.*LAFR_WEIGHTS"):
        detector_named(name)


def test_a_pickle_that_is_not_the_known_one_is_not_opened(monkeypatch, tmp_path):
    monkeypatch.setenv("LAFR_WEIGHTS", str(tmp_path))
    (tmp_path / "detection_Resnet50_Final.pth").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(InputError, match="its sha256 differs"):
        detector_named("retinaface")


def test_a_detector_is_chosen_by_its_name():
    named = {"yunet": YuNet, "dlib": Dlib}
    assert all(isinstance(detector_named(name).detector, kind) for name, kind in named.items())
    with pytest.raises(InputError, match=r"detector .*yunet, dlib, retinaface, scrfd.*haar"):
        detector_named("haar")
