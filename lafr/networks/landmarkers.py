"""Landmarks: where a face's features lie, as heatmaps and as points that carry a gradient."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafr.errors import need
from lafr.weights import NO_DEPS, load_pickle


@dataclass(frozen=True)
class Landmarks:
    """What a landmarker says: heatmaps `[B, K, h, w]` (None: it has none) and points `[B, K, 2]`.

    Points are (x, y) in pixels of the 512 crop whatever the image's size; pixel centres lie at whole numbers.
    """

    heatmaps: Tensor | None
    points: Tensor


def centre_of_mass(p: Tensor) -> Tensor:
    """Return the mean position `[B, K, 2]` (x, y), in pixels of the 512 crop, under `p [B, K, h, w]` (sum 1)."""
    x, y = (to_512(torch.arange(size, device=p.device, dtype=p.dtype), size) for size in (p.shape[-1], p.shape[-2]))
    return torch.stack([(p.sum(-2) * x).sum(-1), (p.sum(-1) * y).sum(-1)], -1)


def soft_argmax(heatmaps: Tensor, temperature: float = 0.1, radius: int = 3) -> Tensor:
    """Return the peaks' positions `[B, K, 2]` (x, y), in pixels of the 512 crop, with a gradient.

    The mean position under softmax(heatmaps / temperature) over the (2 radius + 1)^2 heatmap pixels around each
    largest value (Luvizon et al., 2019, "soft-argmax", kept local so that a second bump far off does not pull). For
    heatmaps `[B, K, h, w]` of a peak near 1. Where a Gaussian (AWing's sigma is 1.5 heatmap pixels) lies further than
    `radius` from the border, each coordinate is within 0.05 heatmap pixels of its centre (0.16 for sigma 1), and
    within 0.3 (2.4 pixels at 512) of `argmax_points`, which is up to a quarter off itself.
    """
    near = _around_peak(heatmaps.detach(), radius)
    scores = (heatmaps / temperature).masked_fill(~near, -torch.inf)
    return centre_of_mass(scores.flatten(2).softmax(2).unflatten(2, heatmaps.shape[-2:]))


def argmax_points(heatmaps: Tensor) -> Tensor:
    """Return the peaks `[B, K, 2]` as facexlib reads them, in pixels of the 512 crop: for scores, without gradient.

    The largest value's position, moved a quarter heatmap pixel towards the larger neighbour along each axis (Newell
    et al., ECCV 2016): steps of 4 pixels at 512 for 64 px heatmaps. facexlib's `calculate_points` adds half a heatmap
    pixel and no more, so its numbers are 0.5 larger; where any one peak lies in the first or last row it misreads all
    the others' vertical neighbours, which this does not; and it needs a NumPy that still has `np.float`.
    """
    height, width = heatmaps.shape[-2:]
    peak = heatmaps.detach().flatten(2).argmax(2)[..., None]  # [B, K, 1]
    padded = F.pad(heatmaps.detach(), (1, 1, 1, 1), value=-torch.inf)
    points = []
    for index, step, size in ((peak % width, 1, width), (peak // width, width + 2, height)):
        here = (peak // width + 1) * (width + 2) + peak % width + 1  # in the padded map
        after, before = (padded.flatten(2).gather(2, here + way * step) for way in (1, -1))
        points.append(to_512(index + 0.25 * (after - before).sign(), size))
    return torch.cat(points, 2)


def to_512(position: Tensor, size: int) -> Tensor:
    """Return pixel positions in an image of `size` pixels a side, in pixels of the 512 crop."""
    return (position + 0.5) * (512 / size) - 0.5


def _around_peak(heatmaps: Tensor, radius: int) -> Tensor:
    height, width = heatmaps.shape[-2:]
    peak = heatmaps.flatten(2).argmax(2)[..., None]  # [B, K, 1]
    x = (torch.arange(width, device=heatmaps.device) - peak % width).abs() <= radius
    y = (torch.arange(height, device=heatmaps.device) - peak // width).abs() <= radius
    return y[..., :, None] & x[..., None, :]


class AWingFAN(nn.Module):
    """The 98 WFLW points by a four-stack hourglass (Wang et al., ICCV 2019, "Adaptive Wing Loss"), as in facexlib.

    Maps `[B, 3, H, H]` in [-1, 1] to `Landmarks`: heatmaps `[B, 98, 64, 64]` of the last stack (a sure point is a
    bump of peak 1), points by `soft_argmax`. As facexlib's `FAN.get_landmarks` it reads RGB in [0, 1] at 256 px, by
    OpenCV's bilinear resize (at 512 the mean of 2 x 2 pixels), there rounded to 8 bits, here not. The boundary
    channel, the network's 99th, is left out.

    Args:
        state: state dict in the published layout; random weights when None. Raises InputError without facexlib.
    """

    name = "awing_fan"
    origins = frozenset({"awing_fan"})

    def __init__(self, state: dict[str, Tensor] | None = None):
        super().__init__()
        architecture = need("facexlib.alignment.awing_arch", NO_DEPS)
        self.network = architecture.FAN(num_modules=4, num_landmarks=98, device="cpu")
        if state is not None:
            self.network.load_state_dict(state)
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls) -> "AWingFAN":
        """Load the network with the published weights; raises InputError when facexlib or they are missing."""
        return cls(load_pickle(cls.name)["state_dict"])

    def forward(self, image: Tensor) -> Landmarks:
        """Return heatmaps and points."""
        rgb = F.interpolate((image.float() + 1) / 2, (256, 256), mode="bilinear", align_corners=False)
        stacks, _ = self.network(rgb)
        heatmaps = stacks[-1][:, :-1]  # [B, 98, 64, 64]
        return Landmarks(heatmaps, soft_argmax(heatmaps))

    def train(self, mode: bool = True) -> "AWingFAN":
        """Stay in eval mode: batch statistics belong to its own training."""
        return super().train(False)
