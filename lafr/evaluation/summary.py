"""From scores to numbers and files: means with intervals, scores.csv and faces.png."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lafr.metrics.registry import HIGHER, LOWER, describe
from lafr.models.restorer import Restorer
from lafr.storage import atomic_write, csv_cell


@dataclass(frozen=True)
class Evaluation:
    """Scores of one benchmark.

    Args:
        stems: names of the images.
        scores: `scores[method][metric]` is one number per image, in the order of `stems`; NaN is a failed measurement.
        latents: mean latent distances and code use of the whole set.
        of_sets: `of_sets[method][metric]` is mean, low and high of a metric that scores a set.
        folders: method -> folder of its images.
        kept: how many images and scores an earlier run had left: {"images": (kept, all), ...}.
    """

    stems: list[str]
    scores: dict[str, dict[str, np.ndarray]]
    latents: dict[str, float] = field(default_factory=dict)
    of_sets: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)

    def summary(self, seed: int = 0) -> dict[str, dict[str, dict[str, float | None]]]:
        """Return mean and 95 % bootstrap interval (over images, 2,000 resamples) of each method and metric."""
        found: dict[str, dict[str, dict[str, float | None]]] = {}
        for method, metrics in self.scores.items():
            of_images = {metric: mean_and_interval(values, seed) for metric, values in metrics.items()}
            found[method] = {**of_images, **self.of_sets.get(method, {})}
        return found


def mean_and_interval(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> dict[str, float | None]:
    """Return the mean of `values` and the 2.5 % and 97.5 % quantiles of its bootstrap.

    NaN is a failed measurement (no face detected): counted as `failed`, never averaged in; without any other value
    mean, low and high are None.
    """
    whole = values[~np.isnan(values)]
    failed: dict[str, float | None] = {"failed": len(values) - len(whole)} if len(whole) < len(values) else {}
    if not len(whole):
        return {"mean": None, "low": None, "high": None} | failed
    picks = np.random.default_rng(seed).integers(0, len(whole), (resamples, len(whole)))
    low, high = np.quantile(whole[picks].mean(1), [0.025, 0.975])
    return {"mean": float(whole.mean()), "low": float(low), "high": float(high)} | failed


def trained_on(models: Mapping[str, Restorer], metrics: Mapping[str, object]) -> dict[str, list[str]]:
    """Return method -> the metrics whose network its model was trained with, or that share a teacher with one."""
    origins: dict[str, frozenset[str]] = {
        name: getattr(metric, "origins", frozenset()) for name, metric in metrics.items()
    }
    found = {}
    for method, model in models.items():
        if names := [name for name, networks in origins.items() if networks & model.trained_with]:
            found[method] = names
    return found


def ranking_metric(scores: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray] | None:
    """Return the metric that orders the faces of faces.png, and its values with the best least: the first distance.

    Where nothing is a distance, the first metric that has a direction.
    """
    measured = [metric for metric, values in scores.items() if not np.isnan(values).all()]
    for wanted, sign in ((LOWER, 1), (HIGHER, -1)):
        for metric in measured:
            if describe(metric).direction == wanted:
                return metric, sign * scores[metric]
    return None


def picked(distance: np.ndarray, each: int = 3) -> list[np.ndarray]:
    """Return the indices of the faces of least, middle and greatest distance; failed ones count as worst."""
    order = np.argsort(distance, kind="stable")
    each = min(each, max(1, len(order) // 3))
    middle = (len(order) - each) // 2
    return [order[:each], order[middle : middle + each], order[len(order) - each :]]


def best_median_worst(face: Callable[[int], Sequence[Tensor]], distance: np.ndarray, each: int = 3) -> Tensor:
    """Return one image of the faces of least, middle and greatest distance, LQ | restored | HQ below each other.

    `face(i)` is called only if face i is shown.
    """
    columns = []
    for group in picked(distance, each):
        rows = [torch.cat(list(face(index)), dim=2) for index in group]  # [3, R, 3 R] each
        columns.append(torch.cat(rows, dim=1))
    gap = torch.ones(3, columns[0].shape[1], 8)
    return torch.cat([columns[0], gap, columns[1], gap, columns[2]], dim=2)


def write_scores(result: Evaluation, path: Path) -> None:
    """Write every image's scores as CSV: columns image, row (the method), metrics."""
    metrics = list(next(iter(result.scores.values())))

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "row", *map(csv_cell, metrics)])
            for method, by_metric in result.scores.items():
                for i, stem in enumerate(result.stems):
                    numbers = [f"{by_metric[m][i]:.6g}" for m in metrics]
                    writer.writerow([csv_cell(stem), csv_cell(method), *numbers])

    atomic_write(path, write)
