"""Identity: the angle between two faces, as a recogniser sees it."""

import torch.nn.functional as F
from torch import Tensor, nn

from lafr.losses.multilevel import Restoration


class IdentityCosine(nn.Module):
    """1 - cos of a recogniser's embeddings (ArcFace, Deng et al., CVPR 2019; the paper's identity level)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, r: Restoration) -> Tensor:
        """Return the batch mean, 0 (same direction) to 2."""
        restored, hq = r.through(self.network)  # [B, D] each
        return (1 - F.cosine_similarity(restored, hq, dim=1)).mean()
