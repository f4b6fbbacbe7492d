"""Paths reach the scripts as they were typed, and Hydra's errors are one line."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lafr.commands import launch as command
from lafr.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PATHS = [
    "fête.jpg", "IMG (1).jpg", "a,b.jpg", "it's.jpg", "2024.10", "1e3", "0x1F", "a=b.png", "=x", "x${y}.png", "${x}",
    "${", 'quote".png', '"', '"a"', "'a'", "back\\slash.png", "[1].png", "{a: 1}", "true", "off", "NULL", "null/x",
    "~/x", "~", " lead", "trail ", "two  spaces", "#a", "a:b", "*?.png", "$HOME", "a\\", "a\\\\", 'a\\"b', "a\\\\\"",
    "\\${y}", "a\\\\${y}b\\", "${x}\\", "c:\\new\\table", "tab\there", "日本/語.png", "choice(a,b)", "../x",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def configs():
    with initialize_config_dir(str(CONFIGS), version_base=None):
        yield


@pytest.mark.parametrize("path", PATHS)
def test_a_path_arrives_as_it_was_typed(path):
    cfg = compose("restore", command.quote_paths([f"input={path}", f"output={path}", f"model.folder={path}"]))
    assert [cfg.input, cfg.output, cfg.model.folder] == [path] * 3


def test_these_paths_would_not_arrive_unquoted():
    lost = 0
    for path in PATHS:
        try:
            lost += compose("restore", [f"input={path}", "output=o"]).input != path
        except Exception:  # the grammar's own errors and OmegaConf's
            lost += 1
    assert lost > 20


def test_values_that_are_no_paths_keep_hydras_grammar():
    arguments = ["+experiment=mini", "data.num_images=600", "stages=[codebook]", "trainer.trackers=[]", "--cfg=job"]
    assert command.quote_paths(arguments) == arguments
    assert command.quote_paths(["data.root=null", "input="]) == ["data.root=null", "input="]


def test_several_sources_arrive_as_a_list_and_one_as_it_was_typed():
    name = "model.build.folder"
    cfg = compose("train", ["run_name=x", "model=sd21_base", *command.quote_paths([f"{name}=[a,'b c']"])])
    assert cfg.model.build.folder == ["a", "b c"]
    cfg = compose("train", ["run_name=x", "model=sd21_base", *command.quote_paths([f"{name}=a,b"])])
    assert cfg.model.build.folder == "a,b"


def test_a_path_can_be_added_to_a_configuration_that_lacks_it():
    (quoted,) = command.quote_paths(["+data.root=a,b"])
    (override,) = OverridesParser.create().parse_overrides([quoted])
    assert override.is_add()
    assert override.value() == "a,b"


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["+experiment=nothing_like_it"], "nothing_like_it"),
        (["no_such_setting=1"], "no_such_setting"),
        (["seed=[1"], "[1"),
        (["run_name=a,b"], "run_name=a,b"),
    ],
)
def test_hydras_errors_become_one_line_that_names_the_override(overrides, names):
    with pytest.raises(HydraException) as caught:
        compose("train", overrides)
    with pytest.raises(SystemExit) as exit_, command._one_line_errors():
        raise caught.value
    assert exit_.value.code.startswith("error: ")
    assert "\n" not in exit_.value.code
    assert names in exit_.value.code


def test_wrong_input_found_while_hydra_builds_an_object_is_said_without_hydras_frame():
    try:
        raise HydraException("Error in call to target\nfull_key: data") from InputError("folder 'x' does not exist")
    except HydraException as error:
        with pytest.raises(SystemExit, match=r"^error: folder 'x' does not exist$"), command._one_line_errors():
            raise error


def test_a_mistake_in_the_program_keeps_its_traceback():
    with pytest.raises(TypeError), command._one_line_errors():
        raise TypeError("a bug")


def test_a_stopped_run_says_how_to_go_on():
    with pytest.raises(SystemExit, match="run the same command again"), command._one_line_errors():
        raise KeyboardInterrupt
