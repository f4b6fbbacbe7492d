"""Evaluation: restore a set in batches, score every row on 8-bit pixels, write PNGs, scores, a JSON and a picture."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lafr.images import as_saved, write_image
from lafr.metrics import DIRECTION
from lafr.metrics.codebook import CodeUse

Row = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[Tensor, Tensor], Tensor]


def standard_rows(restorer, controls: Mapping[str, Callable[[Tensor], Tensor]]) -> dict[str, Row]:
    """Return what is compared: the input, the codec on both sides (its HQ side is the ceiling), the parts, LAFR."""
    codec = restorer.codec
    return {
        "LQ input": lambda lq, hq: lq,
        "codec(LQ)": lambda lq, hq: codec.reconstruct(lq),
        "adapter only": lambda lq, hq: codec.decode(restorer.adapter(codec.encode(lq))),
        **{name: lambda lq, hq, control=control: control(lq) for name, control in controls.items()},
        "LAFR": lambda lq, hq: restorer(lq),
        "codec(HQ)": lambda lq, hq: codec.reconstruct(hq),
    }


@dataclass(frozen=True)
class Evaluation:
    """Scores of one benchmark: `scores[row][metric]` is one number an image, in the order of `stems`."""

    stems: list[str]
    scores: dict[str, dict[str, np.ndarray]]
    latents: dict[str, float]

    def summary(self, seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
        """Return mean and 95 % bootstrap interval (over images, 2,000 draws) of each row and metric."""
        return {
            row: {metric: mean_and_interval(values, seed) for metric, values in metrics.items()}
            for row, metrics in self.scores.items()
        }


def mean_and_interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> dict[str, float | None]:
    """Return the mean of `values` and the 2.5 % and 97.5 % quantiles of its bootstrap.

    NaN is a failed measurement (no face detected): counted as `failed`, never averaged in; without any other value
    mean, low and high are None.
    """
    whole = values[~np.isnan(values)]
    failed = {"failed": len(values) - len(whole)} if len(whole) < len(values) else {}
    if not len(whole):
        return {"mean": None, "low": None, "high": None} | failed
    picks = np.random.default_rng(seed).integers(0, len(whole), (draws, len(whole)))
    low, high = np.quantile(whole[picks].mean(1), [0.025, 0.975])
    return {"mean": float(whole.mean()), "low": float(low), "high": float(high)} | failed


def trained_on(models: Mapping[str, object], metrics: Mapping[str, Metric]) -> dict[str, list[str]]:
    """Return row -> the metrics whose network this row's model was trained with, or has a teacher in common with."""
    seen = {
        row: [name for name, metric in metrics.items() if getattr(metric, "origins", frozenset()) & model.trained_with]
        for row, model in models.items()
    }
    return {row: names for row, names in seen.items() if names}


@torch.no_grad()
def evaluate(
    benchmark,
    restorer,
    rows: Mapping[str, Row],
    metrics: Mapping[str, Metric],
    folder: str | Path,
    shown: str = "LAFR",
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Restore and score `benchmark`, a sequence of `lafr.data.benchmarks.Pair` with ground truth.

    Writes into `folder`: `restored/STEM.png` of the row `shown`, `scores.csv` and `faces.png` (best, median and
    worst by the first perceptual metric, as LQ | restored | HQ).
    """
    folder = Path(folder)
    scores = {row: {metric: [] for metric in metrics} for row in rows}
    gaps = {"latent_gap_before": [], "latent_gap_after": [], "latent_gap_restored": []}
    use = CodeUse(restorer.adapter)
    stems, small = [], []
    for start in tqdm(range(0, len(benchmark), batch_size), desc=benchmark.name, unit="batch", dynamic_ncols=True):
        pairs = [benchmark[i] for i in range(start, min(start + batch_size, len(benchmark)))]
        stems += [pair.stem for pair in pairs]
        lq = torch.stack([pair.lq for pair in pairs]).to(device)
        hq = torch.stack([pair.hq for pair in pairs]).to(device)
        for name, row in rows.items():
            restored = as_saved(row(lq, hq))
            for metric, measure in metrics.items():
                scores[name][metric] += measure(restored, hq).tolist()
            if name == shown:
                for pair, image in zip(pairs, restored, strict=True):
                    write_image(image, folder / "restored" / f"{pair.stem}.png")
                small += [torch.stack(images).cpu() for images in zip(lq, restored, hq, strict=True)]
        latents, z_hq = restorer.latents(lq), restorer.codec.encode(hq)
        for name, z in zip(gaps, (latents.z_lq, latents.z_aligned, latents.z_restored), strict=True):
            gaps[name] += (z - z_hq).abs().mean((1, 2, 3)).tolist()
        use.add(latents.z_lq, z_hq)
    arrays = {row: {m: np.array(v) for m, v in by_metric.items()} for row, by_metric in scores.items()}
    result = Evaluation(stems, arrays, {k: float(np.mean(v)) for k, v in gaps.items()} | use.summary())
    write_scores(result, folder / "scores.csv")
    ranking = next((m for m in metrics if DIRECTION.get(m) == "↓"), None)
    if ranking and shown in arrays:
        write_image(best_median_worst(small, arrays[shown][ranking]), folder / "faces.png")
    return result


def best_median_worst(triples: list[Tensor], distance: np.ndarray, each: int = 3) -> Tensor:
    """Return one picture: the faces of least, middle and greatest distance, a row for each, LQ | restored | HQ."""
    order = np.argsort(distance, kind="stable")
    each = min(each, max(1, len(order) // 3))
    middle = (len(order) - each) // 2
    picked = [order[:each], order[middle : middle + each], order[len(order) - each :]]
    columns = [torch.cat([torch.cat(list(triples[i]), dim=2) for i in group], dim=1) for group in picked]
    gap = torch.ones(3, columns[0].shape[1], 8)
    return torch.cat([columns[0], gap, columns[1], gap, columns[2]], dim=2)


def write_scores(result: Evaluation, path: Path) -> None:
    """Write every image's scores: columns image, row, metrics."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = list(next(iter(result.scores.values())))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "row", *metrics])
        for row, by_metric in result.scores.items():
            for i, stem in enumerate(result.stems):
                writer.writerow([stem, row, *(f"{by_metric[m][i]:.6g}" for m in metrics)])
