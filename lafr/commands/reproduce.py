"""Reproduce an experiment: `lafr reproduce ffhq_0.9pct`: check, prepare, train, evaluate, and print the table.

Run again, it resumes: what is there is skipped. What it adds to a part is written as that part's command takes it:

  lafr reproduce ffhq_0.9pct --faces source=images1024x1024 --images 'source=LQ_FOLDER source_hq=HQ_FOLDER'
  lafr reproduce ffhq_0.9pct --train trainer=gpu12 --launch '--multi_gpu --num_processes 4'
"""

import argparse
import re
import sys
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lafr.commands.doors import Parser, as_hydra, as_option, as_started, one_line_errors, words
from lafr.commands.running import Further, run_command, run_missing, say
from lafr.errors import InputError, Spell, setting

if TYPE_CHECKING:
    from lafr.training.preflight import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add = parser.add_argument
    further = partial(add, default="", type=words, metavar="ARGUMENTS")
    add("experiment", metavar="EXPERIMENT", help="ffhq_0.9pct, or another file of configs/experiment/")
    add("--benchmark", default="celeba_test", metavar="NAME", help="test set that is restored and scored")
    further("--faces", help="how `lafr prepare` makes the training faces: source=FOLDER")
    further("--images", help="and the test set: 'source=LQ_FOLDER source_hq=HQ_FOLDER'")
    further("--train", help="further arguments of `lafr train`")
    further("--eval", help="further arguments of `lafr eval`")
    further("--launch", help="train and evaluate by `accelerate launch ARGUMENTS`")
    add(
        "--format",
        choices=["terminal", "markdown", "latex"],
        help="terminal where a terminal shows it, else markdown",
    )


def run(given: argparse.Namespace, spell: Spell = as_hydra) -> None:
    """Do what is missing, and print the table."""
    from lafr.commands.tables import style_here
    from lafr.evaluation.paper import MODEL, PaperTable, Row, needs, print_in_terminal, shown

    title = f"{given.experiment} on {given.benchmark}, against other methods"
    table = PaperTable("reproduced", title, (Row(MODEL, given.experiment),), (given.benchmark,), published=True)
    missing = {need.kind for need in needs(table) if not need.there} & {"model", "result"}
    further = Further(given.train, given.eval, given.launch)
    if missing:
        for dataset, arguments in unprepared(given, further, missing, spell).items():
            run_command(["prepare", f"dataset={dataset}", *arguments])
    else:
        say("skip", "check and prepare: nothing needs them")
    run_missing([table], further)
    style = given.format or style_here()
    if style == "terminal":
        print_in_terminal(table)
    else:
        print(shown(table, style))


def unprepared(
    given: argparse.Namespace, further: Further, missing: Collection[str], spell: Spell
) -> dict[str, list[str]]:
    """Look for everything that the missing parts need; return the datasets to prepare, with the arguments for it.

    Prints the table of `lafr check`. Raises InputError when something is missing that is not to be prepared; metrics
    that cannot be measured are only listed.
    """
    from lafr.commands.launch import composed
    from lafr.commands.preflight import benchmark_findings, training_findings
    from lafr.training.preflight import report

    say("check", given.experiment)
    ways = {"faces": given.faces, "images": given.images}
    found: list[Finding] = []
    optional: list[Finding] = []
    datasets = {"images": given.benchmark}
    if "model" in missing:
        cfg = composed("train", f"+experiment={given.experiment}", *further.train)
        found += training_findings(cfg, counting=False)
        # the experiment says how its faces are made
        datasets["faces"] = dataset_of(str(cfg.data.get("remedy", "")))
    if "result" in missing:
        model = f"model.folder=runs/{given.experiment}/model"
        cfg = composed("eval", f"benchmark={given.benchmark}", "protocol=lafr", model, *further.eval)
        of_benchmark, _ = benchmark_findings(cfg)
        found += [finding for finding in of_benchmark if finding.name == "images"]
        optional = [finding for finding in of_benchmark if finding.name not in ("images", "model")]
    to_prepare = {}
    for place, finding in enumerate(found):
        way = ways.get(finding.name)
        if way and not finding.there and datasets[finding.name]:
            if absent := absent_sources(way):
                found[place] = replace(finding, where=f"{absent[0]!r} does not exist", fetch="")
                continue
            to_prepare[datasets[finding.name]] = way
            found[place] = replace(finding, there=True, where=f"to be prepared: {' '.join(way)}", fetch="")
    print(as_started(report(found + optional, spell)), file=sys.stderr, flush=True)
    lacking = [finding.name for finding in found if not finding.there]
    if lacking:
        options = [setting(name) for name in lacking if name in ways]
        prepared = f"; {' and '.join(options)} say what to prepare from" if options else ""
        raise InputError(f"missing: {', '.join(lacking)}", remedy=f"see the table above{prepared}")
    return to_prepare


def absent_sources(arguments: Collection[str]) -> list[str]:
    """Return the folders and archives that a preparation is to read and that are not there."""
    from lafr.preparation.downloads import is_address

    sources = [value for key, _, value in (argument.partition("=") for argument in arguments) if "source" in key]
    return [source for source in sources if not is_address(source) and not Path(source).exists()]


def dataset_of(remedy: str) -> str:
    """Return the dataset that a remedy prepares, empty where it prepares none."""
    named = re.search(r"dataset=(\w+)", remedy)
    return named[1] if named else ""


def command() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    add_arguments(parser)
    given = parser.parse_args()
    own, names = as_option(parser), {action.dest for action in parser._actions}

    def spell(parameter: str, value: str | None = None) -> str:
        # an option of this command, or a key of one that it runs
        return own(parameter, value) if parameter in names else as_hydra(parameter, value)

    from lafr.commands.launch import HYDRA_ERRORS

    with one_line_errors(spell, *HYDRA_ERRORS):
        run(given, spell)


if __name__ == "__main__":
    command()
