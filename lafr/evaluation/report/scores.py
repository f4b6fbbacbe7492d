"""The scores of single images, from the `scores.csv` that an evaluation wrote next to its record."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from lafr.errors import InputError
from lafr.evaluation.tables import BOUNDS, PARTS, direction
from lafr.metrics.registry import LOWER, first_of
from lafr.storage import of_csv_cell

Values = dict[str, float]  # stem -> number, NaN where the measurement failed


@dataclass(frozen=True)
class ImageScores:
    """Numbers of single images: `of[method][metric][stem]`, in the order of `stems`."""

    stems: list[str]
    of: dict[str, dict[str, Values]]

    def metrics(self, method: str) -> list[str]:
        """Return the metrics that hold a number of some image of a method."""
        return [m for m, values in self.of.get(method, {}).items() if any(map(math.isfinite, values.values()))]


def read_image_scores(path: Path) -> ImageScores:
    """Read `scores.csv` (columns image, row (the method), metrics); raises InputError for another file."""
    of: dict[str, dict[str, Values]] = {}
    stems: dict[str, None] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                stem, method = of_csv_cell(line.pop("image")), of_csv_cell(line.pop("row"))
                stems[stem] = None
                for metric, value in line.items():
                    of.setdefault(method, {}).setdefault(of_csv_cell(metric), {})[stem] = float(value or "nan")
    except OSError as error:
        raise InputError(f"scores {str(path)!r} cannot be read: {error.strerror}", remedy="evaluate again") from None
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error):
        raise InputError(f"{str(path)!r} is not the scores.csv of an evaluation", remedy="evaluate again") from None
    return ImageScores(list(stems), of)


def method_shown(record: dict) -> str:
    """Return the method that a report is about: LAFR, or the first one whose images are there."""
    methods = [name for name in record["rows"] if name not in (*BOUNDS, *PARTS)]
    with_images = [name for name in methods if name in record.get("pictures", {})]
    return next((name for name in ("LAFR", *with_images, *methods, *record["rows"]) if name in record["rows"]), "LAFR")


def worst_best_metric(record: dict, scores: ImageScores, method: str) -> str | None:
    """Return the metric that ranks faces: the first distance whose network `method` was not trained with, else any.

    None where no image has a number.
    """
    trained = record.get("trained_on", {}).get(method, ())
    known = [metric for metric in scores.metrics(method) if direction(record, metric)]
    fair = [metric for metric in known if metric not in trained]
    distances = [metric for metric in fair if direction(record, metric) == LOWER]
    return next(iter([*distances, *fair, *known]), None)


def identity_metric(scores: ImageScores, method: str) -> str | None:
    """Return the metric of whether it is the same face: a cosine, else a distance or angle."""
    return first_of(("identity",), scores.metrics(method))


def worst_first(values: Values, arrow: str) -> list[str]:
    """Return the stems that have a number, worst first, equals in order."""
    sign = -1 if arrow == LOWER else 1
    measured = [stem for stem, value in values.items() if math.isfinite(value)]
    return sorted(measured, key=lambda stem: sign * values[stem])
