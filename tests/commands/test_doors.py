"""Each command spells the parameters of an error message in its own words, and the words are keys that exist."""

import argparse
import ast
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lafr.commands.cli import parser
from lafr.commands.doors import HYDRA_KEYS, OPTIONS, as_hydra, as_option
from lafr.commands.launch import one_line
from lafr.errors import InputError, setting

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
GROUPS = ("adapter", "data", "degradation", "model")
# parameters of functions that no Hydra command reaches: Python's spelling serves
PYTHON_ONLY: set[str] = {"distributed_type", "family", "op"}  # an Accelerate launch file, records of degradations


def keys_of(node, prefix: str = ""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from keys_of(value, f"{prefix}{key}.")


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every key of every composed configuration; a stage's name stands as NAME."""
    found: set[str] = set()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        composed = [compose(name) for name in ("train", "prepare_data", "export", "demo", "fid_statistics")]
        composed.append(compose("eval", ["benchmark=celeba_test"]))
        for group in GROUPS:
            names = [path.stem for path in (CONFIGS / group).glob("*.yaml")]
            composed += [compose("train", [f"{group}={name}"]) for name in names]
        composed += [compose("prepare_data", [f"dataset={path.stem}"]) for path in (CONFIGS / "dataset").glob("*.yaml")]
    for cfg in composed:
        for key in keys_of(OmegaConf.to_container(cfg)):
            first, *rest = key.split(".")
            found.add(key)
            if first == "stage" and len(rest) > 1:
                found.add(".".join(["stage.NAME", *rest[1:]]))
    return found | {"model.build.sha256", "stage.NAME.monitor", "stage.NAME.patience"}  # optional: added by `+`


def named_parameters() -> dict[str, str]:
    """Return parameter -> file, of every `InputError(name, value, ...)` and `setting(name)` outside the commands."""
    found = {}
    for path in (ROOT / "lafr").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args):
                continue
            names = call.func.id == "setting" or (call.func.id == "InputError" and len(call.args) > 1)
            if names and isinstance(call.args[0], ast.Constant):
                found[call.args[0].value] = str(path.relative_to(ROOT))
    return found


def test_every_parameter_that_an_error_names_is_a_key_or_an_option(known):
    options = {action.dest for action in command_parser("restore")._actions}
    lost = {
        name: path
        for name, path in named_parameters().items()
        if as_hydra(name) not in known and OPTIONS.get(name, name) not in options and name not in PYTHON_ONLY
    }
    assert lost == {}
    assert {name: key for name, key in HYDRA_KEYS.items() if key not in known} == {}


def command_parser(name: str) -> argparse.ArgumentParser:
    (commands,) = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return commands.choices[name]


def test_a_message_is_spelled_as_its_door_spells():
    error = InputError("decode_crop", 3, "at least 4", f"or give {setting('decode_crop', None)}")
    assert one_line(error) == "trainer.decode_crop must be at least 4, got 3; or give trainer.decode_crop=null"
    assert str(error) == "decode_crop must be at least 4, got 3; or give decode_crop=None"
    named = setting("force", True), setting("upscale", 2), setting("Restorer.folder", "FOLDER"), setting("batch_size")
    said = InputError(", ".join(named))
    option = as_option(command_parser("restore"))
    assert said.told(option) == "--force, --upscale 2, --model FOLDER, --batch-size"
    assert said.told(as_hydra) == "force=true, upscale=2, model.folder=FOLDER, batch_size"
    assert str(said) == "force=True, upscale=2, folder='FOLDER', batch_size"
