"""Values that papers and repositories print (`data/published.csv`), by benchmark and source.

Sources disagree on the same method by more than methods differ, so a block never mixes two. "CelebA-Test" is two sets:
the severe one is our benchmark `celeba_test`, the mild one `celeba_test_mild`.
"""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lafr.data.severity import BOUNDARY, SETS, is_clear, severity_of
from lafr.errors import InputError, setting
from lafr.metrics.registry import METRICS, MetricRecord
from lafr.storage import shipped

COLUMNS = ("benchmark", "method", "metric", "value", "source")
UNSTATED = "as the source defines it"

# our benchmark -> its name in the file, and how many images were scored
BENCHMARKS = {
    "celeba_test": ("celeba_test_severe", 3000),
    "celeba_test_mild": ("celeba_test_mild", 3000),
    "lfw_test": ("lfw_test", 1711),
    "webphoto_test": ("webphoto_test", 407),
    "wider_test": ("wider_test", 970),
}


@dataclass(frozen=True)
class Printed:
    """A metric by its name in the file: which way is better, what a mean can be, and which of ours it may be."""

    direction: str
    low: float
    high: float
    ours: tuple[str, ...]


def printed_metrics() -> dict[str, Printed]:
    """Return name in the file -> facts, from the records of our metrics that it may mean."""
    ours: dict[str, list[MetricRecord]] = {}
    for record in METRICS.values():
        for name in record.printed:
            ours.setdefault(name, []).append(record)
    found = {}
    for name, records in ours.items():
        implemented = tuple(record.name for record in records if record.implementation)
        found[name] = Printed(records[0].direction, *records[0].plausible, implemented)
    return found


PRINTED = printed_metrics()

# Definitions that were read in a source's own code: RGB, crop 0, mean of per-image dB; VQFR's LPIPS, Deg, LMD and NIQE.
VQFR = {"psnr": "psnr_rgb", "lpips_vgg": "lpips_vgg", "deg": "deg_vqfr", "lmd": "lmd", "niqe": "niqe"}
PMRF, BFRFFUSION = "PMRF README table (ohayonguy/PMRF)", "BFRffusion README table (chenxx89/BFRffusion)"
SAME = {PMRF: VQFR, BFRFFUSION: VQFR}
INNER = "its SSIM leaves out a border of 5 pixels, ours counts every pixel"
DIFFERENT = {
    PMRF: {"ssim": INNER, "kid": "its KID is to FFHQ, ours to the set's HQ images"},
    BFRFFUSION: {"ssim": INNER},
}

Blocks = dict[str, dict[str, dict[str, float]]]


class PartOfSetError(InputError):
    """A result is of some images of a set whose published values are means over all."""


@cache
def read_published(path: Path | None = None) -> tuple[dict[str, str | float], ...]:
    """Return the lines of the file, checked.

    Raises InputError for a benchmark or metric that is not known, a value that a mean cannot have, and a
    (benchmark, method, metric, source) that occurs twice.
    """
    path = path or shipped("published.csv")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"published values {str(path)!r} cannot be read ({error}); restore the file") from None
    seen: dict[tuple, int] = {}
    for number, line in enumerate(lines, start=2):
        where = f"{path.name}, line {number}"
        if tuple(line) != COLUMNS or None in line.values():
            raise InputError(f"{where} does not have the columns {','.join(COLUMNS)}; write them")
        line["value"] = value_of(line, where)
        key = tuple(line[c] for c in COLUMNS if c != "value")
        if key in seen:
            raise InputError(f"{where} repeats line {seen[key]} ({', '.join(key)}); keep one of them")
        seen[key] = number
    return tuple(lines)


def value_of(line: dict[str, str], where: str) -> float:
    """Return a line's value; raises InputError unless benchmark, metric and value are possible."""
    known = [name for name, _ in BENCHMARKS.values()]
    if line["benchmark"] not in known:
        raise InputError(f"{where}: benchmark {line['benchmark']!r} is not one of {', '.join(known)}")
    metric = PRINTED.get(line["metric"])
    if metric is None:
        raise InputError(f"{where}: metric {line['metric']!r} is not one of {', '.join(PRINTED)}")
    if not line["method"].strip() or not line["source"].strip():
        raise InputError(f"{where}: method and source are needed; say who printed the value")
    try:
        value = float(line["value"])
    except ValueError:
        value = float("nan")
    if not metric.low <= value <= metric.high:
        raise InputError(
            f"{where}: {line['metric']} = {line['value']!r} is outside {metric.low} to {metric.high}; look it up again"
        )
    return value


def blocks(benchmark: str, metrics: Collection[str] | None = None, path: Path | None = None) -> Blocks:
    """Return source -> method -> column -> value for one of our benchmarks; empty for a set without published values.

    A column is named as ours where the source is known to measure alike, else "METRIC, as the source defines it": such
    a column holds no number of ours. What is known to differ is left out, see `left_out`.

    Args:
        benchmark: by its name here; `celeba_test` never returns a value of the mild set, nor the other way round.
        metrics: of ours; a published column needs one that is related to it. None for all columns.
        path: of another file than the shipped one.
    """
    found: Blocks = {}
    for line in lines_of(benchmark, path):
        source, metric = line["source"], line["metric"]
        if metric in DIFFERENT.get(source, ()) or not (metrics is None or related(source, metric) & set(metrics)):
            continue
        column = SAME.get(source, {}).get(metric) or f"{metric}, {UNSTATED}"
        found.setdefault(source, {}).setdefault(line["method"], {})[column] = line["value"]
    return found


def left_out(benchmark: str, metrics: Collection[str] | None = None, path: Path | None = None) -> dict[str, list[str]]:
    """Return source -> why its values of the metrics that we measure in another way are not shown."""
    reasons: dict[str, list[str]] = {}
    for line in lines_of(benchmark, path):
        source, metric = line["source"], line["metric"]
        why = DIFFERENT.get(source, {}).get(metric)
        asked = metrics is None or related(source, metric) & set(metrics)
        if why and asked and why not in reasons.setdefault(source, []):
            reasons[source].append(why)
    return {source: why for source, why in reasons.items() if why}


def lines_of(benchmark: str, path: Path | None = None) -> list[dict]:
    """Return the lines of one of our benchmarks."""
    name, _ = BENCHMARKS.get(benchmark, (None, 0))
    return [line for line in read_published(path) if line["benchmark"] == name]


def related(source: str, metric: str) -> set[str]:
    """Return our metrics that a source's column is worth comparing with."""
    same = SAME.get(source, {}).get(metric)
    return {same} if same else set(PRINTED[metric].ours)


def direction(column: str) -> str:
    """Return ↑ or ↓ of a column that `blocks` names, empty for one of ours."""
    metric, _, unstated = column.partition(", ")
    return PRINTED[metric].direction if unstated == UNSTATED else ""


def label(column: str) -> str:
    """Return what papers call a column that `blocks` names."""
    printed = column.partition(", ")[0]
    records = [record for record in METRICS.values() if printed in record.printed]
    exact = [record.label for record in records if record.name == printed]
    # "LPIPS (VGG)" is one of the metrics that "lpips" may mean
    return (exact or [records[0].label.partition(" (")[0] if records else printed])[0]


def require_same_set(record: dict) -> None:
    """Raise InputError unless a result is of the set whose published values its benchmark's name asks for.

    Checked: the PSNR of LQ against HQ of CelebA-Test, which separates severe from mild, and the number of images, of
    which a wrong one is a `PartOfSetError`.
    """
    benchmark, images = set_name(record), record["images"]
    if benchmark not in BENCHMARKS:
        raise InputError(f"nothing is published for benchmark {benchmark!r}; there is for {', '.join(BENCHMARKS)}")
    psnr = record["rows"].get("LQ input", {}).get("psnr_rgb", {}).get("mean")
    if psnr is not None and benchmark in SETS.values():
        found = SETS[severity_of(psnr)]
        if found != benchmark and is_clear(psnr):
            raise InputError(
                f"this result is named {benchmark}, but its LQ images have {psnr:.2f} dB, as those of {found} (under "
                f"{BOUNDARY} dB severe, else mild)",
                remedy=f"score it with {setting('benchmark', found)}",
            )
    count = BENCHMARKS[benchmark][1]
    if images != count:
        raise PartOfSetError(
            f"published values of {benchmark} are means over {count} images, this result has {images}",
            remedy="score the whole set",
        )


def set_name(record: dict) -> str:
    """Return the benchmark of a result, that of the whole set for a trial on some of its images."""
    return record.get("set", {}).get("name") or record["benchmark"]
