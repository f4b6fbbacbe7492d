"""What an evaluation says before it restores anything: what is missing, and how to get it."""

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import lafr.commands.evaluate
from lafr.errors import InputError
from lafr.evaluation.plan import Plan
from lafr.evaluation.run import MissingError, build_metrics, evaluate, listed

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Return the plan of a command line, in an empty folder on a machine without downloaded weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAFR_WEIGHTS", raising=False)

    def plan(*overrides: str) -> Plan:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            return lafr.commands.evaluate.plan_from_config(compose("eval", list(overrides)))

    return plan


def test_a_missing_model_and_a_missing_set_are_named_in_one_message_with_both_ways_out(planned):
    both = planned("benchmark=celeba_test")
    with pytest.raises(MissingError) as error:
        evaluate(both)
    said = str(error.value)
    for words in (
        "'runs/ffhq_0.9pct/model'",
        "+experiment=ffhq_0.9pct",
        "model.folder=",
        "'data/celeba_test/lq'",
        "dataset=celeba_test",
        "data.root=",
    ):
        assert words in said
    assert "128" not in said and len(said) < 600
    assert list(Path().rglob("*")) == []


def test_a_model_of_the_users_own_that_is_missing_is_not_said_to_be_trained(planned):
    with pytest.raises(InputError) as error:
        evaluate(planned("benchmark=celeba_test", "model.folder=mine"))
    assert "'mine'" in str(error.value) and "ffhq" not in str(error.value)


def test_the_miniature_is_too_small_for_the_papers_set_and_the_set_is_not_to_be_made_smaller(planned):
    with pytest.raises(InputError) as error:
        evaluate(planned("benchmark=celeba_test", "model.folder=mini"))
    said = str(error.value)
    assert "512 px" in said and "'mini' restores 128 px" in said and "resolution" not in said


def test_what_cannot_be_measured_is_said_first_a_line_for_each_reason(planned):
    metrics = planned("benchmark=mini", "metrics=full")
    _, not_measured = build_metrics(metrics, 512, has_truth=True)
    first, *lines = listed(not_measured, 24).splitlines()
    assert f"{len(not_measured)} of 24" in first
    named = [name for line in lines for name in line.partition(":")[0].strip().split(", ")]
    assert sorted(named) == sorted(not_measured) and len(lines) < len(named)
    assert any(line.startswith("  deg, deg_vqfr, ida_rad: ") and "resnet18_110.pth" in line for line in lines)

    said = []
    with pytest.raises(MissingError):
        evaluate(planned("benchmark=mini", "protocol=osdface"), notify=said.append)
    assert len(said) == 1 and "lpips_alex" in said[0] and not Path("runs").exists()


def test_the_definitions_are_explained_without_weights_without_faces_and_without_a_benchmark(
    planned, monkeypatch, capsys
):
    for arguments in (
        ["benchmark=mini", "protocol=osdface", "explain=true"],
        ["benchmark=celeba_test", "--explain"],
        ["protocol=osdface", "explain=true"],
    ):
        monkeypatch.setattr(sys, "argv", ["lafr eval", *arguments])
        lafr.commands.evaluate.command()
        out = capsys.readouterr().out
        assert "drops pairs under 1 degree" in " ".join(out.split()) and "Nothing was measured" in out
    assert OmegaConf.is_config(compose_nothing()) and not Path("runs").exists()


def compose_nothing():
    """Return a configuration composed after the command: it leaves Hydra as it found it."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("eval", ["benchmark=mini"])


def test_a_missing_set_and_a_wrong_number_are_told_before_the_model_is_loaded(planned, monkeypatch):
    def loaded(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("lafr.evaluation.run.load_model", loaded)
    with pytest.raises(MissingError, match="lq must be"):
        evaluate(planned("benchmark=pair"))
    for wrong in ("batch_size=0", "seed=-1"):
        with pytest.raises(InputError, match=wrong.partition("=")[0]):
            planned("benchmark=pair", wrong)
