"""Metrics against scikit-image, on the pixels that a PNG would hold; and how much of a codebook is used."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lafr.images import as_saved, to_uint8
from lafr.metrics.codebook import CodeUse, perplexity
from lafr.metrics.fidelity import PerceptualDistance, psnr_rgb, ssim_rgb
from lafr.models.adapter import NoAdapter


@pytest.fixture
def pair():
    """Three smooth images and three noisy copies, the noise five times stronger from one to the next."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 8, 8, generator=generator) * 2 - 1
    hq = torch.nn.functional.interpolate(coarse, 48, mode="bicubic")
    noise = torch.randn(hq.shape, generator=generator) * torch.tensor([0.02, 0.1, 0.5])[:, None, None, None]
    return hq + noise, hq


def per_image(pair, measure) -> np.ndarray:
    return np.array([measure(a.numpy(), b.numpy()) for a, b in zip(to_uint8(pair[0]), to_uint8(pair[1]), strict=True)])


def test_psnr_is_scikit_images_image_by_image(pair):
    reference = per_image(pair, lambda a, b: peak_signal_noise_ratio(b, a, data_range=255))
    assert np.allclose(psnr_rgb(*pair).numpy(), reference, atol=1e-4)
    pooled = peak_signal_noise_ratio(to_uint8(pair[1]).numpy(), to_uint8(pair[0]).numpy(), data_range=255)
    assert abs(float(psnr_rgb(*pair).mean()) - pooled) > 1  # the mean of dB, not the dB of the mean


def test_ssim_is_scikit_images_with_the_border_mirrored(pair):
    settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=0, data_range=255)
    inside = per_image(pair, lambda a, b: structural_similarity(a, b, **settings))

    def mirrored(a, b):  # scikit-image leaves out the 5 pixels whose window crosses the border, torchmetrics mirrors
        a, b = (np.pad(image, ((0, 0), (5, 5), (5, 5)), mode="reflect") for image in (a, b))
        return structural_similarity(a, b, **settings)

    assert np.allclose(ssim_rgb(*pair).numpy(), per_image(pair, mirrored), atol=1e-5)
    assert np.allclose(ssim_rgb(*pair).numpy(), inside, atol=0.03)  # at 48 px; the border's share falls with the size


def test_equal_images_score_100_db_and_an_ssim_of_one(pair):
    assert psnr_rgb(pair[1], pair[1]).tolist() == [100, 100, 100]
    assert ssim_rgb(pair[1], pair[1]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("metric", [psnr_rgb, ssim_rgb, "st_lpips_alex"])
def test_what_a_png_cannot_hold_does_not_count(pair, metric):
    metric = PerceptualDistance("alex") if isinstance(metric, str) else metric
    lq, hq = map(as_saved, pair)
    nudged = lq + 0.1 / 255 * torch.sign(torch.randn(lq.shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(metric(nudged, hq), metric(lq, hq))
    assert torch.equal(metric(lq, hq + 0.1 / 255), metric(lq, hq))
    beyond = torch.where(lq >= 1, lq + 3, lq)
    assert torch.equal(metric(beyond, hq), metric(lq, hq))


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_more_noise_is_a_greater_perceptual_distance(pair, trunk):
    distance = PerceptualDistance(trunk)(*pair)
    assert distance.shape == (3,)
    assert distance[0] < distance[1] < distance[2]


def test_perplexity_counts_codes_in_even_use():
    assert perplexity(torch.full((64,), 7.0)) == pytest.approx(64)
    assert perplexity(torch.tensor([0.0, 12.0, 0.0])) == 1
    assert perplexity(torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(2)
    assert perplexity(torch.tensor([3.0, 1.0])) == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))


def test_code_use_counts_each_side_over_all_batches(codebook_adapter, monkeypatch):
    # features that are codes themselves are matched with those very codes
    codes = codebook_adapter.code_layers()[0].codebook  # [16, d]
    monkeypatch.setattr(codebook_adapter, "extract", lambda chosen: codes[chosen[:, 0]].permute(0, 3, 1, 2))
    use = CodeUse(codebook_adapter)
    use.add(torch.full((1, 1, 2, 2), 3), torch.arange(4).reshape(1, 1, 2, 2))
    use.add(torch.full((1, 1, 2, 2), 3), torch.arange(4, 8).reshape(1, 1, 2, 2))
    summary = use.summary()
    assert summary == {
        "codebook_perplexity_lq": 1,
        "dead_codes_lq": 15,
        "codebook_perplexity_hq": pytest.approx(8),
        "dead_codes_hq": 8,
    }


def test_an_adapter_without_codes_has_no_code_use():
    use = CodeUse(NoAdapter())
    use.add(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2))
    assert use.summary() == {}
