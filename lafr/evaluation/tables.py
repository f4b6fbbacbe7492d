"""Tables of a result, from the record that `scripts/eval.py` writes: Markdown, LaTeX (booktabs), CSV and terminal.

Best and second best of the methods are marked, by the digits that are printed; inputs and ceilings are no methods.
"""

import csv
import io
import re
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lafr.evaluation import published
from lafr.metrics.registry import HIGHER, LOWER, describe

NO_METHODS = ("LQ input", "Input", "codec(HQ)", "adapter(HQ)")
PARTS = ("codec(LQ)", "adapter only", "codec(HQ)", "adapter(HQ)")  # of ours: never beside published rows

TRAINED_ON = "†"
UNSTATED = "‡"
LEGEND = f"{TRAINED_ON} scored with a network that this row's model was trained with, or that has a teacher in common."
AS_THE_SOURCE = f"{UNSTATED} {published.UNSTATED}: no number of ours is known to be measured alike."
CSV_COLUMNS = (
    "benchmark", "source", "row", "metric", "direction", "mean", "low", "high", "images", "failed", "mark",
)  # fmt: skip
MARKED = "Best in bold, second best in italics."


def metrics_of(record: dict) -> list[str]:
    """Return the columns of a result, in the order in which its rows name them."""
    return list(dict.fromkeys(metric for scores in record["rows"].values() for metric in scores))


def direction(record: dict, metric: str) -> str:
    """Return ↑ or ↓, or nothing where neither is known to be better."""
    card = record.get("metrics", {}).get(metric, {})
    return card.get("direction") or describe(metric).direction or published.direction(metric)


def digits(record: dict, metric: str) -> int:
    """Return how many decimals of a metric are shown."""
    return record.get("metrics", {}).get(metric, {}).get("digits", describe(metric).digits)


def label(record: dict, metric: str) -> str:
    """Return what papers call a metric."""
    return record.get("metrics", {}).get(metric, {}).get("label") or describe(metric).label


def headings(record: dict, labels: bool = False) -> dict[str, str]:
    """Return metric -> column heading, its name (or label, as papers print it) with the direction's arrow."""
    names = {metric: label(record, metric) if labels else metric for metric in metrics_of(record)}
    short = {metric: name.replace(f", {published.UNSTATED}", UNSTATED) for metric, name in names.items()}
    return {metric: f"{name} {direction(record, metric)}".strip() for metric, name in short.items()}


def shown(record: dict, row: str, metric: str) -> str:
    """Return mean, interval and what limits them: a network trained with, failed measurements; others' as printed."""
    scores = record["rows"][row].get(metric)
    if scores is None or scores.get("source"):
        return f"{scores['mean']:.{scores['decimals']}f}" if scores else "–"
    d = digits(record, metric)
    text = "failed" if scores["mean"] is None else f"{scores['mean']:.{d}f}"
    if scores["mean"] is not None and scores.get("low") is not None:
        text += f" ({scores['low']:.{d}f}–{scores['high']:.{d}f})"
    mark = TRAINED_ON if metric in record.get("trained_on", {}).get(row, ()) else ""
    failed = f" [{scores['failed']} failed]" if scores.get("failed") else ""
    return text + mark + failed


def marks(record: dict) -> dict[tuple[str, str], str]:
    """Return (row, metric) -> "best" or "second" among the methods; equal digits share a mark.

    A second best is named where at least three methods were measured.
    """
    found = {}
    for metric in metrics_of(record):
        sign = {HIGHER: 1, LOWER: -1}.get(direction(record, metric))
        means = {
            row: round(sign * scores[metric]["mean"], digits(record, metric))
            for row, scores in record["rows"].items()
            if sign and row not in NO_METHODS and scores.get(metric, {}).get("mean") is not None
        }
        levels = sorted(set(means.values()), reverse=True)[: 2 if len(means) > 2 else 1]
        found |= {
            (row, metric): ("best", "second")[levels.index(mean)] for row, mean in means.items() if mean in levels
        }
    return found


def best_rows(record: dict) -> dict[str, str]:
    """Return metric -> the row that is best among the methods, the first of equals."""
    best: dict[str, str] = {}
    for (row, metric), mark in marks(record).items():
        if mark == "best":
            best.setdefault(metric, row)
    return best


def title(record: dict) -> str:
    """Return what a table holds: set, size, protocol, kind of interval; or whose numbers they are."""
    if source := record.get("source"):
        ours = any("source" not in values for scores in record["rows"].values() for values in scores.values())
        return f"{record['benchmark']}: printed in {source}" + "; rows with an interval are measured here" * ours
    protocol = f", protocol {record['protocol']}" if record.get("protocol") else ""
    return f"{record['benchmark']}, {record['images']} images{protocol}; mean (95 % bootstrap interval over images)"


def notes(record: dict) -> list[str]:
    """Return what stands under a table: the marks' meaning, and each metric that could not be measured, with why."""
    legend = [LEGEND] if record.get("trained_on") else []
    legend += [AS_THE_SOURCE] if any(UNSTATED in heading for heading in headings(record).values()) else []
    legend += [f"Left out: {reason}." for reason in record.get("left_out", ())]
    return legend + [
        f"{metric} was not measured: {reason}." for metric, reason in record.get("not_measured", {}).items()
    ]


def with_published(record: dict) -> list[dict]:
    """Return a record for each source of published values of this result's set, our comparable numbers among them.

    Each is a table of its own: two sources never share one. Raises InputError when the result is not of that set.
    """
    published.require_same_set(record)
    measured = metrics_of(record)
    excluded = published.left_out(record["benchmark"], measured)
    found = []
    for source, methods in published.blocks(record["benchmark"], measured).items():
        columns = list(dict.fromkeys(column for values in methods.values() for column in values))
        decimals = {c: max(len(str(of[c]).partition(".")[2]) for of in methods.values() if c in of) for c in columns}
        rows = {
            name: {c: {"mean": value, "decimals": decimals[c], "source": source} for c, value in of.items()}
            for name, of in methods.items()
        }
        for row, scores in record["rows"].items():
            ours = {c: scores[c] for c in columns if c in scores}
            if ours and row not in PARTS:
                rows[row if row not in rows else f"{row} (measured here)"] = ours
        own = {key: record[key] for key in ("benchmark", "images", "metrics", "trained_on") if key in record}
        found.append(own | {"source": source, "rows": rows, "left_out": excluded.get(source, [])})
    return found


def markdown_table(record: dict) -> str:
    """Return the rows of a result as a Markdown table, and its notes; best method in bold, second best in italics."""
    columns, marked = headings(record), marks(record)
    lines = ["| row | " + " | ".join(columns.values()) + " |", "|---|" + "---|" * len(columns)]
    for row in record["rows"]:
        cells = [
            {"best": "**{}**", "second": "*{}*"}.get(marked.get((row, metric)), "{}").format(shown(record, row, metric))
            for metric in columns
        ]
        lines.append(f"| {markdown_text(row)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *("\n" + note for note in notes(record))])


def markdown_text(text: str) -> str:
    """Return a name on one line, with what Markdown and HTML would read as theirs escaped."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def latex_table(record: dict) -> str:
    r"""Return the rows of a result as a LaTeX `table` (needs \usepackage{booktabs}); second best is underlined."""
    columns, marked = headings(record, labels=True), marks(record)
    caption = f"{title(record)}. Best in bold, second best underlined."
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["row", *map(latex_text, columns.values())]) + r" \\",
        r"\midrule",
    ]
    for row in record["rows"]:
        cells = [latex_cell(shown(record, row, metric), marked.get((row, metric))) for metric in columns]
        lines.append(" & ".join([latex_text(row), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip{{\footnotesize {latex_text(note)}\par}}" for note in notes(record)]
    return "\n".join([*lines, r"\end{table}"])


def latex_cell(text: str, mark: str | None) -> str:
    """Return a cell: the mean marked, what follows it small."""
    mean, space, rest = text.partition(" ")
    command = {"best": r"\textbf", "second": r"\underline"}.get(mark)
    mean = f"{command}{{{latex_text(mean)}}}" if command else latex_text(mean)
    return mean + (rf" {{\scriptsize {latex_text(rest)}}}" if space else "")


LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "–": "--", "±": r"$\pm$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", TRAINED_ON: r"$^\dagger$", UNSTATED: r"$^\ddagger$",
} | {character: f"\\{character}" for character in "&%$#_{}"}  # fmt: skip


def latex_text(text: str) -> str:
    """Return text on one line in which nothing is LaTeX."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def csv_table(records: list[dict]) -> str:
    """Return results as CSV, a line for each number: one can always tell whose it is and how it was measured.

    Columns: benchmark, source (empty for ours), row, metric, direction, mean, low, high, images, failed, mark.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for record in records:
        marked = marks(record)
        for row, scores in record["rows"].items():
            for metric, values in scores.items():
                source = values.get("source", "")
                if source or not record.get("source"):  # ours stand in the first record already
                    numbers = ["" if (v := values.get(key)) is None else f"{v:.8g}" for key in ("mean", "low", "high")]
                    arrow, mark = direction(record, metric), marked.get((row, metric), "")
                    failed = "" if source else values.get("failed", 0)
                    written = [
                        record["benchmark"],
                        source,
                        row,
                        metric,
                        arrow,
                        *numbers,
                        record["images"],
                        failed,
                        mark,
                    ]
                    writer.writerow(written)
    return file.getvalue().rstrip("\n")


def table(record: dict, style: str = "markdown", others: bool = False) -> str:
    """Return a result's table in a style, `markdown`, `latex` or `csv`.

    Args:
        record: what `scripts/eval.py` writes.
        style: the format.
        others: with a table for each source of published values; raises InputError when the set is another.
    """
    records = [record, *(with_published(record) if others else ())]
    if style == "csv":
        return csv_table(records)
    if style == "latex":
        return "\n\n".join(map(latex_table, records))
    return "\n\n".join(f"{title(one)}. {MARKED}\n\n{markdown_table(one)}" for one in records)


def print_table(record: dict) -> None:
    """Print a result's rows, its latents and its size."""
    columns = headings(record)
    table = Table(title=escape(f"{record['benchmark']}: {record['images']} images, mean (95 % bootstrap interval)"))
    table.add_column("row")
    for heading in columns.values():
        table.add_column(escape(heading), justify="right")
    for row in record["rows"]:
        table.add_row(escape(row), *(escape(shown(record, row, metric)) for metric in columns))
    console = Console(width=None if sys.stdout.isatty() else max(100, 24 + 27 * len(columns)))
    console.print(table)
    for note in notes(record):
        console.print(note, markup=False)
    if record.get("latents"):
        console.print(", ".join(f"{name} {value:.4g}" for name, value in record["latents"].items()))
