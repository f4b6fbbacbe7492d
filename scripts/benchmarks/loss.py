"""What each term of the loss costs, compared with the rest of the restoration step."""

from functools import partial

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from lafr.commands.devices import choose_device
from lafr.evaluation import markdown
from lafr.losses.multilevel import Restoration
from lafr.models.restorer import Restorer
from lafr.training.objectives import RestorationObjective
from lafr.training.timing import measure


def loss(cfg: DictConfig) -> dict:
    """Return seconds and peak memory of each term of the loss, and of the rest of the restoration step."""
    device = choose_device(cfg.device)
    objective = RestorationObjective(Restorer.from_pretrained(cfg.model.folder), instantiate(cfg.loss, _convert_="all"))
    objective.to(device).train()
    restorer, terms = objective.restorer, objective.loss.terms
    generator = torch.Generator().manual_seed(cfg.seed)
    shape = (cfg.batch_size, 3, restorer.resolution, restorer.resolution)
    lq, hq = (torch.rand(shape, generator=generator).mul(2).sub(1).to(device) for _ in range(2))
    with torch.no_grad():
        latents, z_hq = restorer.latents(lq), restorer.codec.encode(hq)

    def frozen() -> None:
        with torch.no_grad():
            restorer.codec.encode(hq)
            restorer.adapter(restorer.codec.encode(lq))

    def trained() -> None:
        restorer.codec.decode(restorer.denoiser(latents.z_aligned)).mean().backward()

    def term(names: list[str]) -> None:
        restored = lq.clone().requires_grad_()
        r = Restoration(restored, hq, latents.z_restored.clone().requires_grad_(), z_hq)
        sum(terms[name](r) for name in names).backward()

    def step() -> None:
        objective.total(objective({"lq": lq, "hq": hq})).backward()

    work = {"encode and align, no gradient": frozen, "denoise and decode, with gradient": trained}
    work |= {f"term: {name}": partial(term, [name]) for name in terms}
    work |= {"all terms together": lambda: term(list(terms)), "whole step": step}
    cost = {name: measure(do, device, cfg.repeats) for name, do in tqdm(work.items(), desc="loss", unit="part")}
    parts = {name: vars(c) | {"share": c.seconds / cost["whole step"].seconds} for name, c in cost.items()}
    return {"parts": parts, "batch_size": cfg.batch_size, "resolution": restorer.resolution, "device": str(device)}


def loss_table(record: dict) -> str:
    """Return the cost of each part as a Markdown table: share of the whole step, spread, peak memory."""
    whole = record["parts"]["whole step"]["seconds"]
    rows = []
    for name, c in record["parts"].items():
        spread = f"{100 * c['fastest'] / whole:.0f}–{100 * c['slowest'] / whole:.0f} %"
        rows.append([name, f"{100 * c['share']:.0f} %", spread, f"{c['peak_mb']:.0f}"])
    return markdown.table(["part", "share of the step", "fastest–slowest", "peak memory, MB"], rows)
