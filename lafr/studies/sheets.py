"""Sheets of faces side by side, chosen by a metric and never by hand."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lafr.errors import InputError
from lafr.files import write_aside


def read_scores(path: Path, row: str, metric: str) -> dict[str, float]:
    """Return image -> a row's score, of an evaluation's scores.csv; failed measurements are left out."""
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["row"] == row]
    if not lines or metric not in lines[0]:
        raise InputError(f"{str(path)!r} holds no {metric} of row {row!r}; score the run again")
    scores = {line["image"]: float(line[metric]) for line in lines}
    return {image: value for image, value in scores.items() if not math.isnan(value)}


def evenly_ranked(scores: Mapping[str, float], count: int) -> list[str]:
    """Return `count` images at even ranks from the lowest score to the highest, both included."""
    order = sorted(scores, key=lambda image: (scores[image], image))
    count = min(count, len(order))
    return [order[round(i * (len(order) - 1) / max(1, count - 1))] for i in range(count)]


def worst(scores: Mapping[str, float], count: int, lowest: bool) -> list[str]:
    """Return the `count` images with the lowest (or highest) scores, the worst first."""
    return sorted(scores, key=lambda image: (scores[image] if lowest else -scores[image], image))[:count]


def sheet(lines: Mapping[str, Path], images: Sequence[str], path: Path) -> Path:
    """Write a sheet: a column an image, a line a folder of STEM.png with its name before it; return `path`."""
    rows = {
        name: [Image.open(folder / f"{stem}.png").convert("RGB") for stem in images] for name, folder in lines.items()
    }
    side, font = next(iter(rows.values()))[0].width, ImageFont.load_default(13)
    left = math.ceil(max(font.getlength(name) for name in rows)) + 12
    drawn = Image.new("RGB", (left + side * len(images), side * len(rows)), "white")
    pen = ImageDraw.Draw(drawn)
    for y, (name, faces) in enumerate(rows.items()):
        pen.text((6, y * side + side // 2 - 7), name, "black", font)
        for x, face in enumerate(faces):
            drawn.paste(face, (left + x * side, y * side))
    write_aside(path, drawn.save)
    return path
