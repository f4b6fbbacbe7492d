"""t-SNE of latents: where degraded, aligned and sharp faces lie to each other."""

import math
from pathlib import Path

import torch
from torch import Tensor

from lafr.data.benchmarks import Benchmark, PartialBenchmark
from lafr.errors import InputError, need
from lafr.models.restorer import Restorer
from lafr.storage import atomic_write

COLOURS = {"z_lq": "#8a8a8a", "z_aligned": "#2563a8", "z_hq": "#d97706"}

ITERATIONS, EXAGGERATED = 600, 150  # steps in all, and those with p exaggerated by `FACTOR`
FACTOR = 12.0


def embedded(points: Tensor, perplexity: float = 30.0, seed: int = 0) -> Tensor:
    """Return the t-SNE embedding `[N, 2]` of `points [N, D]` (van der Maaten & Hinton, JMLR 2008), exact.

    For up to a few thousand points. The first positions are the two principal components, as in openTSNE, so that the
    seed only breaks ties.

    Args:
        points: a row each.
        perplexity: effective number of neighbours; at most a third of N.
        seed: of the ties.
    """
    x = points.double()
    count = len(x)
    p = neighbourhoods(torch.cdist(x, x) ** 2, min(perplexity, (count - 1) / 3))
    p = ((p + p.T) / (2 * count)).clamp_min(1e-12)
    centred = x - x.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    y = u[:, :2] * s[:2]
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    y = 1e-4 * (y / y.std().clamp_min(1e-12) + 1e-3 * noise)
    velocity, gains = torch.zeros_like(y), torch.ones_like(y)
    rate = max(count / FACTOR / 4, 50.0)
    for step in range(ITERATIONS):
        momentum, factor = (0.5, FACTOR) if step < EXAGGERATED else (0.8, 1.0)
        gradient = slope(p * factor, y)
        same = gradient.sign() == velocity.sign()
        gains = torch.where(same, gains * 0.8, gains + 0.2).clamp_min(0.01)
        velocity = momentum * velocity - rate * gains * gradient
        y = y + velocity
        y = y - y.mean(0)
    return y.float()


def slope(p: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of KL(p || q) at the positions `y [N, 2]`, Eq. 5: 4 sum_j (p - q)(y_i - y_j) w_ij."""
    weights = 1 / (1 + torch.cdist(y, y) ** 2)  # Student's t with one degree of freedom
    weights.fill_diagonal_(0)
    force = (p - weights / weights.sum()) * weights
    return 4 * (force.sum(1, keepdim=True) * y - force @ y)


def neighbourhoods(squared: Tensor, perplexity: float) -> Tensor:
    """Return p(j | i) `[N, N]` of squared distances: Gaussians of the wanted perplexity, by bisection of precision."""
    count = len(squared)
    eye = torch.eye(count, dtype=torch.bool)
    low, high = torch.zeros(count, 1).double(), torch.full((count, 1), math.inf).double()
    precision = 1 / squared.masked_fill(eye, math.inf).amin(1, keepdim=True).clamp_min(1e-12)
    wanted = math.log(perplexity)
    p = torch.zeros_like(squared)
    for _ in range(64):
        p = torch.softmax((-precision * squared).masked_fill(eye, -math.inf), 1)
        entropy = -(p * p.clamp_min(1e-300).log()).sum(1, keepdim=True)
        wide = entropy > wanted
        low, high = torch.where(wide, precision, low), torch.where(wide, high, precision)
        precision = torch.where(high.isinf(), precision * 2, (low + high) / 2)
    return p


@torch.no_grad()
def latents_of_set(
    restorer: Restorer, benchmark: Benchmark, most: int = 200, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return z_lq, z_aligned and, where there is a ground truth, z_hq, each `[N, D]`, of up to `most` pairs."""
    part = PartialBenchmark(benchmark, most) if most < len(benchmark) else benchmark
    found: dict[str, list[Tensor]] = {}
    for index in range(len(part)):
        pair = part[index]
        latents = restorer.latents(pair.lq[None].to(device))
        rows = {"z_lq": latents.z_lq, "z_aligned": latents.z_aligned}
        if pair.hq is not None:
            rows["z_hq"] = restorer.codec.encode(pair.hq[None].to(device))
        for name, z in rows.items():
            found.setdefault(name, []).append(z.flatten().float().cpu())
    return {name: torch.stack(rows) for name, rows in found.items()}


def draw_latents(latents: dict[str, Tensor], path: Path, title: str) -> dict[str, Tensor]:
    """Draw the common t-SNE embedding of several kinds of latents into an .svg or .png; return kind -> `[N, 2]`."""
    if path.suffix not in (".svg", ".png"):
        raise InputError("output", str(path), "a file that ends in .svg or .png")
    need("matplotlib", "'lafr[samples]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = [len(rows) for rows in latents.values()]
    places = dict(zip(latents, embedded(torch.cat(list(latents.values()))).split(sizes), strict=True))
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in places.items():
        x, y = points.T.tolist()
        axes.scatter(x, y, s=10, color=COLOURS[name], label=name, alpha=0.8, linewidths=0)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(fontsize=8)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=160))
    return places
