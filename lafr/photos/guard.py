"""A guard for people's faces: a restoration that looks like somebody else than its input is not pasted.

Likeness is the cosine of two embeddings by the recogniser that ships with the losses (`mini_recogniser`), never by one
that scores: a score must not be chosen by the filter that it judges.
"""

import torch
from torch import Tensor

from lafr.networks import device_of, load

RECOGNISER = "mini_recogniser"
# Chosen on the 160 validation faces at 128 px under the default degradation, seed (0, n), restored by the miniature.
# Likeness to the degraded input: 0.29 at least, 0.61 in the median; 0.6 % of the faces are below 0.3 and left. Of the
# 25,440 pairs with the restoration of another face 2.9 % reach 0.3. At 0.5 24 % would be left, and SFace finds those
# nearer to the ground truth once restored, by 0.16 on average: a recogniser sees little in severely degraded faces.
THRESHOLD = 0.3
OTHER = "looks like someone else"
SLACK = 0.05  # in videos: a face keeps its decision until its likeness has crossed the threshold by this much
BATCH = 32  # faces that the recogniser sees at once


@torch.no_grad()
def likeness(befores: Tensor, afters: Tensor) -> list[float]:
    """Return the cosine in -1..1 of each restored face with its input, both `[N, 3, S, S]` in [-1, 1], aligned."""
    recogniser = load(RECOGNISER)
    found: list[float] = []
    for before, after in zip(befores.split(BATCH), afters.split(BATCH), strict=True):
        embeddings = [recogniser(faces.clamp(-1, 1).to(device_of(recogniser))) for faces in (before, after)]
        found += (embeddings[0] * embeddings[1]).sum(1).tolist()  # [B, D] of unit length
    return found


def least_of(was_left: bool | None) -> float:
    """Return the least likeness of a face in a video, of which the frame before was left, restored, or not there."""
    return THRESHOLD if was_left is None else THRESHOLD + (SLACK if was_left else -SLACK)


def reason_to_leave(alike: float | None, least: float = THRESHOLD) -> str:
    """Return why a restored face of this likeness is left, or "" when it is close enough or was not measured."""
    if alike is None or alike >= least:
        return ""
    return f"{OTHER}: its likeness to the input is {alike:.2f}, the least is {least:g}"
