"""The fidelity-realism curve: what LAFR gains in one and loses in the other over the fidelity parameter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lafr.errors import InputError, need
from lafr.evaluation.figures import save_svg
from lafr.metrics.registry import HIGHER, LOWER, describe, first_of
from lafr.storage import atomic_write

# aspects that the axes show where no metric is named: the first that was measured
FIDELITY = ("identity", "pixels")
REALISM = ("realism", "perception")


def name_at(fidelity: float) -> str:
    """Return the name of LAFR at a fidelity, as a method of its own."""
    return f"LAFR, fidelity {fidelity:g}"


def curve_metrics(metrics: list[str], x: str | None = None, y: str | None = None) -> tuple[str, str]:
    """Return the metrics of the curve's two axes: those named, else the first measured of the usual ones.

    Raises InputError when one named is not measured, or none is usual.
    """

    def choose(axis: str, named: str | None, usual: tuple[str, ...]) -> str:
        if named is not None and named not in metrics:
            raise InputError(f"curve_{axis}", named, f"a metric that is measured: {', '.join(metrics)}")
        found = named or first_of(usual, metrics)
        if found is None:
            raise InputError(f"curve_{axis}", None, f"one of {', '.join(metrics)}", "none of these is a usual choice")
        return found

    return choose("x", x, FIDELITY), choose("y", y, REALISM)


def write_curve(
    sweep: Mapping[str, Mapping[str, Mapping]],
    others: Mapping[str, Mapping[str, Mapping]],
    x: str,
    y: str,
    title: str,
    folder: Path,
    name: str = "curve",
) -> list[Path]:
    """Draw the curve and return its files, PNG and SVG.

    Args:
        sweep: fidelity -> metric -> mean, low, high.
        others: method -> the same: single points, such as the input's.
        x: metric of fidelity.
        y: metric of realism; the axis is turned so that better is up, as x's is so that better is right.
        title: over the curve.
        folder: to write `name`.png and .svg into.
        name: of the files.
    """
    need("matplotlib", "'lafr[samples]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = {f: of for f, of in sweep.items() if None not in (of[x]["mean"], of[y]["mean"])}
    means = [(of[x]["mean"], of[y]["mean"]) for of in points.values()]
    axes.plot(*zip(*means, strict=True), color="#2563a8", lw=1.5, zorder=2)
    for fidelity, of in points.items():
        _point(axes, of, x, y, "#2563a8", fidelity)
    for method, of in others.items():
        if x in of and y in of and None not in (of[x]["mean"], of[y]["mean"]):
            _point(axes, of, x, y, "#8a8a8a", method)
    axes.set_xlabel(_label(x, "fidelity"))
    axes.set_ylabel(_label(y, "realism"))
    for metric, invert in ((x, axes.invert_xaxis), (y, axes.invert_yaxis)):
        if describe(metric).direction == LOWER:
            invert()
    axes.margins(0.12)
    axes.set_title(title, fontsize=10)
    axes.grid(color="#e5e5e5", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    files = [folder / f"{name}.png", folder / f"{name}.svg"]
    atomic_write(files[0], lambda temporary: figure.savefig(temporary, dpi=160))
    save_svg(figure, files[1])
    return files


def _point(axes: Any, of: Mapping[str, Mapping], x: str, y: str, colour: str, text: str) -> None:
    spread = [[[of[m]["mean"] - of[m]["low"]], [of[m]["high"] - of[m]["mean"]]] for m in (x, y)]
    place = of[x]["mean"], of[y]["mean"]
    bars = {"xerr": spread[0], "yerr": spread[1], "ecolor": "#c9c9c9", "lw": 0.8}
    axes.errorbar(*place, fmt="o", ms=4.5, color=colour, zorder=3, **bars)
    box = {"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.8}
    axes.annotate(text, place, xytext=(6, -11), textcoords="offset points", fontsize=8, color=colour, bbox=box)


def _label(metric: str, meaning: str) -> str:
    words = {HIGHER: "higher is better", LOWER: "lower is better, axis turned"}
    better = words.get(describe(metric).direction, "")
    return f"{meaning}: {metric}" + (f" ({better})" if better else "")
