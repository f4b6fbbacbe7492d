"""Recognisers: each equals its reference from the 8-bit photograph on, preprocessing included; most weights random."""

import importlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import nn

import lafr.networks.held_out as held_out
from lafr.alignment import ARCFACE_112, FFHQ_512
from lafr.data.packaged import aligned
from lafr.errors import InputError
from lafr.images import from_pil
from lafr.losses.identity import IdentityCosine
from lafr.losses.multilevel import Restoration
from lafr.networks.dlib_models import DlibResNet, aligned_box
from lafr.networks.held_out import AdaFace, InsightFace, SFace
from lafr.networks.recognisers import ArcFaceIRSE50, ArcFaceResNet18, CLIPImage
from lafr.weights import locate


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """An aligned photograph, `[512, 512, 3]`, RGB, 8-bit."""
    return np.asarray(aligned("astronaut"))


@pytest.fixture(scope="module")
def image(photo):
    return from_pil(Image.fromarray(photo))[None]


def arcface_crop(photo: np.ndarray) -> np.ndarray:
    """The antialiased 112 px crop `[112, 112, 3]` in 0..255, float64, by scikit-image and scipy."""
    transform = pytest.importorskip("skimage.transform", reason="needs scikit-image")
    matrix = transform.estimate_transform("similarity", FFHQ_512, ARCFACE_112)
    sigma = (1 / matrix.scale - 1) / 2
    blurred = ndimage.gaussian_filter(
        photo.astype(float), (sigma, sigma, 0), mode="nearest", radius=(int(np.ceil(3 * sigma)),) * 2 + (0,)
    )
    return transform.warp(blurred, matrix.inverse, output_shape=(112, 112), order=1, mode="edge", preserve_range=True)


def batch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).float().permute(2, 0, 1)[None]


def assert_same(ours: torch.Tensor, theirs, unit: bool = True) -> None:
    """Within 1e-5 of the embedding's length."""
    theirs = F.normalize(torch.as_tensor(theirs).float(), dim=1) if unit else torch.as_tensor(theirs).float()
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    assert ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max() < 1e-5


def random_weights(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that keep the signal's size, and batch statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * fan**-0.5
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.8, 1.2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.8, 1.2, generator=generator)
                module.bias.data.normal_(0, 0.1, generator=generator)
        if isinstance(module, nn.PReLU):
            module.weight.data.uniform_(0.1, 0.4, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def facexlib_backbone():
    """facexlib's own network."""
    module = pytest.importorskip("facexlib.recognition.arcface_arch", reason="needs facexlib (pip install --no-deps)")
    return random_weights(module.Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"))


@pytest.fixture(scope="module")
def irse50(facexlib_backbone):
    return ArcFaceIRSE50(facexlib_backbone.state_dict())


@pytest.fixture(scope="module")
def resnet18():
    return random_weights(ArcFaceResNet18())


@pytest.fixture(scope="module")
def clip():
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, projection_dim=16
    )
    torch.manual_seed(0)
    return CLIPImage(transformers.CLIPVisionModelWithProjection(config))


@pytest.fixture(scope="module")
def sface():
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"needs {name}")
    try:
        return SFace.from_pretrained()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def dlib_resnet():
    pytest.importorskip("dlib", reason="needs dlib-bin")
    try:
        return DlibResNet.from_pretrained()
    except InputError as error:
        pytest.skip(str(error))


def test_irse50_equals_facexlib_on_the_bgr_crop(irse50, facexlib_backbone, photo, image):
    crop = (arcface_crop(photo) - 127.5) / 127.5
    with torch.no_grad():
        ours, theirs, rgb = irse50(image), facexlib_backbone(batch(crop[..., ::-1])), facexlib_backbone(batch(crop))
    assert_same(ours, theirs)
    assert (theirs - rgb).norm() > 1e-3  # the order of colours is seen at all


def described_resnet18(x: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """ronghuaiyang's resnet_face18(use_se=False) as functions of the names in its state dict."""

    def norm(x, key):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"module.{key}.{name}"] for name in names))

    def convolve(x, key, stride=1, padding=1):
        return F.conv2d(x, state[f"module.{key}.weight"], stride=stride, padding=padding)

    x = F.max_pool2d(F.prelu(norm(convolve(x, "conv1"), "bn1"), state["module.prelu.weight"]), 2, 2)
    for stage in range(1, 5):
        for unit in range(2):
            key, stride = f"layer{stage}.{unit}", 2 if stage > 1 and unit == 0 else 1
            slope = state[f"module.{key}.prelu.weight"]
            y = F.prelu(norm(convolve(norm(x, f"{key}.bn0"), f"{key}.conv1"), f"{key}.bn1"), slope)
            y = norm(convolve(y, f"{key}.conv2", stride), f"{key}.bn2")
            if stride == 2:
                x = norm(convolve(x, f"{key}.downsample.0", 2, padding=0), f"{key}.downsample.1")
            x = F.prelu(x + y, slope)
    x = norm(x, "bn4").flatten(1)
    return norm(F.linear(x, state["module.fc5.weight"], state["module.fc5.bias"]), "bn5")


def test_resnet18_equals_its_description_on_gfpgans_gray(resnet18, photo, image):
    gray = ((photo - 127.5) / 127.5) @ [0.2989, 0.5870, 0.1140]
    small = (gray[1::4, 1::4] + gray[1::4, 2::4] + gray[2::4, 1::4] + gray[2::4, 2::4]) / 4  # bilinear, aliased
    state = {f"module.{key}": value for key, value in resnet18.state_dict().items()}
    loaded = ArcFaceResNet18(state)
    with torch.no_grad():
        theirs = described_resnet18(torch.from_numpy(small)[None, None].float(), state)
        assert_same(loaded(image), theirs)
    assert len(state) == 181  # as many as the published layout has


def test_clip_equals_transformers_on_pillows_bicubic(clip, photo, image):
    transformers = pytest.importorskip("transformers")
    planes = [Image.fromarray(photo[..., c].astype(np.float32)) for c in range(3)]
    small = np.stack([np.asarray(plane.resize((224, 224), Image.Resampling.BICUBIC)) for plane in planes], -1) / 255
    pixels = (small - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    theirs = transformers.CLIPImageProcessorPil()(Image.fromarray(photo), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert_same(clip(image), clip.vision(pixel_values=batch(pixels)).image_embeds)
    assert (clip.prepare(image) - theirs).abs().mean() < 0.01  # it rounds to 8 bits


def test_sface_equals_onnxruntime_on_the_untouched_file(sface, photo, image):
    """It asks for the float weights that its 8-bit ones replaced, and uses none of them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(str(locate("sface")), options)
    left_over = [given for given in session.get_inputs() if given.name != "data"]
    feeds = {given.name: np.zeros(given.shape, np.float32) for given in left_over}
    theirs = session.run(None, feeds | {"data": batch(arcface_crop(photo)).numpy()})[0]
    assert len(left_over) == 29
    assert_same(sface(image), theirs)


def test_sface_reads_colours_in_the_order_in_which_opencv_feeds_it(sface, photo, tmp_path):
    (tmp_path / "sface.onnx").write_bytes(held_out._only_input(locate("sface"), "data"))
    try:
        theirs = cv2.FaceRecognizerSF_create(str(tmp_path / "sface.onnx"), "")
    except (AttributeError, cv2.error) as error:
        pytest.skip(f"OpenCV cannot run SFace: {error}")
    crop = arcface_crop(photo).round().astype(np.uint8)
    feature = theirs.feature(np.ascontiguousarray(crop[..., ::-1]))  # OpenCV is given BGR
    assert_same(F.normalize(sface.embed(batch(crop)), dim=1), feature)


def test_insightface_reads_rgb_by_127_5(photo, image, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 3, 28, 28)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Conv", ["input.1", "weight"], ["maps"], strides=[28, 28]),
        onnx.helper.make_node("Flatten", ["maps"], ["683"]),
    ]
    made = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("input.1", [1, 3, 112, 112]), ("683", [1, 256]))]
    graph = onnx.helper.make_graph(nodes, "g", made[:1], made[1:], [onnx.numpy_helper.from_array(weight, "weight")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "pack.onnx")
    network = InsightFace(tmp_path / "pack.onnx", origin="pack")
    theirs = F.conv2d(batch((arcface_crop(photo) - 127.5) / 127.5), torch.from_numpy(weight), stride=28).flatten(1)
    assert_same(network(image), theirs)
    assert network.origins == {"pack"}


def described_adaface(x: torch.Tensor, state: dict[str, torch.Tensor], units: int) -> torch.Tensor:
    """AdaFace's IR network as functions of the names in its state dict."""

    def norm(x, key):
        return F.batch_norm(
            x,
            state[f"{key}.running_mean"],
            state[f"{key}.running_var"],
            state.get(f"{key}.weight"),
            state.get(f"{key}.bias"),
        )

    x = F.conv2d(x, state["input_layer.0.weight"], padding=1)
    x = F.prelu(norm(x, "input_layer.1"), state["input_layer.2.weight"])
    for index in range(4 * units):
        key, stride = f"body.{index}", 2 if index % units == 0 else 1
        skip = x[..., ::stride, ::stride]
        if f"{key}.shortcut_layer.0.weight" in state:
            skip = norm(F.conv2d(skip, state[f"{key}.shortcut_layer.0.weight"]), f"{key}.shortcut_layer.1")
        key = f"{key}.res_layer"
        y = norm(F.conv2d(norm(x, f"{key}.0"), state[f"{key}.1.weight"], padding=1), f"{key}.2")
        y = F.conv2d(F.prelu(y, state[f"{key}.3.weight"]), state[f"{key}.4.weight"], stride=stride, padding=1)
        x = norm(y, f"{key}.5") + skip
    x = norm(x, "output_layer.0").flatten(1)
    return norm(F.linear(x, state["output_layer.3.weight"], state["output_layer.3.bias"]), "output_layer.4")


def test_adaface_equals_its_description_on_the_bgr_crop(photo, image):
    state = random_weights(AdaFace(units=(2, 2, 2, 2))).state_dict()
    network = AdaFace(
        {f"model.{key}": value for key, value in state.items()} | {"head.kernel": torch.ones(1)}, (2,) * 4
    )
    crop = (arcface_crop(photo)[..., ::-1] / 255 - 0.5) / 0.5
    assert_same(network(image), described_adaface(batch(crop), state, 2))


def test_dlib_equals_its_own_chip_and_is_not_of_unit_length(dlib_resnet, photo, image):
    dlib = pytest.importorskip("dlib")
    points = dlib.shape_predictor(str(locate("dlib_5_points")))(photo, dlib.rectangle(120, 150, 390, 420))
    chip = dlib.get_face_chip(photo, points, size=150)
    theirs = dlib.face_recognition_model_v1(str(locate("dlib_resnet"))).compute_face_descriptor(chip)
    ours = dlib_resnet(image)
    assert_same(ours, torch.tensor(list(theirs))[None], unit=False)
    assert abs(float(ours.norm()) - 1) > 0.01


def test_dlibs_fixed_rectangle_finds_the_eyes(dlib_resnet):
    for side in [512, 128]:
        face = np.asarray(aligned("astronaut").resize((side, side), Image.Resampling.LANCZOS))
        box = aligned_box(side)
        found = np.array([(p.x, p.y) for p in dlib_resnet.predictor(face, box).parts()]) * 512 / side
        eyes = np.array([found[2:4].mean(0), found[0:2].mean(0)])  # corners of the eye on the left, on the right
        assert np.abs(eyes - FFHQ_512[:2]).max() < 20


@pytest.mark.parametrize("name", ["sface", "dlib_resnet"])
def test_a_blurred_or_small_copy_is_nearer_than_another_face(name, request, image):
    network = request.getfixturevalue(name)
    try:
        other = from_pil(aligned("t1_0"))[None]
    except InputError as error:
        pytest.skip(str(error))
    blurred = from_pil(Image.fromarray(cv2.GaussianBlur(np.asarray(aligned("astronaut")), (0, 0), 3)))[None]
    small = F.interpolate(image, (128, 128), mode="area")
    own, near, far = network(image), [network(blurred), network(small)], network(other)
    assert max(float((own - copy).norm()) for copy in near) < 0.6 * float((own - far).norm())


@pytest.mark.parametrize("name", ["irse50", "resnet18", "clip"])
def test_the_loss_is_zero_for_the_same_face_and_pulls_at_another(name, request, image, count=2):
    term = IdentityCosine(request.getfixturevalue(name))
    hq = torch.cat([image[..., 128:384, 128:384].roll(9 * k, 3) for k in range(count)])
    restored = hq.flip(2).requires_grad_()
    latents = torch.zeros(count, 4, 8, 8)
    assert abs(float(term(Restoration(hq, hq.clone(), latents, latents)))) < 1e-6
    loss = term(Restoration(restored, hq, latents, latents))
    assert loss.shape == ()
    assert loss.item() > 1e-4
    loss.backward()
    assert restored.grad.isfinite().all()
    assert (restored.grad.abs().sum((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("name", ["irse50", "resnet18", "clip", "sface"])
def test_embeddings_are_unit_length_and_do_not_depend_on_the_batch(name, request, image):
    network = request.getfixturevalue(name)
    faces = torch.cat([image, image.flip(3), image.flip(1)])[..., ::4, ::4]
    with torch.no_grad():
        together, alone = network(faces), torch.cat([network(face[None]) for face in faces])
    assert torch.allclose(together.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(together, alone, atol=1e-5)
    assert (together[0] - together[1]).norm() > 1e-3


def test_networks_stay_frozen_and_in_eval_mode(irse50, resnet18, clip):
    for network in (irse50, resnet18, clip):
        network.train()
        assert not any(part.training for part in network.modules())
        assert not any(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize(
    ("build", "module", "command"),
    [
        (ArcFaceIRSE50, "facexlib", "pip install --no-deps --require-hashes"),
        (lambda: InsightFace("pack.onnx"), "onnxruntime", "pip install onnxruntime"),
        (lambda: held_out._only_input(Path("pack.onnx"), "data"), "onnx", "pip install onnx"),
        (lambda: DlibResNet("net", "points"), "dlib", "pip install dlib-bin"),
    ],
)
def test_a_missing_package_is_one_line_with_its_command(build, module, command, monkeypatch):
    def absent(name, *rest):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(InputError, match=rf"^{module}\S* cannot be imported \(.*\): {command}") as error:
        build()
    assert "\n" not in str(error.value)


def test_a_clip_folder_that_is_missing_damaged_or_lacks_weights_is_one_line(tmp_path):
    transformers = pytest.importorskip("transformers")
    tiny = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8)
    # without the projection, which transformers would draw at random
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**tiny)).save_pretrained(tmp_path / "half")
    transformers.CLIPVisionConfig(**tiny).save_pretrained(tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    for folder, said in (("nowhere", ""), ("half", "; it lacks 1 weights .*visual_projection"), ("torn", "; ")):
        with pytest.raises(InputError, match=rf"CLIP's weights, got '.*{folder}'{said}"):
            CLIPImage.from_pretrained(str(tmp_path / folder))
