"""t-SNE of latents: clusters stay clusters, the same points give the same image, and a missing package is one line."""

import sys

import pytest
import torch

from lafr.errors import InputError
from lafr.evaluation.tsne import embedded


def test_clusters_stay_clusters_and_the_same_points_give_the_same_image(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 30, generator=generator) * 4
    points = torch.cat([centre + torch.randn(25, 30, generator=generator) for centre in centres])
    label = torch.arange(4).repeat_interleave(25)
    places = embedded(points, perplexity=10)
    nearest = torch.cdist(places, places).fill_diagonal_(1e9).topk(5, largest=False).indices
    assert places.shape == (100, 2) and bool((label[nearest] == label[:, None]).all())
    assert torch.equal(places, embedded(points, perplexity=10))
    assert embedded(points[:4]).isfinite().all()  # fewer points than neighbours
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(InputError, match=r"lafr\[figures\]") as error:
        embedded(points)
    assert "\n" not in str(error.value)
