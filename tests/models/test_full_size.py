"""Facts at the size of Stable Diffusion 2.1-base: counts on tensors without values, exactness on random ones."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig

from lafr.models.denoiser import Denoiser
from lafr.models.folding import replace_text
from lafr.models.lora import LORA_TARGETS
from scripts.benchmarks.parameters import SD21, TOKENS, counted

RESULTS = Path(__file__).resolve().parents[2] / "results"


@pytest.fixture(scope="module")
def counts():
    return counted()


def test_pruning_takes_time_and_cross_attention_or_time_keys_and_values(counts):
    assert counts["unet"] == 865_910_724
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in UNet2DConditionModel(**SD21.unet).named_parameters()}
    time = sum(n for name, n in sizes.items() if "time_emb" in name)
    text = sum(n for name, n in sizes.items() if ".attn2." in name or ".transformer_blocks.0.norm2." in name)
    keys_and_values = sum(n for name, n in sizes.items() if ".attn2.to_k." in name or ".attn2.to_v." in name)
    assert (round(time / 1e6, 1), round(text / 1e6, 1)) == (27.9, 50.4)
    assert counts["variants"]["none"]["unet"] == counts["unet"] - time - text
    assert counts["variants"]["empty_prompt"]["unet"] == counts["unet"] - time - keys_and_values


def test_the_lora_has_3_625_120_values_without_text(counts):
    assert counts["variants"]["none"]["lora"] == counts["trained"]["lora"] == 3_625_120


def test_the_lora_has_3_824_800_values_where_keys_and_values_are_constants(counts):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD21.unet)
        unet.add_adapter(LoraConfig(r=4, target_modules=list(LORA_TARGETS)))
    sizes = {name: p.numel() for name, p in unet.named_parameters() if ".lora_" in name}
    of_text = sum(n for name, n in sizes.items() if ".attn2.to_k." in name or ".attn2.to_v." in name)
    assert sum(sizes.values()) == 4_055_712  # as OSEDiff trains it, text projections included
    assert counts["variants"]["empty_prompt"]["lora"] == 4_055_712 - of_text == 3_824_800


def test_the_adapter_has_3_9_million_values_and_all_that_is_trained_7_5_million(counts):
    assert counts["adapter"] == sum(counts["trained"].values()) - counts["trained"]["lora"]
    assert 3.85e6 < counts["adapter"] < 3.95e6
    assert 7.4e6 < counts["trained_in_all"] < 7.6e6


def test_residual_codes_train_as_many_values_as_the_papers_codebook(counts):
    residual = counted("ffhq_0.9pct_residual")
    assert residual["trained"] == counts["trained"]
    assert residual["trained_in_all"] == counts["trained_in_all"]


def test_the_published_counts_are_todays(counts):
    published = json.loads((RESULTS / "parameters.json").read_text())
    assert {name: published[name] for name in counts} == counts


def random_unet():
    """SD 2.1-base's UNet with random weights: of unit gain, so that every layer counts in the output."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD21.unet)
    unet.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.1)
    return unet.requires_grad_(False)


@pytest.mark.slow
@torch.no_grad()
def test_both_prunings_of_the_full_size_unet_are_exact():
    """About 4 GB and a minute."""
    unet, timestep = random_unet(), 399
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    null_embedding = torch.randn(1, TOKENS, 1024, generator=torch.Generator().manual_seed(2))
    with_text = unet(z, timestep, null_embedding).sample
    silenced = [
        m.register_forward_hook(lambda _, __, found: found * 0) for n, m in unet.named_modules() if n.endswith("attn2")
    ]
    without_text = unet(z, timestep, null_embedding).sample
    for hook in silenced:
        hook.remove()

    def error(found, expected):
        return float((found - expected).norm() / expected.norm())

    scheduler = DDPMScheduler(**SD21.scheduler)
    denoiser = Denoiser.from_base(unet, scheduler, timestep, text="empty_prompt", null_embedding=null_embedding)
    found = denoiser.unet(z, timestep, None).sample
    assert error(found, with_text) < 1e-5 < 1e-2 < error(found, without_text)
    replace_text(denoiser.unet, "none")
    assert error(denoiser.unet(z, timestep, None).sample, without_text) < 1e-5
