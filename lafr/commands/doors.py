"""What a command prints for its user: its own name, its options, and errors in one line.

An error names a parameter as in Python (`decode_crop=None`). A Hydra command spells it as an override
(`trainer.decode_crop=null`), an argparse command as an option (`--force`, `--upscale 2`).
"""

import argparse
import ast
import io
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lafr.errors import InputError, Spell, Stopped, as_python

LONGEST = 600  # characters of an error message; Hydra's can hold a whole configuration

# parameter -> key of the composed configuration, where the two differ. A name that several functions give to different
# things is qualified by its owner, as in "Restorer.folder"; Python's spelling leaves the owner out.
HYDRA_KEYS = {
    # the model
    "Restorer.folder": "model.folder",
    "Base.folder": "model.build.folder",
    "expect": "model.build.expect",
    "offline": "model.build.offline",
    "sha256": "model.build.sha256",
    "text": "model.build.text",
    "timestep": "model.build.timestep",
    "variant": "model.build.variant",
    # faces to train on, and images to score
    "root": "data.root",
    "lq": "data.lq",
    "hq": "data.hq",
    "file_list": "data.file_list",
    "folders": "data.folders",
    "image_column": "data.image_column",
    "memory_gb": "data.memory_gb",
    "min_score": "data.min_score",
    "name_column": "data.name_column",
    "num_images": "data.num_images",
    "path": "data.path",
    "rank_by_score": "data.rank_by_score",
    "scores": "data.scores",
    "shards": "data.shards",
    "split": "data.split",
    "validation_fraction": "data.validation_fraction",
    "validation_list": "data.validation_list",
    "variants": "data.variants",
    # evaluation
    "Benchmark.severity": "benchmark.severity",
    "Preparation.severity": "dataset.severity",
    "curve_x": "curve.x",
    "curve_y": "curve.y",
    # degradation
    "jpeg_quality": "degradation.jpeg_quality",
    "kernel_size": "degradation.kernel_size",
    # training
    "PairStream.batch_size": "stage.NAME.batch_size",
    "accumulation": "trainer.accumulation",
    "checkpoint_every": "trainer.checkpoint_every",
    "keep_checkpoints": "trainer.keep_checkpoints",
    "log_every": "trainer.log_every",
    **{name: f"stage.NAME.{name}" for name in ("max_steps", "learning_rate", "weight_decay", "clip_norm", "schedule")},
    "ema_decay": "stage.NAME.ema_decay",
    "feature_cache_gb": "trainer.feature_cache_gb",
    "num_workers": "trainer.num_workers",
    "validation_images": "trainer.validation_images",
    "warmup_steps": "stage.NAME.warmup_steps",
    "cache_latents": "trainer.cache_latents",
    "latent_cache": "trainer.latent_cache",
    "decode_crop": "trainer.decode_crop",
    "gradient_checkpointing": "trainer.gradient_checkpointing",
    "mixed_precision": "trainer.mixed_precision",
    "monitor": "stage.NAME.monitor",
    "optimizer": "trainer.optimizer",
    "patience": "stage.NAME.patience",
    "trackers": "trainer.trackers",
    "validate_every": "trainer.validate_every",
    "weights": "loss.weights",
    "Objective.weights": "stage.NAME.objective.weights",
    "FeatureDiscriminator.layers": "loss.terms.adversarial.discriminator.layers",
    "LearnedTerm.learning_rate": "loss.terms.adversarial.learning_rate",
    **{f"Adversarial.{name}": f"loss.terms.adversarial.{name}" for name in ("r1", "r1_sigma", "warmup")},
}
# owner -> configuration key or group that holds all of its parameters, those of the user's own adapters too
GROUPS = {"Adapter": "adapter", "Limits": "limits"}
# script -> command of `lafr`, where the two differ
SCRIPTS = {"prepare_data": "prepare"}
# parameter -> option of `lafr restore`, where the two differ
OPTIONS = {"Restorer.folder": "model"}


def program() -> str:
    """Return the running command's name as its user types it: `lafr train`, `python scripts/train.py`."""
    name = sys.argv[0]
    return name if " " in Path(name).name else f"python scripts/{Path(name).name}"


def as_typed(arguments: Iterable[str]) -> str:
    """Return the running command with these arguments, as a shell takes it: for the record of what made a number."""
    return f"{program()} {shlex.join(arguments)}".strip()


def as_started(text: str) -> str:
    """Return a text whose `python scripts/NAME.py` are `lafr NAME`, where the running command is `lafr`'s.

    Configurations name the scripts of a checkout, which a user of the wheel does not have.
    """
    if not program().startswith("lafr "):
        return text
    return re.sub(r"python scripts/(\w+)\.py", lambda script: f"lafr {SCRIPTS.get(script[1], script[1])}", text)


class Parser(argparse.ArgumentParser):
    """An argument parser named as its user types it, whose errors are one line."""

    def __init__(self, description: str, name: str | None = None, **settings: Any):
        super().__init__(
            name or program(),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # a later option must not change what an abbreviation means
            **settings,
        )

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage, which has twenty options, and exit with code 2."""
        self.exit(2, f"error: {message}; {self.prog} --help lists the options\n")


def words(text: str) -> list[str]:
    """Return the words of an option that holds arguments, as a shell splits them."""
    try:
        return shlex.split(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} has a quotation mark without its other half") from None


def require_device_name(name: str) -> str:
    """Return `name`, if it is written as a device is; whether this machine has it is checked when torch is loaded."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", str(name)):
        raise InputError("device", name, "auto, cpu, cuda, cuda:N or mps")
    return name


@contextmanager
def one_line_errors(spell: Spell, *more: type[BaseException]) -> Iterator[None]:
    """Print the user's errors on one line and exit with code 1; a mistake in the program keeps its traceback.

    Args:
        spell: the words of this command, such as `as_hydra`.
        more: further exceptions of the user's making, besides InputError and OSError.
    """
    users: tuple[type[BaseException], ...] = (InputError, OSError, *more)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a table's arrows are in no code page of Windows
    try:
        yield
    except Stopped as stopped:
        close_progress_bars()
        print(stopped, file=sys.stderr, flush=True)
        sys.exit(Stopped.CODE)
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to resume")
    except users as error:
        if os.environ.get("LAFR_TRACEBACK"):
            raise
        close_progress_bars()
        sys.exit(f"error: {one_line(error, spell)}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" or os.environ.get("LAFR_TRACEBACK"):  # torch's: not imported here
            raise
        close_progress_bars()
        told = ". ".join(one_line(error, spell).split(". ")[:2])  # what was asked for; not the allocator's statistics
        remedy = "a smaller batch needs less, and in training the next smaller preset (trainer=gpu24, gpu12)"
        sys.exit(f"error: {told.rstrip('.')}; {remedy}")


def close_progress_bars() -> None:
    """End the lines of progress bars, within which a message would be printed."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def one_line(error: BaseException, spell: Spell) -> str:
    """Return an error's message on one line; of an InputError that Hydra wrapped, its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    message = cause.spelled(spell) if isinstance(cause, InputError) else str(error)
    message = message.partition("Config search path:")[0]  # Hydra's, after the choices that it lists
    text = as_started(" ".join(message.split())) or type(error).__name__
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def as_hydra(parameter: str, value: str | None = None) -> str:
    """Spell a parameter as a Hydra override: `trainer.decode_crop=null`.

    Args:
        parameter: its name in Python, perhaps qualified by its owner.
        value: as Python writes it (`None`, `True`, `'none'`); None for the key alone.
    """
    owner, _, name = parameter.rpartition(".")
    key = HYDRA_KEYS.get(parameter, f"{GROUPS[owner]}.{name}" if owner in GROUPS else name)
    return key if value is None else f"{key}={_in_yaml(value)}"


def as_option(parser: argparse.ArgumentParser) -> Spell:
    """Return the function that spells a parameter as an option of `parser`: `--force`, `--upscale 2`."""
    actions = {action.dest: action for action in parser._actions}

    def spell(parameter: str, value: str | None = None) -> str:
        name = OPTIONS.get(parameter, parameter.rpartition(".")[2])
        action = actions.get(name)
        if action is None:
            return as_python(parameter, value)
        if not action.option_strings:  # a positional argument
            return str(action.metavar)
        option = action.option_strings[-1]
        if value is None:
            return option
        if action.nargs == 0:  # a switch
            return option if value == str(action.const) else f"no {option}"
        return f"{option} {_in_yaml(value)}"

    return spell


def _in_yaml(value: str) -> str:
    """Return a value's Python expression in YAML's words."""
    words = {"None": "null", "True": "true", "False": "false"}
    if value in words:
        return words[value]
    try:
        given = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return given if isinstance(given, str) else value
