"""Histograms and curves as numbers in a box of WIDTH x HEIGHT: the page's template draws them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 320, 120


@dataclass(frozen=True)
class Bar:
    """A bin: its place, and the text shown under a pointer."""

    x: float
    width: float
    height: float
    says: str


@dataclass(frozen=True)
class Histogram:
    """The numbers of a method as bars, those of the input as an outline, and the axis."""

    metric: str
    bars: list[Bar]
    outline: str  # an SVG path, empty without an input
    mean_x: float
    ticks: list[tuple[float, str]]
    summary: str
    top: int  # images in the highest bar
    failed: int = 0


@dataclass(frozen=True)
class Curve:
    """A metric over the fidelity parameter: an SVG path, the band of its interval, and points with their text."""

    metric: str
    path: str
    band: str
    points: list[tuple[float, float, str]]
    low: float
    high: float


def step(span: float, most: int) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that divides `span` into at most `most` pieces."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * most >= span)


def edges_of(values: np.ndarray, bins: int = 30) -> np.ndarray:
    """Return bin edges at round numbers around `values`."""
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(1.0, abs(low)):  # one value: a bin around it
        low, high = low - max(0.5, abs(low)) * 1e-3, high + max(0.5, abs(high)) * 1e-3
    width = step(high - low, bins)
    first, last = math.floor(low / width), math.ceil(high / width)
    return np.arange(first, max(last, first + 1) + 1) * width


def histogram(
    metric: str, values: Sequence[float], before: Sequence[float] = (), method: str = "LAFR", other: str = "LQ input"
) -> Histogram | None:
    """Return the distribution of a metric over images, NaN counted as failed; None without any number."""
    whole, first = finite(values), finite(before)
    if not len(whole):
        return None
    edges = edges_of(np.concatenate([whole, first]))
    counts, of_input = np.histogram(whole, edges)[0], np.histogram(first, edges)[0]
    top, width = max(1, counts.max(), of_input.max()), WIDTH / len(counts)
    digits = max(0, -math.floor(math.log10(edges[1] - edges[0]) + 1e-9) + 1)
    bars = []
    for k, count in enumerate(counts):
        second = f"; {other}: {of_input[k]}" if len(first) else ""
        says = f"{edges[k]:.{digits}f} to {edges[k + 1]:.{digits}f}: {method}: {count}{second}"
        bars.append(Bar(k * width, width, count / top * HEIGHT, says))
    path = "".join(f"V{HEIGHT - n / top * HEIGHT:.1f}H{(k + 1) * width:.1f}" for k, n in enumerate(of_input))

    def place(value: float) -> float:
        return float((value - edges[0]) / (edges[-1] - edges[0]) * WIDTH)

    spacing = step(edges[-1] - edges[0], 5)
    marks = np.arange(math.ceil(edges[0] / spacing - 1e-9), math.floor(edges[-1] / spacing + 1e-9) + 1) * spacing
    numbers = f"{whole.min():.4g} to {whole.max():.4g}, mean {whole.mean():.4g}"
    return Histogram(
        metric,
        bars,
        outline=f"M0 {HEIGHT}{path}V{HEIGHT}" if len(first) else "",
        mean_x=place(whole.mean()),
        ticks=[(place(mark), f"{mark:.6g}") for mark in marks],
        summary=f"{metric} of {len(whole)} images, {method}: {numbers}",
        top=int(top),
        failed=len(values) - len(whole),
    )


def finite(values: Sequence[float]) -> np.ndarray:
    """Return the numbers among `values`."""
    array = np.asarray(values, float)
    return array[np.isfinite(array)]


def curve(metric: str, sweep: dict[str, dict]) -> Curve | None:
    """Return a metric over the fidelity parameter, from {fidelity: {"mean", "low", "high"}}; None under two numbers."""
    known = sorted((float(f), s) for f, s in sweep.items() if s.get("mean") is not None)
    if len(known) < 2:
        return None
    bounds = [(s["mean"], s.get("low") or s["mean"], s.get("high") or s["mean"]) for _, s in known]
    values = np.array(bounds)  # [points, 3]: mean, low, high
    low, high = float(values[:, 1].min()), float(values[:, 2].max())
    span = (high - low) or 1.0
    x = [(f - known[0][0]) / (known[-1][0] - known[0][0]) * (WIDTH - 16) + 8 for f, _ in known]
    y = (HEIGHT - 8 - (values - low) / span * (HEIGHT - 16)).tolist()  # SVG counts downwards
    line = "L".join(f"{a:.1f} {b[0]:.1f}" for a, b in zip(x, y, strict=True))
    there = [f"{a:.1f} {b[2]:.1f}" for a, b in zip(x, y, strict=True)]
    back = [f"{a:.1f} {b[1]:.1f}" for a, b in zip(x[::-1], y[::-1], strict=True)]
    says = [f"fidelity {f:g}: {b[0]:.4g} ({b[1]:.4g}–{b[2]:.4g})" for (f, _), b in zip(known, bounds, strict=True)]
    points = [(a, b[0], text) for a, b, text in zip(x, y, says, strict=True)]
    return Curve(metric, f"M{line}", f"M{'L'.join(there + back)}Z", points, low, high)
