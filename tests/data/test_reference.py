"""Operators and draws against BasicSR 1.4.2, the code that the field's pairs were made with."""

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy.stats import chisquare, ks_2samp, kstest, uniform

from lafr.data.degradation import kernels, operators
from lafr.data.degradation.operators import apply
from scripts.benchmarks.reference import FETCH, basicsr_module

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FIRST_ORDER = ["osediff_face", "codeformer", "gfpgan", "vqfr_v2", "daefr", "difface", "diffbir"]
DRAWS = 10_000
LEVEL = 1 / 255

basicsr = basicsr_module("data/degradations.py")
pytestmark = pytest.mark.skipif(basicsr is None, reason=f"BasicSR's source package is not at hand: {FETCH}")


def recipe(name: str):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return instantiate(compose("train", ["run_name=x", f"degradation={name}"]).degradation, _convert_="all")


@pytest.fixture(scope="module")
def image():
    """A picture with edges and slopes, `[96, 80, 3]` in [0, 1]."""
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.random((12, 10, 3), np.float32), (80, 96), interpolation=cv2.INTER_CUBIC)
    coarse[30:50, 20:60] = rng.random(3, np.float32)
    return coarse.clip(0, 1)


@pytest.mark.parametrize(("sigma_x", "sigma_y", "theta"), [(0.1, 0.1, 0), (3, 3, 1), (15, 1, 0.6), (2, 9, -2.5)])
@pytest.mark.parametrize("size", [7, 41])
def test_kernels_are_basicsrs(size, sigma_x, sigma_y, theta):
    shape = dict(isotropic=False)
    pairs = [
        (
            kernels.gaussian_kernel(size, sigma_x, sigma_y, theta),
            basicsr.bivariate_Gaussian(size, sigma_x, sigma_y, theta, **shape),
        )
    ]
    for beta in (0.5, 1.3, 4):
        pairs += [
            (
                kernels.generalized_kernel(size, sigma_x, sigma_y, theta, beta),
                basicsr.bivariate_generalized_Gaussian(size, sigma_x, sigma_y, theta, beta, **shape),
            ),
            (
                kernels.plateau_kernel(size, sigma_x, sigma_y, theta, beta),
                basicsr.bivariate_plateau(size, sigma_x, sigma_y, theta, beta, **shape),
            ),
        ]
    for ours, theirs in pairs:
        assert np.abs(ours - theirs).max() < 1e-7


@pytest.mark.parametrize(("size", "cutoff"), [(7, np.pi), (13, 1.2), (21, np.pi / 5)])
def test_the_sinc_kernel_is_basicsrs(size, cutoff):
    with np.errstate(invalid="ignore"):  # BasicSR divides by zero at the centre, then mends it
        theirs = basicsr.circular_lowpass_kernel(cutoff, size)
    assert np.abs(kernels.sinc_kernel(size, cutoff) - theirs).max() < 2e-7


@pytest.mark.parametrize("is_gray", [False, True])
def test_gaussian_noise_is_basicsrs_for_the_same_field(image, monkeypatch, is_gray):
    rng = np.random.default_rng(1)
    field = rng.standard_normal(image.shape[:2] if is_gray else image.shape, dtype=np.float32)
    monkeypatch.setattr(np.random, "randn", lambda *shape: field.reshape(shape))
    ours = operators.gaussian_noise(image, 17.0, np.random.default_rng(1), is_gray)
    theirs = basicsr.add_gaussian_noise(image, 17.0, gray_noise=is_gray)
    assert np.abs(ours - theirs).max() < LEVEL / 100


@pytest.mark.parametrize("is_gray", [False, True])
def test_shot_noise_is_basicsrs_for_the_same_counts(image, monkeypatch, is_gray):
    monkeypatch.setattr(np.random, "poisson", np.random.default_rng(1).poisson)
    bgr = np.ascontiguousarray(image[..., ::-1]) if is_gray else image  # BasicSR takes the luma of BGR
    theirs = basicsr.add_poisson_noise(bgr, 2.5, gray_noise=is_gray)
    theirs = theirs[..., ::-1] if is_gray else theirs
    ours = operators.poisson_noise(image, 2.5, np.random.default_rng(1), is_gray)
    assert np.abs(ours - theirs).max() < LEVEL / 100


@pytest.mark.parametrize("quality", [1, 30, 47, 75, 99])
def test_jpeg_is_basicsrs_to_the_bit_on_the_same_input(image, quality):
    theirs = basicsr.add_jpg_compression(image[..., ::-1], quality)[..., ::-1]  # BasicSR's images are BGR
    assert np.array_equal(operators.jpeg(image, quality), theirs)


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_each_step_of_a_recipe_is_basicsrs_within_one_level_for_the_same_draws(name, monkeypatch):
    """Their chain by hand, at 512 px; JPEG is given our input, for one level in can flip a coefficient."""
    picture = cv2.resize(np.random.default_rng(2).random((40, 40, 3), np.float32), (512, 512)).clip(0, 1)
    chain = recipe(name)
    for seed in range(6):
        blur, noise, jpeg, resize, *_ = chain.draw(512, 512, np.random.default_rng(seed))
        shape = {key: blur["kernel"][key] for key in ("sigma_x", "sigma_y", "theta")}
        kernel = basicsr.bivariate_Gaussian(41, *shape.values(), isotropic=shape["sigma_x"] == shape["sigma_y"])
        theirs = cv2.filter2D(picture, -1, kernel)
        side = int(512 // blur["factor"])
        theirs = cv2.resize(theirs, (side, side), interpolation=cv2.INTER_LINEAR)
        ours = operators.blur_down(picture, blur["kernel"], blur["factor"])
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < LEVEL / 100

        field = operators.as_generator(noise["generator"]).standard_normal(ours.shape, dtype=np.float32)
        monkeypatch.setattr(np.random, "randn", lambda *shape, field=field: field)
        theirs = basicsr.add_gaussian_noise(theirs, noise["sigma"])
        ours = operators.gaussian_noise(ours, noise["sigma"], noise["generator"])
        assert np.abs(ours - theirs).max() < LEVEL / 100

        theirs = basicsr.add_jpg_compression(ours[..., ::-1], jpeg["quality"])[..., ::-1]
        ours = operators.jpeg(ours, jpeg["quality"])
        assert np.array_equal(ours, theirs)
        theirs = cv2.resize(theirs, (512, 512), interpolation=cv2.INTER_LINEAR)
        ours = operators.resize(ours, 512, 512, resize["mode"])
        assert np.abs(ours - theirs).max() < LEVEL / 100


@pytest.fixture
def basicsr_draws(monkeypatch):
    """Return a function that calls a BasicSR sampler and returns what it drew, without the work."""

    def capture(name: str, *places: str):
        seen = []
        monkeypatch.setattr(basicsr, name, lambda *args, **kwargs: (seen.append((*args, kwargs)), np.ones((1, 1)))[1])
        return seen

    random.seed(0)
    np.random.seed(0)
    return capture


def agree(ours, theirs) -> bool:
    return ks_2samp(ours, theirs).pvalue > 0.01


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_ten_thousand_draws_are_distributed_as_basicsrs(name, basicsr_draws, monkeypatch):
    chain = recipe(name)
    rng = np.random.default_rng(0)
    records = [chain.draw(512, 512, rng) for _ in range(DRAWS)]
    kernels_drawn = basicsr_draws("bivariate_Gaussian")
    levels, qualities = basicsr_draws("generate_gaussian_noise"), basicsr_draws("add_jpg_compression")
    for _ in range(DRAWS):
        basicsr.random_mixed_kernels(
            ["iso", "aniso"], [0.5, 0.5], 41, chain.blur_sigma, chain.blur_sigma, [-np.pi, np.pi], noise_range=None
        )
        basicsr.random_add_gaussian_noise(np.zeros((1, 1)), chain.noise_sigma)
        basicsr.random_add_jpg_compression(np.zeros((1, 1)), chain.jpeg_quality)
    theirs = {
        "sigma_x": [args[1] for args in kernels_drawn],
        "sigma_y": [args[2] for args in kernels_drawn],
        "theta": [args[3] for args in kernels_drawn if not args[-1]["isotropic"]],
        "noise": [args[1] for args in levels],
        "quality": [int(args[1]) for args in qualities],  # OpenCV's integer parameters truncate
        "factor": np.random.uniform(*chain.down, DRAWS),  # as GFPGAN's data set draws it
    }
    blurs = [record[0]["kernel"] for record in records]
    ours = {
        "sigma_x": [k["sigma_x"] for k in blurs],
        "sigma_y": [k["sigma_y"] for k in blurs],
        "theta": [k["theta"] for k in blurs if k["sigma_x"] != k["sigma_y"]],
        "noise": [record[1]["sigma"] for record in records],
        "quality": [record[2]["quality"] for record in records],
        "factor": [record[0]["factor"] for record in records],
    }
    for value in theirs:
        assert agree(ours[value], theirs[value]), value
    isotropic = sum(args[-1]["isotropic"] for args in kernels_drawn), DRAWS - len(ours["theta"])
    assert abs(isotropic[0] - isotropic[1]) < 3 * (DRAWS / 2) ** 0.5


def test_ten_thousand_second_order_kernels_are_distributed_as_basicsrs(basicsr_draws):
    chain = recipe("realesrgan")
    rng = np.random.default_rng(0)
    passes = [chain._draw_kernel(chain.first, 1, rng) for _ in range(DRAWS)]
    ours = [kernel for kernel in passes if kernel["family"] != "sinc"]
    assert abs(len(ours) - 0.9 * DRAWS) < 3 * (0.09 * DRAWS) ** 0.5
    sinc = [kernel for kernel in passes if kernel["family"] == "sinc"]
    for low, chosen in ((np.pi / 3, range(7, 13)), (np.pi / 5, range(13, 22))):  # as RealESRGANDataset draws them
        cutoffs = [kernel["cutoff"] for kernel in sinc if kernel["size"] in chosen]
        assert kstest(cutoffs, uniform(low, np.pi - low).cdf).pvalue > 0.01
    assert chisquare([sum(k["size"] == size for k in passes) for size in chain.kernel_size]).pvalue > 0.01
    names = {
        "gaussian": "bivariate_Gaussian",
        "generalized": "bivariate_generalized_Gaussian",
        "plateau": "bivariate_plateau",
    }
    theirs = {family: basicsr_draws(name) for family, name in names.items()}
    for _ in range(DRAWS):
        basicsr.random_mixed_kernels(
            list(chain.kernels),
            list(chain.kernels.values()),
            21,
            chain.first.blur_sigma,
            chain.first.blur_sigma,
            [-np.pi, np.pi],
            chain.generalized_beta,
            chain.plateau_beta,
        )
    counts = {family: sum(k["family"] == family for k in ours) for family in names}
    expected = {family: len(seen) * len(ours) / DRAWS for family, seen in theirs.items()}
    assert chisquare(list(counts.values()), list(expected.values())).pvalue > 0.01
    for family, seen in theirs.items():
        mine = [k for k in ours if k["family"] == family]
        assert agree([k["sigma_x"] for k in mine], [args[1] for args in seen])
        assert agree([k["sigma_y"] for k in mine], [args[2] for args in seen])
        assert agree([k["theta"] for k in mine], [args[3] for args in seen])
        if family != "gaussian":
            assert agree([k["beta"] for k in mine], [args[4] for args in seen])


def test_second_order_records_are_distributed_as_real_esrgan_states():
    """Choices that BasicSR makes inside its model: up, down or keep; noise; blur; the last steps' order; sizes."""
    chain = recipe("realesrgan")
    rng = np.random.default_rng(0)
    records = [chain.draw(512, 512, rng) for _ in range(3000)]
    sizes, sinc_first, second_blur, poisson, gray_noise = [], 0, 0, 0, 0
    for record in records:
        ops = [step["op"] for step in record]
        resizes = [step for step in record if step["op"] == "resize"]
        sizes.append(resizes[0]["height"] / 512)
        between = ops[ops.index("jpeg") + 1 :]
        second_blur += between[0] == "blur"
        sinc_first += ops[-2] == "jpeg"
        noises = [step for step in record if step["op"].endswith("noise")]
        poisson += sum(step["op"] == "poisson_noise" for step in noises) / 2
        gray_noise += sum(step["gray"] for step in noises) / 2
        assert (resizes[-1]["height"], resizes[-2]["height"]) == (512, 128)
    sizes = np.array(sizes)
    assert kstest(sizes[sizes > 1], uniform(1, 0.5).cdf).pvalue > 0.01
    assert kstest(sizes[sizes < 1], uniform(0.15, 0.85).cdf).pvalue > 0.01
    shares = np.array([np.mean(sizes > 1), second_blur / 3000, sinc_first / 3000, poisson / 3000, gray_noise / 3000])
    assert np.abs(shares - [0.2, 0.8, 0.5, 0.5, 0.4]).max() < 3 * 0.5 / 3000**0.5


def test_the_torch_filter_and_resizes_of_the_second_order_are_basicsrs(image):
    module = basicsr_module("utils/img_process_util.py")
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    spec = {"family": "plateau", "size": 13, "sigma_x": 2.0, "sigma_y": 0.7, "theta": 0.4, "beta": 1.5}
    theirs = module.filter2D(planes, torch.from_numpy(kernels.make_kernel(**spec))[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(operators.blur(image, spec) - theirs).max() < LEVEL / 100
    for mode in ("area", "bilinear", "bicubic"):
        for size in ((48, 40), (31, 57), (130, 90)):
            theirs = torch.nn.functional.interpolate(planes, size, mode=mode)[0].permute(1, 2, 0).numpy()
            assert np.abs(operators.resize(image, *size, mode) - theirs).max() < LEVEL / 100


def test_a_whole_first_order_chain_differs_from_basicsrs_by_what_jpeg_makes_of_one_level(monkeypatch):
    """Nothing is passed over: both chains from end to end, their rounding included."""
    hq = cv2.resize(np.random.default_rng(5).random((32, 32, 3), np.float32), (512, 512)).clip(0, 1)
    chain, worst = recipe("osediff_face"), 0
    for seed in range(8):
        blur, noise, jpeg, *_ = record = chain.draw(512, 512, np.random.default_rng(seed))
        kernel = kernels.make_kernel(**blur["kernel"]).astype(np.float64)
        theirs = cv2.filter2D(hq, -1, kernel)
        side = int(512 // blur["factor"])
        theirs = cv2.resize(theirs, (side, side), interpolation=cv2.INTER_LINEAR)
        field = operators.as_generator(noise["generator"]).standard_normal(theirs.shape, dtype=np.float32)
        monkeypatch.setattr(np.random, "randn", lambda *shape, field=field: field)
        theirs = basicsr.add_gaussian_noise(theirs, noise["sigma"])
        theirs = basicsr.add_jpg_compression(theirs[..., ::-1], jpeg["quality"])[..., ::-1]
        theirs = cv2.resize(theirs, (512, 512), interpolation=cv2.INTER_LINEAR)
        ours = apply(record, torch.from_numpy(hq).permute(2, 0, 1) * 2 - 1)
        difference = ((ours.permute(1, 2, 0).numpy() + 1) / 2 - theirs) * 255
        worst = max(worst, np.mean(np.abs(difference) > 1))
    assert worst < 1e-3  # of the pixels differ by more than one level
