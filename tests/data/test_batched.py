"""The chain on a batch of tensors is the chain on one image."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from lafr.data.degradation.batched import apply_batch
from lafr.data.degradation.first_order import Degradation
from lafr.data.degradation.operators import apply
from lafr.data.degradation.second_order import SecondOrderDegradation
from lafr.errors import InputError

SUM = "281a117ac591e345cba05854f13a71de680e8167ff6baeffcf297c7e37183ad2"
JITTER = {"brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "saturation": (0, 1.5), "hue": (-0.1, 0.1)}


@pytest.fixture(scope="module")
def hq():
    """Eight smooth pictures with an edge, `[8, 3, 96, 96]` in [-1, 1], whole levels."""
    rng, made = np.random.default_rng(0), []
    for _ in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        picture = np.array(coarse.resize((96, 96), Image.Resampling.BICUBIC))
        picture[20:50, 30:70] = rng.integers(0, 256, 3)
        made.append(torch.from_numpy(picture).permute(2, 0, 1))
    return torch.stack(made) / 127.5 - 1


def records(count: int, chain=None) -> list:
    # at 96 px as if it were 512: the full kernel, from enlarged by 1/0.8 to 12 pixels a side
    chain = chain or Degradation(
        (0.1, 15),
        (0.8, 8),
        gray=0.2,
        colour_shift_probability=0.3,
        colour_jitter=JITTER,
        colour_jitter_probability=0.3,
        reference_resolution=96,
    )
    return [chain.draw(96, 96, np.random.default_rng(n)) for n in range(count)]


def test_it_is_the_single_image_chain_to_one_level_in_999_pixels_of_1000(hq):
    all_records = records(64)
    assert {step["op"] for record in all_records for step in record[4:]} == {"gray", "colour_shift", "colour_jitter"}
    within, equal = {torch.float32: [], torch.float64: []}, {torch.float32: [], torch.float64: []}
    for start in range(0, 64, 8):
        batch = all_records[start : start + 8]
        theirs = torch.stack([apply(record, image) for record, image in zip(batch, hq, strict=True)])
        for dtype in within:
            levels = ((apply_batch(batch, hq.to(dtype)) - theirs) * 127.5).abs()
            within[dtype].append((levels < 1.5).float().mean().item())
            equal[dtype].append((levels < 0.5).float().mean().item())
    assert min(np.mean(share) for share in within.values()) > 0.999
    assert min(np.mean(share) for share in equal.values()) > 0.99


def test_an_image_does_not_depend_on_what_shares_its_batch(hq):
    together = apply_batch(records(8), hq.double())
    for i in (0, 5):
        assert torch.equal(apply_batch([records(8)[i]], hq[i : i + 1].double())[0], together[i])


def test_in_float64_the_pixels_are_the_same_on_every_machine():
    """A sum of their bytes, made once: other processors, thread counts and FFT libraries must give it too."""
    ramp = torch.linspace(-1, 1, 96).double()
    face = torch.stack([ramp[:, None] * ramp, ramp.expand(96, 96), (ramp * 9).sin()[:, None].expand(96, 96)])
    lq = apply_batch(records(6, Degradation(reference_resolution=96)), face.expand(6, -1, -1, -1))
    levels = ((lq + 1) * 127.5).round().to(torch.uint8).numpy()
    assert hashlib.sha256(levels.tobytes()).hexdigest() == SUM


def test_another_chain_is_refused(hq):
    record = SecondOrderDegradation().draw(96, 96, np.random.default_rng(0))
    with pytest.raises(InputError, match="blur_down, gaussian_noise, jpeg, resize"):
        apply_batch([record], hq[:1])
