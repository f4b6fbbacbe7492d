"""What each shipped loss trains and holds in memory: a restoration step at full size, counted on fake tensors."""

from functools import partial
from typing import Any

import lpips
import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from lafr.commands import launch
from lafr.commands.preflight import hollow_objective
from lafr.evaluation import markdown
from lafr.losses.kept import bytes_of
from lafr.training.counting import count_stage, count_step, without_values
from lafr.training.objectives import RestorationObjective
from lafr.training.preflight import TIGHT
from scripts.benchmarks.parts import once


def losses(cfg: DictConfig) -> dict:
    """Return trained values of the model and of the terms, and peak memory under each preset, of each loss."""
    kept, found = of_ground_truth(cfg.of, cfg.losses[0]), {}
    for name in tqdm(cfg.losses, desc="counting", unit="loss"):
        presets: dict[str, dict] = {}
        for preset in tqdm(cfg.presets, desc=name):
            # operations of the first alone: counting them takes half of the time
            asked = {"experiment": cfg.of, "loss": name, "preset": preset, "operations": not presets}
            presets[preset] = once(cfg.folder, f"{name}_{preset}", asked, partial(counted, **asked))
        first = next(iter(presets.values()))
        whole = {key: first[key] for key in ("lora", "own", "tera_operations")}
        measured = ("peak_gb", "validation_gb", "micro_batch")
        found[name] = whole | {key: {preset: values[key] for preset, values in presets.items()} for key in measured}
    cards = {preset: cfg.cards[preset] for preset in cfg.presets}
    return {"experiment": cfg.of, "losses": found, "cards_gb": cards, "kept": kept, "kept_of": cfg.losses[0]}


def of_ground_truth(experiment: str, loss: str) -> dict[str, dict[str, float]]:
    """Return what each network costs on one ground-truth face, and how large its output is that can be kept."""
    settings = composed(experiment, loss)
    objective, side = hollow(settings), settings["model"]["resolution"]
    face = torch.empty(1, 3, side, side, device="meta")
    terms = objective.loss.terms.values()
    networks = {type(term.network).__name__: term.network for term in terms if hasattr(term, "network")}
    found = {}
    for name, network in networks.items():
        # LPIPS, a package's, takes two images and says one number: half of its work is the ground truth's
        pair = isinstance(network, lpips.LPIPS)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            output = network.net(face) if pair else network(face)
        found[name] = {"tera_operations": counter.get_total_flops() / 1e12, "mb": bytes_of(output) / 1e6}
    return found


def counted(experiment: str, loss: str, preset: str, operations: bool = True) -> dict:
    """Count a restoration step and a batch of validation, on the micro-batch of a trainer's preset."""
    settings = composed(experiment, loss, f"trainer={preset}")
    trainer = settings["trainer"]
    faces = settings["stage"]["restoration"]["batch_size"] // trainer["accumulation"]
    objective = hollow(settings)
    values = trained_values(objective)
    if trainer["gradient_checkpointing"]:
        objective.enable_gradient_checkpointing()
    size, precision = settings["model"]["resolution"], trainer["mixed_precision"]
    memory = count_stage(without_values(objective), faces, size, precision, operations=False)
    work = count_step(objective, faces, size, precision).operations if operations else 0
    return {
        **values,
        "tera_operations": work / faces / 1e12,
        "peak_gb": memory["step"].peak_bytes / 1e9,
        "validation_gb": memory["validation"].peak_bytes / 1e9,
        "micro_batch": faces,
    }


def composed(experiment: str, loss: str, *overrides: str) -> dict[str, Any]:
    """Return the settings of an experiment with another loss and other overrides."""
    config = launch.composed("train", f"+experiment={experiment}", f"loss={loss}", *overrides)
    return OmegaConf.to_container(config, resolve=True)


def hollow(settings: dict[str, Any]) -> RestorationObjective:
    """Return the restoration objective of composed settings without values."""
    with torch.device("meta"):
        return hollow_objective(settings["stage"]["restoration"]["objective"], settings["model"]["build"])


def trained_values(objective: RestorationObjective) -> dict[str, int]:
    """Return how many values the stage's optimiser trains ("lora"), and the terms by their own optimisers ("own")."""
    own = [p for term in objective.loss.learned().values() for p in term.trained_parameters()]
    lora = [p for p in objective.parameters() if p.requires_grad]
    return {"lora": sum(p.numel() for p in lora), "own": sum(p.numel() for p in own)}


def losses_table(record: dict) -> str:
    """Return the counts as a Markdown table."""
    rows = []
    for name, found in record["losses"].items():
        memory = [cell(record, found, preset) for preset in record["cards_gb"]]
        trained = [f"{found['lora']:,}", f"{found['own']:,}"]
        rows.append([f"`{name}`", *trained, f"{found['tera_operations']:.1f}", *memory])
    head = ["loss", "LoRA", "terms' own", "10¹² operations a face", *(f"{p}, GB (faces)" for p in record["cards_gb"])]
    share = f"{100 * TIGHT:.0f} % of the card"
    margin = (
        f"GB of a step / of a batch of validation. **No**: one of them exceeds {share}, as allocator, workspaces and "
        "runtime need memory that is not counted; the margin is our choice."
    )
    kept = [f"{name} {own['tera_operations']:.3f} ({own['mb']:.1f} MB)" for name, own in record["kept"].items()]
    faces = (
        f"The networks of `{record['kept_of']}` take on a ground-truth face, in 10¹² operations, and give to be kept "
        f"(`trainer.feature_cache_gb`): {', '.join(kept)}. All of it but LPIPS's can be kept."
    )
    return f"{markdown.table(head, rows)}\n\n{margin}\n\n{faces}"


def cell(record: dict, found: dict, preset: str) -> str:
    """Return memory under a preset, and "no" where its card is too small."""
    step, validation = found["peak_gb"][preset], found["validation_gb"][preset]
    fits = max(step, validation) < TIGHT * record["cards_gb"][preset]
    return f"{'' if fits else '**no**: '}{step:.1f} / {validation:.1f} ({found['micro_batch'][preset]})"
