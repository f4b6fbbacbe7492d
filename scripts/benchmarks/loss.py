"""What each term of the loss costs, compared with the rest of the restoration step."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from lafr.commands.devices import choose_device
from lafr.evaluation import markdown
from lafr.losses.kept import Kept
from lafr.losses.multilevel import Restoration
from lafr.models.restorer import Restorer
from lafr.training.objectives import RestorationObjective, hq_latents, lq_latents
from lafr.training.timing import measure, wait


def loss(cfg: DictConfig) -> dict:
    """Return seconds and peak memory of each term of the loss and of the rest of the step, before and after keeping."""
    device = choose_device(cfg.device)
    objective = RestorationObjective(Restorer.from_pretrained(cfg.model.folder), instantiate(cfg.loss, _convert_="all"))
    objective.to(device).train()
    memories = Kept(cfg.feature_cache_gb, cfg.batch_size), Kept(cfg.feature_cache_gb, cfg.batch_size)
    side = objective.restorer.resolution
    generator = torch.Generator().manual_seed(cfg.seed)
    shape = (cfg.batch_size, 3, side, side)
    batch = {key: torch.rand(shape, generator=generator).mul(2).sub(1).to(device) for key in ("lq", "hq")}
    batch |= {key: torch.arange(cfg.batch_size) for key in ("n", "face")}
    ways = {"before": (None, None), "kept": (memories[0], None), "kept, LQ too": memories}
    rounds: list[dict[str, float]] = []
    for number in tqdm(range(-2, cfg.rounds), desc="step", unit="round"):
        taken = {}
        for way, kept in ways.items():  # in turn, so that a busy machine slows all of them
            objective.kept, objective.kept_lq = kept
            started = time.perf_counter()
            step(objective, batch)
            wait(device)
            taken[way] = time.perf_counter() - started
        if number >= 0:  # the first two fill the memories
            rounds.append(taken)
    parts: dict[str, dict] = {}
    for way in ("before", "kept, LQ too"):
        objective.kept, objective.kept_lq = ways[way]
        work = works(objective, batch)
        cost = {name: measure(do, device, cfg.repeats) for name, do in tqdm(work.items(), desc=way, unit="part")}
        parts[way] = {name: vars(c) for name, c in cost.items()}
    faster = {way: ratios(rounds, way) for way in ways if way != "before"}
    held = {"faces_mb": memories[0].held / cfg.batch_size / 1e6, "lq_mb": memories[1].held / cfg.batch_size / 1e6}
    facts = {"batch_size": cfg.batch_size, "resolution": side, "device": str(device)}
    return {"parts": parts, "faster": faster, "kept_of_a_face": held, **facts}


def step(objective: RestorationObjective, batch: dict) -> None:
    """Make the forward and backward pass of a training step."""
    objective.loss.forget()  # what terms remember for an update of their own, which is not measured
    objective.total(objective(batch)).backward()


def ratios(rounds: list[dict[str, float]], way: str) -> dict[str, float]:
    """Return how many times as many images a second pass, the median over rounds and its extremes."""
    values = [one["before"] / one[way] for one in rounds]
    return {"ratio": median(values), "lowest": min(values), "highest": max(values)}


def works(objective: RestorationObjective, batch: dict) -> dict[str, Callable[[], object]]:
    """Return the parts of a step, each to be timed alone."""
    restorer, terms = objective.restorer, objective.loss.terms
    with torch.no_grad():
        z_hq = hq_latents(batch, restorer.codec, objective.kept)
        z_lq = lq_latents(batch, restorer.codec, objective.kept_lq)
        z_aligned = restorer.adapter(z_lq)
        z_restored = restorer.denoiser(z_aligned)
    recall = partial(objective.kept, keys=batch["face"].tolist()) if objective.kept else None

    def frozen() -> None:
        with torch.no_grad():
            hq_latents(batch, restorer.codec, objective.kept)
            restorer.adapter(lq_latents(batch, restorer.codec, objective.kept_lq))

    def trained() -> None:
        restorer.codec.decode(restorer.denoiser(z_aligned)).mean().backward()

    def term(names: list[str]) -> None:
        restored = batch["lq"].clone().requires_grad_()
        z = z_restored.clone().requires_grad_()
        r = Restoration(restored, batch["hq"], z, z_hq, batch["n"], recall, z_aligned=z)
        sum(terms[name](r) for name in names).backward()

    return {
        "encode and align, no gradient": frozen,
        "denoise and decode, with gradient": trained,
        **{f"term: {name}": partial(term, [name]) for name in terms},
        "all terms together": lambda: term(list(terms)),
        "whole step": lambda: step(objective, batch),
    }


def loss_table(record: dict) -> str:
    """Return the cost of each part as a Markdown table, in shares of the whole step before, and what keeping gains."""
    if "faster" not in record:  # of before anything was kept
        record = record | {"parts": {"before": record["parts"], "kept, LQ too": {}}}
    before, after = record["parts"]["before"], record["parts"]["kept, LQ too"]
    whole = before["whole step"]["seconds"]
    rows = []
    for name, c in before.items():
        spread = f"{100 * c['fastest'] / whole:.0f}–{100 * c['slowest'] / whole:.0f} %"
        share, kept = (
            f"{100 * part[name]['seconds'] / whole:.0f} %" if part else "not run" for part in (before, after)
        )
        rows.append([name, share, spread, kept, f"{c['peak_mb']:.0f}"])
    head = ["part", "share of the step", "fastest–slowest", "of the same step, kept", "peak memory, MB"]
    table = markdown.table(head, rows)
    if "faster" not in record:
        return table
    gains = []
    for way, gain in record["faster"].items():
        gains.append(f"**{gain['ratio']:.2f}x** ({gain['lowest']:.2f}–{gain['highest']:.2f}) {way}")
    held = record["kept_of_a_face"]
    note = (
        f"Images a second once every face has come: {'; '.join(gains)}. A face takes {held['faces_mb']:.2f} MB, "
        f"mirrored as much again; an LQ image {held['lq_mb']:.3f} MB."
    )
    return f"{table}\n\n{note}"
