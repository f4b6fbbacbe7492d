import json
import shutil
import socket
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from checkpoints_ldm import original_layout, write_hollow
from conftest import BASE
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lafr.errors import InputError
from lafr.models.base.model import Base, new_base
from lafr.models.base.single_file import load_single_file, require_noise_predictor
from lafr.models.base.sources import _answers, require_pinned
from lafr.models.base.supported import KNOWN, SCHEDULER, SD15, SD21, UNET, VAE, Known, require_known
from lafr.weights import mini_folder, sha256

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What the hub's repository of 2.1-base lists.
PUBLISHED = [
    "README.md",
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "v2-1_512-ema-pruned.ckpt",
    "v2-1_512-ema-pruned.safetensors",
    "v2-1_512-nonema-pruned.ckpt",
    "vae/config.json",
    "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]


def require_equal(found, expected):
    for part in ("vae", "unet"):
        state, wanted = getattr(found, part).state_dict(), getattr(expected, part).state_dict()
        assert state.keys() == wanted.keys()
        assert all(value.dtype == torch.float32 and torch.equal(value, wanted[name]) for name, value in state.items())
    assert torch.equal(found.scheduler.alphas_cumprod, expected.scheduler.alphas_cumprod)


def copy_of(folder, place):
    shutil.copytree(folder, place)
    return place


@pytest.fixture
def mini(monkeypatch):
    """The miniature's base, a trained predictor of the noise, made known: a single file has no configuration."""
    base = Base.from_pretrained(mini_folder() / "base")
    configs = [{k: v for k, v in part.config.items() if k[0] != "_"} for part in (base.vae, base.unet, base.scheduler)]
    monkeypatch.setitem(KNOWN, "mini_base", Known("the miniature", *configs))
    return base


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A hub's cache with one repository, as huggingface_hub lays it out; returns the function that fills it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def fill(folder, name="some/model", revision="main"):
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / revision).write_text(COMMIT)
        return copy_of(folder, repository / "snapshots" / COMMIT)

    return fill


# --- every layout -----------------------------------------------------------------------------------------------------


def test_a_folder_in_shards_is_the_folder_in_one_file(base, tmp_path):
    base.save_pretrained(tmp_path)
    for part, model in (("unet", base.unet), ("vae", base.vae)):
        shutil.rmtree(tmp_path / part)
        model.save_pretrained(tmp_path / part, max_shard_size="40KB")
        assert len(list((tmp_path / part).glob("*-of-*.safetensors"))) > 1
    require_equal(Base.from_pretrained(tmp_path), base)


@pytest.mark.parametrize(("variant", "expected"), [(None, "full"), ("fp16", "half")])
def test_the_preferred_precision_is_read_and_each_stands_in_for_the_other(base, tmp_path, variant, expected):
    halves = new_base(**BASE, seed=1)
    base.save_pretrained(tmp_path / "full")
    for part, model in (("unet", halves.unet.half()), ("vae", halves.vae.half())):
        model.save_pretrained(tmp_path / "half" / part, variant="fp16")
    halves.unet.float(), halves.vae.float()
    shutil.copytree(tmp_path / "full" / "scheduler", tmp_path / "half" / "scheduler")
    models = {"full": base, "half": halves}
    for name, model in models.items():
        require_equal(Base.from_pretrained(tmp_path / name, variant=variant), model)
    both = shutil.copytree(tmp_path / "half", tmp_path / "full", dirs_exist_ok=True)
    require_equal(Base.from_pretrained(both, variant=variant), models[expected])


def test_an_autoencoder_with_the_attention_names_of_2022_loads_bit_for_bit(tmp_path):
    base = new_base(**BASE | {"vae": BASE["vae"] | {"mid_block_add_attention": True}})
    base.save_pretrained(tmp_path)
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state, renamed = load_file(path), {}
    for name, value in state.items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        renamed[name] = value
    assert renamed.keys() != state.keys()
    save_file(renamed, path)
    require_equal(Base.from_pretrained(tmp_path), base)


@pytest.mark.parametrize("expect", [None, "mini_base"])
def test_a_single_safetensors_file_is_the_folder_bit_for_bit(mini, tmp_path, expect):
    save_file(original_layout(mini.vae, mini.unet), tmp_path / "model.safetensors")
    found = Base.from_pretrained(tmp_path / "model.safetensors", expect=expect)
    require_equal(found, mini)
    assert found.codec().scale == mini.codec().scale
    assert found.null_embedding is None


@pytest.mark.parametrize("zipped", [True, False])
def test_a_ckpt_is_the_folder_bit_for_bit_and_its_averaged_weights_are_preferred(mini, tmp_path, zipped):
    state = original_layout(mini.vae, mini.unet)
    part = "model.diffusion_model."
    averaged = {"model_ema." + k.removeprefix("model.").replace(".", ""): v for k, v in state.items() if part in k}
    trained = {k: v + 1 if part in k else v for k, v in state.items()}
    content = {"global_step": 3, "state_dict": trained | averaged}
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    require_equal(Base.from_pretrained(tmp_path / "model.ckpt"), mini)


def test_the_autoencoders_attention_comes_out_of_a_single_file_too(monkeypatch, tmp_path):
    config = BASE["vae"] | {"mid_block_add_attention": True}
    base = new_base(**BASE | {"vae": config})
    monkeypatch.setitem(KNOWN, "tiny", Known("tiny", config, BASE["unet"], BASE["scheduler"]))
    monkeypatch.setattr("lafr.models.base.single_file.require_noise_predictor", lambda *_: None)  # it is untrained
    save_file(original_layout(base.vae, base.unet), tmp_path / "model.safetensors")
    require_equal(Base.from_pretrained(tmp_path / "model.safetensors", expect="tiny"), base)


@pytest.mark.parametrize("name", ["sd21_base", pytest.param("sd15", marks=pytest.mark.slow)])
def test_a_single_file_of_the_full_size_fills_every_weight_of_both_networks(name, monkeypatch, tmp_path):
    with torch.device("meta"):
        vae, unet = AutoencoderKL(**KNOWN[name].vae), UNet2DConditionModel(**KNOWN[name].unet)
    write_hollow(tmp_path / "model.safetensors", original_layout(vae, unet))
    monkeypatch.setattr("lafr.models.base.single_file.require_noise_predictor", lambda *_: None)  # its weights are zero
    found = load_single_file(tmp_path / "model.safetensors", None)
    for model, wanted in zip(found, (vae, unet), strict=False):
        state = model.state_dict()
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in wanted.state_dict().items()}
        assert not any(value.is_meta for value in state.values())


# --- the hub, and the order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["hub:some/model", "some/model", f"hub:some/model@{COMMIT}"])
def test_a_repository_in_the_hubs_cache_is_read_and_named_with_its_commit(cache, base, base_folder, source):
    cache(base_folder)
    found = Base.from_pretrained(source, offline=True)
    require_equal(found, base)
    assert found.source == f"hub:some/model@{COMMIT}"


def test_a_revision_is_read_as_asked(cache, base_folder):
    cache(base_folder, revision="v2")
    assert Base.from_pretrained("hub:some/model@v2", offline=True).source == f"hub:some/model@{COMMIT}"
    with pytest.raises(InputError, match="'hub:some/model' is not in the hub's cache and offline is asked for"):
        Base.from_pretrained("hub:some/model", offline=True)


@pytest.mark.parametrize(("offline", "calls"), [(True, False), (False, True)])
def test_offline_no_connection_is_tried(monkeypatch, cache, offline, calls):
    tried = []

    def refuse(*address):
        tried.append(address)
        raise OSError("no network in a test")

    _answers.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(InputError, match="offline is asked for" if offline else "the hub can't be reached"):
        Base.from_pretrained("hub:some/model", offline=offline)
    assert bool(tried) == calls


def test_the_environments_offline_is_honoured(monkeypatch, cache):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    with pytest.raises(InputError, match="offline is asked for"):
        Base.from_pretrained("hub:some/model")


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("text", [False, True])
def test_of_a_hub_only_the_safetensors_of_the_parts_in_use_are_fetched(monkeypatch, base_folder, variant, text):
    asked = []

    def download(name, **settings):
        asked.append(set(filter_repo_objects(PUBLISHED, allow_patterns=settings["allow_patterns"])))
        return base_folder

    monkeypatch.setattr("lafr.models.base.sources.snapshot_download", download)
    Base.from_pretrained("hub:some/model", variant=variant, text=text)
    stem = "fp16.safetensors" if variant else "safetensors"
    wanted = {f"{part}/diffusion_pytorch_model.{stem}" for part in ("vae", "unet")}
    wanted |= {"vae/config.json", "unet/config.json", "scheduler/scheduler_config.json"}
    if text:
        wanted |= {name for name in PUBLISHED if name.startswith("tokenizer/")}
        wanted |= {"text_encoder/config.json", f"text_encoder/model.{stem}"}
    assert asked[0] == wanted


def test_a_repository_of_pickles_is_refused(cache, base_folder):
    snapshot = cache(base_folder)
    for path in snapshot.rglob("diffusion_pytorch_model.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"has no vae/\*\.safetensors, unet/\*\.safetensors"):
        Base.from_pretrained("hub:some/model", offline=True)


def test_the_first_source_that_is_there_is_used(base, base_folder, cache, tmp_path):
    part = copy_of(base_folder, tmp_path / "part")
    shutil.rmtree(part / "unet")
    cache(base_folder)
    sources = [str(tmp_path / "nowhere"), str(part), "hub:other/model", "hub:some/model", base_folder]
    found = Base.from_pretrained(sources, offline=True)
    assert found.source == f"hub:some/model@{COMMIT}"
    assert Base.from_pretrained([base_folder, *sources], offline=True).source == base_folder


def test_when_no_source_is_there_one_line_says_of_each_why_and_ends_with_the_remedy(cache, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.bin").touch()
    reasons = {
        str(tmp_path / "nowhere"): "does not exist",
        str(tmp_path / "empty"): r"has no vae, unet, scheduler",
        str(tmp_path / "model.bin"): r"is neither a folder nor a \.safetensors or \.ckpt file",
        "hub:a/b/c": "is not of the form hub:owner/name",
        "hub:some/model": "is not in the hub's cache",
    }
    with pytest.raises(InputError) as error:
        Base.from_pretrained(list(reasons), remedy="fetch it so", offline=True)
    for source, reason in reasons.items():
        assert error.match(f"'{source}' {reason}")
    assert str(error.value).endswith("; fetch it so") and "\n" not in str(error.value)


# --- wrong models -----------------------------------------------------------------------------------------------------

XL = UNET | dict(
    cross_attention_dim=2048,
    use_linear_projection=True,
    attention_head_dim=[5, 10, 20],
    block_out_channels=[320, 640, 1280],
    down_block_types=UNET["down_block_types"][1:],
    up_block_types=UNET["up_block_types"][:3],
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
V = SCHEDULER | {"prediction_type": "v_prediction"}
WRONG = {  # (unet, scheduler, expected model, what the message says)
    "xl": (XL, SCHEDULER, "sd21_base", "is Stable Diffusion XL .cross-attention 2048"),
    "xl, any": (XL, SCHEDULER, None, "is Stable Diffusion XL"),
    "refiner": (XL | {"cross_attention_dim": 1280}, SCHEDULER, "sd21_base", "is the Stable Diffusion XL refiner"),
    "768": (SD21, V, "sd21_base", "is Stable Diffusion 2.x at 768 px: it predicts v_prediction, not epsilon"),
    "inpainting": (SD21 | {"in_channels": 9}, SCHEDULER, "sd21_base", "is an inpainting model .9 input channels"),
    "inpainting 1.5": (SD15 | {"in_channels": 9}, SCHEDULER, None, "is an inpainting model"),
    "depth": (SD21 | {"in_channels": 5}, SCHEDULER, "sd21_base", "is a depth-to-image model"),
    "editing": (SD15 | {"in_channels": 8}, SCHEDULER, "sd15", "InstructPix2Pix"),
    "1.5 for 2.1": (SD15, SCHEDULER, "sd21_base", "is Stable Diffusion 1.5, not .* 2.1-base .* choose model='sd15'"),
    "2.1 for 1.5": (SD21, SCHEDULER, "sd15", "is Stable Diffusion 2.1-base, not .* 1.5 .* choose model='sd21_base'"),
    "other heads": (SD21 | {"attention_head_dim": 8}, SCHEDULER, "sd21_base", r"attention_head_dim 8, not \[5, 10"),
    "linear betas": (SD21, SCHEDULER | {"beta_schedule": "linear"}, "sd21_base", "scheduler beta_schedule linear"),
    "other betas": (SD21, SCHEDULER | {"beta_end": 0.02}, "sd_turbo", "scheduler beta_end 0.02, not 0.012"),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_model_is_refused_by_name_from_its_configurations(case, tmp_path):
    unet, scheduler, expect, message = WRONG[case]
    configs = {"vae/config": VAE, "unet/config": unet, "scheduler/scheduler_config": scheduler}
    for name, config in configs.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    for part in ("vae", "unet"):  # never opened
        (tmp_path / part / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(InputError, match=message) as error:
        Base.from_pretrained(tmp_path, expect=expect)
    assert "choose" in str(error.value) and "\n" not in str(error.value)


def test_another_autoencoder_is_refused():
    with pytest.raises(InputError, match=r"vae scaling_factor 0\.13025, not 0\.18215"):
        require_known(VAE | {"scaling_factor": 0.13025}, SD21, SCHEDULER, "folder", "sd21_base")


@pytest.mark.parametrize(
    ("unet", "expect", "message"),
    [
        (XL, "sd21_base", "is Stable Diffusion XL .cross-attention 2048"),
        (SD21 | {"in_channels": 9}, "sd21_base", "is an inpainting model"),
        (SD15, "sd21_base", "is Stable Diffusion 1.5, not .* choose model='sd15'"),
        (SD21, "sd15", "is Stable Diffusion 2.1-base, not .* choose model='sd21_base'"),
        (SD15 | {"block_out_channels": [320, 640]}, None, "is no model that LAFR knows"),
    ],
)
def test_a_single_file_of_another_model_is_refused_by_name_from_its_shapes(unet, expect, message, tmp_path):
    levels = len(unet["block_out_channels"])
    unet = unet | {k: unet[k][-levels:] for k in ("down_block_types", "up_block_types")}
    with torch.device("meta"):
        vae, network = AutoencoderKL(**VAE), UNet2DConditionModel(**unet)
    added = {k: network.state_dict().pop(k) for k in network.state_dict() if k.startswith("add_embedding.")}
    network.add_embedding = None
    shapes = original_layout(vae, network)
    if added:
        shapes["model.diffusion_model.label_emb.0.0.weight"] = added["add_embedding.linear_1.weight"]
    write_hollow(tmp_path / "model.safetensors", shapes)
    with pytest.raises(InputError, match=message):
        Base.from_pretrained(tmp_path / "model.safetensors", expect=expect)


def test_a_file_of_another_layout_is_named_as_diffusers_names_it(tmp_path):
    key = "model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"
    write_hollow(tmp_path / "flux.safetensors", {key: torch.empty(8, device="meta")})
    with pytest.raises(InputError, match=r"is no Stable Diffusion checkpoint .* takes it for flux-schnell"):
        Base.from_pretrained(tmp_path / "flux.safetensors", expect="sd21_base")


def test_a_single_file_that_does_not_predict_the_noise_is_refused(mini, tmp_path):
    mini.unet.conv_out.reset_parameters()
    save_file(original_layout(mini.vae, mini.unet), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="does not predict the noise"):
        Base.from_pretrained(tmp_path / "model.safetensors")


def test_the_same_network_is_taken_as_a_predictor_of_the_noise_and_refused_as_one_of_v(mini, tmp_path):
    abar = mini.scheduler.alphas_cumprod[999]

    def v(z, t, condition):  # Salimans & Ho: v = sqrt(abar) eps - sqrt(1 - abar) z0
        eps = mini.unet(z, t, condition).sample
        z0 = (z - (1 - abar) ** 0.5 * eps) / abar**0.5
        return SimpleNamespace(sample=abar**0.5 * eps - (1 - abar) ** 0.5 * z0)

    v.config = mini.unet.config
    require_noise_predictor(mini.unet, tmp_path)
    with pytest.raises(InputError, match="choose the 512 px base"):
        require_noise_predictor(v, tmp_path)


def test_the_published_configurations_are_taken():
    """As the hub's repositories have them: other samplers, and what their diffusers of 2022 did not write yet."""
    vae = {k: v for k, v in VAE.items() if k != "scaling_factor"} | {"sample_size": 768}
    sd21 = SD21 | {"_diffusers_version": "0.10.0.dev0", "dual_cross_attention": False, "sample_size": 64}
    pndm = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000}
    require_known(vae, sd21, pndm | {"prediction_type": "epsilon", "skip_prk_steps": True}, "2.1", "sd21_base")
    for heads in (8, [8, 8, 8, 8]):
        require_known(vae, SD15 | {"attention_head_dim": heads}, pndm | {"set_alpha_to_one": False}, "1.5", "sd15")
    require_known(vae, sd21, pndm | {"timestep_spacing": "trailing"}, "turbo", "sd_turbo")


def test_the_noise_schedule_of_a_euler_sampler_is_read_as_euler_has_it(base_folder, tmp_path):
    folder = copy_of(base_folder, tmp_path / "turbo")
    settings = {k: SCHEDULER[k] for k in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}
    euler = EulerDiscreteScheduler(**settings | {"beta_end": 0.011}, timestep_spacing="trailing")
    shutil.rmtree(folder / "scheduler")
    euler.save_pretrained(folder / "scheduler")
    assert torch.equal(Base.from_pretrained(folder).scheduler.alphas_cumprod, euler.alphas_cumprod)


# --- weights that don't fit, pins -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv_in.bias"), r"conv_in\.bias is missing, not \(16,\)"),
        (lambda state: state.update({"conv_in.bias": torch.zeros(8)}), r"conv_in\.bias is \(8,\), not \(16,\)"),
        (lambda state: state.update(extra=torch.zeros(8)), r"extra is \(8,\), not expected"),
    ],
)
def test_weights_that_do_not_fit_their_configuration_are_refused(base_folder, tmp_path, change, message):
    folder = copy_of(base_folder, tmp_path / "base")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(InputError, match=message):
        Base.from_pretrained(folder)


def test_a_torn_download_is_refused_with_its_path(base_folder, tmp_path):
    folder = copy_of(base_folder, tmp_path / "base")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    torch.save({"state_dict": {"a": torch.zeros(5000)}}, tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt").write_bytes((tmp_path / "model.ckpt").read_bytes()[:5000])
    for torn in (folder, shutil.copy(path, tmp_path / "model.safetensors"), tmp_path / "model.ckpt"):
        with pytest.raises(InputError, match=r"unet/diffusion|model\.") as error:
            Base.from_pretrained(torn)
        assert "\n" not in str(error.value)


def test_a_single_file_that_lacks_the_autoencoder_or_a_weight_or_has_one_of_another_shape_is_refused(mini, tmp_path):
    state, path = original_layout(mini.vae, mini.unet), tmp_path / "model.safetensors"
    save_file({k: v for k, v in state.items() if "first_stage" not in k}, path)
    with pytest.raises(InputError, match="holds no autoencoder"):
        Base.from_pretrained(path)
    save_file({k: v for k, v in state.items() if not k.startswith("first_stage_model.quant_conv.")}, path)
    with pytest.raises(InputError, match="holds a part of the miniature only"):
        Base.from_pretrained(path)
    save_file(state | {"first_stage_model.quant_conv.bias": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"not those of the miniature: .*\[3\]") as error:
        Base.from_pretrained(path)
    assert "\n" not in str(error.value)


class Armed:
    def __reduce__(self):
        return print, ("a pickle ran code",)


def test_a_ckpt_that_holds_more_than_weights_is_refused_and_runs_nothing(tmp_path, capsys):
    torch.save({"state_dict": {}, "callbacks": Armed()}, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match=r"holds more than weights.*give it as \.safetensors"):
        Base.from_pretrained(tmp_path / "model.ckpt")
    assert capsys.readouterr().out == ""


def test_pinned_files_are_compared_before_any_is_opened(base, base_folder, tmp_path):
    folder = copy_of(base_folder, tmp_path / "base")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    pins = {name: sha256(folder / name).upper() for name in names}
    require_equal(Base.from_pretrained(folder, sha256=pins), base)
    (folder / "unet" / "config.json").write_text("torn {")
    with pytest.raises(InputError, match=r"unet/config\.json' is not the pinned file"):
        Base.from_pretrained(folder, sha256=pins)


def test_where_there_are_pins_every_weights_file_needs_one(base_folder):
    with pytest.raises(InputError, match=r"has no line for .*add null_embedding\.safetensors: [0-9a-f]{64}"):
        Base.from_pretrained(base_folder, sha256={"unet/config.json": sha256(f"{base_folder}/unet/config.json")})


def test_a_single_file_is_pinned_by_its_name(tmp_path):
    (tmp_path / "model.ckpt").write_text("anything")
    require_pinned(tmp_path, [tmp_path / "model.ckpt"], {"model.ckpt": sha256(tmp_path / "model.ckpt")})
    with pytest.raises(InputError, match="is not the pinned file"):
        Base.from_pretrained(tmp_path / "model.ckpt", sha256={"model.ckpt": "0" * 64})


def test_a_wrong_pin_does_not_lead_to_the_next_source(base_folder):
    with pytest.raises(InputError, match="is not the pinned file"):
        Base.from_pretrained([base_folder, "mini"], sha256={"unet/config.json": "0" * 64})


# --- the empty prompt, randomness -------------------------------------------------------------------------------------


def add_text(folder):
    """A tiny text encoder and tokenizer next to the model."""
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "!": 2, "a</w>": 3, "a": 4}
    (folder / "words").mkdir()
    (folder / "words" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "words" / "merges.txt").write_text("#version: 0.2\n")
    words = [str(folder / "words" / name) for name in ("vocab.json", "merges.txt")]
    tokenizer = CLIPTokenizer(*words, model_max_length=6, pad_token="!")
    tokenizer.save_pretrained(folder / "tokenizer")
    size = dict(vocab_size=5, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPTextModel(CLIPTextConfig(**size, max_position_embeddings=6, bos_token_id=0, eos_token_id=1))
    encoder.save_pretrained(folder / "text_encoder")
    return tokenizer, encoder.eval()


def test_the_null_condition_is_the_empty_prompts_as_diffusers_pipeline_encodes_it(base_folder, tmp_path):
    folder = copy_of(base_folder, tmp_path / "base")
    (folder / "null_embedding.safetensors").unlink()
    tokenizer, encoder = add_text(folder)
    base = Base.from_pretrained(folder, text=True)
    pipeline = StableDiffusionPipeline(
        base.vae, encoder, tokenizer, base.unet, base.scheduler, None, None, requires_safety_checker=False
    )
    expected = pipeline.encode_prompt("", "cpu", 1, False)[0]
    assert base.null_embedding.shape == (1, 6, 8)
    assert torch.equal(base.null_embedding, expected)
    assert Base.from_pretrained(folder).null_embedding is None  # nobody asked


def test_a_stored_null_condition_goes_before_the_text_encoders(base, base_folder, tmp_path):
    folder = copy_of(base_folder, tmp_path / "base")
    add_text(folder)
    assert torch.equal(Base.from_pretrained(folder, text=True).null_embedding, base.null_embedding)


def test_without_any_null_condition_it_is_refused_where_it_is_needed(base_folder, tmp_path):
    folder = copy_of(base_folder, tmp_path / "base")
    (folder / "null_embedding.safetensors").unlink()
    with pytest.raises(InputError, match="text_encoder/ and tokenizer/; choose a folder that has them"):
        Base.from_pretrained(folder, text=True)


def test_loading_moves_no_random_state(mini, base_folder, tmp_path):
    save_file(original_layout(mini.vae, mini.unet), tmp_path / "model.safetensors")
    before = torch.get_rng_state()
    Base.from_pretrained(base_folder)
    Base.from_pretrained(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
