"""Every experiment and benchmark composes, and every `_target_` in it can be called as written."""

import inspect
import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import nn

from lafr.commands.train import LOOP
from lafr.networks import NETWORKS
from lafr.training.loop import train
from lafr.training.record import FREE, REPORTED

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
BENCHMARKS = sorted(path.stem for path in (CONFIGS / "benchmark").glob("*.yaml"))
PROTOCOLS = sorted(path.stem for path in (CONFIGS / "protocol").glob("*.yaml"))
DATASETS = sorted(path.stem for path in (CONFIGS / "dataset").glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def configs():
    with initialize_config_dir(str(CONFIGS), version_base=None):
        yield


@cache
def composed(name: str, *overrides: str) -> dict:
    return OmegaConf.to_container(compose(name, list(overrides)), resolve=True)


def resolved(name: str, *overrides: str) -> dict:
    return deepcopy(composed(name, *overrides))


def targets(node, where: str = ""):
    """Yield (place, target, arguments, is partial) of every node with a `_target_`."""
    if isinstance(node, dict):
        if "_target_" in node:
            arguments = {k: v for k, v in node.items() if not k.startswith("_")}
            yield where, node["_target_"], arguments, node.get("_partial_", False)
        for key, value in node.items():
            yield from targets(value, f"{where}.{key}")
    elif isinstance(node, list):
        for value in node:
            yield from targets(value, where)


def require_callable(config: dict, given_later: dict[str, set[str]]) -> int:
    """Bind every target's arguments to its signature, with those that a script adds when it calls; return the count."""
    count = 0
    for where, target, arguments, partial in targets(config):
        signature = inspect.signature(get_object(target))
        bind = signature.bind_partial if partial else signature.bind
        try:
            bind(**arguments, **dict.fromkeys(given_later.get(where, ())))
        except TypeError as error:
            pytest.fail(f"{where}: {target}: {error}")
        count += 1
    return count


def test_the_numbers_of_experiments_and_benchmarks_are_known():
    assert len(EXPERIMENTS) == 26
    assert len(BENCHMARKS) == 11
    assert len(DATASETS) == 11


def test_an_experiment_composes_and_can_be_built():
    for name in EXPERIMENTS:
        config = resolved("train", f"+experiment={name}")
        assert config["run_name"] == name
        assert set(config["stages"]) <= set(config["stage"])
        # a script adds to a stage's partial objective the model, to its stream faces, degradation and seed
        given = {f".stage.{stage}.stream": {"faces", "degradation", "seed"} for stage in config["stage"]}
        # data, degradation, model, and for each of nine stages an objective
        assert require_callable(config, given) >= 12
        for stage, settings in config["stage"].items():
            rest = {k: v for k, v in settings.items() if k not in ("objective", "stream")}
            given = dict.fromkeys(("objective", "pairs", "accelerator", "folder", "validate"), None) | {"name": stage}
            given |= {key: config["trainer"][key] for key in LOOP}
            inspect.signature(train).bind(**given, **rest)


def test_an_experiment_file_asks_a_question_and_carries_its_command():
    for name in EXPERIMENTS:
        package, *text = (CONFIGS / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comments = [line for line in text if line.startswith("#")]
        assert package == "# @package _global_"
        assert "?" in comments[0]
        assert comments[1] == f"#   python scripts/train.py +experiment={name}"


def test_a_benchmark_composes_and_can_be_built():
    for name in BENCHMARKS:
        config = resolved("eval", f"benchmark={name}")
        assert config["benchmark"]["name"] == config["benchmark"]["build"]["name"] == name
        later = {"resolution"}
        if not config["benchmark"]["build"]["_target_"].endswith(("PairedBenchmark", "pair_benchmark")):
            later |= {"degradation"}
        # build, degradation and the metrics
        assert require_callable(config, {".benchmark.build": later}) == 2 + len(config["metrics"])


def test_the_sets_at_512_px_name_their_metrics_and_their_model_and_the_others_keep_the_miniature():
    full, mini = (list(resolved("eval", "benchmark=mini", f"metrics={name}")["metrics"]) for name in ("full", "mini"))
    for name in BENCHMARKS:
        config = resolved("eval", f"benchmark={name}")
        large = config["benchmark"].get("resolution") == 512
        assert large == (name not in ("mini", "london", "val", "pair", "synthetic_test"))
        assert list(config["metrics"]) == (full if large else mini), name
        assert config["model"]["folder"] == ("runs/ffhq_0.9pct/model" if large else "mini")
        given = resolved("eval", f"benchmark={name}", "metrics=mini", "model.folder=mine")
        assert (list(given["metrics"]), given["model"]["folder"]) == (mini, "mine")
    assert "ffhq_0.9pct" in EXPERIMENTS


def test_a_folder_reaches_every_benchmark_that_needs_one():
    for name in BENCHMARKS:
        root = resolved("eval", f"benchmark={name}", "data.root=somewhere")["benchmark"]["build"].get("root")
        assert root == (None if name in ("mini", "pair") else "somewhere")
        assert resolved("eval", f"benchmark={name}")["benchmark"]["build"].get("root") is None


def test_two_folders_reach_the_benchmark_of_any_pair():
    build = resolved("eval", "benchmark=pair", "data.lq=here", "data.hq=there")["benchmark"]["build"]
    assert (build["lq"], build["hq"]) == ("here", "there")


def test_only_the_two_celeba_tests_are_told_apart_by_how_degraded_they_are():
    severities = {name: resolved("eval", f"benchmark={name}")["benchmark"].get("severity") for name in BENCHMARKS}
    assert {name: s for name, s in severities.items() if s} == {"celeba_test": "severe", "celeba_test_mild": "mild"}


def test_every_metric_that_a_protocol_names_is_defined_once_or_alike():
    for name in PROTOCOLS:
        protocol = resolved("eval", "benchmark=mini", f"protocol={name}")["protocol"]
        assert protocol["name"] == name
        files = [OmegaConf.to_container(OmegaConf.load(path)) for path in (CONFIGS / "metrics").glob("*.yaml")]
        for metric in protocol["metrics"]:
            definitions = [file[metric] for file in files if metric in file]
            assert definitions and all(d == definitions[0] for d in definitions), metric


def test_the_page_composes_and_can_be_built():
    assert require_callable(resolved("demo"), {}) == 3


def test_a_dataset_composes_can_be_made_and_carries_its_command():
    for name in DATASETS:
        config = resolved("prepare_data", f"dataset={name}", *(["output=data/folder"] if name == "folder" else []))
        assert config["dataset"]["name"] == name
        assert require_callable(config, {}) >= 2  # it and the sheet's degradation
        package, _, command = (CONFIGS / "dataset" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:3]
        assert package == "# @package _global_"
        assert command.startswith(f"#   python scripts/prepare_data.py dataset={name} source=")


def test_a_set_is_prepared_where_and_as_large_as_it_is_read():
    for name in set(BENCHMARKS) & set(DATASETS):
        benchmark, dataset = (
            resolved("eval", f"benchmark={name}")["benchmark"],
            resolved("prepare_data", f"dataset={name}"),
        )
        assert dataset["output"] == f"data/{name}"  # PairedBenchmark's own place
        assert (dataset["count"], dataset["resolution"]) == (
            benchmark["build"]["count"],
            benchmark.get("resolution", 512),
        )
    ffhq = resolved("train", "+experiment=ffhq_0.9pct")["data"]
    for name in ("ffhq", "ffhq_600"):
        assert resolved("prepare_data", f"dataset={name}")["output"] == ffhq["root"]
    assert resolved("prepare_data", "dataset=ffhq_600")["only"] == [ffhq["file_list"], ffhq["validation_list"]]


def test_without_a_dataset_prepare_data_is_what_quickstart_and_tables_expect():
    config = resolved("prepare_data", "output=.")
    assert "dataset" not in config
    assert {key: config[key] for key in ("input", "output", "resolution", "seed")} == {
        "input": None,
        "output": ".",
        "resolution": 128,
        "seed": 0,
    }
    assert config["degradation"] == resolved("train", "run_name=x", "degradation=mini")["degradation"]


def test_the_controls_differ_from_the_miniature_in_the_adapter_alone():
    mini = resolved("train", "+experiment=mini")
    for name in ("mini_conv", "mini_none", "mini_paper"):
        control = resolved("train", f"+experiment={name}")
        for config in (mini, control):
            config["model"]["build"].pop("adapter", None)
            config["stage"]["latents"]["objective"].pop("train_extractor", None)  # the paper's adapter is frozen there,
            for stage in ("codebook", "alignment"):  # and so it has its steps before
                config["stage"][stage].pop("max_steps", None)
        different = {key for key in mini if mini[key] != control[key]}
        assert different == {"adapter", "run_name", "run_dir"}, name


def test_the_conv_control_is_as_large_as_the_codebook_adapter_and_residual_codes_are_as_many():
    sizes, codes = {}, {}
    for name in ("codebook", "conv", "residual_codebook"):
        adapter = instantiate(compose("train", [f"adapter={name}", "run_name=x"]).adapter)
        sizes[name] = adapter.size()
        codes[name] = sum(layer.codebook_size for layer in adapter.quantizer.layers)
    assert sizes["conv"] == pytest.approx(sizes["codebook"], rel=0.03)
    assert sizes["residual_codebook"] == pytest.approx(sizes["codebook"], rel=0.03)
    assert codes["residual_codebook"] == codes["codebook"] == 1024


def test_rows_of_the_table_at_full_size_differ_in_the_alignment_or_in_the_faces_alone():
    full = resolved("train", "+experiment=ffhq_0.9pct")
    for name in EXPERIMENTS:
        if name.startswith("ffhq_") and name != "ffhq_0.9pct":
            own = resolved("train", f"+experiment={name}")
            own["model"]["build"].pop("adapter"), own["stage"].pop("encoder", None)
            plain = deepcopy(full)
            plain["model"]["build"].pop("adapter")
            different = {key for key in own if own[key] != plain[key]} - {"adapter", "run_name", "run_dir", "stages"}
            assert different <= {"data"} if name.endswith("pct") else different <= {"stage"}, name
    sizes = {}
    for name in ("sd", "sd_conv", "sd_code_prediction", "sd_residual"):
        sizes[name] = instantiate(compose("train", [f"adapter={name}", "run_name=x"]).adapter).size()
    assert all(size == pytest.approx(sizes["sd"], rel=0.02) for size in sizes.values())


def test_training_and_scoring_use_different_trunks_and_the_table_says_which():
    trained = resolved("train", "+experiment=mini")["stage"]["multilevel"]["objective"]["loss"]
    trained = trained["terms"]["perceptual"]["trunk"]
    metrics = resolved("eval", "benchmark=mini")["metrics"]
    distances = [name for name in metrics if name.startswith("st_lpips")]
    assert all(metrics[name]["trunk"] == name.rsplit("_", 1)[1] for name in distances)
    assert metrics[distances[0]]["trunk"] != trained  # the first one ranks the faces


def test_no_experiment_trains_or_validates_on_a_test_set():
    for name in EXPERIMENTS:
        data = resolved("train", f"+experiment={name}")["data"]
        folders = data.get("folders") or []
        assert not {"london"} & set(folders)
        if data.get("root") == "../shared/faces":
            assert folders, f"{name} would train on every folder, the test set's too"


def test_what_may_change_in_a_started_run_are_settings_of_the_trainer():
    config = resolved("train", "run_name=x")
    for name in (*FREE, *REPORTED):
        part, _, key = name.partition(".")
        assert key.startswith("build.") or (key in config[part] if key else part in config), name


def test_no_config_holds_a_path_of_one_machine():
    for path in CONFIGS.rglob("*.yaml"):
        assert not re.search(r"(?<![\w.$}])/(home|work|root|tmp|Users)/", path.read_text(encoding="utf-8")), path


def test_both_multi_level_losses_have_the_same_terms_and_the_networks_that_they_name_exist():
    mini, full = (resolved("train", "run_name=x", f"loss={name}")["loss"] for name in ("multilevel_mini", "multilevel"))
    assert set(mini["terms"]) ^ set(full["terms"]) == {"pixel_l1", "pixel_mse"}
    assert all(loss["terms"].keys() == loss["weights"].keys() for loss in (mini, full))
    for loss, folder in ((mini, "mini"), (full, "")):
        named = {term["network"]["name"] for term in loss["terms"].values() if "network" in term}
        assert named <= NETWORKS.keys() and len(named) == 3
        assert all(name.startswith("mini_") == bool(folder) for name in named)


def test_the_losses_of_other_networks_change_one_level_alone():
    full = resolved("train", "run_name=x", "loss=multilevel")["loss"]
    for name, term, network in (
        ("multilevel_clip", "identity", "clip"),
        ("multilevel_insightface", "identity", "insightface_r50"),
        ("multilevel_dists", "perceptual", "dists"),
        ("multilevel_edge_dists", "perceptual", "dists"),
    ):
        loss = resolved("train", "run_name=x", f"loss={name}")["loss"]
        given = loss["terms"][term].pop("network")
        assert (given["_target_"], given["name"]) == ("lafr.networks.load", network)
        inspect.signature(get_object(NETWORKS[network]).from_pretrained).bind(
            **{key: value for key, value in given.items() if key not in ("_target_", "name")}
        )
        kind = get_object(loss["terms"][term].pop("_target_"))
        assert not loss["terms"][term] and kind(nn.Identity())
        assert {key: value for key, value in loss["terms"].items() if key != term} == {
            key: value for key, value in full["terms"].items() if key != term
        }
        assert loss["weights"].keys() == full["weights"].keys() and loss["weights"][term] > 0


def test_the_full_size_residual_variant_differs_in_the_adapters_codes_alone():
    paper, ours = (resolved("train", f"+experiment=ffhq_0.9pct{end}") for end in ("", "_residual"))
    adapters = [config["model"]["build"].pop("adapter") for config in (paper, ours)]
    assert {key for key in paper if paper[key] != ours[key]} == {"run_name", "run_dir", "adapter"}
    assert adapters[1].pop("num_residual") * adapters[1].pop("num_codes") == adapters[0].pop("num_codes") == 1024
    assert (adapters[0].pop("kind"), adapters[1].pop("kind")) == ("codebook", "residual_codebook")
    assert adapters[0] == adapters[1]


def test_every_network_that_a_config_or_a_metric_names_can_be_imported():
    for path in NETWORKS.values():
        assert callable(get_object(path).from_pretrained), path


def test_identity_is_scored_by_networks_that_have_nothing_in_common_with_the_trained_one():
    trained = get_object(NETWORKS["mini_recogniser"]).origins
    for name, metric in resolved("eval", "benchmark=mini")["metrics"].items():
        if name.startswith("identity"):
            assert not trained & get_object(NETWORKS[metric["network"]]).origins


def test_no_plain_setting_of_a_command_bears_the_name_of_a_group():
    # `model=FOLDER` would choose a file of configs/model/, and be refused before the command sees it
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    for path in sorted(CONFIGS.glob("*.yaml")):
        config = OmegaConf.load(path)
        chosen = {key.split()[-1].split("@")[0] for entry in config.defaults if entry != "_self_" for key in entry}
        plain = {key for key, value in OmegaConf.to_container(config).items() if not isinstance(value, dict)}
        assert not plain & (groups - chosen), path.name
