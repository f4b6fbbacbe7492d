"""What the guard measures of a face before and after: held detail, and noise."""

import numpy as np
import pytest
import torch
from PIL import ImageFilter

from lafr.data.packaged import aligned
from lafr.images import from_pil
from lafr.photos import guard


def faces(blur: float = 0) -> torch.Tensor:
    """Three packaged faces `[3, 3, 128, 128]`."""
    chosen = [aligned(name).resize((128, 128)) for name in ("astronaut", "t1_0", "t1_2")]
    return torch.stack([from_pil(face.filter(ImageFilter.GaussianBlur(blur))) for face in chosen])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_face_holds_the_share_of_the_detail_that_was_mixed_in(share):
    sharp, smooth = faces(), faces(blur=3)
    assert guard.held_detail(smooth + share * (sharp - smooth), sharp) == pytest.approx([share] * 3, abs=0.03)


def test_noise_is_estimated_as_it_was_added_and_takes_held_detail_away():
    rng, sharp = np.random.default_rng(0), faces()
    assert guard.noise(sharp).max() < guard.CLEAN
    for sigma in (10, 25):
        gray = torch.from_numpy(rng.normal(0, sigma / 127.5, (3, 1, 128, 128))).float()
        noisy = sharp + gray
        assert guard.noise(noisy).tolist() == pytest.approx([sigma] * 3, rel=0.15)
        assert max(guard.held_detail(noisy, sharp)) < guard.DETAIL


def test_a_restoration_without_detail_says_nothing_of_its_input():
    smooth = faces(blur=3)
    assert max(guard.held_detail(smooth, smooth)) < guard.DETAIL / 2  # as at fidelity 1
    assert guard.held_detail(faces(), torch.zeros(3, 3, 128, 128)) == [0, 0, 0]
