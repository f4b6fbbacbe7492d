import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import BASE
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from safetensors.torch import load_file, save_file

from lafr.errors import InputError
from lafr.miniature.build import pack
from lafr.models.base.model import new_base
from lafr.models.denoiser import Denoiser
from lafr.models.folding import remove_time, replace_text
from lafr.models.lora import LORA_TARGETS
from lafr.models.restorer import Restorer
from lafr.weights import mini_folder

T = 399
LORA = "pytorch_lora_weights.safetensors"
LORA_SETTINGS = dict(rank=2, alpha=4)


def z(seed=0):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def denoiser(lora_seed=None, **settings):
    base = new_base(**BASE)
    made = Denoiser.from_base(base.unet, base.scheduler, T, null_embedding=base.null_embedding, **settings)
    if lora_seed is not None:
        made.add_lora(rank=2, alpha=4, seed=lora_seed)
    return made


def moved(lora):
    """The same denoiser after some training: its LoRA is no longer zero."""
    with torch.no_grad():
        for parameter in lora.lora_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return lora


def loaded(folder, lora=LORA_SETTINGS, **settings):
    return Denoiser.from_pretrained(folder, T, lora=lora, **settings)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


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
    pruned = Denoiser.from_base(base.unet, base.scheduler, timestep).unet
    assert relative(pruned(z(), timestep, None).sample, expected) < 1e-5


@pytest.mark.parametrize("timestep", [0, 200, 399, 999])
@torch.no_grad()
def test_with_its_prompt_fixed_the_unet_is_the_original_at_that_time(base, timestep):
    expected = base.unet(z(), timestep, base.null_embedding.expand(2, -1, -1)).sample
    other = base.unet(z(), timestep, torch.zeros_like(base.null_embedding).expand(2, -1, -1)).sample
    pruned = Denoiser.from_base(
        base.unet, base.scheduler, timestep, text="empty_prompt", null_embedding=base.null_embedding
    ).unet
    found = pruned(z(), timestep, None).sample
    assert relative(found, expected) < 1e-5 < 1e-3 < relative(found, other)


@torch.no_grad()
def test_the_fixed_keys_and_values_are_those_of_the_text_encoders_path(base):
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPTextConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=9,
            bos_token_id=7,
            eos_token_id=8,
        )
        encoder = CLIPTextModel(config).eval()
    embedding = encoder(torch.tensor([[7] + 76 * [8]])).last_hidden_state  # the empty prompt, padded to 77
    computed = {}
    for name, layer in base.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            layer.register_forward_hook(lambda _, __, found, name=name: computed.update({name: found}))
    base.unet(z()[:1], T, embedding)
    made = Denoiser.from_base(base.unet, base.scheduler, T, text="empty_prompt", null_embedding=embedding)
    for kind in ("key", "value"):
        fixed = {n.removesuffix("." + kind): b for n, b in made.unet.named_buffers() if n.endswith("attn2." + kind)}
        assert 2 * len(fixed) == len(computed) > 0
        for name, constant in fixed.items():
            assert torch.equal(constant.transpose(1, 2).flatten(2), computed[f"{name}.to_{kind[0]}"])


@torch.no_grad()
def test_deleting_the_time_without_folding_it_gives_another_output(base):
    expected = without_cross_attention(base.unet)(z(), T, base.null_embedding.expand(2, -1, -1)).sample
    remove_time(base.unet)
    replace_text(base.unet, "none")
    assert relative(base.unet(z(), T, None).sample, expected) > 1e-3


@torch.no_grad()
def test_the_papers_variant_is_the_exact_one_with_cross_attention_deleted():
    made = denoiser(text="empty_prompt")
    replace_text(made.unet, "none")
    assert torch.equal(made(z()), denoiser()(z()))
    assert relative(denoiser(text="empty_prompt")(z()), made(z())) > 1e-3


def test_no_parameter_of_text_or_time_is_left():
    blocks = [module for module in denoiser().unet.modules() if isinstance(module, BasicTransformerBlock)]
    names = [name for name, _ in denoiser().unet.named_parameters()]
    assert blocks and all(block.attn2 is block.norm2 is None for block in blocks)
    assert not [name for name in names if "attn2" in name or "time_emb" in name]


def test_with_its_prompt_fixed_no_projection_of_text_is_left_and_the_lora_leaves_it_out():
    made = denoiser(lora_seed=0, text="empty_prompt")
    names = [name for name, _ in made.unet.named_parameters() if "attn2" in name]
    assert {name.split("attn2.")[1].split(".")[0] for name in names} == {"to_q", "to_out"}
    trained = {name.split("attn2.")[1].split(".lora_")[0] for name in names if ".lora_" in name}
    assert trained == {"to_q", "to_out.0"}


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


def with_its_eps(made, latent, **autocast):
    """Return what the denoiser gives, and the eps that its UNet gave on the way."""
    seen = []
    made.unet.register_forward_hook(lambda _, __, found: seen.append(found.sample))
    with torch.autocast("cpu", **autocast):
        return made(latent), seen[0]


@pytest.mark.parametrize("text", ["none", "empty_prompt"])
@pytest.mark.parametrize("of", ["autocast", "weights"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_last_line_is_float32_in_every_precision(precision, of, text):
    made = moved(denoiser(lora_seed=0, scale_input=False, text=text))
    if of == "weights":
        made.unet.to(precision)
    found, eps = with_its_eps(made, z(), dtype=precision, enabled=of == "autocast")
    assert eps.dtype == precision and found.dtype == torch.float32
    expected = (z() - (1 - made.alpha_bar) ** 0.5 * eps.float()) / made.alpha_bar**0.5
    assert torch.equal(found, expected)


@pytest.mark.parametrize("timestep, least, most", [(999, 0.06, 0.3), (200, 0.006, 0.03)])
@torch.no_grad()
def test_the_same_line_in_bfloat16_would_be_wrong_where_the_step_amplifies(base, timestep, least, most):
    made = Denoiser.from_base(base.unet, base.scheduler, timestep, scale_input=False)
    signal, noise = made.alpha_bar**0.5, (1 - made.alpha_bar) ** 0.5
    found, eps = with_its_eps(made, z(), dtype=torch.bfloat16)
    exact = (z().double() - noise * eps.double()) / signal
    assert (found - exact).abs().max() < 1e-5
    in_bfloat16 = (z().bfloat16() - noise * eps) / signal
    assert least < (in_bfloat16 - exact).abs().max() < most


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
    with pytest.raises(InputError, match=f"timestep must be from 0 to 999.*got {timestep}"):
        Denoiser.from_base(base.unet, base.scheduler, timestep)


def test_a_base_model_that_predicts_velocity_is_refused(base):
    scheduler = DDPMScheduler(**BASE["scheduler"] | {"prediction_type": "v_prediction"})
    with pytest.raises(InputError, match="predicts 'v_prediction'"):
        Denoiser.from_base(base.unet, scheduler, T)


@pytest.mark.parametrize(
    "setting",
    [
        {"resnet_time_scale_shift": "scale_shift"},
        {"time_embedding_act_fn": "silu"},
        {"num_class_embeds": 3},
        {"cross_attention_norm": "layer_norm"},
    ],
)
def test_a_unet_that_takes_time_or_text_in_another_way_is_refused(base, setting):
    unet = UNet2DConditionModel(**BASE["unet"] | setting)
    with pytest.raises(InputError, match=str(*setting)):
        Denoiser.from_base(unet, base.scheduler, T)


@pytest.mark.parametrize(
    "text, embedding, words",
    [
        ("prompt", None, "text must be one of none, empty_prompt, got 'prompt'"),
        ("empty_prompt", None, "text='empty_prompt' .*text='none'"),
        ("empty_prompt", torch.zeros(1, 77, 9), r"\[1, 77, 9\], not \[1, L, 8\]"),
        ("empty_prompt", torch.zeros(77, 8), r"\[77, 8\], not \[1, L, 8\]"),
    ],
)
def test_a_text_that_is_not_possible_is_refused_and_the_unet_left_as_it_is(base, text, embedding, words):
    before = copy.deepcopy(base.unet.state_dict())
    with pytest.raises(InputError, match=words):
        Denoiser.from_base(base.unet, base.scheduler, T, text=text, null_embedding=embedding)
    after = base.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("text", ["none", "empty_prompt"])
@torch.no_grad()
def test_a_saved_denoiser_loads_bit_for_bit_with_its_lora(tmp_path, text):
    made = moved(denoiser(lora_seed=0, scale_input=False, text=text))
    made.save_pretrained(tmp_path)
    again = loaded(tmp_path, scale_input=False, text=text)
    own = made.state_dict()
    assert own.keys() == again.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in again.state_dict().items())
    assert again.text == text
    assert torch.equal(again(z()), made(z()))
    assert not torch.equal(made(z()), denoiser(scale_input=False, text=text)(z()))


def rewritten(folder, file, change):
    state = load_file(folder / file)
    change(state)
    save_file(state, folder / file)


def test_attention_layers_added_to_a_pruned_folder_are_refused_not_recreated(base, tmp_path):
    extra = {k: v for k, v in base.unet.state_dict().items() if "attn2" in k}
    denoiser().save_pretrained(tmp_path)
    rewritten(tmp_path, "denoiser.safetensors", lambda state: state.update(extra))
    with pytest.raises(InputError, match=r"attn2.*not expected"):
        loaded(tmp_path, lora=None)


@pytest.mark.parametrize("file", ["denoiser.safetensors", LORA])
@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_a_missing_or_an_unexpected_key_is_refused(tmp_path, file, kind):
    denoiser(lora_seed=0).save_pretrained(tmp_path)
    change = {"missing": lambda state: state.popitem(), "unexpected": lambda s: s.update(more=torch.zeros(1))}[kind]
    rewritten(tmp_path, file, change)
    with pytest.raises(InputError, match={"missing": "is missing", "unexpected": "more .*not expected"}[kind]):
        loaded(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path):
    denoiser().save_pretrained(tmp_path)
    (tmp_path / "denoiser.safetensors").unlink()
    with pytest.raises(InputError, match=r"denoiser\.safetensors' is missing"):
        loaded(tmp_path, lora=None)


@pytest.mark.parametrize("text", ["none", "empty_prompt"])
@torch.no_grad()
def test_plain_diffusers_reads_the_lora_and_computes_the_same(base, tmp_path, text, recwarn):
    made = moved(denoiser(lora_seed=0, text=text))
    made.save_lora(tmp_path)
    unet = base.unet if text == "empty_prompt" else without_cross_attention(base.unet)
    pipeline = StableDiffusionPipeline(
        base.vae, None, None, unet, base.scheduler, None, None, requires_safety_checker=False
    )
    latent, prompt = z() * made.alpha_bar**0.5, base.null_embedding.expand(2, -1, -1)
    untrained = unet(latent, T, prompt).sample
    recwarn.clear()
    pipeline.load_lora_weights(tmp_path)
    assert not [w for w in recwarn if "adapter" in str(w.message).lower()]
    expected = pipeline.unet(latent, T, prompt).sample
    assert relative(made.unet(latent, T, None).sample, expected) < 1e-5 < 1e-2 < relative(untrained, expected)


@torch.no_grad()
def test_plain_diffusers_reads_the_shipped_lora():
    folder = mini_folder()
    unet = without_cross_attention(
        UNet2DConditionModel.from_pretrained(folder / "base" / "unet", torch_dtype=torch.float32)
    )
    unet.load_lora_adapter(folder / "lafr" / "denoiser", prefix="unet", use_safetensors=True)
    ours = Restorer.from_pretrained("mini").denoiser
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = unet(latent, ours.timestep, torch.zeros(1, 1, 64)).sample
    assert relative(ours.unet(latent, ours.timestep, None).sample, expected) < 1e-5


def test_packing_in_half_precision_keeps_the_loras_rank_and_alpha(base, tmp_path):
    denoiser(lora_seed=0).save_lora(tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "packed")
    assert {value.dtype for value in load_file(tmp_path / "packed" / LORA).values()} == {torch.float16}
    base.unet.load_lora_adapter(tmp_path / "packed", prefix="unet", use_safetensors=True, adapter_name="packed")
    config = base.unet.peft_config["packed"]
    assert (config.r, config.lora_alpha) == (2, 4)


def test_equal_loras_make_equal_files(tmp_path):
    made = denoiser(lora_seed=0)
    for number in range(8):
        made.save_lora(tmp_path / str(number))
    assert len({(tmp_path / str(number) / LORA).read_bytes() for number in range(8)}) == 1


@pytest.mark.parametrize("text", ["none", "empty_prompt"])
@torch.no_grad()
def test_merging_keeps_the_output_and_leaves_a_unet_without_lora_layers(text):
    made = moved(denoiser(lora_seed=0, text=text))
    expected = made(z())
    made.merge_lora()
    assert relative(made(z()), expected) < 1e-5 < 1e-2 < relative(denoiser(text=text)(z()), expected)
    assert made.state_dict().keys() == denoiser(text=text).state_dict().keys()
    assert not made.lora_parameters() and not any(p.requires_grad for p in made.parameters())


@torch.no_grad()
def test_what_is_saved_merged_is_what_merging_leaves_and_nothing_of_an_earlier_lora(tmp_path):
    made = moved(denoiser(lora_seed=0))
    before = made(z())
    made.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path, merge=True)
    assert torch.equal(made(z()), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "denoiser.safetensors"]
    made.merge_lora()
    again = loaded(tmp_path, lora=None).state_dict()
    assert again.keys() == made.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("conv", "to_q")])
def test_a_lora_merged_as_it_is_read_is_what_merging_leaves(tmp_path, targets):
    settings = dict(rank=3, alpha=5, targets=targets)
    made, untrained, again = (denoiser() for _ in range(3))
    made.add_lora(**settings)
    moved(made).save_lora(tmp_path)
    made.merge_lora()
    again.load_lora(tmp_path, merged=True, **settings)
    changed = 0
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, made.state_dict()[name], atol=1e-6, rtol=1e-6)
        changed += not torch.equal(value, untrained.state_dict()[name])
    assert changed >= len(targets)
    for wrong, value in (("rank", 4), ("targets", ("conv",)), ("targets", ("nowhere",))):
        with pytest.raises(InputError):
            denoiser().load_lora(tmp_path, merged=True, **settings | {wrong: value})


def test_a_merged_lora_cannot_be_saved_alone_and_a_new_one_can_be_added(tmp_path):
    made = denoiser(lora_seed=0)
    made.merge_lora()
    made.merge_lora()  # nothing left to do
    with pytest.raises(InputError, match="has no LoRA, or it was merged"):
        made.save_lora(tmp_path)
    assert not list(tmp_path.iterdir())
    made.add_lora(rank=2, alpha=4)
    assert len(made.lora_parameters()) == len(denoiser(lora_seed=0).lora_parameters())
