"""A guard for people's faces: what looks like somebody else, or was as sharp before, is not pasted.

Likeness is the cosine of two embeddings by the recogniser that ships with the losses (`mini_recogniser`), never by one
that scores: a score must not be chosen by the filter that it judges.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lafr.networks import device_of, load
from lafr.photos.sharpness import DETAIL, LOST

RECOGNISER = "mini_recogniser"
# Chosen on the 160 validation faces at 128 px under the default degradation, seed (0, n), restored by the miniature.
# Likeness to the degraded input: 0.23 at least, 0.64 in the median; 1.2 % of the faces are below 0.3 and left. Of the
# 25,440 pairs with the restoration of another face 2.4 % reach 0.3. At 0.5 17 % would be left, and SFace finds those
# nearer to the ground truth once restored, by 0.17 on average: a recogniser sees little in severely degraded faces.
THRESHOLD = 0.3
OTHER = "looks like someone else"
SHARP = "sharp already"
LARGE = "larger than the model, and sharp"
SLACK = 0.05  # in videos: a face keeps its decision until its value has crossed the threshold by this much
LOST_SLACK = 0.3  # the same of lost detail, in grey levels
BATCH = 32  # faces that the recogniser sees at once


@dataclass(frozen=True)
class Limits:
    """What a face may be to be restored.

    Args:
        likeness: of the restored face to the input, at least.
        detail: share of the restored face's detail that the input holds, at most.
        lost: grey levels of detail that a face larger than the model would lose, at most.
    """

    likeness: float = THRESHOLD
    detail: float = DETAIL
    lost: float = LOST


def limits_after(reason: str | None) -> Limits:
    """Return a face's limits in a video by why it was left in the frame before: "" when restored, None when unseen."""
    if reason is None:
        return Limits()
    return Limits(
        THRESHOLD + (SLACK if reason.startswith(OTHER) else -SLACK),
        DETAIL + (-SLACK if reason.startswith(SHARP) else SLACK),
        LOST + (-LOST_SLACK if reason.startswith(LARGE) else LOST_SLACK),
    )


@torch.no_grad()
def likeness(befores: Tensor, afters: Tensor) -> list[float]:
    """Return the cosine in -1..1 of each restored face with its input, both `[N, 3, S, S]` in [-1, 1], aligned."""
    recogniser = load(RECOGNISER)
    found: list[float] = []
    for before, after in zip(befores.split(BATCH), afters.split(BATCH), strict=True):
        embeddings = [recogniser(faces.clamp(-1, 1).to(device_of(recogniser))) for faces in (before, after)]
        found += (embeddings[0] * embeddings[1]).sum(1).tolist()  # [B, D] of unit length
    return found


def reason_to_leave(alike: float | None, held: float | None = None, limits: Limits | None = None) -> str:
    """Return why a restored face of this likeness and held detail is left, or ""; what is None was not measured."""
    limits = limits or Limits()
    if alike is not None and alike < limits.likeness:
        return f"{OTHER}: its likeness to the input is {alike:.3f}, the least is {limits.likeness:g}"
    if held is not None and held > limits.detail:
        return f"{SHARP}: the input holds {held:.1%} of the restored face's detail, the most is {limits.detail:.0%}"
    return ""
