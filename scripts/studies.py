"""The queue: `python scripts/studies.py`. All studies' runs, one after the other or `jobs` at a time, in a budget.

Run again after any stop, it goes on. `final=true benchmark=london data.root=FOLDER` scores every finished run on a test
set, once.
"""

import signal
from pathlib import Path

from command import run


def main(cfg) -> None:
    """Do what is not done, then write the page."""
    from study_page import write_page
    from study_steps import STOP, load_study, plan

    from lafr.studies.record import note_problems

    studies = {name: load_study(name) for name in ([cfg.study.name] if cfg.get("study") else cfg.studies)}
    print(f"planning {', '.join(studies)}", flush=True)
    runs = [one for study in studies.values() for one in plan(cfg, study, cfg.row, cfg.seed)]
    outcome = score_once(cfg, studies, runs) if cfg.final else train_and_choose(cfg, studies, runs)
    note_problems(cfg.results, outcome.failed, [*outcome.done, *outcome.before])
    print(f"done {len(outcome.done)}, done before {len(outcome.before)}, failed {len(outcome.failed)}, "
          f"left {len(outcome.left)}")  # fmt: skip
    for name, why in outcome.failed.items():
        print(f"not run   {name}: {why}")
    if outcome.left:
        why = "stopped" if STOP.is_set() else f"the budget of {cfg.budget_hours:g} h is over"
        print(f"{why}; left: {', '.join(outcome.left)}")
    print(f"page      {write_page(Path(cfg.results))}")


def train_and_choose(cfg, studies: dict, runs: list):
    """Train and score on the validation list."""
    from study_steps import do

    from lafr.errors import InputError
    from lafr.studies.record import is_scored

    if cfg.benchmark.name != "val":
        raise InputError(f"benchmark={cfg.benchmark.name}: choices are made on val; a test set needs final=true")
    return queued(
        cfg, runs, lambda one: is_scored(cfg.results, one, "val"), lambda one: do(cfg, studies[one.study], one), "queue"
    )


def score_once(cfg, studies: dict, runs: list):
    """Score what is finished on a test set, unless that was done before; first the models that are still there."""
    from study_steps import is_lost, score_once_more

    from lafr.errors import InputError
    from lafr.studies.record import OnceOnly, is_scored

    if cfg.benchmark.name == "val" or cfg.data.root is None:
        raise InputError(f"final=true with benchmark={cfg.benchmark.name}, data.root={cfg.data.root}: name the test "
                         "set and its folder, benchmark=london data.root=FOLDER")  # fmt: skip
    if cfg.get("study") or cfg.row is not None or cfg.seed is not None:  # what is left out could not be scored later
        raise InputError("final=true scores every finished run, once; leave out study, row and seed")
    if not Path(cfg.data.root).is_dir():
        raise InputError(f"data.root={cfg.data.root!r} is no folder; give that of {cfg.benchmark.name}")
    note = OnceOnly(cfg.results, cfg.benchmark.name)
    chosen = set(note.begin([one for one in runs if is_scored(cfg.results, one, "val")], cfg.force))
    outcome = queued(
        cfg,
        sorted((one for one in runs if one.name in chosen), key=lambda one: is_lost(cfg, one)),
        lambda one: not cfg.force and is_scored(cfg.results, one, cfg.benchmark.name),
        lambda one: score_once_more(cfg, studies[one.study], one, cfg.benchmark.name),
        f"queue_{cfg.benchmark.name}",
    )
    if not outcome.left and not outcome.failed:
        note.finish()
    return outcome


def queued(cfg, runs: list, is_done, do, name: str):
    """Work through the runs within the budget, whose clock is called `name`, until Ctrl-C or SIGTERM."""
    from study_steps import STOP, note_references

    from lafr.errors import InputError
    from lafr.studies.queue import Clock, RunFailed, work_through

    for kind in (signal.SIGINT, signal.SIGTERM):  # no training is left behind
        signal.signal(kind, lambda *_: STOP.set())
    try:  # first, so that the tables of a queue that is stopped have them too
        note_references(cfg, cfg.benchmark.name)
    except RunFailed as problem:
        raise InputError(f"input and codec could not be scored on {cfg.benchmark.name}: {problem}") from None
    clock = Clock(Path(cfg.work) / f"{name}.json")
    return work_through(runs, is_done, do, clock, 3600 * cfg.budget_hours, 60 * cfg.run_minutes, cfg.jobs, stop=STOP)


if __name__ == "__main__":
    run(main, "study")
