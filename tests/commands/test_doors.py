"""Each command spells the parameters of an error message in its own words, and the words are keys that exist."""

import argparse
import ast
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lafr.commands import paper, reproduce, restore
from lafr.commands.doors import HYDRA_KEYS, OPTIONS, Parser, as_hydra, as_option, one_line, one_line_errors
from lafr.errors import InputError, setting

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
# parameters that no command sets by one key: Python's spelling serves
PYTHON_ONLY = {"direction", "distributed_type", "family", "op", "output_type", "result", "smoothing", "tile", "trunk"}


def keys_of(node, prefix: str = ""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from keys_of(value, f"{prefix}{key}.")


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every key that a configuration file sets, its group in front; a stage's name stands as NAME."""
    found = {"model.build.sha256", "stage.NAME.monitor", "stage.NAME.patience"}  # optional: added by `+`
    for path in CONFIGS.rglob("*.yaml"):
        group = path.parent.name
        whole = group in ("configs", "dataset")  # `@package _global_`
        found.add(group)
        prefix = "" if whole else "stage.NAME." if group == "stage" else f"{group}."
        found |= set(keys_of(OmegaConf.to_container(OmegaConf.load(path)), prefix))
    return found


def named_parameters() -> dict[str, str]:
    """Return parameter -> file, of every `InputError(name, value, ...)` and `setting(name)` outside the commands."""
    found = {}
    for path in (ROOT / "lafr").rglob("*.py"):
        if path.parent.name == "commands":  # they know their own options
            continue
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args):
                continue
            names = call.func.id == "setting" or (call.func.id == "InputError" and len(call.args) > 1)
            if names and isinstance(call.args[0], ast.Constant):
                found[call.args[0].value] = str(path.relative_to(ROOT))
    return found


def test_every_parameter_that_an_error_names_is_a_key_or_an_option(known):
    of_paper = argparse.ArgumentParser()
    paper.add_arguments(of_paper)
    options = {action.dest for parser in (restore.parser(), of_paper) for action in parser._actions}
    lost = {
        name: path
        for name, path in named_parameters().items()
        if as_hydra(name) not in known and OPTIONS.get(name, name) not in options and name not in PYTHON_ONLY
    }
    assert lost == {}
    assert {name: key for name, key in HYDRA_KEYS.items() if key not in known} == {}


def test_a_remedy_names_the_command_that_its_user_has(monkeypatch):
    error = InputError("it is missing: python scripts/prepare_data.py dataset=x, python scripts/train.py +experiment=y")
    monkeypatch.setattr("sys.argv", ["scripts/eval.py"])
    assert "python scripts/prepare_data.py dataset=x" in one_line(error, as_hydra)
    monkeypatch.setattr("sys.argv", ["lafr eval"])
    assert one_line(error, as_hydra) == "it is missing: lafr prepare dataset=x, lafr train +experiment=y"


def test_a_message_is_spelled_as_its_door_spells():
    error = InputError("decode_crop", 3, "at least 4", f"or give {setting('decode_crop', None)}")
    assert (
        one_line(error, as_hydra) == "trainer.decode_crop must be at least 4, got 3; or give trainer.decode_crop=null"
    )
    assert str(error) == "decode_crop must be at least 4, got 3; or give decode_crop=None"
    named = setting("force", True), setting("upscale", 2), setting("Restorer.folder", "FOLDER"), setting("batch_size")
    error = InputError(", ".join(named))
    option = as_option(restore.parser())
    assert error.spelled(option) == "--force, --upscale 2, --model FOLDER, --batch-size"
    assert error.spelled(as_hydra) == "force=true, upscale=2, model.folder=FOLDER, batch_size"
    assert str(error) == "force=True, upscale=2, folder='FOLDER', batch_size"


def test_arguments_of_other_commands_are_split_as_a_shell_does_and_half_a_quotation_is_one_line(capsys):
    for command in (paper, reproduce):
        parser = Parser("")
        command.add_arguments(parser)
        given = parser.parse_args(["1", "--train", "trainer=gpu24 'run_dir=a b'"])
        assert (given.train, given.eval) == (["trainer=gpu24", "run_dir=a b"], [])
        with pytest.raises(SystemExit):
            parser.parse_args(["1", "--train", "'run_dir=a b"])
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "--train" in said and "'run_dir=a b" in said


def test_too_little_memory_of_a_gpu_is_one_line_and_another_error_of_the_program_keeps_its_traceback():
    text = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 12.00 GiB of which ..."
    with pytest.raises(SystemExit) as ended, one_line_errors(as_hydra):
        raise torch.OutOfMemoryError(text)
    assert str(ended.value).startswith("error: CUDA out of memory. Tried to allocate 2.00 GiB; a smaller batch")
    assert "\n" not in str(ended.value) and "trainer=gpu24" in str(ended.value)
    with pytest.raises(RuntimeError, match="a mistake"), one_line_errors(as_hydra):
        raise RuntimeError("a mistake")
