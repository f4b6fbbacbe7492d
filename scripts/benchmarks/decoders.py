"""What the tiny decoder loses: both decoders on the same restored latents."""

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lafr.commands.devices import choose_device
from lafr.commands.evaluate import benchmark_builder
from lafr.evaluation import markdown
from lafr.evaluation.batches import groups_of, own_batches
from lafr.evaluation.progress import Processes
from lafr.evaluation.summary import mean_and_interval
from lafr.metrics.fidelity import psnr_rgb
from lafr.models.restorer import Restorer
from lafr.models.tiny import find_tiny, load_tiny


def decoders(cfg: DictConfig) -> dict:
    """Return each metric's mean and interval for both decoders, their difference, and the PSNR between the two."""
    device = choose_device(cfg.device)
    restorer = Restorer.from_pretrained(cfg.model.folder, decoder="base").to(device)
    tiny = load_tiny(find_tiny(cfg.decoder, restorer.codec, base=restorer.base), restorer.codec).to(device)
    pairs = benchmark_builder(cfg.benchmark.build, cfg.degradation)(restorer.resolution)
    metrics = {name: instantiate(cfg.metrics[name], _convert_="all") for name in cfg.scored}
    found: dict[str, dict[str, list[float]]] = {name: {"base": [], "tiny": []} for name in metrics}
    between: list[float] = []
    largest = 0.0
    for batch in own_batches(pairs, groups_of(len(pairs), cfg.batch_size), device, Processes()):
        with torch.no_grad():
            restorer.codec.tiny = None
            z = restorer.latents(batch.lq).z_restored
            images = {"base": restorer.codec.decode(z)}
            restorer.codec.tiny = tiny
            images["tiny"] = restorer.codec.decode(z)
            largest = max(largest, float(z.abs().max()))
            between += psnr_rgb(images["tiny"], images["base"]).tolist()
            for name, metric in metrics.items():
                for decoder, image in images.items():
                    found[name][decoder] += metric(image, batch.hq).tolist()
    rows: dict[str, dict] = {}
    for name, of in found.items():
        both = {decoder: np.array(values, dtype=float) for decoder, values in of.items()}
        measured = np.isfinite(both["base"]) & np.isfinite(both["tiny"])  # where a network finds the face in both
        both = {decoder: values[measured] for decoder, values in both.items()}
        both["difference"] = both["tiny"] - both["base"]
        intervals = {key: mean_and_interval(values, cfg.seed) for key, values in both.items()}
        rows[name] = {**intervals, "images": int(measured.sum())}
    parameters = {"base": restorer.codec.vae.decoder, "tiny": tiny.decoder}
    return {
        "metrics": rows,
        "psnr_to_exact": mean_and_interval(np.array(between), cfg.seed),
        "largest_latent": largest,
        "values": {name: sum(p.numel() for p in part.parameters()) for name, part in parameters.items()},
        "images": len(pairs),
        "set": pairs.name,
        "model": str(cfg.model.folder),
        "device": str(device),
    }


def decoders_table(record: dict) -> str:
    """Return a line for each metric."""

    def shown(found: dict, sign: str = "") -> str:
        return f"{found['mean']:{sign}.4f} ({found['low']:{sign}.4f}–{found['high']:{sign}.4f})"

    columns = ["against the ground truth", "exact decoder", "tiny decoder", "tiny − exact, paired"]
    rows = []
    for name, of in record["metrics"].items():
        rows.append([f"`{name}`", shown(of["base"]), shown(of["tiny"]), shown(of["difference"], "+")])
    exact, values = record["psnr_to_exact"], record["values"]
    return (
        f"{markdown.table(columns, rows)}\n\n{record['images']} faces of `{record['set']}`, restored by "
        f"`{record['model']}` (95 % bootstrap interval). The tiny decoder's images have {exact['mean']:.2f} dB "
        f"({exact['low']:.2f}–{exact['high']:.2f}) to the exact decoder's; {values['tiny']:,} values, not "
        f"{values['base']:,}. The largest restored latent is {record['largest_latent']:.1f}; a tiny decoder saturates "
        "at 3."
    )
