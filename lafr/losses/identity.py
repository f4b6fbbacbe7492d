"""Identity: the angle between the embeddings of two faces by a recogniser."""

import torch.nn.functional as F
from torch import Tensor, nn

from lafr.losses.multilevel import Restoration


class IdentityCosine(nn.Module):
    """1 - cos of a recogniser's embeddings (ArcFace, Deng et al., CVPR 2019; the paper's identity level).

    Args:
        network: maps images to embeddings `[B, D]`; it crops and resizes them itself.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, r: Restoration) -> Tensor:
        """Return the batch mean, 0 (same direction) to 2."""
        restored, hq = r.through(self.network)  # [B, D] each
        # cosine_similarity normalises, so an embedding's length, which reflects image quality, is not trained on
        return (1 - F.cosine_similarity(restored, hq, dim=1)).mean()
