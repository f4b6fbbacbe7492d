"""A loss term of one's own: edges of the restored image against those of the ground truth."""

import torch.nn.functional as F
from torch import Tensor, nn

from lafr.losses.multilevel import Restoration


class EdgeL1(nn.Module):
    """L1 between horizontal and vertical differences of neighbouring pixels."""

    def forward(self, r: Restoration) -> Tensor:
        """Return a scalar; `r.restored` and `r.hq` are `[B, 3, H, W]` in [-1, 1]."""
        across = F.l1_loss(r.restored.diff(dim=-1), r.hq.diff(dim=-1))
        down = F.l1_loss(r.restored.diff(dim=-2), r.hq.diff(dim=-2))
        return across + down
