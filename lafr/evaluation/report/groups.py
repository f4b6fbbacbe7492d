"""Scores by group: is a restorer worse for some people than for others?"""

import csv
import math
from collections import Counter
from pathlib import Path

import numpy as np

from lafr.errors import InputError
from lafr.evaluation.report.scores import Values
from lafr.evaluation.summary import mean_and_interval

Groups = dict[str, dict[str, str]]  # column -> stem -> group
FEW = 5  # fewer images than this get no interval: it would mean nothing


def read_groups(source: str | Path | Groups, stems: list[str]) -> Groups:
    """Return column -> stem -> group, from a CSV of which one column names the images, or as given.

    A name matches its stem, with or without extension, or the part before the stem's last `_` (`001` for `001_03`).
    Raises InputError unless some column names at least half of the images; the others count as "not stated".
    """
    if not isinstance(source, str | Path):
        return {str(column): dict(zip(of, map(str, of.values()), strict=True)) for column, of in source.items()}
    path = Path(source)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.DictReader(file) if None not in line and None not in line.values()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        remedy = "give a CSV with a line for each image"
        raise InputError(f"groups {str(path)!r} cannot be read ({error})", remedy=remedy) from None
    columns = list(lines[0]) if lines else []
    by_column = {}
    for column in columns:
        by_column[column] = lines_of({line[column]: line for line in lines}, stems)
    key = max(columns, key=lambda column: len(by_column[column]), default=None)
    if key is None or 2 * len(by_column[key]) < len(stems):
        raise InputError(
            f"no column of groups {str(path)!r} names images such as {stems[:1]}",
            remedy="name them in one column, or give no groups",
        )
    groups = {column: dict.fromkeys(stems, "") for column in columns if column != key}
    for stem, line in by_column[key].items():
        for column, of in groups.items():
            of[stem] = line.get(column, "")
    return groups


def lines_of(by_name: dict[str, dict], stems: list[str]) -> dict[str, dict]:
    """Return stem -> line, for the stems that are named."""
    by_stem = {Path(name).stem if name else name: line for name, line in by_name.items()} | by_name
    found = {stem: by_stem.get(stem) or by_stem.get(stem.rpartition("_")[0]) for stem in stems}
    return {stem: line for stem, line in found.items() if line is not None}


def labelled(of: dict[str, str], most: int = 8) -> dict[str, str]:
    """Return stem -> group; numbers of more than `most` distinct values are grouped into thirds, such as `18–24`."""
    numbers = {stem: number(value) for stem, value in of.items()}
    whole = [value for value in numbers.values() if math.isfinite(value)]
    if len(set(whole)) <= most or len(whole) < len(of) / 2:
        return {stem: value.strip() or "not stated" for stem, value in of.items()}
    low, high = np.quantile(whole, [1 / 3, 2 / 3])
    thirds = {stem: int(value > low) + int(value > high) for stem, value in numbers.items() if math.isfinite(value)}
    names = {}
    for third in set(thirds.values()):
        inside = [numbers[stem] for stem, own in thirds.items() if own == third]
        names[third] = f"{min(inside):g}–{max(inside):g}"
    return {stem: names[thirds[stem]] if stem in thirds else "not stated" for stem in of}


def number(value: str) -> float:
    """Return a number, NaN if the text is none."""
    try:
        return float(value)
    except ValueError:
        return math.nan


def by_group(of: dict[str, str], scores: dict[str, Values], seed: int = 0) -> dict[str, dict]:
    """Return group -> {"images": n, "scores": {metric: mean, low, high}}, largest group first, numbers in order.

    Groups of fewer than five images get no interval: their bootstrap interval would be too narrow.
    """
    groups = labelled(of)
    found = {}
    for name, count in sorted(Counter(groups.values()).items(), key=lambda item: order(item, groups)):
        inside = [stem for stem, group in groups.items() if group == name]
        means = {}
        for metric, values in scores.items():
            measured = mean_and_interval(np.array([values.get(stem, math.nan) for stem in inside]), seed)
            means[metric] = measured if count >= FEW else measured | {"low": None, "high": None}
        found[name] = {"images": count, "scores": means}
    return found


def order(item: tuple[str, int], groups: dict[str, str]) -> tuple:
    """Return the sort key of a group: numbers and ranges by size, then others by their number of images."""
    name, count = item
    first = number(name.partition("–")[0])
    return (0, first, name) if math.isfinite(first) else (1, -count, name)
