"""What the Hydra commands share: paths arrive as typed, errors are one line, help runs nothing, sweeps name folders."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lafr.commands import launch
from lafr.commands.cli import COMMANDS
from lafr.commands.doors import as_hydra, one_line_errors
from lafr.commands.help_page import choices, help_page
from lafr.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
PATHS = [
    "fête.jpg",
    "IMG (1).jpg",
    "a,b.jpg",
    "it's.jpg",
    "2024.10",
    "1e3",
    "0x1F",
    "a=b.png",
    "=x",
    "x${y}.png",
    "${x}",
    "${",
    'quote".png',
    '"',
    '"a"',
    "'a'",
    "back\\slash.png",
    "[1].png",
    "{a: 1}",
    "true",
    "off",
    "NULL",
    "null/x",
    "~/x",
    "~",
    " lead",
    "trail ",
    "two  spaces",
    "#a",
    "a:b",
    "*?.png",
    "$HOME",
    "a\\",
    "a\\\\",
    'a\\"b',
    'a\\\\"',
    "\\${y}",
    "a\\\\${y}b\\",
    "${x}\\",
    "c:\\new\\table",
    "tab\there",
    "日本/語.png",
    "choice(a,b)",
    "../x",
]


@pytest.fixture
def configs():
    with initialize_config_dir(str(CONFIGS), version_base=None):
        yield


def test_a_path_arrives_as_it_was_typed_and_unquoted_it_would_not(configs):
    keys = [f"path{i}" for i in range(len(PATHS))]
    quoted = launch.quote_paths([f"+{key}={path}" for key, path in zip(keys, PATHS, strict=True)], keys)
    cfg = compose("fid_statistics", quoted)
    assert [cfg[key] for key in keys] == PATHS
    lost = 0
    for path in PATHS:
        try:
            (override,) = OverridesParser.create().parse_overrides([f"input={path}"])
            lost += override.value() != path
        except HydraException:
            lost += 1
    assert lost > 20


def test_values_that_are_no_paths_keep_hydras_grammar():
    arguments = ["+experiment=mini", "data.num_images=600", "stages=[codebook]", "trainer.trackers=[]", "--cfg=job"]
    assert launch.quote_paths(arguments) == arguments
    assert launch.quote_paths(["data.root=null", "input="]) == ["data.root=null", "input="]
    (override,) = OverridesParser.create().parse_overrides(launch.quote_paths(["+data.root=a,b"]))
    assert override.is_add() and override.value() == "a,b"


def test_several_sources_arrive_as_a_list_and_one_as_it_was_typed(configs):
    name = "model.build.folder"
    cfg = compose("train", ["run_name=x", "model=sd21_base", *launch.quote_paths([f"{name}=[a,'b c']"])])
    assert cfg.model.build.folder == ["a", "b c"]
    cfg = compose("train", ["run_name=x", "model=sd21_base", *launch.quote_paths([f"{name}=a,b"])])
    assert cfg.model.build.folder == "a,b"


def failed(error: BaseException) -> str:
    with pytest.raises(SystemExit) as exit_, one_line_errors(as_hydra, *launch.HYDRA_ERRORS):
        raise error
    assert "\n" not in exit_.value.code
    return exit_.value.code


def test_hydras_errors_become_one_line_that_names_the_override(configs):
    wrong = {
        "+experiment=nothing_like_it": "nothing_like_it",
        "no_such_setting=1": "no_such_setting",
        "seed=[1": "[1",
        "run_name=a,b": "run_name=a,b",
    }
    for override, name in wrong.items():
        with pytest.raises(HydraException) as caught:
            compose("train", [override])
        message = failed(caught.value)
        assert message.startswith("error: ") and name in message


def test_a_setting_that_is_required_is_named_with_its_comment(monkeypatch):
    for name, key, word in ("train", "run_name", "+experiment="), ("export", "output", "export"):
        monkeypatch.setattr(sys, "argv", [f"lafr {name}"])
        with pytest.raises(SystemExit) as exit_:
            launch.run(lambda cfg: pytest.fail("it is refused before the command runs"), name)
        assert f"{key}=VALUE" in exit_.value.code and word in exit_.value.code


def test_an_input_error_inside_an_object_that_hydra_builds_is_printed_without_hydras_frame():
    wrapped = HydraException("Error in call to target\nfull_key: data")
    wrapped.__cause__ = InputError("folder 'x' does not exist")
    assert failed(wrapped) == "error: folder 'x' does not exist"
    assert "run the same command again" in failed(KeyboardInterrupt())
    with pytest.raises(TypeError), one_line_errors(as_hydra):
        raise TypeError("a mistake in the program keeps its traceback")


def test_a_page_lists_the_groups_choices_and_the_settings_with_their_comments(configs, tmp_path):
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "of_mine.yaml").touch()
    page = help_page("eval", "lafr eval", ["--config-dir", str(tmp_path)])
    assert page.startswith("usage: lafr eval ")
    for name in (*choices([CONFIGS], "benchmark"), "of_mine", *choices([CONFIGS], "protocol")):
        assert name in page
    for setting in compose("eval", ["benchmark=mini"]):
        assert setting in ("benchmark", "degradation", "metrics", "protocol") or f"\n  {setting}: " in page
    assert "# of LAFR: 0 as trained" in page and "override hydra" not in page and "scripts/eval.py" not in page
    for path in CONFIGS.glob("*.yaml"):  # every command's page has a purpose, then three or four examples
        program = "lafr NAME"
        purpose, examples = help_page(path.stem, program).split("\n\n")[1:3]
        commands = [line for line in examples.splitlines() if line.startswith(f"  {program}")]
        assert len(purpose) > 30 and len(commands) in (3, 4), path.stem


FAST_HELP = """
import sys
from importlib import import_module
from runpy import run_path
sys.argv = sys.argv[1:]
code = 0
try:
    import_module("lafr.commands.cli").main() if sys.argv[0] == "lafr" else run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    code = stop.code or 0
    print(code if isinstance(code, str) else "", file=sys.stderr)
assert "torch" not in sys.modules, sys.argv
sys.exit(1 if isinstance(code, str) else code)
"""


def test_help_and_wrong_options_write_nothing_and_never_import_torch(tmp_path):
    calls = {("lafr", *arguments): 0 for arguments in [("--help",), ("--version",), *((n, "--help") for n in COMMANDS)]}
    commands = sorted(set((ROOT / "scripts").glob("*.py")) - {ROOT / "scripts" / "documentation.py"})  # mkdocs' hooks
    calls |= {(str(path), "--help"): 0 for path in commands}
    benchmarks = str(ROOT / "scripts" / "benchmarks" / "__main__.py")
    calls |= {
        (benchmarks, *arguments): 0
        for arguments in [(), ("pages", "--help"), ("parameters", "--help"), ("loss", "--help")]
    }
    calls |= {
        (benchmarks, "nothing"): 2,
        ("lafr", "nothing"): 2,
        ("lafr", "restore", "a.png"): 2,
        ("lafr", "restore", "a.png", "-o", "out", "--device", "tpu"): 2,
        ("lafr", "restore", "a.png", "-o", "out", "--fidelity", "2"): 2,
        ("lafr", "restore", "nowhere.png", "-o", "out"): 1,
        ("lafr", "train", "--nothing"): 1,
        ("lafr", "train", "+experiment=smoke", "no_such_setting=1"): 1,
        ("lafr", "train", "+experiment=smoke", "stages=[nothing]"): 1,
        ("lafr", "eval", "benchmark=mini", "device=tpu"): 1,
    }
    running = {}
    for call in calls:
        command = [sys.executable, "-c", FAST_HELP, *call]
        running[call] = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if len(running) % 4 == 0:  # a few at once
            running[call].wait()
    for call, process in running.items():
        out, err = process.communicate(timeout=60)
        assert process.returncode == calls[call], (call, err.decode())
        assert err.decode().strip().count("\n") == 0, err.decode()
        assert bool(out) == (process.returncode == 0), call
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_runs_its_jobs_in_folders_named_by_their_overrides(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["+experiment=smoke", "-m", "stage.restoration.learning_rate=1e-3,1e-4", "model.build.folder=a,b"]
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", *arguments])
    seen = []
    launch.run(lambda cfg: seen.append((cfg.run_dir, cfg.stage.restoration.learning_rate)), "train")
    name = "stage.restoration.learning_rate"
    assert seen == [(f"runs/smoke/{name}=0.001", 1e-3), (f"runs/smoke/{name}=0.0001", 1e-4)]
    headers = [line for line in capsys.readouterr().out.splitlines() if line.startswith("job ")]
    assert headers == [f"job 1 of 2: {name}=0.001", f"job 2 of 2: {name}=0.0001"]

    # a group in another place
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "+experiment=smoke", "stage@stage.restoration=encoder,unet"])
    seen.clear()
    launch.run(lambda cfg: seen.append((cfg.run_dir, 0)), "train")
    assert seen == [(f"runs/smoke/stage@stage.restoration={name}", 0) for name in ("encoder", "unet")]


def test_the_users_own_configurations_are_found(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [smoke]\nrun_name: of_mine\n"
    (tmp_path / "experiment" / "of_mine.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["lafr train", "--config-dir", str(tmp_path), "+experiment=of_mine", "seed=7"])
    seen = []
    launch.run(lambda cfg: seen.append((cfg.run_name, cfg.seed, launch.command_line())), "train")
    assert seen == [("of_mine", 7, f"lafr train --config-dir {tmp_path} +experiment=of_mine seed=7")]


def test_names_are_text():
    for name in ("2024_11_05", "1.10", "true", "1e3", "a-b"):
        with initialize_config_dir(str(CONFIGS), version_base=None):
            cfg = compose("train", launch.quote_paths([f"run_name={name}"]))
        assert cfg.run_name == name and cfg.run_dir == f"runs/{name}"
    assert launch.quote_paths(["run_name=null", "run_name=a,b"]) == ["run_name=null", "run_name=a,b"]
