"""How sure a difference is: Student's t, with the noise of a whole study, or of one that had several seeds."""

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
        """Half of the 95 % interval of one value."""
        return quantile(self.freedom) * self.deviation


@dataclass(frozen=True)
class Noise:
    """A metric's noise in a study of several seeds, pooled over its rows, whose noise is taken to be equal.

    `seeds`: of one seed about its row's mean. `pairs`: what is left when the seeds' own effect is taken out too, for
    rows of the same seed, which draw the same pairs and the same first weights; None where no two rows share seeds.
    """

    seeds: Spread
    pairs: Spread | None


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


def noise_of(rows: Sequence[Mapping[int, float]]) -> Noise | None:
    """Return a metric's noise from rows of seed -> value; None where no row has two seeds."""
    spread = pooled_spread([list(row.values()) for row in rows])
    return None if spread is None else Noise(spread, paired_spread(rows))


def paired_spread(rows: Sequence[Mapping[int, float]]) -> Spread | None:
    """Return the residual of the two-way layout of rows and seeds, by least squares where runs are missing.

    Of two rows with the same seeds it gives the paired t-test's interval. None without degrees of freedom.
    """
    seeds = sorted({seed for row in rows for seed in row})
    cells = [(i, seeds.index(seed), value) for i, row in enumerate(rows) for seed, value in row.items()]
    design = np.zeros((len(cells), len(rows) + len(seeds)))
    for n, (i, j, _) in enumerate(cells):
        design[n, i] = design[n, len(rows) + j] = 1
    values = np.array([value for *_, value in cells])
    fitted, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(cells) - int(rank)
    return Spread(float(np.sqrt(((values - design @ fitted) ** 2).sum() / freedom)), freedom) if freedom else None


def compare(a: Mapping[int, float], b: Mapping[int, float], noise: Noise | None = None) -> Comparison | None:
    """Return how far row `a` is from row `b`, each seed -> value; None when either is empty.

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


def half_of(values: Sequence[float], noise: Noise | None) -> float | None:
    """Return half of the 95 % interval of a mean over seeds by a study's noise, or, without one, by its own."""
    return half_interval(values) if noise is None else noise.seeds.half / math.sqrt(len(values))
