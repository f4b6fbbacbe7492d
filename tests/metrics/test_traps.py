"""What went wrong in the field's scoring code: each mistake gives another number, and ours is the right one."""

import math

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import nn
from torchmetrics.image import PeakSignalNoiseRatio

from lafr.data.packaged import aligned
from lafr.evaluation.summary import mean_and_interval
from lafr.images import as_saved, from_pil, read_image, resize_pil, to_uint8, write_image
from lafr.metrics.face import LMD, Deg, IdaRad, IdentityCosine, png_gray
from lafr.metrics.fidelity import psnr_rgb, psnr_y, ssim_rgb, ssim_y
from lafr.metrics.perceptual import ShiftTolerantLPIPS
from lafr.networks.landmarkers import Landmarks
from lafr.networks.recognisers import ArcFaceResNet18


@pytest.fixture(scope="module")
def hq():
    """Two photographed faces, 8-bit, `[2, 3, 128, 128]`."""
    return torch.stack([from_pil(resize_pil(aligned(name), 128)) for name in ("astronaut", "t1_1")])


@pytest.fixture(scope="module")
def resnet18():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ArcFaceResNet18()


def test_the_mean_of_the_images_db_is_not_the_db_of_the_pooled_error(hq):
    noise = torch.randn(hq.shape, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.02, 0.3]).reshape(
        2, 1, 1, 1
    )
    restored = as_saved(hq + noise)
    averaged = float(psnr_rgb(restored, hq).mean())
    pixels = [to_uint8(image).numpy() for image in (hq, restored)]
    each = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(*pixels, strict=True)]
    assert averaged == pytest.approx(np.mean(each), abs=1e-5)
    pooled = PeakSignalNoiseRatio(data_range=2.0)  # torchmetrics' default
    pooled.update(restored, hq)
    assert averaged > float(pooled.compute()) + 5


def test_matching_colours_to_the_ground_truth_first_would_raise_psnr(hq):
    tinted = as_saved(hq * 0.7 + 0.1)
    mean, deviation = (stat((2, 3), keepdim=True) for stat in (tinted.mean, tinted.std))
    matched = (tinted - mean) / deviation * hq.std((2, 3), keepdim=True) + hq.mean((2, 3), keepdim=True)
    assert (psnr_rgb(matched, hq) > psnr_rgb(tinted, hq) + 10).all()
    assert psnr_rgb(tinted, hq).max() < 25


def test_red_and_blue_exchanged_give_another_number(hq, resnet18):
    for metric in [psnr_y, ssim_y, "st_lpips_vgg", "sface", "ida_rad"]:
        build = {
            "st_lpips_vgg": lambda: ShiftTolerantLPIPS("vgg"),
            "sface": lambda: IdentityCosine("sface"),
            "ida_rad": lambda: IdaRad(resnet18),
        }
        measure = build[metric]() if metric in build else metric
        restored = as_saved(nn.functional.avg_pool2d(hq, 5, 1, 2) * torch.tensor([1.0, 0.9, 0.6])[:, None, None])
        right, exchanged = measure(restored, hq), measure(restored.flip(1), hq.flip(1))
        assert ((right - exchanged).abs() > 1e-3 * right.abs()).all()


def test_degs_gray_is_opencvs_of_the_rgb_file_and_not_of_red_and_blue_exchanged(hq, tmp_path):
    write_image(hq[0], tmp_path / "face.png")
    file = cv2.imread(str(tmp_path / "face.png"), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(png_gray(hq[:1])[0].numpy(), file)
    exchanged = png_gray(hq[:1].flip(1))[0].numpy().astype(int)
    assert np.abs(exchanged - file).max() > 10
    # gray before the resize: the other order rounds otherwise
    shrunk = cv2.cvtColor(cv2.resize(cv2.imread(str(tmp_path / "face.png")), (50, 50)), cv2.COLOR_BGR2GRAY)
    assert not np.array_equal(cv2.resize(file, (50, 50)), shrunk)


class Sees(nn.Module):
    """Two points that follow the brightness; no face in a black image."""

    origins = frozenset()

    def forward(self, image):
        level = (image.mean((1, 2, 3)) + 1) * 100
        points = torch.stack([level, 2 * level, level, -level], 1).reshape(-1, 2, 2)
        return Landmarks(None, points.masked_fill((level < 1)[:, None, None], math.nan))


def test_a_failed_detection_is_neither_zero_nor_in_the_divisor():
    hq = torch.zeros(4, 3, 8, 8)
    restored = torch.stack([torch.full((3, 8, 8), level) for level in (0.2, -1.0, 0.2, -1.0)])
    found = LMD(Sees())(restored, hq)
    assert found.isnan().tolist() == [False, True, False, True]
    summary = mean_and_interval(found.numpy())
    assert summary["failed"] == 2
    assert summary["mean"] == pytest.approx(float(found[0]), rel=1e-6)  # half of it with the failed ones in the divisor


def test_near_identical_pairs_are_dropped_by_vqfrs_exclusion_alone(hq, resnet18):
    nudged = hq.clone()
    nudged[:, :, 60, 60] += 0.1
    restored, truth = torch.cat([as_saved(nudged), hq.roll(9, 3)]), torch.cat([hq, hq])
    everyone, excluded = Deg(resnet18)(restored, truth), Deg(resnet18, exclude_below=1.0)(restored, truth)
    assert (everyone[:2] < 1).all() and (everyone[2:] > 1).all()
    assert excluded.isnan().tolist() == [True, True, False, False]
    assert mean_and_interval(excluded.numpy())["mean"] > 1.5 * mean_and_interval(everyone.numpy())["mean"]
    assert not IdaRad(resnet18)(restored, truth).isnan().any()


def test_scores_of_float_images_are_those_of_the_png_that_is_written(hq, tmp_path):
    for metric in [psnr_rgb, psnr_y, ssim_rgb, ssim_y, "st_lpips_vgg", "sface"]:
        named = {"st_lpips_vgg": lambda: ShiftTolerantLPIPS("vgg"), "sface": lambda: IdentityCosine("sface")}
        measure = named[metric]() if metric in named else metric
        float_image = hq[:1] * 1.1 + 0.6 / 255
        write_image(float_image[0], tmp_path / "restored.png")
        saved = read_image(tmp_path / "restored.png")[None]
        assert not torch.equal(float_image, saved)
        written, in_memory = measure(saved, hq[:1]), measure(float_image, hq[:1])
        assert torch.allclose(in_memory, written, rtol=1e-6, atol=0)  # the file's pixels lie otherwise in memory
