"""Every metric of every row, from the PNG files, noted batch by batch."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lafr.evaluation.cache_keys import of_metric
from lafr.evaluation.ledger import Ledger
from lafr.evaluation.pictures import Pictures
from lafr.evaluation.rows import HQ, Batch
from lafr.metrics.registry import describe, is_set_metric
from lafr.storage import atomic_write, sha256_of_values

Metric = Callable[[Tensor, Tensor | None], Tensor]


class Scores:
    """The scores of `rows`' pictures: values in the ledger, features of set metrics as `features/METRIC/ROW/N.npz`.

    Kept if they were made of the same files by the same metric.
    """

    def __init__(
        self, rows: Sequence[str], metrics: Mapping[str, Metric], pictures: Pictures, folder: Path, device
    ):  # fmt: skip
        self.rows, self.metrics, self.pictures, self.device = list(rows), metrics, pictures, device
        self.ledger: Ledger = pictures.ledger
        self.folder = folder
        self.has_truth = HQ in pictures.rows
        self.made_by = {name: of_metric(name, metric, device) for name, metric in metrics.items()}
        self.known: dict[str, list[float | None]] = {}

    def take(self, lines: Sequence[dict]) -> int:
        """Take in what all processes noted; return how many values that were."""
        found = [line for line in lines if "score" in line]
        self.known = {line["score"]: line["values"] for line in found}
        return sum(len(line["values"]) for line in found)

    def key(self, row: str, metric: str, stems: list[str]) -> str:
        """Return the hash of what the scores of these pictures hang on."""
        truth = self.pictures.sha256(HQ, stems) if self.has_truth else None
        return sha256_of_values(self.made_by[metric], row, stems, self.pictures.sha256(row, stems), truth)

    def measure(self, batch: Batch) -> None:
        """Score what is not scored yet of every row of `batch`."""
        hq = self.pictures.read(HQ, batch.stems).to(self.device) if self.has_truth else None
        for row in self.rows:
            missing = [m for m in self.metrics if not self._is_there(row, m, batch)]
            image = self.pictures.read(row, batch.stems).to(self.device) if missing else None
            for name in missing:
                if is_set_metric(self.metrics[name]):
                    self._write_features(row, name, batch, image)
                else:
                    values = [None if math.isnan(v) else v for v in self.metrics[name](image, hq).tolist()]
                    line = {"score": self.key(row, name, batch.stems), "row": row, "metric": name,
                            "batch": batch.number, "values": values}  # fmt: skip
                    self.ledger.note(line)
                    self.known[line["score"]] = values
        for name, metric in self.metrics.items():
            if needs_truth_features(name, metric) and not self._is_there(HQ, name, batch):
                self._write_features(HQ, name, batch, hq)

    def _is_there(self, row: str, metric: str, batch: Batch) -> bool:
        if not is_set_metric(self.metrics[metric]):
            return self.key(row, metric, batch.stems) in self.known
        return self._features(row, metric, batch.number, batch.stems) is not None

    def _features_path(self, row: str, metric: str, batch: int) -> Path:
        return self.folder / "features" / metric / self.pictures.folders[row] / f"{batch:06d}.npz"

    def _write_features(self, row: str, metric: str, batch: Batch, image: Tensor) -> None:
        features = self.metrics[metric].features(image).cpu().numpy()
        key = self.key(row, metric, batch.stems)
        path = self._features_path(row, metric, batch.number)
        atomic_write(path, lambda aside: np.savez(aside, features=features, made_of=key))

    def _features(self, row: str, metric: str, batch: int, stems: list[str]) -> np.ndarray | None:
        path = self._features_path(row, metric, batch)
        if not path.is_file():
            return None
        with np.load(path) as saved:
            return saved["features"] if str(saved["made_of"]) == self.key(row, metric, stems) else None

    def values(self, row: str, metric: str, batches: Sequence[list[str]]) -> np.ndarray:
        """Return a row's scores in the order of `batches`, lists of stems; NaN where a measurement failed."""
        found = [value for stems in batches for value in self.known[self.key(row, metric, stems)]]
        return np.array([math.nan if value is None else value for value in found])

    def of_set(self, row: str, metric: str, batches: Sequence[list[str]], seed: int) -> dict[str, float]:
        """Return a set metric's mean, low and high of a row."""
        measure = self.metrics[metric]

        def features(of: str) -> Tensor:
            return torch.from_numpy(
                np.concatenate([self._features(of, metric, n, stems) for n, stems in enumerate(batches)])
            )

        return measure.score(features(row), features(HQ) if needs_truth_features(metric, measure) else None, seed)


def needs_truth_features(name: str, metric: Metric) -> bool:
    """Return whether a set metric compares with the ground truth's features (else with stored statistics)."""
    return is_set_metric(metric) and describe(name, metric).needs_reference
