"""Presets of the trainer, launch files for several processes, the SLURM launcher: each is read by what reads it."""

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lafr.commands.processes import join_tasks
from lafr.data.stream import PairStream
from lafr.errors import InputError
from lafr.training.loop import train
from lafr.training.preflight import TIGHT

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PRESETS = ("gpu12", "gpu24", "gpu80")
LAUNCHES = {
    "one_gpu": (DistributedType.NO, 1, 1),
    "multi_gpu": (DistributedType.MULTI_GPU, 1, 4),
    "multi_node": (DistributedType.MULTI_GPU, 2, 16),
}


@pytest.fixture(scope="module", autouse=True)
def configs():
    with initialize_config_dir(str(CONFIGS), version_base=None):
        yield


@cache
def composed(*overrides):
    return OmegaConf.to_container(compose("train", ["run_name=x", *overrides]), resolve=True)


def test_every_trainer_file_is_the_default_or_a_preset_that_is_tested_here():
    assert {path.stem for path in (CONFIGS / "trainer").glob("*.yaml")} == {"default", "cached", *PRESETS}
    assert {path.stem for path in (CONFIGS / "accelerate").glob("*.yaml")} == LAUNCHES.keys()


def test_every_preset_takes_effect_with_every_experiment():
    settings = ("mixed_precision", "accumulation", "gradient_checkpointing", "num_workers", "cache_latents")
    experiments = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
    for name in PRESETS:
        preset = composed(f"trainer={name}")["trainer"]
        for experiment in experiments:
            arrived = composed(f"+experiment={experiment}", f"trainer={name}", f"run_name={experiment}")["trainer"]
            assert {key: arrived[key] for key in settings} == {key: preset[key] for key in settings}, experiment


def test_a_preset_changes_how_a_run_is_executed_and_nothing_else():
    plain = composed()
    for name in PRESETS:
        preset = composed(f"trainer={name}")
        assert preset["trainer"].keys() == plain["trainer"].keys()
        changed = {key for key, value in preset["trainer"].items() if value != plain["trainer"][key]}
        assert changed <= {"mixed_precision", "accumulation", "gradient_checkpointing", "num_workers", "cache_latents"}
        assert preset | {"trainer": None} == plain | {"trainer": None}


def test_a_preset_shares_a_stages_batch_without_rest_and_holds_more_faces_on_a_larger_gpu():
    presets = [composed(f"trainer={name}") for name in PRESETS]
    accumulation = [preset["trainer"]["accumulation"] for preset in presets]
    assert accumulation == sorted(accumulation, reverse=True) and len(set(accumulation)) == len(PRESETS)
    for preset, parts in zip(presets, accumulation, strict=True):
        for stage in preset["stages"]:
            loader = PairStream([None], None, 0).loader(0, 1, preset["stage"][stage]["batch_size"], parts)
            assert len(loader) == parts


def test_a_presets_comment_says_the_counted_memory_of_the_papers_loss_and_it_fits_the_card():
    record = json.loads((CONFIGS.parent / "results" / "benchmarks" / "losses.json").read_text(encoding="utf-8"))
    found = record["losses"]["multilevel"]
    for name in PRESETS:
        text = " ".join((CONFIGS / "trainer" / f"{name}.yaml").read_text(encoding="utf-8").replace("#", " ").split())
        step, validation = found["peak_gb"][name], found["validation_gb"][name]
        assert f"Counted: {step:.1f} GB (validation {validation:.1f}" in text, name
        assert max(step, validation) < TIGHT * record["cards_gb"][name] and name == f"gpu{record['cards_gb'][name]}"


def test_a_launch_file_is_read_by_accelerates_own_launcher():
    for name, (kind, machines, processes) in LAUNCHES.items():
        path = CONFIGS / "accelerate" / f"{name}.yaml"
        config = load_config_from_file(str(path))
        assert (config.distributed_type, config.num_machines, config.num_processes) == (kind, machines, processes)
        assert config.mixed_precision is None  # the trainer's is meant
        parser = launch_command_parser()
        arguments = parser.parse_args(["--config_file", str(path), "scripts/train.py", "+experiment=smoke"])
        arguments, _, _ = _validate_launch_command(arguments)
        assert arguments.training_script_args == ["+experiment=smoke"] and arguments.num_processes == processes
        assert bool(arguments.multi_gpu) == (kind == DistributedType.MULTI_GPU)


def test_training_on_shards_is_refused_before_anything_is_written(accelerator, monkeypatch, tmp_path):
    sharded = accelerator()
    monkeypatch.setattr(type(sharded), "distributed_type", DistributedType.FSDP)
    with pytest.raises(InputError, match=r"distributed_type .*FSDP"):
        train(None, None, sharded, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_launcher_for_slurm_sets_what_the_plugin_knows_and_runs_do_not_need_it():
    own = OmegaConf.to_container(OmegaConf.load(CONFIGS / "hydra" / "launcher" / "slurm.yaml"))
    assert own.pop("defaults") == ["submitit_slurm"]
    plain = compose("train", ["run_name=x"], return_hydra_config=True)
    assert plain.hydra.runtime.choices["hydra/launcher"] == "basic"
    if importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher"):
        arguments = ["run_name=x", "hydra/launcher=slurm", "hydra.launcher.partition=short"]
        launcher = compose("train", arguments, return_hydra_config=True).hydra.launcher
        assert launcher._target_.endswith("submitit_launcher.SlurmLauncher") and launcher.partition == "short"
        assert {key: launcher[key] for key in own} == own
    else:
        assert own["max_num_timeout"] > 0 and own["tasks_per_node"] == 1


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_job_of_several_tasks_is_one_run_of_as_many_processes(monkeypatch, tasks):
    exported = []
    helpers = SimpleNamespace(
        TorchDistributedEnvironment=lambda: SimpleNamespace(export=lambda **how: exported.append(how))
    )
    job = SimpleNamespace(JobEnvironment=lambda: SimpleNamespace(num_tasks=tasks), helpers=helpers)
    monkeypatch.setitem(sys.modules, "submitit", job)
    join_tasks()
    assert len(exported) == (tasks > 1)
