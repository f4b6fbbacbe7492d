"""A guard for people's faces: what looks like somebody else, or was as sharp before, is not pasted.

Likeness is the cosine of two embeddings by the recogniser that ships with the losses (`mini_recogniser`), never by one
that scores: a score must not be chosen by the filter that it judges.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from lafr.networks import device_of, load

RECOGNISER = "mini_recogniser"
# Chosen on the 160 validation faces at 128 px under the default degradation, seed (0, n), restored by the miniature.
# Likeness to the degraded input: 0.23 at least, 0.64 in the median; 1.2 % of the faces are below 0.3 and left. Of the
# 25,440 pairs with the restoration of another face 2.4 % reach 0.3. At 0.5 17 % would be left, and SFace finds those
# nearer to the ground truth once restored, by 0.17 on average: a recogniser sees little in severely degraded faces.
THRESHOLD = 0.3
OTHER = "looks like someone else"
# Chosen on the same faces: two of 160 hold this share of what their restoration shows, and lose by it: 2.3 and 3.4 dB,
# 0.14 and 0.10 of SFace. Of 80 nearly sharp ones (blur of 0.5 px, noise of 4, JPEG 75), which lose 0.14 of SFace, all
# hold as much; of 80 blurred by 1 px and reduced by 1.5, and of the packaged faces, none does.
DETAIL = 0.4
FAINT = 2.0  # grey levels: a restoration with less detail, such as one at fidelity 1, says nothing of its input
CLEAN = 3.0  # grey levels of noise; sharp faces: 2.5 at most, sharp faces under noise of 5: 3.5 and more
SHARP = "sharp already"
SLACK = 0.05  # in videos: a face keeps its decision until its value has crossed the threshold by this much
BATCH = 32  # faces that the recogniser sees at once


@dataclass(frozen=True)
class Limits:
    """From which likeness on, and up to which share of held detail, a restored face is pasted."""

    likeness: float = THRESHOLD
    detail: float = DETAIL


def limits_after(reason: str | None) -> Limits:
    """Return a face's limits in a video by why it was left in the frame before: "" when restored, None when unseen."""
    if reason is None:
        return Limits()
    was_other, was_sharp = reason.startswith(OTHER), reason.startswith(SHARP)
    return Limits(THRESHOLD + (SLACK if was_other else -SLACK), DETAIL + (-SLACK if was_sharp else SLACK))


@torch.no_grad()
def likeness(befores: Tensor, afters: Tensor) -> list[float]:
    """Return the cosine in -1..1 of each restored face with its input, both `[N, 3, S, S]` in [-1, 1], aligned."""
    recogniser = load(RECOGNISER)
    found: list[float] = []
    for before, after in zip(befores.split(BATCH), afters.split(BATCH), strict=True):
        embeddings = [recogniser(faces.clamp(-1, 1).to(device_of(recogniser))) for faces in (before, after)]
        found += (embeddings[0] * embeddings[1]).sum(1).tolist()  # [B, D] of unit length
    return found


def held_detail(befores: Tensor, afters: Tensor) -> list[float]:
    """Return the share of each restored face's detail that its input holds, both `[N, 3, S, S]` in [-1, 1], aligned.

    Detail is what a face loses at half its side; the share is its projection, in which noise averages out. About 0 for
    a blurred input, 1 for one as sharp; less under noise, of which a restoration rids a face.
    """
    before, after = detail(befores), detail(afters)
    share = (before * after).mean((1, 2, 3)) / (after * after).mean((1, 2, 3)).clamp(min=FAINT**2)
    return (share * (CLEAN / noise(befores).clamp(min=CLEAN)) ** 2).tolist()


def detail(faces: Tensor) -> Tensor:
    """Return what the middle of faces `[N, 3, S, S]` in [-1, 1] loses at half their side, `[N, 1, h, w]`, in levels."""
    gray = grays(faces)
    small = interpolate(gray, scale_factor=0.5, mode="bicubic", antialias=True)
    return middle(gray - interpolate(small, size=gray.shape[-2:], mode="bicubic"))


def noise(faces: Tensor) -> Tensor:
    """Return the standard deviation `[N]` of the noise of faces `[N, 3, S, S]` in [-1, 1], in grey levels.

    Immerkaer, "Fast Noise Variance Estimation" (1996), with the median in the mean's place, which edges do not move.
    """
    mask = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]], device=faces.device)[None, None]
    return conv2d(middle(grays(faces)), mask).abs().flatten(1).median(1).values * 1.4826 / 6


def grays(faces: Tensor) -> Tensor:
    """Return faces `[N, 3, S, S]` in [-1, 1] as grey levels `[N, 1, S, S]`, of which noise and detail are measured."""
    return faces.float().clamp(-1, 1).mean(1, keepdim=True) * 127.5


def middle(faces: Tensor) -> Tensor:
    """Return the face without hair and background."""
    side = faces.shape[-1]
    return faces[..., 3 * side // 16 : 29 * side // 32, 7 * side // 32 : 25 * side // 32]


def reason_to_leave(alike: float | None, held: float | None = None, limits: Limits | None = None) -> str:
    """Return why a restored face of this likeness and held detail is left, or ""; what is None was not measured."""
    limits = limits or Limits()
    if alike is not None and alike < limits.likeness:
        return f"{OTHER}: its likeness to the input is {alike:.2f}, the least is {limits.likeness:g}"
    if held is not None and held > limits.detail:
        return f"{SHARP}: the input holds {held:.0%} of the restored face's detail, the most is {limits.detail:.0%}"
    return ""
