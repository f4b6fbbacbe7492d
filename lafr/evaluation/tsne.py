"""t-SNE of latents: where degraded, aligned and sharp faces lie to each other."""

from pathlib import Path

import torch
from torch import Tensor

from lafr.data.benchmarks import Benchmark, PartialBenchmark
from lafr.errors import InputError, need
from lafr.models.restorer import Restorer
from lafr.storage import atomic_write

COLOURS = {"z_lq": "#8a8a8a", "z_aligned": "#2563a8", "z_hq": "#d97706"}
EXTRA = "'lafr[figures]'"


def require_packages() -> None:
    """Raise InputError where a package of the figure is missing."""
    for module in ("matplotlib", "sklearn.manifold"):
        need(module, EXTRA)


def embedded(points: Tensor, perplexity: float = 30.0, seed: int = 0) -> Tensor:
    """Return the t-SNE embedding `[N, 2]` of `points [N, D]` by scikit-learn, started at the principal components.

    Args:
        points: a row each.
        perplexity: effective number of neighbours; at most a third of N.
        seed: of scikit-learn's generator.
    """
    tsne = need("sklearn.manifold", EXTRA).TSNE
    own = tsne(perplexity=min(perplexity, (len(points) - 1) / 3), init="pca", random_state=seed)
    return torch.from_numpy(own.fit_transform(points.float().numpy()))


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
    require_packages()
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
