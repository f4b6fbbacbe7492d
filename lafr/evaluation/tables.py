"""Tables of a result, from the record that `lafr eval` writes, in Markdown and CSV; `latex` and `terminal` do the rest.

Best and second best of the methods are marked, by the digits that are printed; the input and ceilings take no part.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from lafr.errors import InputError
from lafr.evaluation import markdown, published
from lafr.metrics.registry import HIGHER, LOWER, describe
from lafr.provenance import training_set_in_words
from lafr.storage import csv_cell, read_json

BOUNDS = ("LQ input", "Input", "codec(HQ)", "adapter(HQ)")  # not methods: what comes in, and what is out of reach
PARTS = ("codec(LQ)", "adapter only", "codec(HQ)", "adapter(HQ)")  # of LAFR: never compared with published values

TRAINED_ON = "†"
UNSTATED = "‡"
OWN_DEFINITION = "§"
LEGEND = f"{TRAINED_ON} scored with a network that the model was trained with, or that shares a teacher with one."
AS_THE_SOURCE = f"{UNSTATED} {published.UNSTATED}: no number of ours is known to be measured alike."
CSV_COLUMNS = (
    "benchmark", "source", "method", "metric", "direction", "mean", "low", "high", "images", "failed", "mark",
)  # fmt: skip
DIFFERS = f"{OWN_DEFINITION} measured here; definition may differ"
MARKED = "Best in bold, second best in italics."


def metrics_of(record: dict) -> list[str]:
    """Return the columns of a result, in the order in which its methods name them."""
    measured = dict.fromkeys(metric for scores in record["rows"].values() for metric in scores)
    return list(measured or record.get("columns", ()))


def direction(record: dict, metric: str) -> str:
    """Return ↑ or ↓, or nothing where neither is known to be better."""
    card = record.get("metrics", {}).get(metric, {})
    return card.get("direction") or describe(metric).direction or published.direction(metric)


def digits(record: dict, metric: str) -> int:
    """Return how many decimals of a metric are shown."""
    return record.get("metrics", {}).get(metric, {}).get("digits", describe(metric).digits)


def label(record: dict, metric: str) -> str:
    """Return what papers call a metric, or the column of a source."""
    if metric.endswith(published.UNSTATED):
        return published.label(metric) + UNSTATED
    return record.get("metrics", {}).get(metric, {}).get("label") or describe(metric).label


def headings(record: dict, labels: bool = False) -> dict[str, str]:
    """Return metric -> column heading, its name (or label, as papers print it) with the direction's arrow."""
    names = {metric: label(record, metric) if labels else metric for metric in metrics_of(record)}
    short = {metric: name.replace(f", {published.UNSTATED}", UNSTATED) for metric, name in names.items()}
    return {metric: f"{name} {direction(record, metric)}".strip() for metric, name in short.items()}


def cells_of(record: dict) -> Iterator[dict]:
    """Yield every number of a result with its interval."""
    for scores in record["rows"].values():
        yield from scores.values()


def shown(record: dict, method: str, metric: str, intervals: bool = True) -> str:
    """Return a cell: mean and interval, marks for a network trained with and for failures; published values as is."""
    scores = record["rows"][method].get(metric)
    if scores is None:
        return "–"
    if scores.get("source"):
        return f"{scores['mean']:.{scores['decimals']}f}"
    own = scores.get("measured_as", metric)  # ours in a column that only the source defines
    d = digits(record, own)
    text = "failed" if scores["mean"] is None else f"{scores['mean']:.{d}f}"
    mark = OWN_DEFINITION if own != metric else ""
    if intervals and scores["mean"] is not None and scores.get("low") is not None:
        text += f" ({scores['low']:.{d}f}–{scores['high']:.{d}f})"
    mark += TRAINED_ON if own in record.get("trained_on", {}).get(method, ()) else ""
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
            cell = scores.get(metric, {})
            mean = cell.get("mean")
            if method not in BOUNDS and mean is not None and "measured_as" not in cell:
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


def title(record: dict, intervals: bool = True) -> str:
    """Return what a table holds: set, size, protocol, kind of interval; or whose numbers they are."""
    if source := record.get("source"):
        measured = any("source" not in values for scores in record["rows"].values() for values in scores.values())
        ours = f"; {'numbers with an interval' if intervals else 'the others'} are measured here" if measured else ""
        return f"{record['benchmark']}: printed in {source}{ours}"
    protocol = f", protocol {record['protocol']}" if record.get("protocol") else ""
    size = f" at {record['resolution']} px" if record.get("resolution") else ""
    what = f"{record['benchmark']}, {record['images']} images{size}{protocol}"
    return f"{what}; mean (95 % bootstrap interval over images)" if intervals else f"{what}; means"


def notes(record: dict, brief: bool = False) -> list[str]:
    """Return the lines under a table: the marks' meaning, and each metric that could not be measured, with why.

    Args:
        record: a result.
        brief: as in a paper: metrics by their labels, and without how to get what is missing.
    """
    legend = [LEGEND] if any(record.get("trained_on", {}).values()) else []
    legend += [differences(record)] if any("measured_as" in cell for cell in cells_of(record)) else []
    legend += [AS_THE_SOURCE] if any(UNSTATED in heading for heading in headings(record).values()) else []
    legend += [conditions(record)] if record.get("resolution") else []
    legend += [gate_note(record["gate"])] if record.get("gate") else []
    legend += [f"Left out: {reason}." for reason in record.get("left_out", ())]
    missing = record.get("not_measured", {})
    if brief and missing:
        return [*legend, f"Not measured: {', '.join(label(record, metric) for metric in missing)}."]
    return legend + [f"{metric} was not measured: {reason}." for metric, reason in missing.items()]


def conditions(record: dict) -> str:
    """Return what numbers depend on: resolution, filters, protocol, training and reference sets, failures."""
    filtered = (record.get("set") or {}).get("filter")
    said = [f"Scored at {record['resolution']} px" + (f", prepared with a {filtered} filter" if filtered else "")]
    said += [f"protocol {record['protocol']}"] if record.get("protocol") else []
    by_set: dict[str, list[str]] = {}
    for method, trained in record.get("training_sets", {}).items():
        by_set.setdefault(training_set_in_words(trained), []).append(method)
    said += [f"{', '.join(methods)} trained on {faces}" for faces, methods in by_set.items()]
    for metric, card in record.get("metrics", {}).items():
        if resized := (card.get("reference") or {}).get("resized"):
            said.append(f"{label(record, metric)} against images resized by {resized}")
    failures = [
        f"{method} {label(record, metric)} {scores['failed']}"
        for method, of in record["rows"].items()
        for metric, scores in of.items()
        if scores.get("failed")
    ]
    said.append(f"failed measurements: {', '.join(failures) or 'none'}")
    return f"{'; '.join(said)}."


def differences(record: dict) -> str:
    """Return by which metric of ours each column that only the source defines is filled."""
    ours = {}
    for scores in record["rows"].values():
        for column, cell in scores.items():
            if "measured_as" in cell:
                ours[published.label(column)] = label(record, cell["measured_as"])
    pairs = ", ".join(f"{theirs} by {own}" for theirs, own in ours.items())
    return f"{DIFFERS}: {pairs}."


def gate_note(gate: dict) -> str:
    """Return which methods pass the challenge's identity gate."""
    said = []
    for method, passed in gate["passed"].items():
        if method != "LQ input":
            said.append(f"{method} {'passes' if passed else 'fails'} ({gate['below'][method]})")
    rule = f"at most {gate['allowed']} faces with an AdaFace cosine to the LQ image below {gate['threshold']:.2f}"
    return f"Identity gate, {rule}: {', '.join(said)}."


def with_published(record: dict, together: bool = False) -> list[dict]:
    """Return a record for each source of published values of this result's set, our comparable numbers among them.

    Each is a table of its own: two sources never share one. Ours are left out where the result is of a part of the
    set. Raises InputError when the result is not of that set.

    Args:
        record: a result.
        together: also fill the columns that only the source defines, by a related metric of ours. Such a number is
            marked ("measured here; definition may differ") and takes no part in best and second best.
    """
    own_rows, without_ours = record["rows"], []
    try:
        published.require_same_set(record)
    except published.PartOfSetError as part:
        own_rows, without_ours = {}, [f"ours ({part})"]
        record = record | {"images": published.BENCHMARKS[published.set_name(record)][1]}
    name, measured = published.set_name(record), metrics_of(record)
    excluded = published.left_out(name, measured)
    found = []
    for source, methods in published.blocks(name, measured).items():
        columns = list(dict.fromkeys(column for values in methods.values() for column in values))
        rows = as_printed(source, methods, columns)
        for method, scores in own_rows.items():
            ours = {column: scores[column] for column in columns if column in scores}
            if together:
                ours |= related_cells(source, columns, scores)
            if ours and method not in PARTS:
                rows[method if method not in rows else f"{method} (measured here)"] = ours
        keys = ["benchmark", "images", "metrics", "trained_on"]
        if len(rows) > len(methods):  # ours are among them
            keys += ["resolution", "protocol", "set", "training_sets"]
        own = {key: record[key] for key in keys if key in record}
        reasons = [*without_ours, *excluded.get(source, [])]
        found.append(own | {"benchmark": name, "source": source, "rows": rows, "left_out": reasons})
    return found


def related_cells(source: str, columns: Sequence[str], scores: dict[str, dict]) -> dict[str, dict]:
    """Return column -> our number by the first related metric, for the columns that only the source defines."""
    cells = {}
    for column in columns:
        printed, _, unstated = column.partition(", ")
        own = [metric for metric in scores if metric in published.related(source, printed)] if unstated else []
        if own:
            cells[column] = scores[own[0]] | {"measured_as": own[0]}
    return cells


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
                writer.writerow([*map(csv_cell, what), *numbers, record["images"], failed, mark])
    return file.getvalue().rstrip("\n")


def table(record: dict, style: str = "markdown", others: bool = False, together: bool = False) -> str:
    """Return a result's table in a style, `markdown`, `latex` or `csv`.

    Args:
        record: what `lafr eval` writes.
        style: the format.
        others: whether to add a table for each source of published values; raises InputError for another set.
        together: whether ours stand in all of its columns, see `with_published`.
    """
    from lafr.evaluation.latex import latex_table  # it draws on this module

    records = [record, *(with_published(record, together) if others or together else ())]
    if style == "csv":
        return csv_table(records)
    if style == "latex":
        return "\n\n".join(map(latex_table, records))
    return "\n\n".join(f"{title(one)}. {MARKED}\n\n{markdown_table(one)}" for one in records)


def read_result(path: Path) -> dict:
    """Return the record of a result; raises InputError for another file, and for one that no table can be made of."""
    try:
        record = read_json(path)
        # tried once: a damaged file has no one place where that shows
        for style in ("markdown", "latex", "csv"):
            table(record, style)
        title(record, intervals=False), notes(record, brief=True), published.set_name(record)
        [f"{value:.4g}" for value in (record.get("latents") or {}).values()]
    except OSError as error:
        raise InputError("result", str(path), "a result.json", f"it cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        remedy = f"it is damaged, or of another program ({type(error).__name__})"
        raise InputError("result", str(path), "a result.json that `lafr eval` wrote", remedy) from None
    return record
