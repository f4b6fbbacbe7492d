"""Face metrics: the numbers of the scripts that papers used, on 8-bit pixels, and NaN where there is none."""

import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from lafr.data.packaged import aligned
from lafr.images import from_pil
from lafr.metrics.face import LMD, Deg, IdaRad, IdentityCosine, IdentityDistance
from lafr.metrics.perceptual import ShiftTolerantLPIPS
from lafr.networks.landmarkers import Landmarks
from lafr.networks.recognisers import ArcFaceResNet18, Recogniser


class Pixels(Recogniser):
    """An embedding that can be computed by hand: the mean of each quarter of the green channel, `[B, 4]`."""

    name = "pixels"
    origins = frozenset({"pixels"})

    def __init__(self):
        super().__init__()
        self.calls = 0

    def prepare(self, image):
        self.calls += 1
        return image[:, 1:2]

    def embed(self, pixels):
        return F.adaptive_avg_pool2d(pixels, 2).flatten(1)


class Raw(Pixels):
    def forward(self, image):
        return self.embed(self.prepare(image))


class Landmarker(nn.Module):
    """Two points whose position follows the brightness; no face in a black image."""

    origins = frozenset({"landmarker"})

    def forward(self, image):
        level = (image.mean((1, 2, 3)) + 1) * 100
        points = torch.stack([level, 2 * level, level, -level], 1).reshape(-1, 2, 2)
        return SimpleNamespace(points=points.masked_fill((level < 1)[:, None, None], math.nan), heatmaps=None)


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return ArcFaceResNet18()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two aligned 8-bit photographs as PNG: a face and its blurred, shifted copy."""
    folder = tmp_path_factory.mktemp("pair")
    face = np.asarray(aligned("astronaut"))
    copy = cv2.GaussianBlur(np.roll(face, 12, 1), (0, 0), 4)
    copy[..., 0] = copy[..., 0] // 2
    for name, picture in (("hq", face), ("restored", copy)):
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def pair(files):
    return tuple(from_pil(Image.open(files / f"{name}.png"))[None] for name in ("restored", "hq"))


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double().numpy().ravel(), b.double().numpy().ravel()
    return float(np.arccos(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))))


def test_deg_is_the_angle_of_vqfrs_script(resnet18, files, pair):
    def read(name):
        gray = cv2.imread(str(files / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        gray = cv2.resize(gray, (128, 128), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        return torch.from_numpy((gray - 127.5) / 127.5)[None, None]

    with torch.no_grad():
        theirs = angle(resnet18.embed(read("restored")), resnet18.embed(read("hq"))) / math.pi * 180
        float_gray = angle(resnet18(pair[0]), resnet18(pair[1])) / math.pi * 180
    ours = Deg(resnet18)(*pair)
    assert ours.shape == (1,)
    assert float(ours) == pytest.approx(theirs, rel=1e-5)
    assert abs(float_gray - theirs) > 1e-3 * theirs  # GFPGAN's gray is another
    assert float(Deg(resnet18)(pair[1], pair[1])) == 0


def test_ida_rad_is_the_angle_of_restoreformers_script(resnet18, files, pair):
    def read(name):
        bgr = torch.from_numpy(cv2.imread(str(files / f"{name}.png")).astype(np.float32) / 255).permute(2, 0, 1)[None]
        gray = 0.2989 * bgr[:, 0] + 0.5870 * bgr[:, 1] + 0.1140 * bgr[:, 2]
        return F.interpolate(gray[:, None], (128, 128), mode="bilinear", align_corners=False)

    with torch.no_grad():
        theirs = angle(resnet18.embed(read("restored")), resnet18.embed(read("hq")))
    ours = IdaRad(resnet18)(*pair)
    assert float(ours) == pytest.approx(theirs, rel=1e-4)
    assert float(IdaRad(resnet18)(pair[1], pair[1])) == 0
    assert abs(float(ours) - math.radians(float(Deg(resnet18)(*pair)))) > 0.01 * theirs


def test_small_angles_are_not_lost_to_rounding():
    class Turned(Recogniser):
        name, origins = "turned", frozenset()

        def embed(self, pixels):
            turn = (pixels.mean((1, 2, 3)) - 0.5).abs() * 1e-3
            return torch.stack([turn.cos(), turn.sin()], 1).double()

    images = torch.stack([torch.full((3, 128, 128), level) for level in (-1.0, 1.0)])
    levels = torch.tensor([1.5, 0.5])
    found = Deg(Turned())(images, images.flip(0))
    assert torch.allclose(found, (levels - levels.flip(0)).abs() * 1e-3 * 180 / math.pi, rtol=1e-3)


def test_vqfrs_exclusion_leaves_out_near_identical_pairs_alone(resnet18, pair):
    restored, hq = pair
    found = Deg(resnet18, exclude_below=0.01)(torch.cat([hq, restored]), torch.cat([hq, hq]))
    assert found.isnan().tolist() == [True, False]
    assert torch.equal(found[1], Deg(resnet18)(torch.cat([hq, restored]), torch.cat([hq, hq]))[1])


def test_identity_is_the_cosine_or_the_distance_of_the_networks_embeddings():
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = images, images.roll(1, 0)
    x, y = ((F.adaptive_avg_pool2d((i * 127.5).round()[:, 1:2] / 127.5, 2).flatten(1)).numpy() for i in (a, b))
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert np.allclose(IdentityCosine(Pixels())(a, b), cosine, atol=4 / 255)
    assert np.allclose(IdentityDistance(Raw())(a, b), np.linalg.norm(x - y, axis=1), atol=4 / 255)
    assert torch.allclose(IdentityCosine(Pixels())(a, a), torch.ones(3), atol=1e-6)
    assert IdentityDistance(Raw())(a, a).tolist() == [0, 0, 0]


def test_lmd_is_the_mean_distance_in_pixels_and_nan_without_a_face():
    restored = torch.stack([torch.full((3, 8, 8), level) for level in (0.0, -1.0, 0.2)])
    hq = torch.zeros(3, 3, 8, 8)
    found = LMD(Landmarker())(restored, hq)
    step = 0.2 * 100  # points move by (1, 2) and by (1, -1) of it
    assert found[0] == 0
    assert found[1].isnan()
    assert float(found[2]) == pytest.approx(step * (math.sqrt(5) + math.sqrt(2)) / 2, rel=0.02)
    assert LMD(Landmarker())(hq, restored)[1].isnan()


def test_lmd_of_peaks_moves_in_facexlibs_quarter_steps():
    class Bump(nn.Module):
        origins = frozenset()

        def forward(self, image):  # a bump between two pixels, where the image's brightness says
            centre = 20 + 10 * image.mean((1, 2, 3))[:, None, None, None]
            x = torch.arange(64.0)
            heatmaps = (-((x - centre) ** 2) / 4.5).exp() * (-((x[:, None] - 30) ** 2) / 4.5).exp()
            return Landmarks(heatmaps, torch.zeros(len(image), 1, 2))

    # 0.4 heatmap pixels below and above a whole one: read as 0.25 each
    restored, hq = torch.full((1, 3, 8, 8), -0.04), torch.full((1, 3, 8, 8), 0.04)
    assert float(LMD(Bump(), peaks=True)(restored, hq)) == pytest.approx(0.5 * 8)
    assert float(LMD(Bump())(restored, hq)) == 0  # the network's own points stand still


@pytest.mark.parametrize("metric", [IdentityCosine(Pixels()), IdentityDistance(Raw()), LMD(Landmarker())])
def test_scores_see_the_pixels_that_a_png_holds(metric):
    saved = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).mul(255).round() / 127.5 - 1
    hq = saved.flip(0)
    noise = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)) - 0.5
    assert torch.equal(metric(saved + 0.9 * noise / 127.5, hq), metric(saved, hq))
    assert torch.equal(metric(saved * 3, hq), metric((saved * 3).clamp(-1, 1), hq))


def test_the_ground_truth_is_looked_at_once_for_all_rows_and_again_when_it_changes():
    network = Pixels()
    metric = IdentityCosine(network)
    a, b = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    rows = [metric(a, b), metric(b, b), metric(a, b)]
    assert network.calls == 4  # one ground truth, three rows
    assert torch.equal(rows[0], rows[2])
    b.copy_(a)  # the same tensor, other pixels
    assert torch.allclose(metric(a, b), torch.ones(2), atol=1e-6)
    assert network.calls == 6


def test_each_metric_names_the_networks_that_it_looks_through(resnet18):
    assert Deg(resnet18).origins == IdaRad(resnet18).origins == {"arcface_resnet18"}
    assert IdentityCosine(Pixels()).origins == {"pixels"}
    assert LMD(Landmarker()).origins == {"landmarker"}
    assert ShiftTolerantLPIPS("alex").origins == {"st_lpips_alex"}


def test_a_name_loads_the_networks_of_the_registry(monkeypatch):
    network = Pixels()
    monkeypatch.setattr("lafr.metrics.face.load", {"sface": network}.get)
    assert IdentityCosine("sface").network is network


def test_the_truth_that_one_run_saw_serves_the_next(tmp_path, pair):
    first, second = Pixels(), Pixels()
    metrics = [IdentityDistance(network) for network in (first, second)]
    for metric in metrics:
        metric.keep_truth_in(tmp_path)
    distance = metrics[0](*pair)
    assert torch.equal(metrics[1](*pair), distance)
    assert torch.equal(distance, IdentityDistance(Pixels())(*pair))
    assert (first.calls, second.calls) == (2, 1)

    metrics[1](pair[0], -pair[1])  # another truth
    assert second.calls == 3
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    assert torch.equal(metrics[0](pair[0], -pair[1]), metrics[1](pair[0], -pair[1]))
    assert first.calls == 4
    metrics[0](*pair)
    assert first.calls == 6
