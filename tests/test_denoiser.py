import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import BASE
from diffusers import DDPMScheduler
from diffusers.models.attention import BasicTransformerBlock
from safetensors.torch import load_file, save_file

from lafr.errors import InputError
from lafr.models.base import new_base
from lafr.models.denoiser import Denoiser, fold_time, remove_text_and_time

T = 399


def z(seed=0):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def denoiser(lora_seed=None, **settings):
    base = new_base(**BASE)
    made = Denoiser.from_base(base.unet, base.scheduler, T, **settings)
    if lora_seed is not None:
        made.add_lora(rank=2, alpha=4, seed=lora_seed)
    return made


def moved(lora):
    """The same denoiser after some training: its LoRA is no longer zero."""
    with torch.no_grad():
        for parameter in lora.lora_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return lora


def without_cross_attention(unet):
    """The reference: each cross-attention's output layer set to zero, so that it adds nothing; time as it was."""
    unet = copy.deepcopy(unet)
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.to_out[0].weight.data.zero_(), module.to_out[0].bias.data.zero_()
    return unet


@pytest.mark.parametrize("timestep", [0, 200, 999])
@torch.no_grad()
def test_folding_the_time_is_exact(base, timestep):
    expected = without_cross_attention(base.unet)(z(), timestep, base.null_embedding.expand(2, -1, -1)).sample
    fold_time(base.unet, timestep)
    found = remove_text_and_time(base.unet)(z(), timestep, None).sample
    assert (found - expected).norm() / expected.norm() < 1e-5


@torch.no_grad()
def test_deleting_the_time_without_folding_it_gives_another_output(base):
    expected = without_cross_attention(base.unet)(z(), T, base.null_embedding.expand(2, -1, -1)).sample
    found = remove_text_and_time(base.unet)(z(), T, None).sample
    assert (found - expected).norm() / expected.norm() > 1e-3


def test_no_parameter_of_text_or_time_is_left():
    blocks = [module for module in denoiser().unet.modules() if isinstance(module, BasicTransformerBlock)]
    names = [name for name, _ in denoiser().unet.named_parameters()]
    assert blocks and all(block.attn2 is block.norm2 is None for block in blocks)
    assert not [name for name in names if "attn2" in name or "time_emb" in name]


@pytest.mark.parametrize("scale_input", [True, False])
@torch.no_grad()
def test_a_unet_that_knows_the_noise_gives_back_the_clean_latent(scale_input):
    abar = float(DDPMScheduler(**BASE["scheduler"]).alphas_cumprod[T])
    clean, noise = z(1), z(2)
    z_t = abar**0.5 * clean + (1 - abar) ** 0.5 * noise  # DDPM, Eq. 4
    fed = []

    def oracle(latent, timestep, encoder_hidden_states):
        fed.append((latent, timestep))
        return SimpleNamespace(sample=noise)

    made = denoiser(scale_input=scale_input)
    made.unet.forward = oracle
    found = made(z_t / abar**0.5 if scale_input else z_t)
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-5)
    torch.testing.assert_close(fed[0][0], z_t)
    assert fed[0][1] == T


@torch.no_grad()
def test_the_last_line_is_float32_under_bf16_autocast():
    made = denoiser(scale_input=False)
    eps = z(3).bfloat16()
    made.unet.forward = lambda *_, **__: SimpleNamespace(sample=eps)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(z())
    abar = made.alpha_bar
    exact = (z().double() - (1 - abar) ** 0.5 * eps.double()) / abar**0.5
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_new_lora_changes_no_bit_of_the_output():
    assert torch.equal(denoiser(lora_seed=0)(z()), denoiser()(z()))


def test_without_a_lora_the_denoiser_is_frozen():
    assert not any(p.requires_grad for p in denoiser().parameters())


def test_only_the_lora_requires_a_gradient_and_it_gets_one():
    made = moved(denoiser(lora_seed=0))
    trained = [name for name, p in made.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    assert len(trained) == len(made.lora_parameters())
    made(z()).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in made.lora_parameters())
    assert all(p.grad is None for name, p in made.named_parameters() if ".lora_" not in name)


def test_the_seed_decides_the_lora_and_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    made = denoiser()
    before = torch.get_rng_state()
    made.add_lora(rank=2, alpha=4, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    same, other = denoiser(lora_seed=5).lora_parameters(), denoiser(lora_seed=6).lora_parameters()
    assert all(torch.equal(a, b) for a, b in zip(made.lora_parameters(), same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(made.lora_parameters(), other, strict=True))


@torch.no_grad()
def test_alpha_over_rank_scales_what_the_lora_adds():
    weak, strong = (moved(denoiser()) for _ in range(2))
    weak.add_lora(rank=2, alpha=2, targets=["conv_out"]), strong.add_lora(rank=2, alpha=4, targets=["conv_out"])
    plain, weak, strong = denoiser()(z()), moved(weak)(z()), moved(strong)(z())
    torch.testing.assert_close(strong - plain, 2 * (weak - plain), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_a_time_outside_the_schedule_is_refused(base, timestep):
    with pytest.raises(InputError, match=rf"timestep={timestep} is not in 0\.\.999"):
        Denoiser.from_base(base.unet, base.scheduler, timestep)


def test_a_base_model_that_predicts_velocity_is_refused(base):
    scheduler = DDPMScheduler(**BASE["scheduler"] | {"prediction_type": "v_prediction"})
    with pytest.raises(InputError, match="predicts 'v_prediction'"):
        Denoiser.from_base(base.unet, scheduler, T)


def test_a_unet_whose_time_scales_instead_of_adds_is_refused(base):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**BASE["unet"] | {"resnet_time_scale_shift": "scale_shift"})
    with pytest.raises(InputError, match="scale_shift"):
        Denoiser.from_base(unet, base.scheduler, T)


@torch.no_grad()
def test_a_saved_denoiser_loads_bit_for_bit_with_its_lora(tmp_path):
    made = moved(denoiser(lora_seed=0, scale_input=False))
    made.save_pretrained(tmp_path)
    loaded = Denoiser.from_pretrained(tmp_path)
    own = made.state_dict()
    assert own.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded(z()), made(z()))
    assert not torch.equal(made(z()), denoiser(scale_input=False)(z()))


def rewritten(folder, file, change):
    state = load_file(folder / file)
    change(state)
    save_file(state, folder / file)


def test_attention_layers_added_to_a_pruned_folder_are_refused_not_recreated(base, tmp_path):
    extra = {k: v for k, v in base.unet.state_dict().items() if "attn2" in k}
    denoiser().save_pretrained(tmp_path)
    rewritten(tmp_path, "denoiser.safetensors", lambda state: state.update(extra))
    with pytest.raises(InputError, match=f"0 missing .*{len(extra)} unexpected"):
        Denoiser.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["denoiser.safetensors", "lora.safetensors"])
@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_a_missing_or_an_unexpected_key_is_refused(tmp_path, file, kind):
    denoiser(lora_seed=0).save_pretrained(tmp_path)
    change = {"missing": lambda state: state.popitem(), "unexpected": lambda s: s.update(more=torch.zeros(1))}[kind]
    rewritten(tmp_path, file, change)
    with pytest.raises(InputError, match=f"1 {kind}"):
        Denoiser.from_pretrained(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path):
    denoiser().save_pretrained(tmp_path)
    (tmp_path / "denoiser.safetensors").unlink()
    with pytest.raises(InputError, match=r"denoiser\.safetensors' is missing"):
        Denoiser.from_pretrained(tmp_path)
