"""The chains: each operator against an independent one, their order, their draws, and their records."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from torchvision.transforms import functional as tv

from lafr.data.degradation import operators as ops
from lafr.data.degradation.first_order import Degradation
from lafr.data.degradation.kernels import gaussian_kernel
from lafr.data.degradation.second_order import SecondOrderDegradation
from lafr.errors import InputError
from lafr.images import as_saved

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted(path.stem for path in (CONFIGS / "degradation").glob("*.yaml"))


@pytest.fixture
def hq():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(coarse)).permute(2, 0, 1) / 127.5 - 1


def test_the_same_generator_gives_the_same_pixels_and_the_input_stays(hq, degradation):
    before = hq.clone()
    first, second, other = (degradation(hq, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(hq, before)


def test_global_random_states_are_neither_read_nor_moved(hq, degradation):
    np.random.seed(0)
    torch.manual_seed(0)
    first = degradation(hq, np.random.default_rng(3))
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0)))
    assert np.random.rand() == np.random.RandomState(0).rand()
    assert torch.equal(first, degradation(hq, np.random.default_rng(3)))


def test_a_round_kernel_is_opencvs():
    line = cv2.getGaussianKernel(21, 2.5)
    assert np.allclose(gaussian_kernel(21, 2.5, 2.5, 0.7), line @ line.T, atol=1e-7)


def test_any_kernel_sums_to_one_and_a_quarter_turn_swaps_the_sigmas():
    for sigma_x, sigma_y, theta in [(0.3, 0.3, 0), (5, 1, 1), (30, 2, -2)]:
        assert gaussian_kernel(41, sigma_x, sigma_y, theta).sum() == pytest.approx(1, abs=1e-5)
    turned = gaussian_kernel(21, 4, 1.5, np.pi / 2)
    assert np.allclose(turned, gaussian_kernel(21, 1.5, 4, 0), atol=1e-7)
    assert not np.allclose(turned, gaussian_kernel(21, 4, 1.5, 0), atol=1e-4)


def test_the_first_sigma_runs_along_the_angle():
    # theta = 0 is the x axis: columns; the second moment along it is sigma_x squared
    kernel = gaussian_kernel(41, 4, 1.5, 0).astype(np.float64)
    offsets = np.arange(-20, 21)
    assert np.sqrt((kernel.sum(0) * offsets**2).sum()) == pytest.approx(4, rel=1e-2)
    assert np.sqrt((kernel.sum(1) * offsets**2).sum()) == pytest.approx(1.5, rel=1e-2)


def test_noise_has_the_given_deviation_and_stays_within_black_and_white():
    gray = np.full((200, 200, 3), 0.5, np.float32)
    noise = ops.gaussian_noise(gray, 12.0, np.random.default_rng(0)) - gray
    assert noise.std() * 255 == pytest.approx(12, rel=0.01)
    assert abs(noise.mean() * 255) < 0.1
    noisy = ops.gaussian_noise(np.zeros((20, 20, 3), np.float32), 50, np.random.default_rng(0))
    assert noisy.min() == 0
    assert noisy.max() <= 1


def test_jpeg_is_pillows_at_the_same_quality_with_channels_in_order(hq):
    image = ((hq.permute(1, 2, 0) + 1) / 2).numpy()
    for quality in (30, 70, 95):
        file = io.BytesIO()
        Image.fromarray(np.round(image * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
        reference = np.asarray(Image.open(file)).astype(np.float32)
        assert np.abs(ops.jpeg(image, quality) * 255 - reference).mean() < 1  # two builds of one codec


def test_downscaling_takes_no_average():
    # antialiasing would turn this pattern into gray; bilinear sampling at pixel centres keeps stripes of 1 in 3
    stripes = np.zeros((9, 9, 3), np.float32)
    stripes[:, 1::3] = 1
    point = {"family": "gaussian", "size": 3, "sigma_x": 0.01, "sigma_y": 0.01, "theta": 0.0}
    assert np.array_equal(ops.blur_down(stripes, point, 3), np.ones((3, 3, 3), np.float32))


def by_hand(hq, rng):
    """The chain written out: OpenCV for every operator, the noise by the same generator."""
    scale = 64 / 512
    sigma_x, sigma_y = rng.uniform(1, 15, 2) * scale
    sigma_y = sigma_x if rng.random() < 0.5 else sigma_y
    theta = rng.uniform(-np.pi, np.pi)
    factor = max(1, rng.uniform(1, 30) * scale)
    noise = rng.uniform(0, 20)
    quality = int(rng.integers(30, 100))
    image = (hq.permute(1, 2, 0).numpy() + 1) / 2
    kernel = gaussian_kernel(5, sigma_x, sigma_y, theta)  # 41 px at 512 is 5 px at 64
    image = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    side = int(64 / factor)
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    image = np.clip(image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(noise / 255), 0, 1)
    image = cv2.resize(ops.jpeg(image, quality), (64, 64), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(np.round(image * 255)).permute(2, 0, 1) / 127.5 - 1


def test_the_chain_is_blur_down_noise_jpeg_up(hq, degradation):
    for seed in range(4):
        expected = by_hand(hq, np.random.default_rng(seed))
        assert torch.equal(degradation(hq, np.random.default_rng(seed)), expected)


def test_the_result_has_the_input_size_and_sits_on_8_bit_levels(hq, degradation):
    for seed in range(5):
        lq = degradation(hq, np.random.default_rng(seed))
        assert lq.shape == hq.shape
        assert torch.equal(lq, as_saved(lq))


def draws(chain: Degradation, side: int, count: int) -> dict[str, np.ndarray]:
    """Return what `count` records of the first order hold, by name."""
    records = [chain.draw(side, side, np.random.default_rng(n)) for n in range(count)]
    values = [
        {**r[0]["kernel"], "factor": r[0]["factor"], "noise": r[1]["sigma"], "quality": r[2]["quality"]}
        for r in records
    ]
    return {key: np.array([v[key] for v in values]) for key in values[0]}


def test_draws_fill_their_ranges_and_half_of_the_blurs_are_round():
    drawn = draws(Degradation(), side=512, count=400)
    ranges = {"sigma_x": (1, 15), "sigma_y": (1, 15), "factor": (1, 30), "noise": (0, 20), "quality": (30, 99)}
    for name, (low, high) in ranges.items():
        values, slack = drawn[name], (high - low) * 0.03
        assert low <= values.min() < low + slack, name
        assert high - slack < values.max() <= high, name
    round_share = np.mean(drawn["sigma_x"] == drawn["sigma_y"])
    assert abs(round_share - 0.5) < 0.1
    assert np.abs(drawn["theta"]).max() <= np.pi


def test_blur_and_downscale_follow_the_resolution_and_noise_and_jpeg_do_not():
    small, full = (draws(Degradation(), side=side, count=50) for side in (128, 512))
    assert np.allclose(small["sigma_x"], full["sigma_x"] / 4)
    assert np.allclose(small["sigma_y"], full["sigma_y"] / 4)
    assert np.allclose(small["factor"], np.maximum(1, full["factor"] / 4))
    assert np.array_equal(small["noise"], full["noise"])
    assert np.array_equal(small["quality"], full["quality"])
    assert set(full["size"]) == {41}
    assert set(small["size"]) == {11}  # 41 / 4 to the nearest odd number


def test_only_a_factor_that_enlarges_at_the_reference_enlarges_elsewhere():
    small, full = (draws(Degradation(down=(0.8, 3)), side=side, count=200)["factor"] for side in (128, 512))
    assert full.min() < 0.85
    assert np.array_equal(small[full < 1], full[full < 1]) and small[full >= 1].min() == 1


def test_the_lower_end_of_the_jpeg_range_is_drawn_and_the_upper_is_not():
    assert set(draws(Degradation(jpeg_quality=(97, 100)), side=8, count=40)["quality"]) == {97, 98, 99}


def test_impossible_qualities_and_kernels_are_refused():
    for quality in ((90, 90), (0, 50), (30, 102)):
        with pytest.raises(InputError, match=r"jpeg_quality"):
            Degradation(jpeg_quality=quality)
    with pytest.raises(InputError, match=r"kernel_size .*40"):
        Degradation(kernel_size=40)


def test_at_the_reference_resolution_the_kernel_has_the_size_that_was_asked_for():
    for size in (21, 41, 43):
        assert draws(Degradation(kernel_size=size), side=512, count=1)["size"].tolist() == [size]


def recipe(name: str):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return instantiate(compose("train", ["run_name=x", f"degradation={name}"]).degradation, _convert_="all")


def test_a_pair_of_every_recipe_is_rebuilt_from_its_record_read_back_from_json(hq):
    assert RECIPES == [
        "codeformer",
        "daefr",
        "difface",
        "diffbir",
        "gfpgan",
        "mini",
        "osediff_face",
        "realesrgan",
        "vqfr_v2",
    ]
    for name in RECIPES:
        chain = recipe(name)
        for seed in range(8 if name in ("realesrgan", "gfpgan") else 3):
            lq = chain(hq, np.random.default_rng([seed, 7]))
            record = chain.draw(64, 64, np.random.default_rng([seed, 7]))
            assert torch.equal(ops.apply(json.loads(json.dumps(record)), hq), lq)
            assert torch.equal(lq, as_saved(lq))


def test_a_record_holds_every_number_that_was_drawn():
    """Whatever the generator gave stands in the record: a chain that reads other numbers makes another record."""

    class Counting:
        """A generator that counts what it was asked for."""

        def __init__(self):
            self.rng, self.given = np.random.default_rng(0), []

        def __getattr__(self, name):
            method = getattr(self.rng, name)
            if name not in ("uniform", "integers"):
                return method

            def call(*arguments):
                value = method(*arguments)
                self.given += np.atleast_1d(value).tolist()
                return value

            return call

    rng = Counting()
    text = json.dumps(Degradation(isotropic=0).draw(512, 512, rng))
    assert len(rng.given) == 6
    for value in rng.given:
        assert json.dumps(value) in text


def test_records_of_unknown_steps_kernels_and_generators_are_refused(hq):
    with pytest.raises(InputError, match=r"op .*blur, .*sharpen"):
        ops.apply([{"op": "sharpen"}], hq)
    with pytest.raises(InputError, match=r"family .*gaussian.*box"):
        ops.apply([{"op": "blur", "kernel": {"family": "box", "size": 3}}], hq)
    with pytest.raises(InputError, match="MT19937"):
        ops.as_text(np.random.Generator(np.random.MT19937(0)))


def test_a_generator_written_as_text_continues_with_the_same_numbers():
    rng = np.random.default_rng(3)
    rng.integers(10, dtype=np.int32)  # leaves half a draw in the generator's buffer
    again = ops.as_generator(ops.as_text(rng))
    assert again.integers(10, size=5, dtype=np.int32).tolist() == rng.integers(10, size=5, dtype=np.int32).tolist()
    assert np.array_equal(again.standard_normal(9, dtype=np.float32), rng.standard_normal(9, dtype=np.float32))


def test_gray_is_pillows_luma_and_colour_is_torchvisions(hq):
    image = ((hq + 1) / 2).permute(1, 2, 0).numpy()
    luma = np.asarray(Image.fromarray(np.round(image * 255).astype(np.uint8)).convert("L"))
    assert np.abs(ops.gray(image) * 255 - luma[..., None]).max() < 1
    planes = tv.adjust_hue(tv.adjust_contrast((hq + 1) / 2, 1.4), -0.05)
    ours = ops.colour_jitter(image, [["contrast", 1.4], ["hue", -0.05]])
    assert np.array_equal(ours, planes.permute(1, 2, 0).numpy())
    shifted = image + np.array([10, 0, -300], np.float32) / 255
    assert np.allclose(ops.colour_shift(image, [10, 0, -300]), shifted.clip(0, 1))


def test_colour_changes_come_as_often_as_gfpgan_says():
    rng = np.random.default_rng(0)
    chain = recipe("gfpgan")
    records = [[step["op"] for step in chain.draw(512, 512, rng)] for _ in range(4000)]
    for name, share in (("colour_shift", 0.3), ("colour_jitter", 0.3), ("gray", 0.01)):
        assert abs(np.mean([name in record for record in records]) - share) < 3 * (share / 4000) ** 0.5


def test_a_gray_photo_has_a_gray_target_only_where_the_recipe_says_so(hq):
    for is_target in (False, True):
        chain = Degradation(gray=1, gray_target=is_target)
        target, lq = chain.pair(hq, np.random.default_rng(0))
        assert torch.equal(lq[0], lq[2])
        assert torch.equal(target[0], target[2]) == is_target
        assert torch.equal(target, hq) != is_target


def test_the_second_order_keeps_what_is_lost_at_another_resolution():
    """At a quarter of the resolution, kernels and the final shrinking are a quarter; the passes' factors are not."""
    chain = SecondOrderDegradation()
    seen = 0
    for seed in range(40):
        small, full = (chain.draw(side, side, np.random.default_rng(seed)) for side in (128, 512))
        assert [step["op"] for step in small] == [step["op"] for step in full]
        for a, b in zip(small, full, strict=True):
            if a["op"] == "blur" and "sigma_x" in a["kernel"]:
                assert a["kernel"]["sigma_x"] == pytest.approx(b["kernel"]["sigma_x"] / 4)
                assert a["kernel"]["size"] in (3, 5)
            if a["op"].endswith("noise") or a["op"] == "jpeg":
                assert a == b
                seen += 1
        assert small[-2]["op"] != "resize" or small[-2]["height"] == 128
    assert seen > 100
