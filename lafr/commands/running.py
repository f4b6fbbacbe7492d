"""Run what a table of the paper needs: train and evaluate, each by its own command in a process of its own.

What is there is skipped, what was stopped is resumed by its command, and every line says which of the two happens.
"""

import shlex
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lafr.evaluation.paper import Need, PaperTable


@dataclass(frozen=True)
class Further:
    """What the user adds to the commands that are run: their further arguments.

    Args:
        train: of each `lafr train`.
        eval: of each `lafr eval`.
        launch: of `accelerate launch`, which then starts both; none for one process.
    """

    train: Sequence[str] = ()
    eval: Sequence[str] = ()
    launch: Sequence[str] = ()


def arguments_of(need: "Need") -> list[str]:
    """Return the arguments of `lafr` that make something that is missing; none where only the user can get it."""
    from lafr.evaluation.paper import PROTOCOL

    if need.kind == "model":
        return ["train", f"+experiment={need.experiment}"]
    if need.kind == "result":
        model = f"model.folder=runs/{need.experiment}/model"
        return ["eval", f"benchmark={need.benchmark}", f"protocol={PROTOCOL}", model]
    return []


def remedy(need: "Need") -> str:
    """Return the command that makes something that is missing, or how to get it."""
    if arguments := arguments_of(need):
        return f"lafr {shlex.join(arguments)}"
    if need.kind == "benchmark":
        return f"lafr prepare dataset={need.name} source=..., see data/README.md"
    if need.kind == "file":
        topic = Path(need.name).stem
        return f"python -m scripts.benchmarks {topic}, in the project's folder"
    return f"write configs/experiment/{need.name}.yaml"


def run_missing(tables: Sequence["PaperTable"], further: Further) -> None:
    """Train and evaluate what is missing, one after the other; what is there is skipped, what was stopped resumes."""
    from lafr.evaluation.paper import needs

    said = set()
    for table in tables:
        for kind in ("model", "result"):
            found = needs(table)  # again: models were trained since
            there = {(need.kind, need.name) for need in found if need.there}
            for need in found:
                if need.kind != kind or need in said:
                    continue
                said.add(need)
                if need.there:
                    say("skip", f"{kind} {need.name}: it is there")
                elif reason := blocked(need, there, further.eval):
                    say("not run", f"{kind} {need.name}: {reason}")
                else:
                    arguments = arguments_of(need)
                    added = further.train if kind == "model" else further.eval
                    run_command([*arguments, *added], further.launch)


def blocked(need: "Need", there: Collection[tuple[str, str]], evaluation: Sequence[str]) -> str:
    """Return why something cannot be made yet; empty where it can."""
    if ("experiment", need.experiment) not in there:
        return f"there is no experiment {need.experiment}"
    if need.kind == "result" and ("model", need.experiment) not in there:
        return f"{need.experiment} is not trained"
    elsewhere = any(argument.startswith("data.root=") for argument in evaluation)
    if need.kind == "result" and ("benchmark", need.benchmark) not in there and not elsewhere:
        return f"the images of {need.benchmark} are missing"
    return ""


def run_command(arguments: Sequence[str], launch: Sequence[str] = ()) -> None:
    """Run a command of `lafr` to its end, and leave this process where it fails: it has said why."""
    say("run", f"lafr {shlex.join(arguments)}")
    started = ["accelerate.commands.launch", *launch, "-m", "lafr"] if launch else ["lafr"]
    if code := subprocess.run([sys.executable, "-m", *started, *arguments]).returncode:
        sys.exit(code)


def say(what: str, text: str) -> None:
    """Print what happens next, where it does not mix with a table."""
    print(f"{what:<8} {text}", file=sys.stderr, flush=True)
