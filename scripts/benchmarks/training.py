"""The cost of a training step in LAFR's stages and in two baselines, and what it makes of a whole recipe."""

from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm

from lafr.commands.devices import choose_device
from lafr.commands.preflight import built as build
from lafr.commands.preflight import hollow_objective
from lafr.evaluation import markdown
from lafr.losses.multilevel import MultiLevelLoss
from lafr.models.adapter import Adapter, build_adapter
from lafr.models.base.model import Base
from lafr.models.denoiser import Denoiser
from lafr.models.restorer import Restorer
from lafr.training.baselines import EncoderObjective, OSEDiffObjective
from lafr.training.counting import count_step, optimiser_step, without_values
from lafr.training.hollow import hollowed
from lafr.training.objectives import Objective, RestorationObjective
from lafr.training.timing import measure
from lafr.weights import mini_folder
from scripts.benchmarks.losses import composed
from scripts.benchmarks.parts import once

RECIPE = {
    "codebook": "LAFR",
    "alignment": "LAFR",
    "restoration": "LAFR",
    "encoder": "encoder + LoRA",
    "osediff": "OSEDiff",
}


def training(cfg: DictConfig) -> dict:
    """Return seconds, memory and trained values of a step in each stage, and operations and memory at full size."""
    device = choose_device(cfg.device)
    counts = all_counts(cfg)
    folder = mini_folder() / "base" if cfg.model.folder == "mini" else cfg.model.folder
    losses = {"osediff": cfg.osediff_loss}
    losses = {stage: build(losses.get(stage, cfg.loss)) for stage in RECIPE}
    rounds: list[dict] = []
    for _ in tqdm(range(cfg.rounds), desc="training", unit="round"):
        rounds.append({})
        for stage in RECIPE:  # in turn, so that a busy machine slows all of them
            base, adapter = Base.from_pretrained(folder), instantiate(cfg.adapter)
            objective = built(stage, cfg, base, adapter, losses[stage]).to(device)
            rounds[-1][stage] = measured(objective, cfg, device)
            del base, adapter, objective
    record = {
        "reference": "encoder",
        "stages": {stage: over_rounds([r[stage] for r in rounds], [r["encoder"] for r in rounds]) for stage in RECIPE},
        "full_size": {stage: full_size(counts[stage, cfg.preset]) for stage in RECIPE},
        "preset": cfg.preset,
        "hours": hours(cfg, counts),
        "used": cfg.used,
        "batch_size": cfg.batch_size,
        "resolution": cfg.model.resolution,
        "gradient_checkpointing": cfg.gradient_checkpointing,
        "mixed_precision": cfg.mixed_precision,
        "device": str(device),
    }
    recipes = {name: {"stages": dict(r.stages), "source": r.source} for name, r in cfg.recipes.items()}
    record["recipes"] = whole(recipes, record)
    record["claim"] = {"saved": cfg.claim, "steps_needed": steps_needed(record, cfg.claim)}
    return record


def built(stage: str, cfg: DictConfig, base: Base, adapter: Adapter, loss: MultiLevelLoss) -> Objective:
    """Return the stage's untrained objective on a base model."""
    if stage == "osediff":
        return OSEDiffObjective(base, loss, seed=cfg.seed).train()
    denoiser = Denoiser.from_base(base.unet, base.scheduler, cfg.model.timestep)
    denoiser.add_lora(rank=4, alpha=8, seed=cfg.seed)
    codec = base.codec()
    if stage == "encoder":
        return EncoderObjective(Restorer(codec, build_adapter("none"), denoiser, cfg.model.resolution), loss).train()
    if adapter.quantizer.has_codes:
        generator = torch.Generator().manual_seed(cfg.seed)
        adapter.quantizer.initialise(
            torch.randn(1, adapter.settings["code_dim"], 64, 64, generator=generator), generator
        )
    restorer = Restorer(codec, adapter, denoiser, cfg.model.resolution)
    if stage == "restoration":
        return RestorationObjective(restorer, loss).train()
    return instantiate(cfg.stage[stage].objective, _convert_="all")(restorer).train()


def trained_values(objective: Objective) -> int:
    """Return how many values a stage trains, codes included."""
    codes = sum(value.numel() for name, value in objective.trained_buffers().items() if name.endswith("embed"))
    own = [p for term in learned_terms(objective) for p in term.trained_parameters()]
    return sum(p.numel() for p in {*filter(requires_gradient, objective.parameters()), *own}) + codes


def requires_gradient(parameter: nn.Parameter) -> bool:
    """Return whether the stage's optimiser trains it."""
    return parameter.requires_grad


def learned_terms(objective: Objective) -> list:
    """Return the terms of the objective's loss that train parameters of their own."""
    return list(objective.loss.learned().values()) if hasattr(objective, "loss") else []


def measured(objective: Objective, cfg: DictConfig, device: torch.device) -> dict:
    """Return seconds, peak memory in MB (weights and optimiser included) and trained values of a step on `device`."""
    if cfg.gradient_checkpointing:
        objective.enable_gradient_checkpointing()
    generator = torch.Generator().manual_seed(cfg.seed)
    shape = (cfg.batch_size, 3, cfg.model.resolution, cfg.model.resolution)
    batch = {key: torch.rand(shape, generator=generator).mul(2).sub(1).to(device) for key in ("lq", "hq")}
    batch["n"] = torch.arange(cfg.batch_size)
    step, optimizer = optimiser_step(objective, batch, cfg.mixed_precision)
    cost = measure(step, device, cfg.steps)
    held: list[torch.Tensor] = [*objective.parameters(), *objective.buffers()]
    for own in (optimizer, *(term.optimizer() for term in learned_terms(objective))):
        held += [value for state in own.state.values() for value in state.values() if torch.is_tensor(value)]
    # tensors as keys compare by identity: what two share counts once
    at_rest = sum(value.numel() * value.element_size() for value in set(held))
    return {**vars(cost), "peak_mb": at_rest / 1e6 + cost.peak_mb, "trained_values": trained_values(objective)}


def over_rounds(own: list[dict], reference: list[dict]) -> dict:
    """Return medians over rounds, and the ratio of seconds to the reference's in each round."""
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(own, reference, strict=True)]
    return {
        "seconds": median(a["seconds"] for a in own),
        "ratio": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "peak_mb": median(a["peak_mb"] for a in own),
        "trained_values": own[0]["trained_values"],
    }


def full_size(count: dict) -> dict:
    """Return what a step of `ffhq_0.9pct`, or of a baseline in its place, takes under a trainer's preset."""
    return {
        "tera_operations": count["operations"] / count["faces"] / 1e12,
        "float32_tera_operations": count["float32_operations"] / count["faces"] / 1e12,
        "peak_gb": count["peak_bytes"] / 1e9,
        "trained_values": count["trained_values"],
    }


def all_counts(cfg: DictConfig) -> dict[tuple[str, str], dict]:
    """Count a step of every stage under the preset, and of the experiment's own under each card's; nothing is run."""
    presets = sorted({card.preset for card in cfg.cards.values()} - {cfg.preset})
    wanted = [(stage, cfg.preset) for stage in RECIPE]
    wanted += [(stage, preset) for preset in presets for stage in RECIPE if RECIPE[stage] == "LAFR"]
    found = {}
    for stage, preset in tqdm(wanted, desc="counting", unit="stage"):
        asked = {"stage": stage, "preset": preset}
        found[stage, preset] = once(cfg.folder, f"count_{stage}_{preset}", asked, partial(counted, stage, preset))
    return found


def counted(stage: str, preset: str) -> dict:
    """Return how many values a stage trains, its faces at a time, and operations and peak memory of a step of them."""
    experiment = "ffhq_0.9pct_encoder" if stage == "encoder" else "ffhq_0.9pct"
    settings = composed(experiment, "osediff" if stage == "osediff" else "multilevel", f"trainer={preset}")
    trainer, model = settings["trainer"], settings["model"]
    # the baselines take the place of restoration
    own = settings["stage"][stage if stage in ("codebook", "alignment") else "restoration"]
    with torch.device("meta"):
        if stage == "osediff":
            base = {"sources": model["build"]["folder"], "expect": model["build"]["expect"]}
            base = build(hollowed({"_target_": "lafr.models.base.model.Base.from_pretrained", **base}))
            objective: Objective = OSEDiffObjective(base, build(hollowed(settings["loss"])))
        else:
            objective = hollow_objective(own["objective"], model["build"])
    trained = trained_values(objective)
    if trainer["gradient_checkpointing"]:
        objective.enable_gradient_checkpointing()
    faces = own["batch_size"] // trainer["accumulation"]
    cached = {"cached_latents": trainer["cache_latents"], "mixed_precision": trainer["mixed_precision"]}
    step = partial(count_step, without_values(objective), faces, model["resolution"], **cached)
    memory = step(operations=False)
    found = replace(step(), peak_bytes=memory.peak_bytes)
    return {"trained_values": trained, "faces": faces, **asdict(found)}


def hours(cfg: DictConfig, counts: dict[tuple[str, str], dict]) -> dict:
    """Return operations and hours of the whole of `ffhq_0.9pct` on each named card, at a share of its peak.

    What autocast leaves in float32 is computed at TF32's rate, PyTorch's default for convolutions.
    """
    found: dict[str, Any] = {}
    for preset in sorted({card.preset for card in cfg.cards.values()}):
        settings = composed("ffhq_0.9pct", "multilevel", f"trainer={preset}")
        totals = {"bf16": 0.0, "float32": 0.0}
        for stage in settings["stages"]:
            own = full_size(counts[stage, preset])
            operations, float32 = 1e12 * own["tera_operations"], 1e12 * own["float32_tera_operations"]
            pairs = settings["stage"][stage]["max_steps"] * settings["stage"][stage]["batch_size"]
            totals["float32"] += pairs * float32
            totals["bf16"] += pairs * (operations - float32)
            last = {"operations": operations, "float32": float32}
        for name, card in cfg.cards.items():
            if card.preset == preset:
                seconds = (totals["bf16"] / card.bf16 + totals["float32"] / card.tf32) / cfg.used / 1e12
                step = (last["operations"] - last["float32"]) / card.bf16 + last["float32"] / card.tf32
                rest = {"pairs_per_second": cfg.used * 1e12 / step, "operations": sum(totals.values())}
                found[name] = OmegaConf.to_container(card) | {"hours": seconds / 3600} | rest
    return {name: found[name] for name in cfg.cards}


def whole(recipes: dict, record: dict) -> dict:
    """Return each recipe's cost, its steps times seconds and times operations, and what LAFR saves of it."""
    for recipe in recipes.values():
        recipe["seconds"] = sum(n * record["stages"][stage]["seconds"] for stage, n in recipe["stages"].items())
        recipe["tera_operations"] = sum(
            n * record["full_size"][stage]["tera_operations"] for stage, n in recipe["stages"].items()
        )
    for recipe in recipes.values():
        recipe["saved_time"] = 1 - recipes["LAFR"]["seconds"] / recipe["seconds"]
        recipe["saved_operations"] = 1 - recipes["LAFR"]["tera_operations"] / recipe["tera_operations"]
    return recipes


def steps_needed(record: dict, saved: float) -> dict:
    """Return how many steps each baseline would have to take for LAFR to save the share `saved`."""
    needed, ours = {}, record["recipes"]["LAFR"]
    for stage in record["stages"]:
        if RECIPE[stage] != "LAFR":
            needed[RECIPE[stage]] = {
                "by_time": ours["seconds"] / (1 - saved) / record["stages"][stage]["seconds"],
                "by_operations": ours["tera_operations"] / (1 - saved) / record["full_size"][stage]["tera_operations"],
            }
    return needed


def training_table(record: dict) -> str:
    """Return steps and whole recipes as Markdown tables; time as a multiple of the reference's."""
    needed = " and ".join(
        f"`{name}` took {n['by_time']:,.0f} steps by this time, {n['by_operations']:,.0f} by operations"
        for name, n in record["claim"]["steps_needed"].items()
    )
    return "\n\n".join(
        [
            steps_table(record),
            f"Time as a multiple of the step `{record['reference']}`. Full size: Stable Diffusion 2.1, 512 px, "
            f"`trainer={record['preset']}`, operations of one face, memory of a step; counted and not run. Operations "
            "include what gradient checkpointing computes twice. OSEDiff's loss is its own (`loss=osediff`)"
            f"{of_another_day(record)}.",
            recipes_table(record),
            f"The paper claims {100 * record['claim']['saved']:.0f} % less time: that would hold here if {needed}.",
            hours_table(record),
        ]
    )


def steps_table(record: dict) -> str:
    """Return time, memory and operations of a step of each stage."""
    columns = [
        "a step",
        f"time, {record['resolution']} px, batch {record['batch_size']}, {record['device']}",
        "lowest–highest",
        "peak memory, MB",
        "trained values, full size",
        "operations, full size, T",
        "memory, full size, GB",
    ]
    rows = []
    for stage, s in record["stages"].items():
        full = record["full_size"][stage]
        here = [f"{s['ratio']:.2f}", f"{s['lowest']:.2f}–{s['highest']:.2f}", f"{s['peak_mb']:.0f}"]
        there = [f"{full['trained_values'] / 1e6:.1f} M", f"{full['tera_operations']:.1f}", f"{full['peak_gb']:.1f}"]
        rows.append([f"{RECIPE[stage]}: {stage}", *here, *there])
    return markdown.table(columns, rows)


def recipes_table(record: dict) -> str:
    """Return steps of each recipe and what LAFR saves."""
    rows = []
    for name, recipe in record["recipes"].items():
        steps = " + ".join(f"{n:,}" for n in recipe["stages"].values())
        saved = ["" if name == "LAFR" else f"{100 * recipe[key]:.0f} %" for key in ("saved_time", "saved_operations")]
        rows.append([name, steps, recipe["source"], *saved])
    columns = ["recipe", "steps", "where from", "LAFR saves, time here", "LAFR saves, operations at full size"]
    return markdown.table(columns, rows)


def of_another_day(record: dict) -> str:
    """Return a remark where counts were renewed and times were not."""
    if "counted_on" not in record:
        return ""
    own = record["counted_on"]
    return f" in the counts, of {own['date']}; the times are older and took LAFR's loss with distillation for OSEDiff"


def hours_table(record: dict) -> str:
    """Return the hours of the headline experiment on each card."""
    rows = []
    for name, card in record["hours"].items():
        peaks = [f"{card['bf16']:g}", f"{card['tf32']:g}"]
        rows.append([name, f"`{card['preset']}`", *peaks, f"{card['operations']:.2e}", f"**{card['hours']:.1f}**"])
    head = ["card", "preset", "bf16, 10¹²/s", "TF32, 10¹²/s", "operations", "hours of `ffhq_0.9pct`, estimated"]
    note = (
        f"At {100 * record['used']:.0f} % of the dense peak of NVIDIA's data sheets (half of the figures with "
        "sparsity), which is assumed and not measured; the loss's networks in float32, at TF32's rate. Without "
        "loading, validation and checkpoints."
    )
    return f"{markdown.table(head, rows)}\n\n{note}"


def hours_sentence(record: dict) -> str:
    """Return the README's sentence about the cost of the headline experiment."""
    cards = [f"{card['hours']:.1f} h on an {name}" for name, card in record["hours"].items()]
    least = min(card["operations"] for card in record["hours"].values())
    most = max(card["operations"] for card in record["hours"].values())
    return (
        f"Estimated cost of `ffhq_0.9pct`, from counted operations and **not measured**: {least:.1e} to {most:.1e} "
        f"floating-point operations (the latter with gradient checkpointing), so about {', '.join(cards)}, at "
        f"{100 * record['used']:.0f} % of their peak."
    )
