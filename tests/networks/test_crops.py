"""Fixed crops: the pixels of OpenCV and scikit-image, the same content at every size, gradients to every pixel."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from lafr.alignment import ARCFACE_112, FFHQ_512, similarity
from lafr.networks.crops import SimilarityCrop, antialias, resize


def waves(side: int) -> np.ndarray:
    """A band-limited picture `[side, side, 3]`, in [-1, 1]: the same scene at every side."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    return np.stack([np.sin(9 * x + 5 * y), np.cos(11 * y - 4 * x), np.sin(7 * x) * np.cos(8 * y)], -1)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).float().permute(2, 0, 1)[None]


def array(image: torch.Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).numpy()


def test_it_equals_opencv_where_nothing_shrinks():
    turn = np.array([[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]])
    target = FFHQ_512 @ turn.T * 1.1 + (-60, 12)
    crop = array(SimilarityCrop(target=target, size=400)(tensor(waves(512))))
    matrix = similarity(FFHQ_512, target)
    theirs = cv2.warpAffine(waves(512), matrix, (400, 400), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(crop - theirs).max() < 1e-3  # OpenCV may round a position to 1/32 of a pixel


def test_arcface_crops_hold_the_same_scene_at_every_side():
    for side in [512, 128]:
        crop = array(SimilarityCrop()(tensor(waves(side))))
        there = cv2.invertAffineTransform(similarity(FFHQ_512, ARCFACE_112))
        y, x = np.mgrid[:112, :112]
        x, y = (np.stack([x, y, np.ones_like(x)], -1) @ there.T).transpose(2, 0, 1)
        x, y = (np.clip(axis, 0, 511) + 0.5 for axis in (x, y))
        x, y = x / 512, y / 512
        truth = np.stack([np.sin(9 * x + 5 * y), np.cos(11 * y - 4 * x), np.sin(7 * x) * np.cos(8 * y)], -1)
        inside = np.s_[8:-8, 8:-8]  # the border is repeated, the waves continue
        assert np.abs(crop - truth)[inside].max() < 0.01


def test_the_blur_before_shrinking_is_scikit_images():
    for shrink in [2.0, 4.0]:
        filters = pytest.importorskip("skimage.filters", reason="needs scikit-image")
        image = np.random.default_rng(0).random((40, 48))
        theirs = filters.gaussian(image, (shrink - 1) / 2, mode="nearest", truncate=3.0, preserve_range=True)
        ours = antialias(torch.from_numpy(image)[None, None], shrink)[0, 0].numpy()
        assert np.abs(ours - theirs).max() < 1e-6


def test_a_shrinking_crop_does_not_alias():
    stripes = np.tile(np.arange(512) % 2 * 2.0 - 1, (512, 1))[..., None].repeat(3, -1)
    assert SimilarityCrop()(tensor(stripes))[..., 8:-8, 8:-8].abs().max() < 0.01
    assert torch.equal(antialias(tensor(stripes), 0.5), tensor(stripes))


def test_every_face_of_a_batch_is_cropped_alike_and_reached_by_the_gradient():
    for batch in [1, 3]:
        images = torch.rand(batch, 3, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
        crop = SimilarityCrop()
        crops = crop(images)
        assert crops.shape == (batch, 3, 112, 112)
        assert torch.allclose(crops, torch.cat([crop(image[None]) for image in images]), atol=1e-6)
        crops.square().sum().backward()
        assert images.grad.isfinite().all()
        assert (images.grad[:, :, 40:100, 40:90] != 0).all()


def test_resize_is_pillows_bilinear():
    image = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    theirs = np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR))
    ours = resize(torch.from_numpy(image)[None, None], 20)[0, 0].numpy()
    assert np.abs(ours - theirs).max() < 1e-5
    assert resize(torch.zeros(1, 3, 20, 20), 20).shape == (1, 3, 20, 20)
