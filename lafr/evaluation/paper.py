"""The paper's tables: which experiments, test sets and files each needs, which are there, and the table made of them.

A table is assembled from the JSON files that evaluations wrote. What isn't there yet is a blank that is named under it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lafr.errors import InputError, need, setting
from lafr.evaluation import markdown, published
from lafr.evaluation.latex import floating, latex_text
from lafr.evaluation.latex import latex_table as latex_of
from lafr.evaluation.protocols import metrics_of
from lafr.evaluation.tables import (
    BOUNDS,
    MARKED,
    direction,
    label,
    markdown_table,
    read_result,
    title,
    with_published,
)
from lafr.evaluation.tables import metrics_of as metrics_of_result
from lafr.evaluation.terminal import print_table
from lafr.storage import atomic_write, read_json, shipped

PROTOCOL = "lafr"
MODEL, INPUT = "LAFR", BOUNDS[0]


@dataclass(frozen=True)
class Row:
    """One method of a table: an experiment, by the name that the table prints."""

    method: str
    experiment: str


@dataclass(frozen=True)
class PaperTable:
    """One table or figure of the paper.

    Args:
        key: by which it is asked for.
        title: what it shows.
        rows: its experiments.
        benchmarks: the test sets on which they are scored, a table for each.
        published: whether published values of other methods stand next to ours.
        files: other files that it is made of.
        drawn: whether it is a figure; numbers that it is made of are printed as a table too.
        numbers: whether it is made of results; else of the model and the test set alone.
    """

    key: str
    title: str
    rows: tuple[Row, ...] = ()
    benchmarks: tuple[str, ...] = ()
    published: bool = False
    files: tuple[str, ...] = ()
    drawn: bool = False
    numbers: bool = True


OURS = "ffhq_0.9pct"
REAL = ("lfw_test", "webphoto_test", "wider_test", "celebchild_test")
ALIGNMENT = (
    Row("no adapter (baseline)", f"{OURS}_none"),
    Row("convolutions", f"{OURS}_conv"),
    Row("hard codes (LAFR)", OURS),
    Row("residual codes", f"{OURS}_residual"),
    Row("code prediction", f"{OURS}_code_prediction"),
    Row("fine-tuned VAE encoder (baseline)", f"{OURS}_encoder"),
)
FACES = {"ffhq_0.1pct": 70, OURS: 600, "ffhq_10pct": 7_000, "ffhq_100pct": 70_000}
SIZES = (
    Row("0.1 % (70 faces)", "ffhq_0.1pct"),
    Row("0.9 % (600 faces)", OURS),
    Row("10 % (7,000 faces)", "ffhq_10pct"),
    Row("100 % (70,000 faces)", "ffhq_100pct"),
)
IMAGES = {name: count for name, (_, count) in published.BENCHMARKS.items()} | {"celebchild_test": 180}
COSTS = ("results/parameters.json", "results/benchmarks/inference.json")
TABLES = {
    table.key: table
    for table in (
        PaperTable("1", "Synthetic benchmark, against other methods", (Row(MODEL, OURS),), ("celeba_test",), True),
        PaperTable("2", "Real benchmarks, against other methods", (Row(MODEL, OURS),), REAL, True),
        PaperTable("3", "Parameters, latency and cost", files=COSTS),
        PaperTable("4", "Alignment modules, 0.9 % of FFHQ", ALIGNMENT, ("celeba_test",)),
        PaperTable("11", "Size of the training set, synthetic benchmark", SIZES, ("celeba_test",)),
        PaperTable("12", "Size of the training set, real benchmarks", SIZES, REAL),
        PaperTable("figure6", "Size of the training set, each metric as a curve", SIZES, ("celeba_test",), drawn=True),
        PaperTable(
            "tsne",
            "t-SNE of latents before and after alignment",
            (Row(MODEL, OURS),),
            ("celeba_test",),
            drawn=True,
            numbers=False,
        ),
    )
}


@dataclass(frozen=True)
class Need:
    """Something that a table is made of.

    Args:
        kind: "experiment" (its file), "model" (trained), "benchmark" (its images), "result" or "file".
        name: of the experiment, of the benchmark, or "EXPERIMENT on BENCHMARK".
        there: whether it is on this machine.
        experiment: whose it is.
        benchmark: on which it is scored.
    """

    kind: str
    name: str
    there: bool
    experiment: str = ""
    benchmark: str = ""


def table_of(key: str) -> PaperTable:
    """Return a table of the paper; raises InputError for one that isn't known."""
    if key not in TABLES:
        raise InputError("table", key, f"one of {', '.join(TABLES)}")
    return TABLES[key]


def result_file(experiment: str, benchmark: str) -> Path | None:
    """Return the newest result of an experiment on a whole benchmark: of an evaluation, or published."""
    name = f"runs-{experiment}-model"
    places = [Path(f"runs/eval/{name}/{benchmark}/{PROTOCOL}/result.json")]
    places.append(Path(f"results/{name}/{benchmark}_{PROTOCOL}.json"))
    there = [place for place in places if place.is_file()]
    return max(there, key=lambda place: place.stat().st_mtime, default=None)


def is_current(result: Path | None, experiment: str) -> bool:
    """Return whether there is a result, and none of its model was saved after it."""
    model = Path("runs") / experiment / "model" / "lafr.json"
    return result is not None and (not model.is_file() or result.stat().st_mtime >= model.stat().st_mtime)


def needs(table: PaperTable) -> list[Need]:
    """Return what a table is made of, and what of it is there, in the order in which it is made."""
    found = []
    experiments = list(dict.fromkeys(row.experiment for row in table.rows))
    for experiment in experiments:
        file = shipped("configs") / "experiment" / f"{experiment}.yaml"
        model = Path("runs") / experiment / "model" / "lafr.json"
        found.append(Need("experiment", experiment, file.is_file(), experiment))
        found.append(Need("model", experiment, model.is_file(), experiment))
    found += [Need("benchmark", name, Path(f"data/{name}").is_dir(), benchmark=name) for name in table.benchmarks]
    for benchmark in table.benchmarks if table.numbers else ():
        for experiment in experiments:
            there = is_current(result_file(experiment, benchmark), experiment)
            found.append(Need("result", f"{experiment} on {benchmark}", there, experiment, benchmark))
    return found + [Need("file", file, Path(file).is_file()) for file in table.files]


def assembled(table: PaperTable, benchmark: str) -> dict:
    """Return one record of a table's experiments on a benchmark, a row each, as `lafr.evaluation.tables` shows them.

    Raises InputError where two results differ in what must be equal: the images, the resolution, the protocol.
    """
    rows: dict[str, dict] = {}
    merged: dict = {"benchmark": benchmark, "protocol": PROTOCOL, "rows": rows, "trained_on": {}, "not_measured": {}}
    merged |= {"training_sets": {}}
    blanks, first = [], None
    for row in table.rows:
        path = result_file(row.experiment, benchmark)
        if path is None:
            rows[row.method] = {}
            blanks.append(f"{row.method}: {row.experiment} has no result on {benchmark}")
            continue
        result = read_result(path)
        if first is None:
            first, first_path = result, path
            merged |= {key: result[key] for key in ("benchmark", "images", "resolution", "set") if key in result}
            merged |= {"metrics": dict(result.get("metrics", {})), "rows": rows}
            if INPUT in result["rows"]:
                rows = merged["rows"] = {INPUT: result["rows"][INPUT], **rows}
        require_alike(first, result, first_path, path)
        rows[row.method] = result["rows"].get(MODEL, {})
        merged["metrics"] |= result.get("metrics", {})
        merged["trained_on"][row.method] = result.get("trained_on", {}).get(MODEL, [])
        if trained := result.get("training_sets", {}).get(MODEL):
            merged["training_sets"][row.method] = trained
        merged["not_measured"] |= result.get("not_measured", {})
    if first is None:
        merged |= {"images": IMAGES[benchmark], "columns": metrics_of(PROTOCOL)}
    return merged | {"blanks": blanks}


def require_alike(first: dict, other: dict, first_path: Path, path: Path) -> None:
    """Raise InputError unless two results may share a table."""
    for what in ("benchmark", "images", "resolution", "protocol", "seed"):
        if first.get(what) != other.get(what):
            raise InputError(
                f"{str(path)!r} has {what} {other.get(what)!r}, {str(first_path)!r} has {first.get(what)!r}: they "
                "cannot share a table; evaluate one of them again"
            )


def records(table: PaperTable) -> list[dict]:
    """Return the records that a table shows: ours on each benchmark, then those of each source of published values."""
    found = []
    for benchmark in table.benchmarks:
        own = assembled(table, benchmark)
        found.append(own)
        if not table.published:
            continue
        try:
            theirs = with_published(own, together=True) if benchmark in published.BENCHMARKS else []
        except InputError as refused:  # another set
            own["blanks"].append(f"published values: {refused}")
            continue
        for one in theirs:
            missing = [row.method for row in table.rows if not any(row.method in name for name in one["rows"])]
            one["rows"] |= {method: {} for method in missing}
            found.append(one)
    return found


def draw_sizes(table: PaperTable, path: Path) -> None:
    """Draw each metric over the number of training faces, with the 95 % intervals, into an .svg or .png file."""
    if path.suffix not in (".svg", ".png"):
        raise InputError("output", str(path), "a file that ends in .svg or .png")
    need("matplotlib", "'lafr[figures]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    record = assembled(table, table.benchmarks[0])
    metrics = metrics_of_result(record)
    figure = Figure(figsize=(3.2 * min(4, len(metrics)), 2.6 * math.ceil(len(metrics) / 4)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(math.ceil(len(metrics) / 4), min(4, len(metrics)), place)
        faces, mean, low, high = np.array(curve_of(table, record, metric)).reshape(-1, 4).T
        axes.errorbar(faces, mean, [mean - low, high - mean], fmt="o-", ms=4)
        axes.set_xscale("log")
        axes.set_title(f"{label(record, metric)} {direction(record, metric)}", fontsize=9)
        axes.set_xlabel("training faces", fontsize=8)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:]))


def curve_of(table: PaperTable, record: dict, metric: str) -> list[tuple[int, float, float, float]]:
    """Return training faces, mean, low and high of each experiment that has a number, fewest faces first."""
    points = []
    for row in table.rows:
        cell = record["rows"].get(row.method, {}).get(metric, {})
        if cell.get("mean") is not None:
            mean = cell["mean"]
            low, high = (mean if cell.get(bound) is None else cell[bound] for bound in ("low", "high"))
            points.append((FACES[row.experiment], mean, low, high))
    return sorted(points)


def costs(table: PaperTable) -> list[list[str]]:
    """Return the cells of the table of costs: what, number, where it comes from; a blank for a missing file."""
    cells = []
    for file in map(Path, table.files):
        if not file.is_file():
            cells.append([f"({file.stem})", "–", f"{file} is missing"])
            continue
        try:
            cells += costs_in(file)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            remedy = f"make it again: python -m scripts.benchmarks {file.stem}"
            raise InputError(f"{str(file)!r} cannot be read ({type(error).__name__})", remedy=remedy) from None
    return cells


def costs_in(file: Path) -> list[list[str]]:
    """Return the cells of one file of the table of costs."""
    record, cells = read_json(file), []
    if "trained_in_all" in record:
        parts = {"UNet": record["unet"], "adapter": record["adapter"], "trained in all": record["trained_in_all"]}
        cells += [[f"parameters, {name}", f"{count / 1e6:.2f} M", str(file)] for name, count in parts.items()]
    for size, variants in record.get("batches", {}).items():
        for variant, values in variants.items():
            what = f"ms per image, batch {size}, {variant}"
            where = f"{file}, {record.get('device') or record.get('machine', '')}"
            cells.append([what, f"{values['ms_per_image']:.0f}", where])
    return cells


def shown(table: PaperTable, style: str = "markdown") -> str:
    """Return a table of the paper, "markdown" or "latex", with its blanks named."""
    if not table.numbers:
        raise InputError(f"{table.key} ({table.title}) is an image alone", remedy=f"give {setting('output')}, an .svg")
    head, latex = heading(table), style == "latex"
    if table.files:
        return plain(head, ["", "value", "source"], costs(table), latex)
    parts = [f"% {head}" if latex else f"## {head}"]
    for record in records(table):
        parts.append(latex_of(record) if latex else f"{title(record)}. {MARKED}\n\n{markdown_table(record)}")
        blanks = [f"Blank: {reason}." for reason in record.get("blanks", ())]
        if blanks:
            parts.append("\n".join(f"% {' '.join(line.split())}" for line in blanks) if latex else "\n\n".join(blanks))
    return "\n\n".join(parts)


def heading(table: PaperTable) -> str:
    """Return a table's number and title."""
    return f"Table {table.key}: {table.title}" if table.key.isdigit() else f"{table.key}: {table.title}"


def print_in_terminal(table: PaperTable) -> None:
    """Print a table of the paper as wide as the terminal is."""
    if table.files or not table.numbers:
        print(shown(table))
        return
    print(f"{heading(table)}\n")
    for record in records(table):
        print_table(record)
        print()


def plain(head: str, headings: Sequence[str], cells: Sequence[Sequence[str]], latex: bool) -> str:
    """Return a table of text in Markdown or LaTeX."""
    if not latex:
        return f"## {head}\n\n{markdown.table(headings, cells)}"
    rows = [[latex_text(cell) for cell in line] for line in (headings, *cells)]
    return floating(head, "l" * len(headings), rows)
