"""Metrics against scikit-image, on the pixels that a PNG would hold; and how much of a codebook is used."""

import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio as skimage_psnr
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lafr.data.packaged import aligned
from lafr.images import as_saved, from_pil, resize_pil, to_uint8
from lafr.metrics.codebook import CodeUse, perplexity
from lafr.metrics.fidelity import psnr_rgb, psnr_y, ssim_rgb, ssim_y
from lafr.metrics.perceptual import ShiftTolerantLPIPS
from lafr.models.adapter import build_adapter


@pytest.fixture(scope="module", params=[128, 512])
def faces(request):
    """Photographed faces and degraded copies, 8-bit: blurred, noisy, and with a flat, saturated part."""
    side = request.param
    hq = torch.stack([from_pil(resize_pil(aligned(name), side)) for name in ("astronaut", "t1_0", "t1_2")])
    noise = torch.randn(hq.shape, generator=torch.Generator().manual_seed(0))
    lq = torch.nn.functional.avg_pool2d(hq, 5, 1, 2, count_include_pad=False)
    lq[1] += 0.1 * noise[1]
    lq[2, :, : side // 2] = 1
    return as_saved(lq), as_saved(hq)


@pytest.fixture
def pair():
    """Three smooth images and three noisy copies, the noise five times stronger from one to the next."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 8, 8, generator=generator) * 2 - 1
    hq = torch.nn.functional.interpolate(coarse, 48, mode="bicubic")
    noise = torch.randn(hq.shape, generator=generator) * torch.tensor([0.02, 0.1, 0.5])[:, None, None, None]
    return hq + noise, hq


def per_image(pair, measure) -> np.ndarray:
    pixels = zip(*(to_uint8(images).permute(0, 2, 3, 1).numpy() for images in pair), strict=True)
    return np.array([measure(a, b) for a, b in pixels])


def of_luma(measure):
    """scikit-image's measure of scikit-image's luma: BT.601, 16 to 235."""
    return lambda a, b: measure(rgb2ycbcr(a)[..., :1], rgb2ycbcr(b)[..., :1])


def their_psnr(a, b) -> float:
    return skimage_psnr(b, a, data_range=255)


def their_ssim(a, b) -> float:
    """scikit-image's SSIM with its own border, of the 5 pixels whose window is cut, left out."""
    settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1, data_range=255)
    return structural_similarity(a, b, **settings)


def mirrored_ssim(a, b) -> float:
    """scikit-image's SSIM over every pixel: of images whose border is mirrored by those 5 pixels."""
    return their_ssim(*(np.pad(image, ((5, 5), (5, 5), (0, 0)), mode="reflect") for image in (a, b)))


def test_psnr_of_faces_is_scikit_images_to_a_millionth(faces):
    assert np.allclose(psnr_rgb(*faces).numpy(), per_image(faces, their_psnr), rtol=0, atol=2e-6)
    pixels = (to_uint8(images).double() for images in faces)
    theirs = peak_signal_noise_ratio(*pixels, data_range=255.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(psnr_rgb(*faces).double(), theirs, rtol=1e-6, atol=0)
    assert np.allclose(psnr_y(*faces).numpy(), per_image(faces, of_luma(their_psnr)), rtol=0, atol=2e-6)


def test_ssim_of_faces_is_scikit_images_to_a_millionth(faces):
    assert np.allclose(ssim_rgb(*faces).numpy(), per_image(faces, mirrored_ssim), rtol=0, atol=1e-6)
    assert np.allclose(ssim_y(*faces).numpy(), per_image(faces, of_luma(mirrored_ssim)), rtol=0, atol=1e-6)


def test_the_mirrored_border_moves_ssim_by_a_hundredth_at_128_px_and_by_a_fifth_of_that_at_512(faces):
    natural = [images[:2] for images in faces]
    apart = np.abs(ssim_rgb(*natural).numpy() - per_image(natural, their_ssim)).max()
    assert 1e-4 < apart < (1.5e-2 if faces[0].shape[-1] == 128 else 3e-3)


def test_ssim_of_faces_is_torchmetrics(faces):
    x, y = ((image.double() + 1) / 2 for image in faces)
    if x.shape[-1] == 512:  # seconds an image
        x, y = x[:1, :, :200, :200], y[:1, :, :200, :200]
    theirs = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none", gaussian_kernel=True)
    assert torch.allclose(ssim_rgb(x * 2 - 1, y * 2 - 1).double(), theirs, rtol=0, atol=1e-6)


def test_the_luma_leaves_out_errors_of_hue(faces):
    hq = faces[1]
    tinted = as_saved(hq + torch.tensor([0.1, 0, -0.2])[:, None, None])
    assert (psnr_y(tinted, hq) > psnr_rgb(tinted, hq) + 3).all()
    assert (ssim_y(tinted, hq) > ssim_rgb(tinted, hq)).all()


def test_equal_images_score_100_db_and_an_ssim_of_one(pair):
    assert psnr_rgb(pair[1], pair[1]).tolist() == [100, 100, 100]
    assert psnr_y(pair[1], pair[1]).tolist() == [100, 100, 100]
    assert ssim_rgb(pair[1], pair[1]).tolist() == ssim_y(pair[1], pair[1]).tolist() == [1, 1, 1]


def test_an_image_that_is_not_finite_has_no_score_whatever_the_ground_truth_is(pair):
    wrong, black = pair[0].clone(), torch.full_like(pair[1], -1)
    wrong[1], wrong[2, 0, 3, 4] = float("nan"), float("inf")
    for metric in (psnr_rgb, psnr_y, ssim_rgb, ssim_y):
        for hq in (pair[1], black):
            assert metric(wrong, hq).isnan().tolist() == [False, True, True], metric
            assert metric(hq, wrong).isnan().tolist() == [False, True, True], metric
    assert ShiftTolerantLPIPS("alex")(wrong, black).isnan().tolist() == [False, True, False]  # of inf a PNG holds white


def test_what_a_png_cannot_hold_does_not_count(pair):
    for metric in [psnr_rgb, psnr_y, ssim_rgb, ssim_y, "st_lpips_alex"]:
        metric = ShiftTolerantLPIPS("alex") if isinstance(metric, str) else metric
        lq, hq = map(as_saved, pair)
        nudged = lq + 0.1 / 255 * torch.sign(torch.randn(lq.shape, generator=torch.Generator().manual_seed(1)))
        assert torch.equal(metric(nudged, hq), metric(lq, hq))
        assert torch.equal(metric(lq, hq + 0.1 / 255), metric(lq, hq))
        beyond = torch.where(lq >= 1, lq + 3, lq)
        assert torch.equal(metric(beyond, hq), metric(lq, hq))


def test_more_noise_is_a_greater_perceptual_distance(pair):
    for trunk in ["alex", "vgg"]:
        distance = ShiftTolerantLPIPS(trunk)(*pair)
        assert distance.shape == (3,)
        assert distance[0] < distance[1] < distance[2]


def test_perplexity_counts_codes_in_even_use():
    assert perplexity(torch.full((64,), 7.0)) == pytest.approx(64)
    assert perplexity(torch.tensor([0.0, 12.0, 0.0])) == 1
    assert perplexity(torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(2)
    assert perplexity(torch.tensor([3.0, 1.0])) == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))


def test_code_use_counts_each_side_over_all_batches(codebook_adapter, monkeypatch):
    # features that are codes themselves are matched with those very codes
    codes = codebook_adapter.quantizer.layers[0].codebook  # [16, d]
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
    use = CodeUse(build_adapter("none"))
    use.add(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2))
    assert use.summary() == {}
