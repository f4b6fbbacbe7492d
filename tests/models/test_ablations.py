"""Denoisers that keep or lose more than the paper's: each against diffusers' own UNet."""

import copy

import pytest
import torch
from conftest import SIZE
from diffusers.models.resnet import ResnetBlock2D

from lafr.errors import InputError
from lafr.models.ablations import ablated
from lafr.models.adapter import NoAdapter
from lafr.models.base.model import Base
from lafr.models.restorer import Restorer

T = 399
VARIANTS = [dict(time="deleted"), dict(text="empty_prompt"), dict(text="untouched"),
            dict(text="untouched", time="deleted")]  # fmt: skip


def z():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def made(base_folder, **variant):
    return ablated(base_folder, NoAdapter(4), SIZE, T, lora=dict(rank=2, alpha=4), **variant)


def moved(restorer):
    """The same restorer after some training: its LoRA is no longer zero."""
    with torch.no_grad():
        for parameter in restorer.denoiser.lora_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return restorer.requires_grad_(False).eval()


@torch.no_grad()
def test_an_untouched_unet_is_diffusers_own_with_its_prompt_and_the_time_says_something(base_folder):
    base = Base.from_pretrained(base_folder, text=True)
    prompt = base.null_embedding.expand(2, -1, -1)
    expected = base.unet(z(), T, prompt).sample
    found = made(base_folder, text="untouched").denoiser.unet(z(), T, None).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_with_the_time_deleted_the_unet_is_diffusers_own_without_what_its_resnets_add_for_it(base_folder):
    base = Base.from_pretrained(base_folder, text=True)
    without = copy.deepcopy(base.unet)
    for block in without.modules():
        if isinstance(block, ResnetBlock2D):
            block.time_emb_proj.register_forward_hook(lambda _, __, found: torch.zeros_like(found))
    prompt = base.null_embedding.expand(2, -1, -1)
    found = made(base_folder, text="empty_prompt", time="deleted").denoiser.unet(z(), T, None).sample
    torch.testing.assert_close(found, without(z(), T, prompt).sample, rtol=1e-4, atol=1e-5)
    assert (found - base.unet(z(), T, prompt).sample).abs().max() > 1e-3


def test_the_lora_of_an_untouched_unet_reaches_keys_and_values_of_the_prompt_and_they_learn(base_folder):
    restorer = moved(made(base_folder, text="untouched"))
    names = [name for name, _ in restorer.denoiser.unet.named_parameters() if ".lora_" in name]
    for part in ("attn2.to_k", "attn2.to_v"):
        own = [name for name in names if f"{part}.lora_" in name]
        assert own and not [name for name, _ in made(base_folder, text="empty_prompt").denoiser.unet.named_parameters()
                            if part in name]  # fmt: skip
        parameters = dict(restorer.denoiser.unet.named_parameters())
        for name in own:
            parameters[name].requires_grad_(True)
        restorer.denoiser(z()).square().sum().backward()
        assert all(parameters[name].grad.abs().sum() > 0 for name in own)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_an_ablated_restorer_is_saved_whole_and_loaded_bit_for_bit_and_saving_does_not_change_it(
    base_folder, tmp_path, variant
):
    restorer = moved(made(base_folder, **variant))
    lq = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before, names = restorer(lq), list(restorer.state_dict())
    restorer.save_pretrained(tmp_path)
    assert torch.equal(Restorer.from_pretrained(tmp_path, base="nowhere")(lq), before)
    assert list(restorer.state_dict()) == names and torch.equal(restorer(lq), before)
    paper = Restorer.from_base(base_folder, NoAdapter(4), SIZE, T, lora=dict(rank=2, alpha=4)).eval()
    assert (paper(lq) - before).abs().max() > 1e-3


def test_folded_and_pruned_it_is_the_papers(base_folder):
    paper = Restorer.from_base(base_folder, NoAdapter(4), SIZE, T, lora=dict(rank=2, alpha=4))
    assert torch.equal(made(base_folder).denoiser(z()), paper.denoiser(z()))


@pytest.mark.parametrize(("setting", "value"), [("time", "kept"), ("text", "some")])
def test_an_unknown_variant_is_refused_with_what_is_known(base_folder, setting, value):
    with pytest.raises(InputError, match=rf"model\.build\.{setting}={value} is unknown; choose one of"):
        made(base_folder, **{setting: value})
