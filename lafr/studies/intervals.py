"""How sure a difference is: Student's t over seeds, or, for one seed, with the spread of a study that had several."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.stats import t

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Standard deviation between seeds, pooled over rows, and its degrees of freedom."""

    deviation: float
    freedom: int


@dataclass(frozen=True)
class Comparison:
    """How far a row is from another: mean difference, half of its 95 % interval (None: unknown), whence it comes."""

    difference: float
    half: float | None
    seeds: int

    def verdict(self, direction: str) -> str:
        """Return "ahead", "behind", "within noise" or "unsure": no interval; `direction` is ↑ or ↓, what is better."""
        if self.half is None:
            return "unsure"
        if abs(self.difference) <= self.half:
            return "within noise"
        return "ahead" if (self.difference > 0) == (direction == "↑") else "behind"


def half_interval(values: Sequence[float]) -> float | None:
    """Return half of the 95 % t-interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return quantile(len(values) - 1) * deviation / math.sqrt(len(values))


def quantile(freedom: int) -> float:
    """Return Student's two-sided 95 % quantile."""
    return float(t.ppf((1 + LEVEL) / 2, freedom))


def pooled_spread(rows: Iterable[Sequence[float]]) -> Spread | None:
    """Return the spread between seeds over rows, each about its own mean; None where no row has two seeds."""
    several = [values for values in rows if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum((v - fmean(values)) ** 2 for values in several for v in values)
    return Spread(math.sqrt(squares / freedom), freedom) if freedom else None


def compare(a: Mapping[int, float], b: Mapping[int, float], spread: Spread | None = None) -> Comparison | None:
    """Return how far row `a` is from row `b`, each seed -> value; None when either is empty.

    With two seeds in common or more the differences are paired: a seed draws the same pairs and the same first
    weights for both. With fewer, the interval is that of two means under the borrowed `spread`.
    """
    if not a or not b:
        return None
    common = sorted(a.keys() & b.keys())
    if len(common) > 1:
        differences = [a[seed] - b[seed] for seed in common]
        return Comparison(fmean(differences), half_interval(differences), len(common))
    difference = fmean(a.values()) - fmean(b.values())
    if spread is None:
        return Comparison(difference, None, 1)
    half = quantile(spread.freedom) * spread.deviation * math.sqrt(1 / len(a) + 1 / len(b))
    return Comparison(difference, half, 1)


def half_of(values: Sequence[float], spread: Spread | None) -> float | None:
    """Return half of the 95 % interval of a mean: its own over seeds, or a single value's by the borrowed spread."""
    if len(values) > 1:
        return half_interval(values)
    return None if spread is None else quantile(spread.freedom) * spread.deviation
