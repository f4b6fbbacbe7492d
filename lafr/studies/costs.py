"""Time to a quality and quality at a time, from the held-out points of a training; and how many images are enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lafr.studies.intervals import Noise, compare


@dataclass(frozen=True)
class Curve:
    """A training's held-out loss over its seconds: `points` are (seconds, loss), lower is better."""

    points: tuple[tuple[float, float], ...]

    def time_to(self, loss: float) -> float | None:
        """Return the seconds of the first point that is as good as `loss`; None when none is."""
        return next((seconds for seconds, reached in self.points if reached <= loss), None)

    def at(self, seconds: float) -> float | None:
        """Return the loss of the last point within `seconds`; None when there is none yet."""
        within = [loss for when, loss in self.points if when <= seconds]
        return within[-1] if within else None


def curve_of(record: Mapping) -> Curve:
    """Return the curve of a run's last stage; the seconds of the stages before it come first."""
    *before, last = record["steps"]
    start = sum(step["seconds"] for step in before)
    return Curve(tuple((start + point["seconds"], point["loss"]) for point in last["held_out"]))


def enough(rows: Sequence[tuple[str, Mapping[int, float]]], direction: str, noise: Noise | None = None) -> str | None:
    """Return the first row that no later row is ahead of beyond the interval: after it the gain is within noise.

    Args:
        rows: (name, seed -> value), from the fewest images to the most.
        direction: ↑ or ↓, what is better.
        noise: of the metric.

    Returns:
        None when a difference has no interval, or fewer than two rows were measured.
    """
    if len(rows) < 2:
        return None
    for i, (name, own) in enumerate(rows):
        later = [compare(values, own, noise) for _, values in rows[i + 1 :]]
        verdicts = {one.verdict(direction) for one in later if one is not None}
        if "unsure" in verdicts:
            return None
        if "ahead" not in verdicts:
            return name
    return None
