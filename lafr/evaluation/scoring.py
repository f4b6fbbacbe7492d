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
from lafr.metrics.registry import Metric, SetMetric, describe, is_set_metric
from lafr.storage import read_tensors, sha256_of_values, write_tensors


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
        hq = self.images.read(HQ, batch.stems).to(self.device) if self.has_truth else None
        needs_lq = any(map(compares_with_input, self.metrics.values()))
        lq = self.images.read(LQ, batch.stems).to(self.device) if needs_lq else None
        for method in self.methods:
            missing = [name for name in self.metrics if not self._is_there(method, name, batch)]
            if missing:
                image = self.images.read(method, batch.stems).to(self.device)
                for name in missing:
                    reference = lq if compares_with_input(self.metrics[name]) else hq
                    self._measure(method, name, batch, image, reference)
        for name, metric in self.metrics.items():
            if hq is None or not is_set_metric(metric) or not needs_truth_features(name, metric):
                continue
            if not self._is_there(HQ, name, batch):
                self._write_features(HQ, name, metric, batch, hq)

    def _measure(self, method: str, name: str, batch: Batch, image: Tensor, reference: Tensor | None) -> None:
        metric = self.metrics[name]
        if is_set_metric(metric):
            self._write_features(method, name, metric, batch, image)
            return
        failed = self.images.failed(method, batch.stems)
        measured = zip(metric(image, reference).tolist(), failed, strict=True)
        values = [value if math.isfinite(value) and not lost else None for value, lost in measured]
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


def compares_with_input(metric: Metric) -> bool:
    """Return whether a metric of single images gets the LQ images in the place of the ground truth."""
    return bool(getattr(metric, "to_input", False))


def needs_truth_features(name: str, metric: SetMetric) -> bool:
    """Return whether a set metric compares with the ground truth's features (else with stored statistics)."""
    return describe(name, metric).needs_reference
