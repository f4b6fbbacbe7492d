"""What every command shares: Hydra with one-line errors, and paths that may hold any character."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises, and `run` below says it in one line

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from lafr.commands.doors import as_hydra
from lafr.errors import InputError

PATHS = (
    "input", "output", "outputs", "source", "source_hq", "only", "data.root", "data.shards", "data.path",
    "data.file_list", "data.validation_list", "data.scores", "model.folder", "model.build.folder", "run_dir",
    "trainer.latent_cache", "base", "data.lq", "data.hq", "faces", "work",
    "truth_cache",
)  # fmt: skip

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

LISTS = ("model.build.folder", "outputs")


def quote_paths(arguments: Sequence[str], keys: Sequence[str] = PATHS) -> list[str]:
    """Quote the values of path options for Hydra's override grammar, which reads `,(){}[]'` and numbers otherwise."""
    return [_quoted(argument, keys) for argument in arguments]


def _quoted(argument: str, keys: Sequence[str]) -> str:
    key, equals, value = argument.partition("=")
    if not equals or key.lstrip("+~") not in keys or value in ("null", ""):
        return argument
    if key in LISTS and value.startswith("["):  # several sources, in Hydra's grammar
        return argument
    # In a quoted value only backslashes before a quote are escapes; OmegaConf then reads `${` unless escaped.
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    body, trailing = value.rstrip("\\"), len(value) - len(value.rstrip("\\"))
    out, run = "", 0
    for character in body:
        if character == "\\":
            run += 1
            continue
        out += "\\" * (2 * run + 1 if character == '"' else run) + character
        run = 0
    return f'{key}="{out}{chr(92) * (2 * trailing)}"'


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, parameters spelled as Hydra overrides."""
    message = error.told(as_hydra) if isinstance(error, InputError) else str(error)
    text = " ".join(message.split()) or type(error).__name__
    return text if len(text) <= 600 else text[:600] + " ..."


def run(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Compose `configs/<config_name>.yaml` with the command line and call `task`; wrong input ends in one line.

    Set LAFR_TRACEBACK=1 to see where an error came from.
    """
    sys.argv[1:] = quote_paths(sys.argv[1:])

    @wraps(task)
    def guarded(cfg: DictConfig) -> None:
        with _one_line_errors():  # inside the job: Hydra would add a line of its own
            task(cfg)

    with _one_line_errors():
        hydra.main(version_base=None, config_path=str(CONFIGS), config_name=config_name)(guarded)()


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to go on")
    except (InputError, HydraException, OmegaConfBaseException, OSError) as error:
        if os.environ.get("LAFR_TRACEBACK"):
            raise
        for bar in list(getattr(tqdm, "_instances", ())):  # else the message would stand in a progress bar's line
            bar.close()
        cause: BaseException | None = error
        while isinstance(cause, HydraException):  # an error inside `instantiate` comes wrapped
            cause = cause.__cause__
        sys.exit(f"error: {one_line(cause if isinstance(cause, InputError | OSError) else error)}")
