"""How close to z_hq an untrained denoiser's output is: by t*, input scaling, and with and without a prompt."""

from itertools import product

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from lafr.commands.devices import choose_device
from lafr.data.benchmarks import Benchmark
from lafr.data.packaged import packaged_benchmark
from lafr.evaluation import markdown
from lafr.evaluation.summary import mean_and_interval
from lafr.models.base.model import Base
from lafr.models.denoiser import Denoiser
from lafr.models.restorer import Restorer


def timesteps(cfg: DictConfig) -> dict:
    """Return the latent L1 to z_hq on the packaged faces, of z_lq, of z_aligned, and of z_restored without a LoRA."""
    device = choose_device(cfg.device)
    restorer = Restorer.from_pretrained(cfg.model.folder).to(device)
    degradation = instantiate(cfg.degradation, _convert_="all")
    pairs = packaged_benchmark("mini", restorer.resolution, degradation, cfg.draws, cfg.seed)
    z_lq, z_aligned, z_hq = encoded(restorer, pairs, device)
    rows = []
    cases = list(product(cfg.text, cfg.scale_input, cfg.timesteps))
    for text, scale_input, timestep in tqdm(cases, desc="timesteps", unit="case"):
        base = Base.from_pretrained(cfg.base, text=True)  # loaded each time: pruning changes a UNet in place
        denoiser = Denoiser.from_base(base.unet, base.scheduler, timestep, scale_input, text, base.null_embedding)
        denoiser = denoiser.to(device).eval()
        with torch.no_grad():
            z_restored = torch.cat([denoiser(z) for z in z_aligned.split(cfg.draws)])
        where = {"text": text, "scale_input": scale_input, "timestep": timestep, "alpha_bar": denoiser.alpha_bar}
        rows.append(where | gap(z_restored, z_hq, cfg.draws, cfg.seed))
    return {
        "z_lq": gap(z_lq, z_hq, cfg.draws, cfg.seed),
        "z_aligned": gap(z_aligned, z_hq, cfg.draws, cfg.seed),
        "z_restored": rows,
        "images": len(pairs),
        "faces": len(pairs.faces),
        "resolution": restorer.resolution,
        "device": str(device),
    }


def encoded(restorer: Restorer, pairs: Benchmark, device: torch.device) -> tuple[Tensor, ...]:
    """Return z_lq, z_aligned and z_hq `[N, C, h, w]` of all pairs, in order."""
    found = []
    with torch.no_grad():
        for pair in (pairs[n] for n in range(len(pairs))):
            z_lq, z_hq = restorer.codec.encode(torch.stack([pair.lq, pair.hq]).to(device)).split(1)
            found.append((z_lq, restorer.adapter(z_lq), z_hq))
    z_lq, z_aligned, z_hq = zip(*found, strict=True)
    return torch.cat(z_lq), torch.cat(z_aligned), torch.cat(z_hq)


def gap(z: Tensor, z_hq: Tensor, draws: int, seed: int) -> dict:
    """Return the mean absolute difference and its 95 % bootstrap interval over faces, the samples of each averaged."""
    by_face = (z - z_hq).abs().mean((1, 2, 3)).reshape(-1, draws).mean(1)
    return mean_and_interval(by_face.cpu().double().numpy(), seed)


def timesteps_table(record: dict) -> str:
    """Return the gaps as a Markdown table: a row for each way of feeding and pruning, a column for each t*."""

    def shown(found: dict) -> str:
        return "{mean:.3f} ({low:.3f}–{high:.3f})".format(**found)

    times = list(dict.fromkeys(row["timestep"] for row in record["z_restored"]))
    ways: dict[tuple, dict] = {}
    for row in record["z_restored"]:
        ways.setdefault((row["text"], row["scale_input"]), {})[row["timestep"]] = shown(row)
    rows = []
    for (text, scale_input), cells in ways.items():
        way = {"none": "deleted", "empty_prompt": "prompt fixed"}[text]
        fed = "√ᾱ z" if scale_input else "z"
        rows.append([way, fed, *(cells[t] for t in times)])
    table = markdown.table(["cross-attention", "UNet is fed", *(f"t* = {t}" for t in times)], rows)
    return (
        f"{table}\n\nMean absolute difference to z_hq, {record['images']} images of {record['faces']} faces "
        "(95 % bootstrap interval over faces). "
        f"Before the UNet: z_lq {shown(record['z_lq'])}, z_aligned {shown(record['z_aligned'])}."
    )
