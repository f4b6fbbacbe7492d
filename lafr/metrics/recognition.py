"""Quality of a recogniser, a landmarker or a parser: one number for a set of faces."""

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.functional.classification import multiclass_jaccard_index

OUTER_EYE_CORNERS = (36, 45)  # of the 68 points


def pairwise(similarity: Tensor) -> Tensor:
    """Return the values above the diagonal of `similarity [N, N]`: one for each pair of different faces."""
    rows, columns = torch.triu_indices(*similarity.shape, offset=1)
    return similarity[rows, columns]


def agreement(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two recognisers' similarities `[N, N]`, over pairs of different faces."""
    return float(spearman_corrcoef(pairwise(a).double(), pairwise(b).double()))


def finds_itself(copies: Tensor, originals: Tensor) -> float:
    """Return the share of `copies [N, D]` whose nearest of the unit-length `originals [N, D]` is their own."""
    return float(((copies @ originals.T).argmax(1) == torch.arange(len(copies))).double().mean())


def as_directions(images: Tensor, mean: Tensor | None = None, basis: Tensor | None = None) -> Tensor:
    """Return pixels as unit vectors `[N, D]`, less `mean` and along `basis [D, K]` where given: the controls."""
    x = images.flatten(1).double()
    x = x - (x.mean(1, keepdim=True) if mean is None else mean)
    return torch.nn.functional.normalize(x if basis is None else x @ basis, dim=1)


def whitening(images: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Return mean `[D]` and basis `[D, components]` that whiten the pixels of `images` (PCA)."""
    x = images.flatten(1).double()
    mean = x.mean(0)
    _, s, v = torch.linalg.svd(x - mean, full_matrices=False)
    return mean, v[:components].T * (len(x) - 1) ** 0.5 / s[:components]


def normalised_mean_error(points: Tensor, truth: Tensor) -> Tensor:
    """Return the mean distance of `points [B, 68, 2]` from `truth` over that of the outer eye corners: `[B]`."""
    left, right = (truth[:, i] for i in OUTER_EYE_CORNERS)
    return (points - truth).norm(dim=-1).mean(1) / (left - right).norm(dim=-1)


def region_iou(labels: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Return each class's intersection over union `[classes]`, pooled over all pixels of `[B, H, W]` label maps."""
    return multiclass_jaccard_index(labels, truth, classes, average="none")
