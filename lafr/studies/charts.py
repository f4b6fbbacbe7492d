"""The studies' plots, for print: points with 95 % intervals, in colours and marks that the colour-blind can tell."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lafr.errors import need
from lafr.files import write_aside
from lafr.studies.findings import Values, digits, direction
from lafr.studies.intervals import Noise, half_of

# Okabe and Ito's palette; every series also has a mark of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
UNITS = {
    "psnr_rgb": "dB", "bound_psnr_rgb": "dB", "lmd_68": "px of 512", "identity_cos_sface": "cosine",
    "identity_distance_dlib": "Euclidean", "dead_codes_hq": "codes", "codebook_perplexity_hq": "codes",
}  # fmt: skip


def dots(
    rows: Mapping[str, str], values: Values, metrics: Sequence[str], noise: Mapping[str, Noise], title: str,
    path: Path,
) -> Path:  # fmt: skip
    """Draw a panel a metric, a line a row: mean and 95 % interval, and a tick for each of several seeds."""
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = new_figure(3.2 * columns + 1.6, lines * (0.9 + 0.26 * len(rows)))
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flat
    for axes, metric in zip(panels, metrics, strict=False):
        seeds = {y: list(values[row].get(metric, {}).values()) for y, row in enumerate(reversed(rows))}
        means = {y: sum(found) / len(found) for y, found in seeds.items() if found}
        low, high = fences(list(means.values()))
        for y, mean in means.items():
            if not low <= mean <= high:
                beyond(axes, y, right=mean > high, text=f"{mean:.{digits(metric)}f}")
                continue
            half = half_of(seeds[y], noise.get(metric)) or 0
            axes.errorbar(mean, y, xerr=half, fmt="o", color=COLOURS[0], ms=5, lw=1.4, capsize=3)
            if len(seeds[y]) > 1:
                axes.plot(seeds[y], [y + 0.22] * len(seeds[y]), "|", color="#555555", ms=5)
        axes.set_yticks(range(len(rows)), list(reversed(rows.values())), fontsize=8)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(label(metric), fontsize=8)
        tidy(axes)
    for axes in list(figure.axes)[len(metrics) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=10)
    return written(figure, path)


def fences(values: Sequence[float]) -> tuple[float, float]:
    """Return the range beyond which a value would hide how the others differ: eight times their middle half's width."""
    first, third = np.percentile(values, (25, 75))
    width = 8 * (third - first)
    return (first - width, third + width) if width else (-math.inf, math.inf)


def beyond(axes, y: float, right: bool, text: str) -> None:
    """Write at a panel's edge, with an arrow, what lies off it."""
    arrow = f"{text} \u2192" if right else f"\u2190 {text}"
    axes.annotate(arrow, (0.98 if right else 0.02, y), xycoords=("axes fraction", "data"), color=COLOURS[1], fontsize=8,
                  ha="right" if right else "left", va="center")  # fmt: skip


def over_counts(
    counts: Mapping[str, int], values: Values, metrics: Sequence[str], noise: Mapping[str, Noise], title: str,
    path: Path,
) -> Path:  # fmt: skip
    """Draw a panel a metric: mean and 95 % interval over the number of training images, logarithmic."""
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = new_figure(3.2 * columns, 2.6 * lines)
    for axes, metric in zip(figure.subplots(lines, columns, squeeze=False).flat, metrics, strict=False):
        rows = [(n, list(values[row][metric].values())) for row, n in counts.items() if metric in values[row]]
        means = [sum(found) / len(found) for _, found in rows]
        halves = [half_of(found, noise.get(metric)) or 0 for _, found in rows]
        axes.errorbar([n for n, _ in rows], means, yerr=halves, fmt="o-", color=COLOURS[0], ms=4, lw=1.4, capsize=3)
        axes.set_xscale("log")
        axes.set_xticks(list(counts.values()), [str(n) for n in counts.values()], fontsize=7)
        axes.minorticks_off()
        axes.set_xlabel("training images of the restoration stage", fontsize=8)
        axes.set_ylabel(label(metric), fontsize=8)
        tidy(axes)
    for axes in list(figure.axes)[len(metrics) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=10)
    return written(figure, path)


def curves(series: Mapping[str, Sequence[tuple[float, float]]], title: str, path: Path) -> Path:
    """Draw held-out loss over seconds of training, a line a way; a line starts where its restoration stage does."""
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    for i, (name, points) in enumerate(series.items()):
        axes.plot(*zip(*points, strict=True), marker=MARKS[i % len(MARKS)], color=COLOURS[i % len(COLOURS)], ms=5,
                  lw=1.5, label=name)  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel("training time in s (optimiser steps of all stages)", fontsize=9)
    axes.set_ylabel("held-out multi-level loss, lower is better", fontsize=9)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    tidy(axes)
    figure.suptitle(title, fontsize=10)
    return written(figure, path)


def latent_map(record: Mapping, path: Path) -> Path:
    """Draw the latents of the same faces in the plane of z_hq's first two principal components."""
    figure = new_figure(6.0, 4.8)
    axes = figure.subplots()
    for i, (name, points) in enumerate(record["points"].items()):
        axes.scatter(*zip(*points, strict=True), s=12, marker=MARKS[i % len(MARKS)], color=COLOURS[i % len(COLOURS)],
                     alpha=0.65, linewidths=0, label=name)  # fmt: skip
    shares = [f"component {k + 1} ({100 * v:.1f} % of z_hq's variance)" for k, v in enumerate(record["explained"])]
    axes.set_xlabel(shares[0], fontsize=9)
    axes.set_ylabel(shares[1], fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    tidy(axes)
    return written(figure, path)


def label(metric: str) -> str:
    """Return an axis label: metric, unit, and which direction is better."""
    unit = f" ({UNITS[metric]})" if metric in UNITS else ""
    return f"{metric}{unit} {direction(metric)}".strip()


def new_figure(width: float, height: float):
    """Return an empty figure of so many inches, outside pyplot's global state."""
    need("matplotlib", "'lafr[samples]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes) -> None:
    """Leave a light grid and two spines."""
    axes.grid(color="#e5e5e5", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def written(figure, path: Path) -> Path:
    """Write SVG, the same bytes for the same numbers, and PNG; return the SVG's path."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        write_aside(path, lambda aside: figure.savefig(aside, metadata={"Date": None}))
    write_aside(path.with_suffix(".png"), lambda aside: figure.savefig(aside, dpi=160))
    return path
