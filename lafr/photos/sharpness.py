"""How sharp a face is: the detail that it holds or would lose, and its noise, which is no detail."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from lafr.images import from_pil

# Chosen on the 160 validation faces at 128 px, restored by the miniature at fidelity 0: two hold this share of what
# their restoration shows, and lose by it: 2.3 and 3.4 dB, 0.14 and 0.10 of SFace. Of 80 nearly sharp ones (blur of
# 0.5 px, noise of 4, JPEG 75), which lose 0.14 of SFace, 77 hold as much; of 80 blurred by 1 px and reduced by 1.5 none
# does. Of 80 enlarged fourfold as blocks, which gain 0.08, 27 do: blocks are taken for detail where they lie on it.
DETAIL = 0.4
FAINT = 2.0  # grey levels: a restoration with less detail says nothing of its input
CLEAN = 3.0  # grey levels of noise; sharp faces: 2.5 in 76 of 80, 3.05 at most
COHERENT = 0.5  # correlation of both details; 20 sharp faces: 0.53 in the median; blocks, rows, scratches: 0.3
CHROMA = 3.0  # as strong as grey noise must noise of the colours be to count: the eye sees it less, and so does SFace
# Grey levels: RMS of what a face loses when it is shrunk to the model's side, above which it is sharp. 40 validation
# faces of 512 px, for a model of 128 px: 3.1 to 10.2 as they are, 2.8 and more under noise of 15; 2.06 and more when
# they hold the detail of 192 px (`faces.LARGEST`), at most 1.95 when they hold that of 128 px; blurred by 8 px, under
# noise of 10, at most 1.6.
LOST = 2.0


def held_detail(befores: Tensor, afters: Tensor, share: float = 0.0) -> list[float]:
    """Return the share of each restored face's detail that its input holds, both `[N, 3, S, S]` in [-1, 1], aligned.

    Detail is what a face loses at half its side; the share is its projection, in which noise averages out. About 0 for
    a blurred input, 1 for one as sharp. Less under noise, of which a restoration rids a face, and for an input with
    detail of another kind (blocks, scratches), which hides what lies below.

    Args:
        share: of the input in what was decoded, see `lafr.models.restorer.share_of_input`: taken out first, as detail
            that the input itself brought says nothing.
    """
    before, after = detail(befores), detail(afters)
    after = (after - share * before) / (1 - share) if share < 1 else torch.zeros_like(after)
    common, own, others = ((a * b).mean((1, 2, 3)) for a, b in ((before, after), (after, after), (before, before)))
    held = common / own.clamp(min=FAINT**2)
    coherence = common.clamp(min=0) / (own * others).sqrt().clamp(min=1e-6)
    return (held * (CLEAN / noise(befores).clamp(min=CLEAN)) ** 2 * (coherence / COHERENT).clamp(max=1) ** 2).tolist()


def detail(faces: Tensor) -> Tensor:
    """Return what the middle of faces `[N, 3, S, S]` in [-1, 1] loses at half their side, `[N, 1, h, w]`, in levels."""
    gray = grays(faces)
    small = interpolate(gray, scale_factor=0.5, mode="bicubic", antialias=True)
    return middle(gray - interpolate(small, size=gray.shape[-2:], mode="bicubic"))


def noise(faces: Tensor) -> Tensor:
    """Return the noise `[N]` of faces `[N, 3, S, S]` in [-1, 1], in grey levels; of colours a third counts."""
    gray = grays(faces)
    red, blue = (faces[:, channel : channel + 1].float().clamp(-1, 1) * 127.5 - gray for channel in (0, 2))
    return torch.stack([deviation(gray), deviation(red) / CHROMA, deviation(blue) / CHROMA]).amax(0)


def deviation(planes: Tensor) -> Tensor:
    """Return the standard deviation `[N]` of the noise of planes `[N, 1, S, S]`.

    Immerkaer, "Fast Noise Variance Estimation" (1996), with the median in the mean's place, which edges do not move.
    """
    mask = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]], device=planes.device)[None, None]
    return conv2d(middle(planes), mask).abs().flatten(1).median(1).values * 1.4826 / 6


def grays(faces: Tensor) -> Tensor:
    """Return faces `[N, 3, S, S]` in [-1, 1] as grey levels `[N, 1, S, S]`."""
    return faces.float().clamp(-1, 1).mean(1, keepdim=True) * 127.5


def middle(faces: Tensor) -> Tensor:
    """Return the face without hair and background."""
    side = faces.shape[-1]
    return faces[..., 3 * side // 16 : 29 * side // 32, 7 * side // 32 : 25 * side // 32]


def lost_detail(face: Image.Image, resolution: int) -> float:
    """Return the RMS, in grey levels, of what an aligned face loses when it is shrunk to `resolution` px, but noise."""
    gray = face.convert("L")
    small = gray.resize((resolution, resolution), Image.Resampling.LANCZOS)
    lost = np.asarray(gray, np.float32) - np.asarray(small.resize(gray.size, Image.Resampling.BICUBIC), np.float32)
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in lost.shape)
    inside = np.hypot(*np.meshgrid(x / 0.3, y / 0.4)) < 1  # the face without hair and background
    # of white noise the part that the smaller size cannot hold
    sigma = float(deviation(grays(from_pil(face.convert("RGB"))[None]))) if min(gray.size) > 8 else 0.0
    of_noise = sigma**2 * (1 - min(1, resolution / min(gray.size)) ** 2)
    return float(np.sqrt(max(0, np.mean(lost[inside] ** 2) - of_noise)))
