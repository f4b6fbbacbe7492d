"""What the Hydra commands share: composition, help, sweeps, one-line errors, and paths that hold any character."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import wraps
from math import prod
from typing import NoReturn

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises, and `one_line_errors` prints one line

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lafr.commands.doors import as_hydra, as_typed, one_line_errors, program, require_device_name
from lafr.commands.help_page import asks_for_help, comment_of, help_page
from lafr.commands.processes import join_tasks
from lafr.errors import InputError, Stopped, require_seed
from lafr.storage import shipped

PATHS = (
    "input", "output", "outputs", "source", "source_hq", "only", "data.root", "data.shards", "data.path",
    "data.file_list", "data.validation_list", "data.scores", "model.folder", "model.build.folder", "run_dir",
    "trainer.latent_cache", "base", "data.lq", "data.hq", "faces", "work",
    "truth_cache", "decoder",
)  # fmt: skip
NAMES = ("run_name",)  # text, although Hydra would read 2024_11_05 and 1.10 as numbers
LISTS = ("model.build.folder", "outputs", "only")
MULTIRUN = ("-m", "--multirun")
HYDRA_ERRORS = (HydraException, OmegaConfBaseException)

_typed: list[str] = []


def typed_arguments() -> list[str]:
    """Return the command's arguments as they were typed."""
    return list(_typed)


def command_line() -> str:
    """Return the running command as it was typed, for the record of what made a number."""
    return as_typed(_typed)


def run(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Compose `configs/<config_name>.yaml` with the command line and call `task`; wrong input ends in one line.

    `--help` prints a page and composes nothing. With `-m` each job of the sweep gets a header line, and a `run_dir`
    named by its overrides. Set LAFR_TRACEBACK=1 to see where an error came from.
    """
    _typed[:] = sys.argv[1:]
    with one_line_errors(as_hydra, *HYDRA_ERRORS):
        if asks_for_help(_typed):
            print(help_page(config_name, program(), _typed))
            return
        arguments = sorted(_typed, key=lambda argument: argument not in MULTIRUN)  # Hydra refuses it between settings
        require_known_options(arguments)
        sys.argv[1:] = quote_paths(arguments)
        swept = swept_overrides(sys.argv[1:])

        @wraps(task)
        def guarded(cfg: DictConfig) -> None:
            with one_line_errors(as_hydra, *HYDRA_ERRORS):  # inside the job: Hydra would add a line of its own
                join_tasks()
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    name_job(cfg, swept)
                require_given(cfg, config_name)
                if "device" in cfg:
                    require_device_name(cfg.device)
                if "seed" in cfg:
                    require_seed(cfg.seed)
                task(cfg)

        hydra.main(version_base=None, config_path=str(shipped("configs")), config_name=config_name)(guarded)()


LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")  # set by torchrun and by `accelerate launch`
GRACE = 300  # seconds from SIGTERM to the end of a process that waits for one which has gone


def end_with_launcher() -> None:
    """Send this process SIGTERM when the launcher that started it has gone: nobody would stop it any more.

    A thread looks once a second, which works on every system; `prctl` would end a process with the thread, not the
    process, that started it. Without a launcher nothing is watched: a run may outlive its shell.
    """
    if not any(name in os.environ for name in LAUNCHED):
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(Stopped.CODE)

    threading.Thread(target=watch, daemon=True).start()


def require_known_options(arguments: Sequence[str]) -> None:
    """Raise InputError for an option (`--NAME`) that Hydra does not have; settings are KEY=VALUE."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; settings are written KEY=VALUE, and {program()} --help lists them")

    setattr(parser, "error", refuse)  # noqa: B010 (a method is replaced: argparse would print a usage of twenty lines)
    parser.parse_args(arguments)


def require_given(cfg: DictConfig, config_name: str) -> None:
    """Raise InputError for a setting of the command (`???` in its YAML) that was not given."""
    for key in cfg:
        if OmegaConf.is_missing(cfg, key):
            about = comment_of(config_name, str(key))
            raise InputError(f"{key} is not given ({about})", remedy=f"add {key}=VALUE; {program()} --help says more")


def swept_overrides(arguments: Sequence[str]) -> list[Override]:
    """Return the overrides of a sweep that have several values: `stage.restoration.learning_rate=1e-3,1e-4`."""
    if not set(MULTIRUN) & set(arguments):
        return []
    given = [argument for argument in get_args_parser().parse_args(arguments).overrides or ()]
    return [override for override in OverridesParser.create().parse_overrides(given) if override.is_sweep_override()]


def name_job(cfg: DictConfig, swept: Sequence[Override]) -> None:
    """Print the header of a sweep's job, and give its `run_dir`, if it has one, a folder named by its overrides."""
    # of a group in another place (stage@stage.restoration) the place too
    keys = [override.get_key_element().lstrip("+~") for override in swept]
    here = [text for text in HydraConfig.get().overrides.task if text.partition("=")[0].lstrip("+~") in keys]
    total = prod(len(list(override.sweep_string_iterator())) for override in swept)
    print(f"job {HydraConfig.get().job.num + 1} of {total}: {' '.join(here)}", flush=True)
    if "run_dir" in cfg and here:
        folder = ",".join(text.lstrip("+").replace("/", "_").replace(os.sep, "_") for text in here)
        cfg.run_dir = os.path.join(cfg.run_dir, folder)


def composed(config_name: str, *overrides: str) -> DictConfig:
    """Return a command's configuration, as the command itself would compose it; overrides as they are typed."""
    GlobalHydra.instance().clear()  # of a command that runs: it has been composed
    with hydra.initialize_config_dir(str(shipped("configs").resolve()), version_base=None):
        return hydra.compose(config_name, quote_paths(overrides))


def quote_paths(arguments: Sequence[str], keys: Sequence[str] = PATHS) -> list[str]:
    """Quote the values of path options for Hydra's override grammar, which reads `,(){}[]'` and numbers otherwise."""
    return [_quoted(argument, keys) for argument in arguments]


def _quoted(argument: str, keys: Sequence[str]) -> str:
    key, equals, value = argument.partition("=")
    if key.lstrip("+~") in NAMES and re.fullmatch(r"[\w.+-]+", value) and value != "null":
        return f'{key}="{value}"'
    if not equals or key.lstrip("+~") not in keys or value in ("null", ""):
        return argument
    if key in LISTS and value.startswith("["):  # several sources, in Hydra's grammar
        return argument
    # In a quoted value only backslashes before a quote are escapes; OmegaConf then reads `${` unless escaped.
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    body, trailing = value.rstrip("\\"), len(value) - len(value.rstrip("\\"))
    out, backslashes = "", 0
    for character in body:
        if character == "\\":
            backslashes += 1
            continue
        out += "\\" * (2 * backslashes + 1 if character == '"' else backslashes) + character
        backslashes = 0
    return f'{key}="{out}{chr(92) * (2 * trailing)}"'
