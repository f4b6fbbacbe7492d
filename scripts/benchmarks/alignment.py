"""How close each adapter brings a face to its ground truth before the UNet sees it: `decode(z_aligned)`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lafr.commands.devices import choose_device
from lafr.commands.evaluate import benchmark_builder
from lafr.errors import InputError
from lafr.evaluation import markdown
from lafr.evaluation.batches import groups_of, own_batches
from lafr.evaluation.progress import Processes
from lafr.evaluation.summary import mean_and_interval
from lafr.models.restorer import Restorer

INPUT = "input"


def alignment(cfg: DictConfig) -> dict:
    """Return each adapter's latent gap to z_hq and the scores of `decode(z_aligned)`, means and 95 % intervals."""
    if not cfg.models:
        raise InputError("models", cfg.models, "name: folder of a trained model, ...")
    device = choose_device(cfg.device)
    metrics = {name: instantiate(cfg.metrics[name], _convert_="all") for name in cfg.scored}
    restorers = {name: Restorer.from_pretrained(folder) for name, folder in cfg.models.items()}
    sides = {restorer.resolution for restorer in restorers.values()}
    if len(sides) > 1:
        raise InputError("models", sorted(sides), "models of one resolution")
    if len({restorer.codec.fingerprint() for restorer in restorers.values()}) > 1:
        raise InputError("the models have different autoencoders, and the row of the input is one's alone")
    pairs = benchmark_builder(cfg.benchmark.build, cfg.degradation)(*sides)
    rows: dict[str, dict] = {}
    for name, restorer in restorers.items():
        restorer.to(device)
        found = aligned(restorer, pairs, metrics, cfg.batch_size, name)
        for method in (INPUT, name):
            own = {metric: mean_and_interval(np.array(values), cfg.seed) for metric, values in found[method].items()}
            rows.setdefault(method, own)
        rows[name]["values"] = restorer.adapter.size()
    return {"rows": rows, "images": len(pairs), "set": pairs.name, "device": str(device)}


@torch.no_grad()
def aligned(
    restorer: Restorer, pairs: Any, metrics: Mapping[str, Callable], batch_size: int, name: str
) -> dict[str, dict[str, list[float]]]:
    """Return method -> metric -> a number an image, of the input through the codec alone and of the adapter."""
    found: dict[str, dict[str, list[float]]] = {
        method: {metric: [] for metric in ("latent_gap", *metrics)} for method in (INPUT, name)
    }
    codec, device = restorer.codec, next(restorer.parameters()).device
    for batch in own_batches(pairs, groups_of(len(pairs), batch_size), device, Processes()):
        z_lq, z_hq = codec.encode(batch.lq), codec.encode(batch.hq)
        for method, z in ((INPUT, z_lq), (name, restorer.adapter(z_lq))):
            found[method]["latent_gap"] += (z - z_hq).abs().mean(dim=(1, 2, 3)).tolist()
            image = codec.decode(z)
            for metric, score in metrics.items():
                found[method][metric] += score(image, batch.hq).tolist()
    return found


def alignment_table(record: dict) -> str:
    """Return a line for the input and one for each adapter."""
    metrics = [key for key in record["rows"][INPUT] if key != "values"]
    rows = []
    for name, of in record["rows"].items():
        shown = [f"{of[key]['mean']:.4f} ({of[key]['low']:.4f}–{of[key]['high']:.4f})" for key in metrics]
        rows.append([name, *shown, f"{of['values']:,}" if "values" in of else ""])
    table = markdown.table(["adapter", *(f"`{key}`" for key in metrics), "values"], rows)
    return f"{table}\n\n{record['images']} faces of `{record['set']}`; mean (95 % bootstrap interval over images)."
