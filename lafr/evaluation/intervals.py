"""95 % confidence intervals of differences between methods that were trained with several seeds: Student's t."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.stats import t

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """A standard deviation and its degrees of freedom."""

    deviation: float
    freedom: int

    @property
    def half(self) -> float:
        """Half width of the 95 % interval of one value."""
        return quantile(self.freedom) * self.deviation


@dataclass(frozen=True)
class Noise:
    """A metric's noise between seeds, pooled over methods, which are assumed to have equal variance.

    `seeds`: of one seed about its method's mean. `pairs`: the residual after the seeds' own effect is removed, for
    methods with the same seed, which see the same pairs and first weights; None where no two methods share seeds.
    """

    seeds: Spread
    pairs: Spread | None


@dataclass(frozen=True)
class Comparison:
    """Difference of two methods: mean, half width of its 95 % interval (None: unknown), number of common seeds."""

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
    """Return the half width of the 95 % t-interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return quantile(len(values) - 1) * deviation / math.sqrt(len(values))


def quantile(freedom: int) -> float:
    """Return Student's two-sided 95 % quantile."""
    return float(t.ppf((1 + LEVEL) / 2, freedom))


def pooled_spread(methods: Iterable[Sequence[float]]) -> Spread | None:
    """Return the deviation between seeds, each method about its own mean; None where no method has two seeds."""
    several = [values for values in methods if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum((v - fmean(values)) ** 2 for values in several for v in values)
    return Spread(math.sqrt(squares / freedom), freedom) if freedom else None


def noise_of(methods: Sequence[Mapping[int, float]]) -> Noise | None:
    """Return a metric's noise from each method's seed -> value; None where no method has two seeds."""
    spread = pooled_spread([list(values.values()) for values in methods])
    return None if spread is None else Noise(spread, paired_spread(methods))


def paired_spread(methods: Sequence[Mapping[int, float]]) -> Spread | None:
    """Return the residual of the two-way layout of methods and seeds, by least squares where runs are missing.

    For two methods with the same seeds it gives the paired t-test's interval. None without degrees of freedom.
    """
    seeds = sorted({seed for values in methods for seed in values})
    cells = [(i, seeds.index(seed), value) for i, values in enumerate(methods) for seed, value in values.items()]
    design = np.zeros((len(cells), len(methods) + len(seeds)))
    for n, (i, j, _) in enumerate(cells):
        design[n, i] = design[n, len(methods) + j] = 1
    values = np.array([value for *_, value in cells])
    fitted, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(cells) - int(rank)
    return Spread(float(np.sqrt(((values - design @ fitted) ** 2).sum() / freedom)), freedom) if freedom else None


def compare(a: Mapping[int, float], b: Mapping[int, float], noise: Noise | None = None) -> Comparison | None:
    """Return the difference of methods `a` and `b`, each seed -> value; None when either is empty.

    The difference is of the seeds that both have; where they have none in common, of their means.
    """
    if not a or not b:
        return None
    common = sorted(a.keys() & b.keys())
    if common:
        spread, share = noise and noise.pairs, 2 / len(common)
        difference = fmean(a[seed] - b[seed] for seed in common)
    else:
        spread, share = noise and noise.seeds, 1 / len(a) + 1 / len(b)
        difference = fmean(a.values()) - fmean(b.values())
    return Comparison(difference, spread.half * math.sqrt(share) if spread else None, len(common))
