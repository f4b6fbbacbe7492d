"""Print the table of a result: `lafr tables RESULT.json [--format markdown|latex|csv] [--published]`."""

import argparse
import json
import sys
from pathlib import Path

from lafr.errors import InputError


def print_one(path: Path, style: str, metrics: list[str], others: bool) -> None:
    """Print the table of the result at `path`; raises InputError for another file or a metric that it does not hold."""
    from lafr.evaluation.tables import metrics_of, table

    try:
        record = json.loads(path.read_text())
        held = metrics_of(record)
    except OSError as error:
        raise InputError(f"result {str(path)!r} cannot be read: {error.strerror}; give a JSON of eval.py") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{str(path)!r} is not a result of scripts/eval.py; give its result.json") from None
    if unknown := [metric for metric in metrics if metric not in held]:
        raise InputError(f"metric {unknown[0]!r} is not in {str(path)!r}; it holds {', '.join(held)}")
    if metrics:
        record["rows"] = {row: {m: scores[m] for m in metrics if m in scores} for row, scores in record["rows"].items()}
    print(table(record, style, others))


def command() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="a result.json that `lafr eval` wrote")
    parser.add_argument("--format", default="markdown", choices=["markdown", "latex", "csv"])
    parser.add_argument("--metrics", default="", help="of these metrics, in this order: psnr_rgb,lmd")
    parser.add_argument("--published", action="store_true", help="with a table for each source of published values")
    asked = parser.parse_args()
    try:
        print_one(asked.result, asked.format, [m for m in asked.metrics.split(",") if m], asked.published)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    command()
