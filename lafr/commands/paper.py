"""The paper's tables: `lafr paper [TABLE ...] [--run] [--format markdown|latex]`.

Without a table: list them, with what each needs, what of it is there and the command that makes the rest.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lafr.commands.doors import Parser, as_option, one_line_errors, words
from lafr.commands.running import Further, remedy, run_missing
from lafr.errors import InputError, setting

if TYPE_CHECKING:
    from lafr.evaluation.paper import PaperTable


def listing(tables: Sequence["PaperTable"]) -> str:
    """Return each table with what it needs: what is there, and the command that makes what is not."""
    from lafr.evaluation.paper import needs

    parts = []
    for table in tables:
        found = needs(table)
        there = [need for need in found if need.there]
        head = f"{table.key:<8} {table.title}: {len(there)} of {len(found)} there"
        lines = [head]
        for need in found:
            state = "there   " if need.there else "missing "
            lines.append(f"  {state} {need.kind:<10} {need.name}" + ("" if need.there else f"   {remedy(need)}"))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def draw(table: "PaperTable", path: Path, evaluation: Sequence[str]) -> None:
    """Draw a figure into a file; `evaluation` holds further arguments of `lafr eval`: its set, its device."""
    from lafr.evaluation.paper import draw_sizes

    if table.numbers:
        draw_sizes(table, path)
        return
    from lafr.commands.devices import choose_device
    from lafr.commands.evaluate import plan_from_config
    from lafr.commands.launch import composed
    from lafr.evaluation.run import load_model, open_set
    from lafr.evaluation.tsne import draw_latents, latents_of_set, require_packages

    require_packages()  # before minutes of encoding
    usual = [f"benchmark={table.benchmarks[0]}", f"model.folder=runs/{table.rows[0].experiment}/model"]
    given = {argument.partition("=")[0] for argument in evaluation}
    overrides = [*(each for each in usual if each.partition("=")[0] not in given), *evaluation]
    plan = plan_from_config(composed("eval", *overrides))
    device = choose_device(plan.device)
    benchmark, _ = open_set(plan)
    latents = latents_of_set(load_model(plan, device), benchmark, device=device)
    draw_latents(latents, path, f"{plan.benchmark}, {len(latents['z_lq'])} faces: t-SNE of latents, {plan.model}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add = parser.add_argument
    further = partial(add, default="", type=words, metavar="ARGUMENTS")
    add("table", nargs="*", metavar="TABLE", help="1, 2, 3, 4, 11, 12, figure6, tsne; none lists them all")
    add("--run", action="store_true", help="train and evaluate what is missing first; run again, it resumes")
    further("--train", help="for each `lafr train` that --run starts: 'trainer=gpu24'")
    further("--eval", help="for each `lafr eval` that --run starts, and tsne: 'data.root=FOLDER'")
    further("--launch", help="--run starts both by `accelerate launch ARGUMENTS`")
    add(
        "--format",
        choices=["terminal", "markdown", "latex"],
        help="terminal where a terminal shows it, else markdown",
    )
    add(
        "-o",
        "--output",
        default=None,
        metavar="FILE",
        help="write there instead of printing; of figure6 and tsne an .svg or .png",
    )


def run(given: argparse.Namespace) -> None:
    """List the tables, or make and print those that were asked for."""
    from lafr.commands.tables import style_here
    from lafr.evaluation.paper import TABLES, print_in_terminal, shown, table_of
    from lafr.storage import write_text

    tables = [table_of(key) for key in given.table]
    drawn = [table.key for table in tables if table.drawn]
    if given.output and drawn and len(tables) > 1:
        raise InputError("table", given.table, f"{drawn[0]} alone with {setting('output')}, which is its image")
    if given.run:
        run_missing(tables or list(TABLES.values()), Further(given.train, given.eval, given.launch))
    if not tables:
        print(listing(list(TABLES.values())))
        return
    if given.output and tables[0].drawn:
        draw(tables[0], Path(given.output), given.eval)
        print(f"figure   {given.output}")
        return
    style = given.format or ("markdown" if given.output else style_here())
    if style == "terminal" and not given.output:
        for table in tables:
            print_in_terminal(table)
        return
    text = "\n\n".join(shown(table, style) for table in tables)
    if given.output is None:
        print(text)
        return
    write_text(Path(given.output), text + "\n")
    print(f"tables   {given.output}")


def command() -> None:
    """Run the command line."""
    parser = Parser(__doc__.splitlines()[0])
    add_arguments(parser)
    given = parser.parse_args()
    with one_line_errors(as_option(parser)):
        run(given)


if __name__ == "__main__":
    command()
