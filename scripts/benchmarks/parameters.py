"""How many values the full-size experiment trains: `python -m scripts.benchmarks parameters`.

Counted on tensors that have a shape and no values: no weights are needed.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from hydra.utils import instantiate
from torch import nn

from lafr.commands.launch import composed
from lafr.evaluation import markdown
from lafr.models.base.supported import KNOWN
from lafr.models.denoiser import Denoiser
from lafr.provenance import provenance
from lafr.storage import write_json

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m scripts.benchmarks parameters"
EXPERIMENT = "ffhq_0.9pct"

SD21 = KNOWN["sd21_base"]
TOKENS = 77  # of its text encoder


def size(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in module.parameters())


def sd21_denoiser(text: str, **settings: Any) -> Denoiser:
    """Return the denoiser on Stable Diffusion 2.1-base's UNet, on the meta device."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD21.unet)
        null_embedding = torch.empty(1, TOKENS, SD21.unet["cross_attention_dim"])
    scheduler = DDPMScheduler(**SD21.scheduler)
    return Denoiser.from_base(unet, scheduler, text=text, null_embedding=null_embedding, **settings)


def counted(experiment: str = EXPERIMENT) -> dict:
    """Return an experiment's counts: of the UNet, what pruning leaves of it, LoRA, adapter, and trained in all."""
    config = composed("train", f"+experiment={experiment}")
    build, adapter = config.model.build, instantiate(config.adapter, _convert_="all")
    lora = instantiate(build.lora, _convert_="all")
    with torch.device("meta"):
        whole = size(UNet2DConditionModel(**SD21.unet))
    variants = {}
    for text in ("none", "empty_prompt"):
        denoiser = sd21_denoiser(text, timestep=build.timestep)
        pruned = size(denoiser)
        denoiser.add_lora(**lora)
        variants[text] = {"unet": pruned, "lora": sum(p.numel() for p in denoiser.lora_parameters())}
    parts = {
        "extractor": size(adapter.extractor),
        "codebook": adapter.quantizer.size(),
        "mapper": size(adapter.mapper),
        "lora": variants["none"]["lora"],
    }
    return {
        "experiment": experiment,
        "unet": whole,
        "variants": variants,
        "trained": parts,
        "adapter": adapter.size(),
        "trained_in_all": sum(parts.values()),
    }


def parameters_table(record: dict) -> str:
    """Return what is trained, part by part, as a Markdown table, and what pruning leaves in a line below."""
    rows = [[name, f"{count:,}"] for name, count in record["trained"].items()]
    table = markdown.table(["part", "trained values"], [*rows, ["in all", f"**{record['trained_in_all']:,}**"]])
    none, prompt = record["variants"]["none"], record["variants"]["empty_prompt"]
    whole, left, with_prompt = (f"{count / 1e6:.1f} M" for count in (record["unet"], none["unet"], prompt["unet"]))
    return (
        f"{table}\n\nOf the UNet's {whole} values {left} are left without text and time. "
        f"With the empty prompt fixed instead {with_prompt} are left, and the LoRA has {prompt['lora']:,}."
    )


def main() -> None:
    """Count, write and print."""
    record = counted() | provenance(COMMAND, seed=0)
    target = ROOT / "results" / "parameters.json"
    write_json(record, target)
    print(parameters_table(record))
    print(f"numbers  {target.relative_to(ROOT)}")
