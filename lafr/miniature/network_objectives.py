"""Objectives of the miniature's recogniser, landmarker and parser, on batches of `LabelledStream`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafr.networks.landmarkers import centre_of_mass
from lafr.networks.mini import HEATMAP_SIGMA, MiniNetworks
from lafr.training.objectives import Batch, Objective


class RecogniserObjective(Objective):
    """Distillation: the embedding of the degraded face follows the teacher's of the clean one.

    Terms: `cosine`, 1 - cos of the two, and `relation`, the squared error of the cosines between the faces of a batch
    (relational knowledge distillation, Park et al., CVPR 2019). Student and teacher see the same warp and blend
    (consistent and aggressive views: Beyer et al., CVPR 2022).
    """

    def __init__(self, networks: MiniNetworks, teacher: nn.Module, weights: dict[str, float]):
        super().__init__()
        self.network, self.teacher = networks.recogniser.requires_grad_(True), teacher.requires_grad_(False)
        self.weights = dict(weights)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return cosine and relation."""
        student, teacher = self.network(batch["lq"]).float(), self.teacher(batch["hq"]).float()  # [B, D], of length 1
        with torch.autocast(student.device.type, enabled=False):  # bfloat16 would round cosines to 1/256
            return {
                "cosine": (1 - (student * teacher).sum(1)).mean(),
                "relation": F.mse_loss(student @ student.T, teacher @ teacher.T),  # [B, B] cosines
            }


class LandmarkerObjective(Objective):
    """Terms: `heatmap`, KL(Gaussians of the points || heatmaps); `distance`, of the points in pixels at 512."""

    def __init__(self, networks: MiniNetworks, weights: dict[str, float]):
        super().__init__()
        self.network, self.weights = networks.landmarker.requires_grad_(True), dict(weights)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return heatmap and distance."""
        logits = self.network.logits(batch["lq"])  # [B, 68, h, w]
        target = gaussians(batch["points"], logits.shape[-1])  # [B, 68, h, w]
        log_p = logits.flatten(2).log_softmax(2)  # [B, 68, h w]: each heatmap is a distribution over positions
        points = centre_of_mass(log_p.exp().unflatten(2, logits.shape[-2:]))
        return {
            "heatmap": F.kl_div(log_p, target.flatten(2), reduction="sum") / log_p[..., 0].numel(),
            "distance": (points - batch["points"]).norm(dim=-1).mean(),
        }


def gaussians(points: Tensor, size: int) -> Tensor:
    """Return a distribution `[B, K, size, size]` around each of `points [B, K, 2]`, in pixels of the 512 crop."""
    centres = (points + 0.5) * (size / 512) - 0.5  # pixel centres lie at halves
    axis = torch.arange(size, device=points.device, dtype=points.dtype)
    x, y = (-0.5 * ((axis - centres[..., i : i + 1]) / HEATMAP_SIGMA) ** 2 for i in (0, 1))  # [B, K, size]
    # a Gaussian is separable, its logarithm a sum; softmax normalises it over the map, also where it is cut off
    return (y[..., :, None] + x[..., None, :]).flatten(2).softmax(2).unflatten(2, (size, size))


class ParserObjective(Objective):
    """Terms: `cross_entropy` and `dice`, 1 - the mean soft Dice coefficient, in which small regions weigh as much.

    The parser starts from the weights of the landmarker, which is trained in the stage before.
    """

    def __init__(self, networks: MiniNetworks, weights: dict[str, float]):
        super().__init__()
        networks.parser.hourglass.start_from(networks.landmarker.hourglass)
        self.network, self.weights = networks.parser.requires_grad_(True), dict(weights)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross_entropy and dice."""
        logits = self.network(batch["lq"])  # [B, C, R, R]
        p, target = logits.softmax(1), F.one_hot(batch["regions"], logits.shape[1]).movedim(-1, 1)  # [B, C, R, R]
        # Dice = 2 |A n B| / (|A| + |B|), for each class over the batch; clamped where a class is absent
        overlap = (p * target).sum((0, 2, 3)) / (p + target).sum((0, 2, 3)).clamp_min(1)
        return {"cross_entropy": F.cross_entropy(logits, batch["regions"]), "dice": 1 - 2 * overlap.mean()}
