"""A metric's card: everything that must be equal before two numbers of it can be compared."""

from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lafr import __version__
from lafr.metrics.registry import describe
from lafr.weights import EXTERNAL, locate, mini_folder, sha256

# Network of `lafr.networks` -> its entries in `lafr.weights.EXTERNAL`, where those are not one entry of its name.
FILES = {
    "dlib": ("dlib_resnet", "dlib_5_points"),
    "dlib_68": ("dlib_68_points",),
    "insightface": ("insightface_w600k_r50",),
    "insightface_r50": ("insightface_w600k_r50",),
    "insightface_r100": ("insightface_glintr100",),
    "dists": ("torchvision_vgg16", "dists_comparison"),
}


@dataclass(frozen=True)
class ReferenceSet:
    """The set that a set metric compares with: its name, number of images, sha256 of its statistics, resizing."""

    name: str
    images: int | None = None  # None: as many as the set has
    sha256: str | None = None
    resized: str | None = None  # how its images were brought to their size


@dataclass(frozen=True)
class Card:
    """Definition, implementation and version of a metric, and its networks' weights as (file, sha256)."""

    name: str
    label: str
    unit: str
    direction: str
    digits: int
    definition: str
    implementation: str
    version: str
    weights: tuple[tuple[str, str], ...]
    needs_reference: bool
    reference: ReferenceSet | None = None


def card_of(name: str, metric: Any) -> Card:
    """Return the card of `metric`, which is called `name`.

    Its facts are those of its record (`lafr.metrics.registry`). Read from the metric itself, where it has them:
    `package` (the distribution that does the work; else its own dotted name stands for it), `weights` (see `hashes`)
    and `compared_with` (a `ReferenceSet`).
    """
    maker = metric.func if isinstance(metric, partial) else metric
    named = maker if hasattr(maker, "__qualname__") else type(maker)
    record, package = describe(name, metric), getattr(maker, "package", None)
    return Card(
        name,
        record.label,
        record.unit,
        record.direction,
        record.digits,
        record.definition,
        implementation=package or f"{named.__module__}.{named.__qualname__}",
        version=_version(package or named.__module__.split(".")[0]),
        weights=tuple(getattr(maker, "weights", ())),
        needs_reference=record.needs_reference,
        reference=getattr(maker, "compared_with", None),
    )


def hashes(*names: str) -> tuple[tuple[str, str], ...]:
    """Return (file, sha256) of entries of `lafr.weights.EXTERNAL`; raises InputError where one is missing."""
    return tuple((EXTERNAL[name].name, sha256(locate(name))) for name in names)


def hashes_of_network(name: str) -> tuple[tuple[str, str], ...]:
    """Return (file, sha256) of what the network called `name` in `lafr.networks.NETWORKS` was loaded from."""
    if name.startswith("mini_"):
        file = mini_folder() / "networks" / f"{name.removeprefix('mini_')}.safetensors"
        return ((file.name, sha256(file)),)
    files = FILES.get(name, (name,))
    return hashes(*files) if all(file in EXTERNAL for file in files) else ()  # CLIP: a folder or a hub's cache


def _version(distribution: str) -> str:
    if distribution == "lafr":
        return __version__
    try:
        return version(distribution)
    except PackageNotFoundError:  # a module of the user's
        return ""
