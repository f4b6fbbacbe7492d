"""Damaged state of training, evaluation and preparation: named, and the result is that of the undamaged state."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from torch import Tensor

import lafr.commands.evaluate
import lafr.commands.prepare
import lafr.commands.train
from scripts.benchmarks.faults import Trial
from scripts.benchmarks.faults.kills import last_line
from scripts.benchmarks.faults.runs import SIZE, Ended, Events, Workshop, composed, content, run

KINDS = ("one bit", "cut off", "empty", "missing")


class MeanColour:
    """A metric of a set, so that an evaluation stores features: the distance of mean colours."""

    def features(self, image: Tensor) -> Tensor:
        """Return each image's mean colour `[B, 3]`."""
        return image.mean((2, 3))

    def score(self, features: Tensor, reference: Tensor, seed: int) -> dict[str, float]:
        """Return the distance."""
        distance = float((features.mean(0) - reference.mean(0)).norm())
        return {"mean": distance, "low": distance, "high": distance}


@dataclass(frozen=True)
class State:
    """What a command left in `folder` when it was stopped or had finished.

    Args:
        what: the table's row.
        folder: of the state.
        files: patterns of the files that are damaged in turn.
        again: runs the command on a copy of the folder.
        result: what it then has in it, to be compared.
    """

    what: str
    folder: Path
    files: tuple[str, ...]
    again: Callable[[Path], Ended]
    result: Callable[[Path], object]


def trials(count: int, seed: int, folder: Path) -> Iterator[Trial]:
    """Damage `count` files, of each state in turn, and run the command again."""
    rng, shop = np.random.default_rng(seed), Workshop(folder)
    shop.fill(seed)
    states = [*training_states(shop), *evaluation_states(shop), *preparation_states(shop)]
    cases = [cycle(list(damages(state))) for state in states]
    for state, of_state in islice(cycle(zip(states, cases, strict=True)), count):
        yield damaged(state, *next(of_state), rng)


def damages(state: State) -> Iterator[tuple[Path, str]]:
    """Yield each file of a state, relative to its folder, with each damage: every file before any a second time."""
    files = [path.relative_to(state.folder) for pattern in state.files for path in sorted(state.folder.glob(pattern))]
    for shift in range(len(KINDS)):
        for number, file in enumerate(files):
            yield file, KINDS[(number + shift) % len(KINDS)]


def damaged(state: State, file: Path, kind: str, rng: np.random.Generator) -> Trial:
    """Damage one file in a copy of the state, run the command on it again, and judge what it did."""
    copy = state.folder.with_name(f"{state.folder.name}.damaged")
    shutil.copytree(state.folder, copy)
    path, where = copy / file, ""
    data = bytearray(path.read_bytes())
    if kind == "one bit":
        at, bit = int(rng.integers(len(data))), int(rng.integers(8))
        data[at] ^= 1 << bit
        path.write_bytes(data)
        where = f" {bit} of byte {at}"
    elif kind == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: int(rng.integers(1, len(data)))] if kind == "cut off" else b"")
    ended = state.again(copy)
    case = f"{file.as_posix()}: {kind}{where}"
    outcome, said = "held", ""
    named = any(part in ended.said for part in (path.name, path.parent.name))
    if ended.code not in (0, 1) or (ended.code == 1 and not last_line(ended.said).startswith("error: ")):
        outcome, said = "lost", f"ended with {ended.code}: {last_line(ended.said)}"
    elif ended.code == 1 and not named:
        outcome, said = "lost", f"an error that names no file: {last_line(ended.said)}"
    elif ended.code == 0 and state.result(copy) != state.result(state.folder):
        outcome, said = "silent", "the result differs"
    shutil.rmtree(copy)
    return Trial(state.what, case, outcome, said)


def training_states(shop: Workshop) -> Iterator[State]:
    """Yield a run that was killed in its last stage, and one that has finished."""
    overrides = [f"trainer.latent_cache={shop.folder / 'latents'}", "trainer.log_pairs=true"]

    def again(run_dir: Path, events: Events | None = None, *more: str) -> Ended:
        cfg = shop.training(f"run_dir={run_dir}", *overrides, *more)
        return run(partial(lafr.commands.train.main, cfg), shop.folder / "train.txt", (events or Events(0)).watch)

    def compared(whole: Path, run_dir: Path) -> object:
        # a log whose beginning is lost continues without it, which is said
        learned = {name: data for name, data in content(run_dir).items() if not name.endswith(".jsonl")}
        return learned if run_dir != stopped else {n: d for n, d in content(whole).items() if not n.endswith(".jsonl")}

    finished, stopped, count = shop.folder / "finished", shop.folder / "stopped", shop.folder / "events.txt"
    require(again(finished, Events(0, count_into=count)))
    events = int(count.read_text(encoding="utf-8"))
    # killed near its end, where two checkpoints of the last stage are there
    for last in range(int(0.95 * events), 0, -7):
        shutil.rmtree(stopped, ignore_errors=True)
        again(stopped, Events(last))
        if len(list(stopped.glob("restoration/step_*"))) == 2 and not (stopped / "restoration/final").exists():
            break
    result = partial(compared, finished)
    newest = sorted(stopped.glob("restoration/step_*"))[-1].relative_to(stopped).as_posix()
    yield State("training, stopped: checkpoint", stopped, (f"{newest}/*",), again, result)
    yield State("training, stopped: record and logs", stopped, ("config*.json", "restoration/*.jsonl"), again, result)
    yield State("training, stopped: stage before", stopped, ("codebook/final/*", "alignment/final/*"), again, result)
    yield State("training, finished", finished, ("*/final/*", "config.json", "model/*/*"), again, result)


def evaluation_states(shop: Workshop) -> Iterator[State]:
    """Yield an evaluation that has finished: all that it keeps is read again by the next run."""
    colour = "+metrics.mean_colour={_target_: scripts.benchmarks.faults.damages.MeanColour}"
    metrics = ["~metrics.st_lpips_vgg", "~metrics.st_lpips_alex", "~metrics.lmd_68"]
    metrics += ["~metrics.identity_cos_sface", "~metrics.identity_distance_dlib"]
    folders = [f"data.lq={shop.folder / 'lq'}", f"data.hq={shop.folder / 'hq'}"]
    model = [f"model.folder={shop.folder / 'finished' / 'model'}", "report=false", "batch_size=3", "device=cpu"]

    def again(output: Path) -> Ended:
        cfg = composed("eval", "benchmark=pair", *folders, *model, *metrics, colour, f"output={output}")
        # the model names its base, which lies outside its folder
        trust = partial(os.environ.update, LAFR_BASES=str(shop.folder))
        return run(partial(lafr.commands.evaluate.main, cfg), shop.folder / "eval.txt", trust)

    def result(output: Path) -> object:
        text = re.sub(r'"(date|output)": ".*"', "", (output / "result.json").read_text(encoding="utf-8"))
        return text, (output / "scores.csv").read_bytes()

    evaluated = shop.folder / "evaluated"
    require(again(evaluated))
    yield State("evaluation: ledger and record", evaluated, ("work/*.json*",), again, result)
    yield State("evaluation: features", evaluated, ("work/features/**/*.safetensors",), again, result)
    yield State("evaluation: images", evaluated, ("pictures/*/*.png",), again, result)


def preparation_states(shop: Workshop) -> Iterator[State]:
    """Yield a set that was being prepared when its process was killed, and one that has been prepared."""

    def again(place: Path, events: Events | None = None) -> Ended:
        source = f"source={shop.folder / 'hq'}"
        cfg = composed("prepare_data", "dataset=folder", source, f"resolution={SIZE}", f"output={place / 'set'}")
        return run(partial(lafr.commands.prepare.main, cfg), shop.folder / "prepare.txt", (events or Events(0)).watch)

    def files(place: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((place / "set").glob("*.png"))}

    def result(whole: Path, place: Path) -> object:
        return files(whole if place.name == "stopped_set" else place)

    whole, stopped, count = shop.folder / "whole_set", shop.folder / "stopped_set", shop.folder / "events.txt"
    require(again(whole, Events(0, count_into=count)))
    again(stopped, Events(int(0.6 * int(count.read_text(encoding="utf-8")))))
    compared = partial(result, whole)
    part = "set.part"
    yield State("preparation, stopped", stopped, (f"{part}/*.json*", f"{part}/set/*.png"), again, compared)
    yield State("preparation, finished", whole, ("set/index.json", "set/0*.png"), again, compared)


def require(ended: Ended) -> None:
    """Raise RuntimeError with what an undamaged run said, if it failed."""
    if ended.code:
        raise RuntimeError(ended.said)
