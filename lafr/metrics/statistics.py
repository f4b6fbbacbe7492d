"""The reference of a FID: mean and covariance of a set's features, in a file that says what made them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from tqdm import tqdm

from lafr.errors import InputError, setting
from lafr.images import read_image
from lafr.storage import atomic_write, sha256_of_file

BUILD = f"build it: lafr fid {setting('input', 'FOLDER')} {setting('output', '{path}')}"


@dataclass(frozen=True)
class Statistics:
    """Gaussian of a set's features.

    Args:
        mean: `[D]`, float64.
        covariance: `[D, D]`, float64, of N - 1.
        images: N.
        name: of the set.
        features: name of the network.
        weights: "file sha256" of the network, a line each; empty for one without files.
        sha256: of the file it was read from.
        resized: how the images were brought to their size.
    """

    mean: np.ndarray
    covariance: np.ndarray
    images: int
    name: str = ""
    features: str = ""
    weights: str = ""
    sha256: str | None = None
    resized: str | None = None

    @classmethod
    def of(cls, features: Tensor, **facts: Any) -> "Statistics":
        """Return those of `features [N, D]`."""
        x = features.double().numpy()
        return cls(x.mean(0), np.cov(x, rowvar=False), len(x), **facts)

    def require(self, weights: tuple[tuple[str, str], ...]) -> None:
        """Raise InputError unless they were made with these weights."""
        if self.weights != _lines(weights):
            raise InputError(
                f"the statistics {self.name!r} were made with {self.weights or 'weights of no file'!r}, the metric has "
                f"{_lines(weights) or 'weights of no file'!r}: numbers would not be FID; build them again"
            )


def build_statistics(
    images: Sequence[str | Path],
    path: str | Path,
    network: nn.Module,
    name: str,
    size: int = 512,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> Statistics:
    """Compute the features of every image of a set and write their statistics to `path`.

    Args:
        images: files of square faces; each is brought to `size` pixels a side by Pillow's Lanczos where it differs.
        path: of the file, a `.safetensors`.
        network: maps `[B, 3, size, size]` in [-1, 1] to `[B, D]`; has a `name` and, where it has files, `weights`.
        name: of the set, shown on the metric's card.
        size: in pixels.
        batch_size: images at once.
        device: where the network runs.
    """
    if len(images) < 2:
        raise InputError(f"statistics need at least 2 images, {len(images)} given")
    network = network.to(device)
    # sums of x and x x^T in float64: [N, 2048] features of 70,000 images need not be held
    sums, products = torch.zeros(()).double(), torch.zeros(()).double()
    starts = range(0, len(images), batch_size)
    for start in tqdm(starts, desc=f"statistics of {name}", unit="batch", dynamic_ncols=True):
        batch = torch.stack([read_image(file, size) for file in images[start : start + batch_size]])
        with torch.no_grad():
            x = network(batch.to(device)).cpu().double()
        sums, products = sums + x.sum(0), products + x.T @ x
    count = len(images)
    mean = sums / count
    covariance = (products - count * mean.outer(mean)) / (count - 1)
    weights = _lines(getattr(network, "weights", ()))
    made = Statistics(mean.numpy(), covariance.numpy(), count, name, network.name, weights)
    _save(made, Path(path), size)
    return load_statistics(path, network.name)


def load_statistics(path: str | Path, features: str, sha256: str | None = None) -> Statistics:
    """Return the statistics in `path`.

    Raises InputError when it is missing, damaged, made by another network than the one named `features`, or when its
    sha256 is another than the one given.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"FID statistics {str(path)!r} are missing; {BUILD.format(path=path)}")
    found = sha256_of_file(path)
    if sha256 is not None and found != sha256:
        raise InputError(
            f"{str(path)!r} has the sha256 {found}, not {sha256}: other statistics; {BUILD.format(path=path)}"
        )
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {})["statistics"])
            mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
            images, name, made_by, weights = (facts[key] for key in ("images", "name", "features", "weights"))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{str(path)!r} holds no FID statistics ({reason}); {BUILD.format(path=path)}") from None
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not np.isfinite(covariance).all():
        raise InputError(f"{str(path)!r} is damaged: no mean and covariance of one set; {BUILD.format(path=path)}")
    if made_by != features:
        raise InputError(
            f"{str(path)!r} was made from features {made_by!r}, the metric has {features!r}: "
            f"their distance is no FID; {BUILD.format(path=path)}"
        )
    return Statistics(mean, covariance, images, name, made_by, weights, found, facts.get("resized"))


def _save(made: Statistics, path: Path, size: int) -> None:
    tensors = {"mean": made.mean, "covariance": made.covariance}
    facts = {"name": made.name, "images": made.images, "features": made.features, "weights": made.weights}
    facts["resized"] = f"Pillow Lanczos to {size} px"
    one = {"statistics": json.dumps(facts, sort_keys=True)}  # safetensors stores several keys in random order
    atomic_write(path, lambda partial: save_file(tensors, partial, one))


def _lines(weights: Sequence[tuple[str, str]]) -> str:
    return "\n".join(" ".join(pair) for pair in weights)
