"""Print the table of a result: `lafr tables RESULT.json [--format FORMAT] [--published | --together]`."""

import argparse
import sys
from pathlib import Path

from lafr.commands.doors import Parser, as_option, one_line_errors
from lafr.errors import InputError


def choose_metrics(record: dict, metrics: list[str]) -> dict:
    """Return a result with these metrics alone, in this order; raises InputError for one that it does not hold."""
    from lafr.evaluation.tables import metrics_of

    held = metrics_of(record)
    if unknown := [metric for metric in metrics if metric not in held]:
        raise InputError("metrics", unknown[0], f"among those of the result: {', '.join(held)}")
    rows = {}
    for method, scores in record["rows"].items():
        rows[method] = {metric: scores[metric] for metric in metrics if metric in scores}
    asked = {}
    for method, names in record.get("trained_on", {}).items():
        asked[method] = [name for name in names if name in metrics]
    return record | {"rows": rows, "trained_on": asked, "not_measured": {}}


def style_here() -> str:
    """Return how a table is printed where no format is asked for: to be read here, or to be kept."""
    return "terminal" if sys.stdout.isatty() else "markdown"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("result", type=Path, metavar="RESULT", help="a result.json that `lafr eval` wrote")
    parser.add_argument(
        "--format",
        choices=["terminal", "markdown", "latex", "csv"],
        help="terminal where a terminal shows it, else markdown",
    )
    parser.add_argument("--metrics", default="", help="only these metrics, in this order: psnr_rgb,lmd")
    parser.add_argument("--published", action="store_true", help="add a table for each source of published values")
    parser.add_argument(
        "--together",
        action="store_true",
        help="the same, ours also in columns whose definition the source doesn't state, marked so",
    )


def run(given: argparse.Namespace) -> int:
    """Print the table that was asked for; return the exit code."""
    from lafr.evaluation.tables import read_result, table, with_published

    record, style = read_result(given.result), given.format or style_here()
    if metrics := [metric for metric in given.metrics.split(",") if metric]:
        record = choose_metrics(record, metrics)
    if style != "terminal":
        print(table(record, style, given.published, given.together))
        return 0
    from lafr.evaluation.terminal import print_table

    published = given.published or given.together
    for one in [record, *(with_published(record, given.together) if published else ())]:
        print_table(one)
    return 0


def command() -> None:
    """Run the command line."""
    parser = Parser(__doc__.splitlines()[0])
    add_arguments(parser)
    given = parser.parse_args()
    with one_line_errors(as_option(parser)):
        sys.exit(run(given))


if __name__ == "__main__":
    command()
