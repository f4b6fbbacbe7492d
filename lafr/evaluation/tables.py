"""Tables of a result, from the record that `lafr eval` writes: Markdown, LaTeX (booktabs), CSV and terminal.

Best and second best of the methods are marked, by the digits that are printed; the input and ceilings take no part.
"""

import csv
import io
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lafr.evaluation import markdown, published
from lafr.metrics.registry import HIGHER, LOWER, describe

BOUNDS = ("LQ input", "Input", "codec(HQ)", "adapter(HQ)")  # not methods: what comes in, and what is out of reach
PARTS = ("codec(LQ)", "adapter only", "codec(HQ)", "adapter(HQ)")  # of LAFR: never compared with published values

TRAINED_ON = "†"
UNSTATED = "‡"
LEGEND = f"{TRAINED_ON} scored with a network that the model was trained with, or that shares a teacher with one."
AS_THE_SOURCE = f"{UNSTATED} {published.UNSTATED}: no number of ours is known to be measured alike."
CSV_COLUMNS = (
    "benchmark", "source", "method", "metric", "direction", "mean", "low", "high", "images", "failed", "mark",
)  # fmt: skip
MARKED = "Best in bold, second best in italics."


def metrics_of(record: dict) -> list[str]:
    """Return the columns of a result, in the order in which its methods name them."""
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


def shown(record: dict, method: str, metric: str) -> str:
    """Return a cell: mean and interval, marks for a network trained with and for failures; published values as is."""
    scores = record["rows"][method].get(metric)
    if scores is None:
        return "–"
    if scores.get("source"):
        return f"{scores['mean']:.{scores['decimals']}f}"
    d = digits(record, metric)
    text = "failed" if scores["mean"] is None else f"{scores['mean']:.{d}f}"
    if scores["mean"] is not None and scores.get("low") is not None:
        text += f" ({scores['low']:.{d}f}–{scores['high']:.{d}f})"
    mark = TRAINED_ON if metric in record.get("trained_on", {}).get(method, ()) else ""
    failed = f" [{scores['failed']} failed]" if scores.get("failed") else ""
    return text + mark + failed


def marks(record: dict, better_than_input: bool = False) -> dict[tuple[str, str], str]:
    """Return (method, metric) -> "best" or "second"; equal digits share a mark.

    A second best is named where at least three methods were measured.

    Args:
        record: a result.
        better_than_input: give no mark to a method that loses to the input.
    """
    found: dict[tuple[str, str], str] = {}
    for metric in metrics_of(record):
        sign = {HIGHER: 1, LOWER: -1}.get(direction(record, metric))
        if sign is None:
            continue
        means = {}
        for method, scores in record["rows"].items():
            mean = scores.get(metric, {}).get("mean")
            if method not in BOUNDS and mean is not None:
                means[method] = round(sign * mean, digits(record, metric))
        levels = sorted(set(means.values()), reverse=True)[: 2 if len(means) > 2 else 1]
        for mark, level in zip(("best", "second"), levels, strict=False):
            if better_than_input and loses_to_input(record, metric, sign, level):
                break
            found |= {(method, metric): mark for method, mean in means.items() if mean == level}
    return found


def loses_to_input(record: dict, metric: str, sign: int, level: float) -> bool:
    """Return whether the input has a better mean than `level`, which is rounded and rises with quality."""
    before = record["rows"].get(BOUNDS[0], {}).get(metric, {}).get("mean")
    return before is not None and round(sign * before, digits(record, metric)) > level


def title(record: dict) -> str:
    """Return what a table holds: set, size, protocol, kind of interval; or whose numbers they are."""
    if source := record.get("source"):
        measured = any("source" not in values for scores in record["rows"].values() for values in scores.values())
        ours = "; numbers with an interval are measured here" if measured else ""
        return f"{record['benchmark']}: printed in {source}{ours}"
    protocol = f", protocol {record['protocol']}" if record.get("protocol") else ""
    size = f" at {record['resolution']} px" if record.get("resolution") else ""
    what = f"{record['benchmark']}, {record['images']} images{size}{protocol}"
    return f"{what}; mean (95 % bootstrap interval over images)"


def notes(record: dict) -> list[str]:
    """Return the lines under a table: the marks' meaning, and each metric that could not be measured, with why."""
    legend = [LEGEND] if record.get("trained_on") else []
    legend += [AS_THE_SOURCE] if any(UNSTATED in heading for heading in headings(record).values()) else []
    legend += [conditions(record)] if record.get("resolution") else []
    legend += [gate_note(record["gate"])] if record.get("gate") else []
    legend += [f"Left out: {reason}." for reason in record.get("left_out", ())]
    missing = record.get("not_measured", {})
    return legend + [f"{metric} was not measured: {reason}." for metric, reason in missing.items()]


def conditions(record: dict) -> str:
    """Return the conditions that numbers depend on: resolution, filter, protocol, reference sets, failures."""
    filtered = (record.get("set") or {}).get("filter")
    said = [f"Scored at {record['resolution']} px" + (f", prepared with a {filtered} filter" if filtered else "")]
    said += [f"protocol {record['protocol']}"] if record.get("protocol") else []
    for metric, card in record.get("metrics", {}).items():
        if resized := (card.get("reference") or {}).get("resized"):
            said.append(f"{label(record, metric)} against images resized by {resized}")
    failures = [
        f"{method} {label(record, metric)} {scores['failed']}"
        for method, of in record["rows"].items()
        for metric, scores in of.items()
        if scores.get("failed")
    ]
    said.append(f"failed detections: {', '.join(failures) or 'none'}")
    return f"{'; '.join(said)}."


def gate_note(gate: dict) -> str:
    """Return which methods pass the challenge's identity gate."""
    said = []
    for method, passed in gate["passed"].items():
        if method != "LQ input":
            said.append(f"{method} {'passes' if passed else 'fails'} ({gate['below'][method]})")
    rule = f"at most {gate['allowed']} faces with an AdaFace cosine to the LQ image below {gate['threshold']:.2f}"
    return f"Identity gate, {rule}: {', '.join(said)}."


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
        rows = as_printed(source, methods, columns)
        for method, scores in record["rows"].items():
            ours = {column: scores[column] for column in columns if column in scores}
            if ours and method not in PARTS:
                rows[method if method not in rows else f"{method} (measured here)"] = ours
        own = {key: record[key] for key in ("benchmark", "images", "metrics", "trained_on") if key in record}
        found.append(own | {"source": source, "rows": rows, "left_out": excluded.get(source, [])})
    return found


def as_printed(source: str, methods: dict[str, dict[str, float]], columns: Sequence[str]) -> dict[str, dict]:
    """Return a source's values as scores of a record, with as many decimals as the source prints in the column."""
    decimals = {}
    for column in columns:
        printed = [str(values[column]) for values in methods.values() if column in values]
        decimals[column] = max(len(value.partition(".")[2]) for value in printed)
    rows: dict[str, dict] = {}
    for method, values in methods.items():
        rows[method] = {
            column: {"mean": value, "decimals": decimals[column], "source": source} for column, value in values.items()
        }
    return rows


def markdown_table(record: dict) -> str:
    """Return a result as a Markdown table and its notes; the best in bold, the second best in italics."""
    columns, marked = headings(record), marks(record)
    styles = {"best": "**{}**", "second": "*{}*"}
    rows = []
    for method in record["rows"]:
        kinds = {m: styles[marked[method, m]] if (method, m) in marked else "{}" for m in columns}
        cells = [kind.format(shown(record, method, m)) for m, kind in kinds.items()]
        rows.append([markdown.escaped(method), *cells])
    text = markdown.table(["method", *columns.values()], rows)
    return "\n".join([text, *("\n" + note for note in notes(record))])


def latex_table(record: dict) -> str:
    r"""Return a result as a LaTeX `table` (needs \usepackage{booktabs}); the second best is underlined."""
    columns, marked = headings(record, labels=True), marks(record)
    caption = f"{title(record)}. Best in bold, second best underlined."
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["method", *map(latex_text, columns.values())]) + r" \\",
        r"\midrule",
    ]
    for method in record["rows"]:
        cells = [latex_cell(shown(record, method, metric), marked.get((method, metric))) for metric in columns]
        lines.append(" & ".join([latex_text(method), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip{{\footnotesize {latex_text(note)}\par}}" for note in notes(record)]
    return "\n".join([*lines, r"\end{table}"])


def latex_cell(text: str, mark: str | None) -> str:
    """Return a cell: the mean marked, what follows it small."""
    mean, space, rest = text.partition(" ")
    command = {"best": r"\textbf", "second": r"\underline"}.get(mark or "")
    mean = f"{command}{{{latex_text(mean)}}}" if command else latex_text(mean)
    return mean + (rf" {{\scriptsize {latex_text(rest)}}}" if space else "")


LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "–": "--", "±": r"$\pm$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", TRAINED_ON: r"$^\dagger$", UNSTATED: r"$^\ddagger$",
} | {character: f"\\{character}" for character in "&%$#_{}"}  # fmt: skip


def latex_text(text: str) -> str:
    """Return text on one line, with the characters escaped that LaTeX would interpret."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def csv_table(records: Sequence[dict]) -> str:
    """Return results as CSV, a line for each number, with whose it is and how it was measured.

    Columns: benchmark, source (empty for ours), method, metric, direction, mean, low, high, images, failed, mark.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for record in records:
        marked = marks(record)
        for method, scores in record["rows"].items():
            for metric, values in scores.items():
                source = values.get("source", "")
                if record.get("source") and not source:  # ours are in the first record already
                    continue
                numbers = ["" if (v := values.get(key)) is None else f"{v:.8g}" for key in ("mean", "low", "high")]
                failed = "" if source else values.get("failed", 0)
                mark = marked.get((method, metric), "")
                what = [record["benchmark"], source, method, metric, direction(record, metric)]
                writer.writerow([*what, *numbers, record["images"], failed, mark])
    return file.getvalue().rstrip("\n")


def table(record: dict, style: str = "markdown", others: bool = False) -> str:
    """Return a result's table in a style, `markdown`, `latex` or `csv`.

    Args:
        record: what `lafr eval` writes.
        style: the format.
        others: whether to add a table for each source of published values; raises InputError for another set.
    """
    records = [record, *(with_published(record) if others else ())]
    if style == "csv":
        return csv_table(records)
    if style == "latex":
        return "\n\n".join(map(latex_table, records))
    return "\n\n".join(f"{title(one)}. {MARKED}\n\n{markdown_table(one)}" for one in records)


def print_table(record: dict) -> None:
    """Print a result's scores, its latents and its size."""
    columns = headings(record)
    table = Table(title=escape(title(record)))
    table.add_column("method")
    for heading in columns.values():
        table.add_column(escape(heading), justify="right")
    for method in record["rows"]:
        table.add_row(escape(method), *(escape(shown(record, method, metric)) for metric in columns))
    console = Console(width=None if sys.stdout.isatty() else max(100, 24 + 27 * len(columns)))
    console.print(table)
    for note in notes(record):
        console.print(note, markup=False)
    if record.get("latents"):
        console.print(", ".join(f"{name} {value:.4g}" for name, value in record["latents"].items()))
