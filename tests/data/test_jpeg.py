"""JPEG in whole numbers is libjpeg's, to the bit."""

import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from lafr.data.degradation.jpeg import DCT, jpeg_roundtrip


def batch(pictures) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures of any size on one canvas, the rest of it filled with something else, and their sizes."""
    sizes = torch.tensor([picture.shape[:2] for picture in pictures])
    height, width = (16 * -(-int(side) // 16) for side in sizes.amax(0))
    canvas = torch.full((len(pictures), 3, height, width), 201.0, dtype=torch.float64)
    for place, picture in zip(canvas, pictures, strict=True):
        place[:, : picture.shape[0], : picture.shape[1]] = torch.from_numpy(picture).permute(2, 0, 1)
    return canvas, sizes


@pytest.fixture(scope="module")
def pictures():
    """Smooth, noisy and striped pictures of many sizes, 1 x 1 among them."""
    rng, made = np.random.default_rng(0), []
    sizes = [(1, 1), (1, 9), (3, 4), (8, 5), (16, 16), (17, 33), (40, 6), (31, 64), *rng.integers(1, 90, (24, 2))]
    for i, (height, width) in enumerate(sizes):
        noise = rng.integers(0, 256, (int(height), int(width), 3), dtype=np.uint8)
        smooth = cv2.resize(noise[:4, :4], (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
        stripes = np.where(np.arange(width)[:, None] % 2, smooth, 255 - smooth).astype(np.uint8)
        made.append([noise, smooth, stripes][i % 3])
    return made


def opencv(picture, quality):
    coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]


def pillow(picture, quality):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def test_every_pixel_is_opencvs_and_pillows_at_every_size_in_one_batch(pictures):
    quality = [1, 2, 10, 24, 25, 30, 49, 50, 51, 70, 77, 89, 95, 98, 99, 100] * 2
    canvas, sizes = batch(pictures)
    ours = jpeg_roundtrip(canvas, torch.tensor(quality), sizes)
    for image, picture, q in zip(ours, pictures, quality, strict=True):
        height, width = picture.shape[:2]
        own = image[:, :height, :width].permute(1, 2, 0).numpy()
        assert np.array_equal(own, opencv(picture, q)) and np.array_equal(own, pillow(picture, q)), (height, width, q)


def test_an_image_does_not_depend_on_what_shares_its_batch(pictures):
    canvas, sizes = batch(pictures[5:7])
    both = jpeg_roundtrip(canvas, torch.tensor([60, 30]), sizes)[0]
    canvas, sizes = batch(pictures[5:6])
    alone = jpeg_roundtrip(canvas, torch.tensor([60]), sizes)[0]
    height, width = pictures[5].shape[:2]
    assert torch.equal(both[:, :height, :width], alone[:, :height, :width])


def test_the_transform_is_the_cosine_transform_to_13_bits():
    k, x = np.mgrid[:8, :8]
    exact = np.cos((2 * x + 1) * k * np.pi / 16) * np.where(k == 0, 1, 2**0.5) * 2**13
    assert np.abs(DCT.numpy() - exact).max() < 1.5
