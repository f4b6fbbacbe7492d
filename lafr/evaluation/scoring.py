"""Every metric of every method, computed from the PNG files and logged batch by batch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lafr.evaluation.cache_keys import key_of_metric
from lafr.evaluation.methods import HQ, LQ, Batch
from lafr.evaluation.restored import RestoredImages
from lafr.metrics.registry import ImageMetric, Metric, SetMetric, describe, is_set_metric
from lafr.storage import read_tensors, sha256_of_values, write_tensors

PIXELS = 512 * 512  # scored together


class Scoring:
    """The scores of `methods`: numbers in the log, features of set metrics in files, one for each batch.

    Kept if they were made from the same files by the same metric.
    """

    def __init__(
        self,
        methods: Sequence[str],
        metrics: Mapping[str, Metric],
        images: RestoredImages,
        folder: Path,
        device: torch.device | str,
    ):
        self.methods, self.metrics, self.images, self.device = list(methods), metrics, images, device
        self.log = images.log
        self.folder = folder
        self.has_truth = HQ in images.methods
        self.metric_keys = {name: key_of_metric(name, metric, device) for name, metric in metrics.items()}
        self.known: dict[str, list[float | None]] = {}

    def load(self, lines: Sequence[dict]) -> int:
        """Take in the log of all processes; return how many numbers it lists."""
        found = [line for line in lines if "score" in line]
        self.known = {line["score"]: line["values"] for line in found}
        return sum(len(line["values"]) for line in found)

    def key(self, method: str, metric: str, stems: Sequence[str]) -> str:
        """Return the cache key of a metric's scores of a method's images."""
        truth: list[str] | None
        if compares_with_input(self.metrics[metric]):
            truth = self.images.sha256(LQ, stems)
        else:
            truth = self.images.sha256(HQ, stems) if self.has_truth else None
        return sha256_of_values(self.metric_keys[metric], method, stems, self.images.sha256(method, stems), truth)

    def measure(self, batch: Batch) -> None:
        """Score what is not scored yet of every method's images of `batch`."""
        for name, metric in self.metrics.items():
            of = [method for method in self.methods if not self._is_there(method, name, batch)]
            if not is_set_metric(metric):
                self._measure(name, metric, of, batch)
                continue
            if self.has_truth and needs_truth_features(name, metric) and not self._is_there(HQ, name, batch):
                of.append(HQ)
            for method in of:
                image = self.images.read(method, batch.stems).to(self.device)
                self._write_features(method, name, metric, batch, image)

    def _measure(self, name: str, metric: ImageMetric, methods: Sequence[str], batch: Batch) -> None:
        """Score the images of several methods, part after part: the ground truth's features of one are held."""
        found: dict[str, list[float | None]] = {method: [] for method in methods}
        for stems in parts_of(batch, self.device) if methods else ():
            reference = None
            if self.has_truth or compares_with_input(metric):
                side = LQ if compares_with_input(metric) else HQ
                reference = self.images.read(side, stems).to(self.device)
            for method in methods:
                values = metric(self.images.read(method, stems).to(self.device), reference).tolist()
                measured = zip(values, self.images.failed(method, stems), strict=True)
                found[method] += [value if math.isfinite(value) and not lost else None for value, lost in measured]
        for method, values in found.items():
            key = self.key(method, name, batch.stems)
            self.log.append({"score": key, "method": method, "metric": name, "batch": batch.number, "values": values})
            self.known[key] = values

    def _is_there(self, method: str, metric: str, batch: Batch) -> bool:
        if not is_set_metric(self.metrics[metric]):
            return self.key(method, metric, batch.stems) in self.known
        return self._features(method, metric, batch.number, batch.stems) is not None

    def _features_path(self, method: str, metric: str, batch: int) -> Path:
        return self.folder / "features" / metric / self.images.folders[method] / f"{batch:06d}.safetensors"

    def _write_features(self, method: str, name: str, metric: SetMetric, batch: Batch, image: Tensor) -> None:
        path = self._features_path(method, name, batch.number)
        write_tensors(path, {"features": metric.features(image)}, {"key": self.key(method, name, batch.stems)})

    def _features(self, method: str, metric: str, batch: int, stems: Sequence[str]) -> Tensor | None:
        found = read_tensors(self._features_path(method, metric, batch), {"key": self.key(method, metric, stems)})
        return None if found is None else found["features"]

    def values(self, method: str, metric: str, batches: Sequence[list[str]]) -> np.ndarray:
        """Return a method's scores in the order of `batches`, lists of stems; NaN where a measurement failed."""
        found = [value for stems in batches for value in self.known[self.key(method, metric, stems)]]
        return np.array([math.nan if value is None else value for value in found])

    def of_set(
        self, method: str, name: str, metric: SetMetric, batches: Sequence[list[str]], seed: int
    ) -> dict[str, float | None]:
        """Return a set metric's mean, low and high of a method."""

        def features(of: str) -> Tensor:
            parts = [self._features(of, name, number, stems) for number, stems in enumerate(batches)]
            return torch.cat(cast(list[Tensor], parts))  # `measure` wrote all of them

        truth = features(HQ) if needs_truth_features(name, metric) else None
        lost = torch.tensor(self.images.failed(method, [stem for stems in batches for stem in stems]))
        failed = {"failed": int(lost.sum())} if lost.any() else {}
        if failed and int((~lost).sum()) < 2:  # no distance of sets is defined
            return {"mean": None, "low": None, "high": None, **failed}
        return {**metric.score(features(method)[~lost], truth, seed), **failed}


def parts_of(batch: Batch, device: torch.device | str) -> list[list[str]]:
    """Return the names of a batch's images in parts that are scored together: on a CPU more takes only memory."""
    stems = batch.stems
    each = len(stems) if torch.device(device).type != "cpu" else max(1, PIXELS // batch.lq[0, 0].numel())
    return [stems[start : start + each] for start in range(0, len(stems), each)]


def compares_with_input(metric: Metric) -> bool:
    """Return whether a metric of single images gets the LQ images in the place of the ground truth."""
    return bool(getattr(metric, "to_input", False))


def needs_truth_features(name: str, metric: SetMetric) -> bool:
    """Return whether a set metric compares with the ground truth's features (else with stored statistics)."""
    return describe(name, metric).needs_reference
