"""The table of a result in a terminal: as wide as it may be, else turned, with metrics down and methods across."""

import sys

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from lafr.evaluation.tables import cells_of, headings, notes, shown, title


def print_table(record: dict, width: int | None = None) -> None:
    """Print a result's scores, its latents and its size.

    Args:
        record: what `lafr eval` writes.
        width: characters a line; the terminal's when None, as many as it takes where the output is no terminal.
    """
    whole = upright(record)
    console = Console(width=width)
    if width is None and not sys.stdout.isatty():
        console = Console(width=max(100, needed(whole, console)))
    if needed(whole, console) <= console.width:
        console.print(escape(title(record)))
        console.print(whole)
    else:
        measured = any(cell.get("low") is not None for cell in cells_of(record))
        where = ", their 95 % intervals in result.json" if measured else ""
        console.print(escape(f"{title(record, intervals=False)}{where}"))
        for part in turned(record, console):
            console.print(part)
    for note in notes(record, brief=True):  # why something wasn't measured is said before the run, and in its files
        console.print(note, markup=False)
    for reason in record.get("blanks", ()):
        console.print(f"Blank: {reason}.", markup=False)
    if record.get("latents"):
        console.print(", ".join(f"{name} {value:.4g}" for name, value in record["latents"].items()))


def needed(table: Table, console: Console) -> int:
    """Return how many characters wide a table is when nothing of it is wrapped."""
    return Measurement.get(console, console.options.update(max_width=100_000), table).maximum


def upright(record: dict) -> Table:
    """Return a table with a row for each method, means with intervals."""
    columns = headings(record)
    table = Table("method")
    for heading in columns.values():
        table.add_column(escape(heading), justify="right")
    for method in record["rows"]:
        table.add_row(escape(method), *(escape(shown(record, method, metric)) for metric in columns))
    return table


def turned(record: dict, console: Console) -> list[Table]:
    """Return tables with a row for each metric and means alone: as many methods next to each other as fit."""
    tables: list[list[str]] = [[]]
    for method in record["rows"]:
        if tables[-1] and needed(turned_table(record, [*tables[-1], method]), console) > console.width:
            tables.append([])
        tables[-1].append(method)
    return [turned_table(record, methods) for methods in tables]


def turned_table(record: dict, methods: list[str]) -> Table:
    """Return a table of some methods, a row for each metric."""
    table = Table("metric")
    for method in methods:
        table.add_column(escape(method), justify="right")
    for metric, heading in headings(record).items():
        table.add_row(escape(heading), *(escape(shown(record, method, metric, False)) for method in methods))
    return table
