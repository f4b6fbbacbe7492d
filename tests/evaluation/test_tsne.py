"""t-SNE: its gradient is that of the divergence, its neighbourhoods have the perplexity, and clusters stay clusters."""

import torch

from lafr.evaluation.tsne import embedded, neighbourhoods, slope


def test_the_gradient_is_that_of_the_divergence():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(12, 12, generator=generator, dtype=torch.float64).fill_diagonal_(0)
    p = (p + p.T) / (p + p.T).sum()
    y = torch.randn(12, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = (1 / (1 + ((y[:, None] - y[None]) ** 2).sum(2))) * (1 - torch.eye(12, dtype=torch.float64))
    q = weights / weights.sum()
    apart = ~torch.eye(12, dtype=torch.bool)
    (p[apart] * (p[apart] / q[apart]).log()).sum().backward()
    assert torch.allclose(slope(p, y.detach()), y.grad, rtol=1e-9, atol=1e-12)


def test_neighbourhoods_have_the_wanted_perplexity():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = neighbourhoods(torch.cdist(x, x) ** 2, 12.0)
    assert torch.allclose(p.sum(1), torch.ones(50, dtype=torch.float64)) and p.diagonal().max() == 0
    perplexity = (-(p * p.clamp_min(1e-300).log()).sum(1)).exp()
    assert torch.allclose(perplexity, torch.full((50,), 12.0, dtype=torch.float64), rtol=1e-6)


def test_clusters_stay_clusters_and_the_same_points_give_the_same_image():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 30, generator=generator) * 4
    points = torch.cat([centre + torch.randn(25, 30, generator=generator) for centre in centres])
    label = torch.arange(4).repeat_interleave(25)
    places = embedded(points, perplexity=10)
    nearest = torch.cdist(places, places).fill_diagonal_(1e9).topk(5, largest=False).indices
    assert places.shape == (100, 2) and bool((label[nearest] == label[:, None]).all())
    assert torch.equal(places, embedded(points, perplexity=10))
    assert embedded(points[:4]).isfinite().all()
