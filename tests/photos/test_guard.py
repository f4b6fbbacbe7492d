"""What the guard measures of a face before and after: held detail, lost detail, and noise."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from lafr.data.packaged import aligned
from lafr.images import from_pil
from lafr.photos import sharpness


def faces(blur: float = 0) -> torch.Tensor:
    """Three packaged faces `[3, 3, 128, 128]`."""
    chosen = [aligned(name).resize((128, 128)) for name in ("astronaut", "t1_0", "t1_2")]
    return torch.stack([from_pil(face.filter(ImageFilter.GaussianBlur(blur))) for face in chosen])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_face_holds_the_share_of_the_detail_that_was_mixed_in(share):
    sharp, smooth = faces(), faces(blur=3)
    assert sharpness.held_detail(smooth + share * (sharp - smooth), sharp) == pytest.approx([share] * 3, abs=0.03)


def test_noise_is_estimated_as_it_was_added_and_takes_held_detail_away():
    rng, sharp = np.random.default_rng(0), faces()
    assert sharpness.noise(sharp).max() < sharpness.CLEAN
    for sigma in (10, 25):
        gray = torch.from_numpy(rng.normal(0, sigma / 127.5, (3, 1, 128, 128))).float()
        noisy = sharp + gray
        assert sharpness.noise(noisy).tolist() == pytest.approx([sigma] * 3, rel=0.15)
        assert max(sharpness.held_detail(noisy, sharp)) < sharpness.DETAIL


def test_noise_of_the_colours_and_detail_of_another_kind_are_no_detail_of_the_face():
    rng, sharp = np.random.default_rng(0), faces()
    noise = torch.from_numpy(rng.normal(0, 25 / 127.5, (3, 3, 128, 128))).float()
    coloured = sharp + noise - noise.mean(1, keepdim=True)
    lined = sharp.clone()
    lined[..., ::9, :] = 1
    for damaged in (coloured, lined):
        assert max(sharpness.held_detail(damaged, sharp)) < sharpness.DETAIL


def test_a_restoration_without_detail_says_nothing_of_its_input():
    smooth = faces(blur=3)
    assert max(sharpness.held_detail(smooth, smooth)) < sharpness.DETAIL / 2
    assert sharpness.held_detail(faces(), torch.zeros(3, 3, 128, 128)) == [0, 0, 0]


@pytest.mark.parametrize("share", [0.25, 0.5625])
def test_detail_that_the_input_itself_brought_is_taken_out(share):
    sharp, blurred = faces(), faces(blur=1.2)
    mixed = torch.lerp(sharp, blurred, share)  # what fidelity does, in pixels
    assert sharpness.held_detail(blurred, mixed, share) == pytest.approx(
        sharpness.held_detail(blurred, sharp), abs=1e-3
    )
    assert sharpness.held_detail(blurred, blurred, 1.0) == [0, 0, 0]


@pytest.mark.parametrize("sigma", [0, 4, 10])
def test_noise_is_not_taken_for_the_detail_that_a_large_face_loses(sigma):
    rng, sharp = np.random.default_rng(0), aligned("astronaut").resize((512, 512))
    for face, is_sharp in ((sharp, True), (sharp.filter(ImageFilter.GaussianBlur(8)), False)):
        noisy = np.asarray(face) + rng.normal(0, sigma, (512, 512, 1))
        lost = sharpness.lost_detail(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), 128)
        assert (lost > sharpness.LOST) == is_sharp
