"""A metric's card: what makes two numbers comparable, true of the metric that computed them."""

import dataclasses
import importlib.metadata
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from torch import nn

import lafr
from lafr.errors import InputError
from lafr.metrics import HIGHER, LOWER, METRICS, describe, register
from lafr.metrics.card import FILES, Card, card_of, hashes_of_network
from lafr.metrics.distribution import FID
from lafr.metrics.fidelity import psnr_rgb
from lafr.metrics.niqe import NIQE
from lafr.networks import NETWORKS
from lafr.weights import EXTERNAL, FOLDER_VARIABLE, mini_folder, sha256

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def configured(name: str):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose(f"metrics/{name}").metrics


@pytest.fixture(scope="module")
def mini():
    """The miniature's metrics and their cards."""
    metrics = {name: instantiate(config, _convert_="all") for name, config in configured("mini").items()}
    return metrics, {name: card_of(name, metric) for name, metric in metrics.items()}


def test_every_configured_metric_has_facts_and_a_direction():
    names = set(configured("mini")) | set(configured("full"))
    assert len(names) == 31
    assert names <= METRICS.keys()
    assert all(record.direction in (HIGHER, LOWER) and record.definition for record in METRICS.values())
    assert len({record.label for record in METRICS.values()}) == len(METRICS)


def test_a_record_names_what_its_yaml_builds_and_networks_that_are_known():
    for group in ("mini", "full"):
        for name, config in configured(group).items():
            assert METRICS[name].implementation == config._target_
            assert set(METRICS[name].networks) <= NETWORKS.keys() | EXTERNAL.keys()
            assert METRICS[name].needs_reference == describe(name, get_object(config._target_)).needs_reference or (
                "statistics" in config
            )


def test_a_metric_that_measures_error_falls_and_one_that_measures_likeness_rises():
    falls = {name for name, record in METRICS.items() if record.direction == LOWER}
    assert falls == {
        name
        for name in METRICS
        if name.startswith(
            (
                "lpips",
                "st_lpips",
                "dists",
                "fid",
                "kid",
                "niqe",
                "deg",
                "ida",
                "lmd",
                "identity_distance",
                "pose",
                "expression",
                "ntire26_faces_below",
            )
        )
    }


def test_the_cards_name_the_hashes_of_the_files_that_were_read(mini):
    cards = {name: dict(card.weights) for name, card in mini[1].items()}
    assert cards["psnr_rgb"] == {}
    assert cards["st_lpips_vgg"] == {"vgg_shift_tolerant.pth": EXTERNAL["st_lpips_vgg"].sha256}
    assert cards["identity_cos_sface"] == {EXTERNAL["sface"].name: EXTERNAL["sface"].sha256}
    assert cards["lmd_68"] == {EXTERNAL["dlib_68_points"].name: EXTERNAL["dlib_68_points"].sha256}
    assert cards["identity_distance_dlib"].keys() == {EXTERNAL[name].name for name in ("dlib_resnet", "dlib_5_points")}
    shipped = mini_folder() / "networks" / "recogniser.safetensors"
    assert hashes_of_network("mini_recogniser") == (("recogniser.safetensors", sha256(shipped)),)


def test_every_network_that_a_metric_may_look_through_has_its_files_on_record():
    for name in NETWORKS:
        if not name.startswith("mini_") and name != "clip":  # shipped; a folder or a hub's cache
            assert all(file in EXTERNAL for file in FILES.get(name, (name,))), name


def test_a_card_says_who_does_the_work_and_in_which_version(mini):
    assert (mini[1]["psnr_rgb"].implementation, mini[1]["psnr_rgb"].version) == (
        "lafr.metrics.fidelity.psnr_rgb",
        lafr.__version__,
    )
    packages = {"lpips_vgg": "lpips", "dists": "torchmetrics", "fid_hq": "torch-fidelity", "musiq": "pyiqa"}
    for name, package in packages.items():
        kind = get_object(configured("full")[name]._target_)
        card = card_of(name, kind.__new__(kind))
        assert card.implementation == package
        try:
            assert card.version == importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            assert card.version == ""


def test_a_card_is_json_and_comes_back_whole(mini):
    class Quarters(nn.Module):
        name = "quarters"

    for name, metric in (*mini[0].items(), ("fid_hq", FID(network=Quarters()))):
        card = card_of(name, metric)
        record = json.loads(json.dumps(dataclasses.asdict(card)))
        assert record.keys() == {field.name for field in dataclasses.fields(Card)}
        assert record["name"] == name and record["digits"] >= 2
    assert record["reference"] == {"name": "the set's HQ images", "images": None, "sha256": None, "resized": None}


def test_no_reference_metrics_are_those_that_score_real_photographs():
    alone = set()
    for name, config in configured("full").items():
        kind = get_object(config._target_)
        needs = card_of(name, kind).needs_reference if not config.get("statistics") else False
        alone |= set() if needs else {name}
    assert alone == {
        "niqe",
        "niqe_pyiqa",
        "musiq",
        "maniqa",
        "clipiqa",
        "topiq_face",
        "fid_ffhq",
        "fid_ffhq_50k",
        "identity_lq_adaface",
    }


@pytest.fixture
def registered():
    before = dict(METRICS)
    yield METRICS
    METRICS.clear()
    METRICS.update(before)


def test_a_registered_metric_is_known_by_its_name_and_replaces_no_other(registered):
    @register("mae", label="MAE", direction=LOWER, digits=2, needs_reference=False)
    def mean_error(image, hq):
        """Mean absolute error.

        More.
        """

    card = card_of("mae", partial(mean_error))
    assert (card.label, card.direction, card.digits, card.needs_reference) == ("MAE", LOWER, 2, False)
    assert card.definition == METRICS["mae"].definition == "Mean absolute error."
    with pytest.raises(InputError, match="psnr_rgb"):
        register("psnr_rgb")(mean_error)
    with pytest.raises(InputError, match="direction"):
        register("other", direction="up")(mean_error)
    assert METRICS["psnr_rgb"].implementation == "lafr.metrics.fidelity.psnr_rgb" and "other" not in METRICS


def test_another_setting_of_a_class_of_ours_keeps_what_its_code_implies():
    record = describe("niqe_of_my_own_photographs", NIQE((np.zeros(36), np.eye(36))))
    assert (record.needs_reference, record.min_side, record.direction) == (False, 192, LOWER)
    assert record.label == record.name and record.quantity == "" and record.printed == ()


def test_a_metric_of_the_users_own_has_a_card_too():
    def mean_error(image, hq):
        """Mean absolute error in 8-bit levels.

        More.
        """

    card = card_of("mae", partial(mean_error))
    assert (card.definition, card.direction, card.needs_reference) == ("Mean absolute error in 8-bit levels.", "", True)
    assert card.implementation.endswith("mean_error")
    assert card_of("psnr_rgb", psnr_rgb) == card_of("psnr_rgb", partial(psnr_rgb))


def test_what_cannot_be_measured_here_says_why_in_one_line_and_asks_no_network(monkeypatch):
    def refuse(*arguments, **_):
        pytest.fail(f"asked for the network: {arguments}")

    for place in ("socket.socket.connect", "socket.create_connection", "socket.getaddrinfo"):
        monkeypatch.setattr(place, refuse)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr("lafr.networks.load", lafr.networks.load.__wrapped__)  # not a copy that another test has made
    measured = set()
    for name, config in configured("full").items():
        try:
            metric = instantiate(config, _convert_="all")
        except InstantiationException as error:
            assert isinstance(error.__cause__, InputError), error
            message = str(error.__cause__)
            assert "\n" not in message
            assert any(word in message for word in ("download https://", "pip install", "build it")), message
        else:
            measured.add(name)
            assert callable(getattr(metric, "features", metric))
    assert {"psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y"} <= measured
    assert not measured & {"lpips_vgg", "fid_hq", "fid_ffhq", "niqe", "musiq", "deg", "lmd"}
    assert torch.is_tensor(psnr_rgb(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)))
