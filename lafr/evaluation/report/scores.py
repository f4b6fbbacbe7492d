"""What an evaluation wrote beside its record: `scores.csv`, one number an image, row and metric."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from lafr.errors import InputError
from lafr.evaluation.tables import NO_METHODS, PARTS, direction
from lafr.metrics.registry import LOWER, first_of

Values = dict[str, float]  # stem -> number, NaN where the measurement failed


@dataclass(frozen=True)
class Scores:
    """Per-image numbers: `of[row][metric][stem]`, in the order of `stems`."""

    stems: list[str]
    of: dict[str, dict[str, Values]]

    def metrics(self, row: str) -> list[str]:
        """Return the metrics that hold a number of some image of a row."""
        return [m for m, values in self.of.get(row, {}).items() if any(map(math.isfinite, values.values()))]


def read_scores(path: Path) -> Scores:
    """Return what `scores.csv` holds (columns image, row, metrics); raises InputError for another file."""
    of: dict[str, dict[str, Values]] = {}
    stems: dict[str, None] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                stem, row = line.pop("image"), line.pop("row")
                stems[stem] = None
                for metric, value in line.items():
                    of.setdefault(row, {}).setdefault(metric, {})[stem] = float(value or "nan")
    except OSError as error:
        raise InputError(f"scores {str(path)!r} cannot be read: {error.strerror}; run scripts/eval.py again") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{str(path)!r} is not scores.csv of scripts/eval.py; run it again") from None
    return Scores(list(stems), of)


def row_shown(record: dict) -> str:
    """Return the row that a report is about: LAFR, or the first method whose pictures there are."""
    rows = [row for row in record["rows"] if row not in (*NO_METHODS, *PARTS)]
    with_pictures = [row for row in rows if row in record.get("pictures", {})]
    return next((row for row in ("LAFR", *with_pictures, *rows, *record["rows"]) if row in record["rows"]), "LAFR")


def ranking_metric(record: dict, scores: Scores, row: str) -> str | None:
    """Return the metric that tells worst from best: the first distance that `row` was not trained on, else the first.

    None where no image has a number.
    """
    trained = record.get("trained_on", {}).get(row, ())
    known = [metric for metric in scores.metrics(row) if direction(record, metric)]
    fair = [metric for metric in known if metric not in trained]
    distances = [metric for metric in fair if direction(record, metric) == LOWER]
    return next(iter([*distances, *fair, *known]), None)


def identity_metric(scores: Scores, row: str) -> str | None:
    """Return the metric that tells whether it is the same face: a cosine, else a distance or angle."""
    return first_of(("identity",), scores.metrics(row))


def worst_first(values: Values, arrow: str) -> list[str]:
    """Return the stems that have a number, worst first, equals in order."""
    sign = -1 if arrow == LOWER else 1
    return sorted(
        (stem for stem, value in values.items() if math.isfinite(value)), key=lambda stem: sign * values[stem]
    )
