"""Faces followed from frame to frame, and their points smoothed over time: a restored face must not flicker."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import pi

import numpy as np
import torch
from torchvision.ops import box_iou


class OneEuro:
    """The One Euro filter (Casiez, Roussel, Vogel, CHI 2012) of points `[N, 2]`: smooth at rest, quick in motion.

    Args:
        smoothing: time constant in seconds for points at rest; 0 returns them as they are.
        speed: how much a motion of one face side a second raises the cutoff frequency, in Hz.
    """

    def __init__(self, smoothing: float, speed: float = 3.0):
        self.smoothing, self.speed = smoothing, speed
        self.time: float | None = None  # of the last call
        self.points: np.ndarray  # smoothed, [N, 2]
        self.velocity: np.ndarray  # in pixels per second, [N, 2]

    def __call__(self, points: np.ndarray, time: float, side: float) -> np.ndarray:
        """Return the smoothed points at `time` in seconds; `side` of the face in pixels."""
        if self.smoothing == 0:
            return points
        elapsed = 0.0 if self.time is None else time - self.time
        jump = np.inf if self.time is None else np.abs((points - self.points).mean(0)).max() / side
        if elapsed <= 0 or jump > 0.2:  # the first frame, or a cut to another scene: no history
            self.points, self.velocity = points.astype(float), np.zeros_like(points, float)
        else:
            share = _share(1.0, elapsed)
            self.velocity = share * (points - self.points) / elapsed + (1 - share) * self.velocity
            motion = (
                float(np.linalg.norm(self.velocity.mean(0))) / side
            )  # the mean point: noise of single points cancels
            share = _share(1 / (2 * pi * self.smoothing) + self.speed * motion, elapsed)
            self.points = share * points + (1 - share) * self.points
        self.time = time
        return self.points


def _share(cutoff: float, elapsed: float) -> float:
    return 1 / (1 + 1 / (2 * pi * cutoff * elapsed))


@dataclass
class _Track:
    box: Sequence[float]
    filter: OneEuro
    seen: float = field(default=0.0)
    left: str | None = None  # why the guard left it in the frame before, "" when it was restored


class Tracker:
    """Follows faces from frame to frame by the overlap of their boxes, and smooths the five points of each.

    Args:
        smoothing: see `OneEuro`.
        overlap: intersection over union from which a box is the same face.
        memory: seconds after which a face that isn't seen is forgotten.
    """

    def __init__(self, smoothing: float = 0.4, overlap: float = 0.3, memory: float = 0.5):
        self.smoothing, self.overlap, self.memory = smoothing, overlap, memory
        self.tracks: list[_Track] = []
        self.started = 0
        self.shown: list[_Track] = []  # of the last frame's detections, in their order

    def __call__(self, detections: Sequence, time: float) -> list:
        """Return the detections of the frame at `time` in seconds, in their order, with smoothed points."""
        self.tracks = [track for track in self.tracks if time - track.seen <= self.memory]
        known = self._match(detections)
        smoothed = []
        self.shown = []
        for index, detection in enumerate(detections):
            track = known.get(index)
            if track is None:
                track = _Track(detection.box, OneEuro(self.smoothing))
                self.tracks.append(track)
                self.started += 1
            track.box, track.seen = detection.box, time
            self.shown.append(track)
            side = max(detection.box[2] - detection.box[0], detection.box[3] - detection.box[1], 1)
            smoothed.append(replace(detection, points=track.filter(np.asarray(detection.points), time, side)))
        return smoothed

    def _match(self, detections: Sequence) -> dict[int, _Track]:
        """Return index of detection -> track: the largest overlap first, each used once."""
        if not detections or not self.tracks:
            return {}
        new = torch.tensor([list(detection.box) for detection in detections]).float()
        old = torch.tensor([list(track.box) for track in self.tracks]).float()
        overlaps = box_iou(new, old).numpy()
        matched: dict[int, _Track] = {}
        for flat in np.argsort(-overlaps, axis=None, kind="stable"):
            i, j = np.unravel_index(flat, overlaps.shape)
            if overlaps[i, j] >= self.overlap and i not in matched and self.tracks[j] not in matched.values():
                matched[int(i)] = self.tracks[j]
        return matched
