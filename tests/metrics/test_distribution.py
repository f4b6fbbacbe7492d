"""FID and KID against formulas and torch-fidelity's own run, their intervals, and wrong statistics refused."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

import lafr.commands.fid
from lafr.data.packaged import LANDMARKS, aligned
from lafr.errors import InputError
from lafr.images import as_saved, from_pil, resize_pil, write_image
from lafr.metrics import describe
from lafr.metrics.distribution import FID, KID, Inception, _frechet, _root
from lafr.metrics.statistics import Statistics, build_statistics, load_statistics

torch_fidelity = pytest.importorskip("torch_fidelity", reason="needs pip install torch-fidelity")


class Quarters(nn.Module):
    """Features that can be computed by hand: the mean of each quarter and channel, `[B, 12]`."""

    name = "quarters"

    def forward(self, image):
        return nn.functional.adaptive_avg_pool2d(image, 2).flatten(1)


class Thirds(Quarters):
    name = "thirds"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **_):
        pytest.fail(f"asked for the network: {arguments}")

    for place in ("socket.socket.connect", "socket.create_connection", "socket.getaddrinfo"):
        monkeypatch.setattr(place, refuse)
    monkeypatch.delenv("LAFR_WEIGHTS", raising=False)


@pytest.fixture
def features():
    """Two correlated clouds of 12 dimensions, 200 and 150 points."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=draw)
    x, y = (torch.randn(count, 12, generator=draw) @ mix for count in (200, 150))
    return x * 1.1 + 0.3, y


@pytest.fixture
def folder(tmp_path):
    """The packaged faces at 64 px, as PNG."""
    for name in LANDMARKS:
        write_image(resize_pil(aligned(name), 64), tmp_path / "hq" / f"{name}.png")
    return tmp_path / "hq"


@pytest.fixture
def built(folder, tmp_path):
    path = tmp_path / "quarters.safetensors"
    build_statistics(sorted(folder.glob("*.png")), path, Quarters(), "seven faces", size=64, batch_size=3)
    return path


def by_definition(x, y) -> float:
    """Heusel et al., Eq. 6, with SciPy's matrix root."""
    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root))


def test_fid_is_the_definition_with_scipys_matrix_root(features):
    assert FID(network=Quarters()).score(*features)["mean"] == pytest.approx(by_definition(*features), rel=1e-8)


def test_the_resampled_fid_is_the_same_distance_by_a_symmetric_root(features):
    x, y = (each.double().numpy() for each in features)
    ours = _frechet(x, y.mean(0), _root(np.cov(y, rowvar=False)))
    assert ours == pytest.approx(by_definition(*features), rel=1e-8)
    few = x[:5]  # fewer images than features: the covariance is singular
    theirs = FID(network=Quarters()).score(features[0][:5], features[1])["mean"]
    assert _frechet(few, y.mean(0), _root(np.cov(y, rowvar=False))) == pytest.approx(theirs, rel=1e-5)


def test_fids_interval_is_that_of_fresh_sets_of_the_same_size(features):
    draw = torch.Generator().manual_seed(1)
    cloud = features[0]
    mean, factor = cloud.mean(0), torch.linalg.cholesky(cloud.T.cov())
    fresh = [by_definition(torch.randn(200, 12, generator=draw) @ factor.T + mean, features[1]) for _ in range(60)]
    found = FID(resamples=60, network=Quarters()).score(*features)
    half = (found["high"] - found["low"]) / 2
    assert half == pytest.approx(1.96 * np.std(fresh), rel=0.4)
    assert found["low"] < found["mean"] < found["high"]  # resampling alone raises FID: its quantiles would not hold it


@pytest.mark.parametrize("metric", [FID, KID])
def test_the_seed_alone_decides_the_interval_and_no_global_state_is_moved(metric, features):
    np.random.seed(4)
    torch.manual_seed(4)
    before = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    measure = metric(resamples=5, network=Quarters())
    one, two, other = (measure.score(*features, seed) for seed in (1, 1, 2))
    assert one == two and one["high"] != other["high"]
    assert np.array_equal(np.random.get_state()[1], before[0]) and torch.equal(torch.random.get_rng_state(), before[1])


def test_kid_of_whole_sets_is_the_unbiased_cubic_kernel_distance(features):
    x, y = (each.double() for each in (features[0][:150], features[1]))
    kernel = lambda a, b: (a @ b.T / 12 + 1) ** 3  # noqa: E731
    within = [(kernel(a, a).sum() - kernel(a, a).diag().sum()) / (150 * 149) for a in (x, y)]
    expected = float(sum(within) - 2 * kernel(x, y).mean())
    found = KID(subsets=3, network=Quarters()).score(x, y)  # a subset is the whole set
    assert found["mean"] == pytest.approx(expected, rel=1e-9)
    assert found["low"] < expected < found["high"]


def test_kid_of_two_halves_of_one_cloud_is_near_zero_unlike_fid(features):
    halves = features[0][:100], features[0][100:]
    found = KID(network=Quarters()).score(*halves)
    assert found["low"] < 0 < found["high"]
    assert FID(network=Quarters()).score(*halves)["low"] > 0


def test_a_set_of_one_image_has_no_distance(features):
    for metric in [FID, KID]:
        with pytest.raises(InputError, match="at least 2 images on each side, 1 given"):
            metric(network=Quarters()).score(features[0][:1], features[1])
        with pytest.raises(InputError, match="none are"):
            metric(network=Quarters()).score(features[0], None)


def test_features_are_those_of_8_bit_pixels():
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
    metric = KID(network=Quarters())
    assert torch.equal(metric.features(image), metric.features(as_saved(image)))
    assert not torch.equal(metric.features(image), Quarters()(image))


def test_statistics_of_a_folder_are_the_mean_and_covariance_of_its_images_whatever_the_batch(folder, built, tmp_path):
    images = torch.stack([from_pil(resize_pil(aligned(name), 64)) for name in sorted(LANDMARKS)])
    expected = Statistics.of(Quarters()(images))
    found = load_statistics(built, "quarters")
    assert found.images == 7 and found.name == "seven faces"
    assert np.allclose(found.mean, expected.mean, rtol=0, atol=1e-6)
    assert np.allclose(found.covariance, expected.covariance, rtol=0, atol=1e-6)
    files = sorted(folder.glob("*.png"))
    again = build_statistics(files, tmp_path / "other.safetensors", Quarters(), "seven faces", size=64, batch_size=7)
    assert np.allclose(again.covariance, found.covariance, rtol=0, atol=1e-6)


def test_fid_to_statistics_is_fid_to_the_features_they_were_made_of(folder, built, features):
    images = torch.stack([from_pil(resize_pil(aligned(name), 64)) for name in sorted(LANDMARKS)])
    to_file, to_hq = FID(str(built), network=Quarters()), FID(network=Quarters())
    assert not describe("fid_to_file", to_file).needs_reference
    assert describe("fid_to_hq", to_hq).needs_reference
    found = to_hq.score(features[0], to_hq.features(images))["mean"]
    assert to_file.score(features[0])["mean"] == pytest.approx(found, rel=1e-4)
    card = to_file.compared_with
    assert (card.name, card.images, card.sha256) == ("seven faces", 7, load_statistics(built, "quarters").sha256)


def refused(call, *words: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in (*words, "lafr fid")), message


def test_statistics_of_another_network_are_refused_by_its_name(built):
    refused(lambda: FID(str(built), network=Thirds()), "'quarters'", "'thirds'")


def test_statistics_of_another_sha256_are_refused_and_those_of_the_pinned_one_taken(built):
    right = load_statistics(built, "quarters").sha256
    assert FID(str(built), sha256=right, network=Quarters()).statistics.sha256 == right
    refused(lambda: FID(str(built), sha256="0" * 64, network=Quarters()), right, "0" * 64)


def test_statistics_made_with_other_weights_of_the_same_network_are_refused(folder, tmp_path):
    one, two = Quarters(), Quarters()
    one.weights, two.weights = (("net.pth", "a" * 64),), (("net.pth", "b" * 64),)
    path = tmp_path / "one.safetensors"
    build_statistics(sorted(folder.glob("*.png")), path, one, "seven faces", size=64)
    FID(str(path), network=one)
    with pytest.raises(InputError, match=r"'net.pth a+'.*'net.pth b+'.*not be FID"):
        FID(str(path), network=two)


def test_missing_and_damaged_statistics_say_how_to_build_them(built, tmp_path):
    refused(lambda: FID(str(tmp_path / "none.safetensors"), network=Quarters()), "none.safetensors", "missing")
    built.write_bytes(built.read_bytes()[:100])
    refused(lambda: FID(str(built), network=Quarters()), "holds no FID statistics")


def test_statistics_half_built_leave_no_file(folder, tmp_path):
    (folder / "zz.png").write_text("no picture")
    with pytest.raises(InputError, match=r"zz\.png"):
        build_statistics(sorted(folder.glob("*.png")), tmp_path / "out" / "s.safetensors", Quarters(), "x", size=64)
    assert not (tmp_path / "out").exists()


def test_without_inceptions_weights_fid_says_how_to_get_them_and_asks_no_network():
    with pytest.raises(InputError, match=r"https://\S+/weights-inception-2015-12-05-6726825d.pth"):
        FID()


@pytest.fixture(scope="module")
def inception_state():
    """Random weights in torch-fidelity's layout, of a spread that keeps the features apart."""
    from unittest.mock import patch

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Theirs

    with patch.object(Theirs, "load_state_dict"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Inception({}).network
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(1))
    return network.state_dict()


@pytest.mark.slow  # sixteen passes through Inception at 299 px
def test_fid_and_kid_of_two_folders_are_torch_fidelitys_own_run(inception_state, folder, tmp_path):
    images = torch.stack([from_pil(resize_pil(aligned(name), 64)) for name in sorted(LANDMARKS)])
    blurred = as_saved(nn.functional.avg_pool2d(images, 5, 1, 2))
    for name, image in zip(sorted(LANDMARKS), blurred, strict=True):
        write_image(image, tmp_path / "restored" / f"{name}.png")
    torch.save(inception_state, tmp_path / "inception.pth")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "restored"),
        input2=str(folder),
        cuda=False,
        fid=True,
        kid=True,
        kid_subset_size=7,
        kid_subsets=2,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        feature_extractor_weights_path=str(tmp_path / "inception.pth"),
    )
    network = Inception(inception_state)
    fid, kid = FID(resamples=2, network=network), KID(subsets=2, resamples=2, network=network)
    restored, hq = fid.features(blurred), fid.features(images)
    found = fid.score(restored, hq)["mean"], kid.score(restored, hq)["mean"]
    assert found[0] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert found[1] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert found[0] > 0 and found[1] > 0


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Run `lafr fid` in an empty folder, with `quarters` in place of Inception."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr("lafr.metrics.distribution.Inception", Quarters)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["lafr fid", *arguments])
        try:
            lafr.commands.fid.command()
        except SystemExit as stop:
            return str(stop.code)
        return capsys.readouterr().out

    return run


def test_the_command_builds_statistics_of_a_seeded_part_and_prints_their_sha256(script, folder):
    out = script(f"input={folder}", "output=a b.safetensors", "count=5", "name=five", "resolution=64", "device=cpu")
    found = load_statistics("a b.safetensors", "quarters")
    assert (found.images, found.name) == (5, "five")
    assert found.sha256 in out and "a b.safetensors" in out
    script(f"input={folder}", "output=again.safetensors", "count=5", "name=five", "resolution=64", "device=cpu")
    script(f"input={folder}", "output=other.safetensors", "count=5", "name=five", "resolution=64", "seed=1")
    assert load_statistics("again.safetensors", "quarters").sha256 == found.sha256
    assert not np.array_equal(load_statistics("other.safetensors", "quarters").mean, found.mean)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["input=nowhere"], "nowhere"), (["input={folder}", "count=8"], "count.*7.*8"), (["count=3"], "input")],
)
def test_wrong_input_to_the_command_is_one_line_and_writes_nothing(script, folder, arguments, word):
    message = script(*(each.format(folder=folder) for each in arguments), "output=s.safetensors")
    assert message.startswith("error: ") and "\n" not in message
    assert re.search(word, message)
    assert list(Path().iterdir()) == []
