"""The cost of a training step in LAFR's stages and in two baselines, and what it makes of a whole recipe."""

from statistics import median

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from lafr.commands.devices import choose_device
from lafr.evaluation import markdown
from lafr.losses.appearance import LatentL1, PixelMSE
from lafr.losses.identity import IdentityCosine
from lafr.losses.multilevel import MultiLevelLoss
from lafr.losses.structure import LandmarkDistance, ParsingSoftLabel, RegionL1
from lafr.models.adapter import Adapter, build_adapter
from lafr.models.base.model import Base
from lafr.models.denoiser import Denoiser
from lafr.models.restorer import Restorer
from lafr.networks.landmarkers import AWingFAN
from lafr.networks.parsers import ParseNet
from lafr.networks.recognisers import ArcFaceIRSE50
from lafr.training.baselines import EncoderObjective, OSEDiffObjective, with_distillation
from lafr.training.counting import count_stage, optimiser_step, without_values
from lafr.training.hollow import HollowLPIPS
from lafr.training.objectives import Objective, RestorationObjective
from lafr.training.timing import measure
from lafr.weights import mini_folder

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
    folder = mini_folder() / "base" if cfg.model.folder == "mini" else cfg.model.folder
    loss = instantiate(cfg.loss, _convert_="all")
    rounds: list[dict] = []
    for _ in tqdm(range(cfg.rounds), desc="training", unit="round"):
        rounds.append({})
        for stage in RECIPE:  # in turn, so that a busy machine slows all of them
            base, adapter = Base.from_pretrained(folder), instantiate(cfg.adapter)
            objective = built(stage, cfg, base, adapter, loss, cfg.model.timestep, cfg.model.resolution).to(device)
            rounds[-1][stage] = measured(objective, cfg, device)
            del base, adapter, objective
    record = {
        "reference": "encoder",
        "stages": {stage: over_rounds([r[stage] for r in rounds], [r["encoder"] for r in rounds]) for stage in RECIPE},
        "full_size": {stage: counted(stage, cfg) for stage in tqdm(RECIPE, desc="counting", unit="stage")},
        "presets": {name: preset(name, cfg) for name in tqdm(cfg.presets, desc="counting", unit="preset")},
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


def built(
    stage: str, cfg: DictConfig, base: Base, adapter: Adapter, loss: MultiLevelLoss, timestep: int, resolution: int
) -> Objective:
    """Return the stage's untrained objective on a base model; the baselines train on the same `loss`."""
    if stage == "osediff":
        return OSEDiffObjective(base, with_distillation(loss, base, cfg.seed), seed=cfg.seed).train()
    denoiser = Denoiser.from_base(base.unet, base.scheduler, timestep)
    denoiser.add_lora(rank=4, alpha=8, seed=cfg.seed)
    codec = base.codec()
    if stage == "encoder":
        return EncoderObjective(Restorer(codec, build_adapter("none"), denoiser, resolution), loss).train()
    if adapter.quantizer.has_codes and next(adapter.parameters()).device.type != "meta":
        generator = torch.Generator().manual_seed(cfg.seed)
        adapter.quantizer.initialise(
            torch.randn(1, adapter.settings["code_dim"], 64, 64, generator=generator), generator
        )
    restorer = Restorer(codec, adapter, denoiser, resolution)
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


def preset(name: str, cfg: DictConfig) -> dict:
    """Count a restoration step at full size as the trainer's preset makes it, on the micro-batch of a batch of 16."""
    trainer = cfg.presets[name]
    faces = cfg.stage.restoration.batch_size // trainer.accumulation
    found = counted("restoration", cfg, faces, trainer.gradient_checkpointing, trainer.mixed_precision)
    return {"micro_batch": faces, "peak_gb": found["peak_gb"], "validation_gb": found["validation_gb"]}


def counted(
    stage: str, cfg: DictConfig, faces: int = 1, checkpointing: bool = True, mixed_precision: str = "no"
) -> dict:
    """Count a step at full size; nothing is run."""
    full = cfg.full_size
    with torch.device("meta"):
        vae, unet = AutoencoderKL(**full.vae), UNet2DConditionModel(**full.unet)
        adapter, loss = instantiate(full.adapter), full_size_loss()
        null = torch.empty(1, 77, full.unet.cross_attention_dim)
    base = Base(vae, unet, DDPMScheduler(**full.scheduler), null)
    with torch.device("meta"):
        objective = built(stage, cfg, base, adapter, loss, full.timestep, full.resolution)
    if checkpointing:
        objective.enable_gradient_checkpointing()
    values = trained_values(objective)
    found = count_stage(without_values(objective), faces, full.resolution, mixed_precision)
    return {
        "tera_operations": found["step"].operations / 1e12,
        "peak_gb": found["step"].peak_bytes / 1e9,
        "validation_gb": found["validation"].peak_bytes / 1e9,
        "trained_values": values,
    }


def full_size_loss() -> MultiLevelLoss:
    """Return the terms of `loss=multilevel` that train, with random networks, whose cost is the same."""

    parser = ParseNet()
    terms = {
        "pixel_mse": PixelMSE(),
        "perceptual": HollowLPIPS(),
        "latent_l1": LatentL1(),
        "identity": IdentityCosine(ArcFaceIRSE50()),
        "landmark_distance": LandmarkDistance(AWingFAN()),
        "parsing": ParsingSoftLabel(parser),
        "region_l1": RegionL1(parser),
    }
    return MultiLevelLoss(terms, dict.fromkeys(terms, 1.0))


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
    presets = [[name, p["micro_batch"], f"{p['peak_gb']:.1f}"] for name, p in record["presets"].items()]
    needed = " and ".join(
        f"`{name}` took {n['by_time']:,.0f} steps by this time, {n['by_operations']:,.0f} by operations"
        for name, n in record["claim"]["steps_needed"].items()
    )
    return "\n\n".join(
        [
            steps_table(record),
            f"Time as a multiple of the step `{record['reference']}`. Full size: Stable Diffusion 2.1, 512 px, one "
            "face, float32, gradient checkpointing, counted and not run; operations include what is computed twice.",
            recipes_table(record),
            f"The paper claims {100 * record['claim']['saved']:.0f} % less time: that would hold here if {needed}.",
            markdown.table(["preset", "faces at once", "memory of a restoration step, GB"], presets),
            "Counted: the tensors alive at the peak. Not measured on a GPU, which needs more.",
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
