import json
import multiprocessing
import shutil

import huggingface_hub
import pytest
import torch
from conftest import BASE, SIZE, lq
from PIL import Image

from lafr.errors import InputError
from lafr.images import from_pil, to_pil
from lafr.models.base.model import new_base
from lafr.models.base.supported import KNOWN, Known
from lafr.models.denoiser import Denoiser
from lafr.models.restorer import Restorer, load_adapter
from lafr.models.saved import Saved


@torch.no_grad()
def test_restoring_is_encoding_adapting_denoising_and_decoding(trained):
    vae, abar = trained.codec.vae, trained.denoiser.alpha_bar
    z_aligned = trained.adapter(vae.encode(lq()).latent_dist.mode() * 1.7)
    eps = trained.denoiser.unet(z_aligned * abar**0.5, 200, None).sample
    z_restored = z_aligned - ((1 - abar) / abar) ** 0.5 * eps
    torch.testing.assert_close(trained(lq()), vae.decode(z_restored / 1.7).sample, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_picture_is_restored_as_its_pixels_are_at_the_models_resolution(trained):
    picture = to_pil(lq()[0])
    assert to_pil(trained(from_pil(picture)[None])[0]) == trained(picture)
    assert trained(picture.resize((50, 50))).size == (SIZE, SIZE)


def test_a_picture_that_is_not_square_is_refused(trained):
    with pytest.raises(InputError, match="40 x 32, not square"):
        trained(Image.new("RGB", (40, 32)))


@pytest.mark.parametrize("full", [False, True])
@torch.no_grad()
def test_a_saved_restorer_restores_bit_for_bit_frozen_and_in_eval_mode(trained, tmp_path, full):
    trained.save_pretrained(tmp_path / "model", full=full)
    loaded = Restorer.from_pretrained(tmp_path / "model")
    assert (loaded.base is None) == full
    assert loaded.resolution == SIZE
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded(lq()), trained(lq()))


def test_what_is_saved_beside_a_base_is_the_adapter_the_lora_and_an_index(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["adapter.safetensors", "denoiser/pytorch_lora_weights.safetensors", "lafr.json"]


def test_the_reference_to_the_base_holds_when_both_are_moved_together(trained, tmp_path):
    shutil.copytree(trained.base, tmp_path / "here" / "base")
    trained.base = str(tmp_path / "here" / "base")
    trained.save_pretrained(tmp_path / "here" / "model")
    expected = Restorer.from_pretrained(tmp_path / "here" / "model")(lq())
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(Restorer.from_pretrained(tmp_path / "there" / "model")(lq()), expected)


@pytest.fixture
def tiny_is_known(monkeypatch):
    configs = (BASE["vae"], BASE["unet"], BASE["scheduler"])
    monkeypatch.setitem(KNOWN, "tiny", Known("the tiny model", *configs))


@torch.no_grad()
def test_a_base_from_a_hub_is_remembered_with_its_commit_and_found_again(
    base_folder, codebook_adapter, monkeypatch, tmp_path, tiny_is_known
):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--model"
    shutil.copytree(base_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    sources = [str(tmp_path / "nowhere"), "hub:some/model"]
    settings = dict(timestep=200, lora=dict(rank=2, alpha=4), expect="tiny", offline=True)
    made = Restorer.from_base(sources, codebook_adapter.eval(), SIZE, **settings)
    made.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "lafr.json").read_text())
    assert index["base"] == f"hub:some/model@{commit}"
    assert index["base_settings"] == {"expect": "tiny", "variant": None}
    (repository / "refs" / "main").write_text("another commit, published since")
    loaded = Restorer.from_pretrained(tmp_path / "model", offline=True)
    assert torch.equal(loaded(lq()), made(lq()))


@torch.no_grad()
def test_a_saved_restorer_takes_its_base_from_another_place_but_no_other_model(
    base_folder, codebook_adapter, tmp_path, tiny_is_known
):
    here = shutil.copytree(base_folder, tmp_path / "here")
    settings = dict(timestep=200, lora=dict(rank=2, alpha=4), expect="tiny")
    made = Restorer.from_base(str(here), codebook_adapter.eval(), SIZE, **settings)
    made.save_pretrained(tmp_path / "model")
    here.rename(tmp_path / "there")
    with pytest.raises(InputError, match=r"here' does not exist; it is the base of .*base"):
        Restorer.from_pretrained(tmp_path / "model")
    loaded = Restorer.from_pretrained(tmp_path / "model", base=str(tmp_path / "there"))
    assert torch.equal(loaded(lq()), made(lq()))
    wider = BASE["unet"] | {"cross_attention_dim": 16}  # its pruned UNet would take the LoRA
    new_base(**BASE | {"unet": wider}).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="is not the tiny model: unet cross_attention_dim 16, not 8"):
        Restorer.from_pretrained(tmp_path / "model", base=str(tmp_path / "other"))


@torch.no_grad()
def test_a_restorer_that_keeps_cross_attention_is_saved_and_loaded_bit_for_bit(base_folder, codebook_adapter, tmp_path):
    settings = dict(timestep=200, lora=dict(rank=2, alpha=4))
    kept = Restorer.from_base(base_folder, codebook_adapter.eval(), SIZE, **settings, text="empty_prompt")
    pruned = Restorer.from_base(base_folder, codebook_adapter, SIZE, **settings)
    assert not torch.equal(kept(lq()), pruned(lq()))
    kept.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "lafr.json").read_text())["text"] == "empty_prompt"
    assert torch.equal(Restorer.from_pretrained(tmp_path)(lq()), kept(lq()))


@torch.no_grad()
def test_the_preferred_precision_of_the_base_is_remembered(base_folder, codebook_adapter, tmp_path):
    both = shutil.copytree(base_folder, tmp_path / "base")
    other = new_base(**BASE, seed=1)
    for part, model in (("unet", other.unet), ("vae", other.vae)):
        model.half().save_pretrained(both / part, variant="fp16")
    settings = dict(timestep=200, lora=dict(rank=2, alpha=4))
    made = Restorer.from_base(str(both), codebook_adapter.eval(), SIZE, **settings, variant="fp16")
    made.save_pretrained(tmp_path / "model")
    assert torch.equal(Restorer.from_pretrained(tmp_path / "model")(lq()), made(lq()))


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no lafr\.json"):
        Restorer.from_pretrained(tmp_path)


def outputs(folder):
    """What each saved part gives when loaded: run in another process."""
    torch.set_num_threads(1)
    saved = Saved.read(folder / "full")
    with torch.no_grad():
        z = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
        found = [
            Denoiser.from_pretrained(folder / "full" / "denoiser", saved.timestep, lora=saved.lora)(z),
            load_adapter(folder / "full", **saved.adapter).eval()(z),
            *(Restorer.from_pretrained(folder / kind)(lq()) for kind in ("full", "reference")),
        ]
    torch.save(found, folder / f"{multiprocessing.current_process().name}.pt")


@torch.no_grad()
def test_another_process_loads_every_part_bit_for_bit(trained, tmp_path, workers):
    trained.save_pretrained(tmp_path / "full", full=True)
    trained.save_pretrained(tmp_path / "reference")
    other = workers.Process(target=outputs, args=(tmp_path,), name="other")
    other.start()
    other.join()
    z = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
    expected = [trained.denoiser(z), trained.adapter(z), trained(lq()), trained(lq())]
    found = torch.load(tmp_path / "other.pt")
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True] * 4
    for kind in ("full", "reference"):  # a LoRA merged in loading is saved with the weights
        merged = Restorer.from_pretrained(tmp_path / kind, merged=True)
        merged.save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(merged(lq()), expected[2], atol=1e-4, rtol=1e-4)
        assert torch.equal(Restorer.from_pretrained(tmp_path / "merged")(lq()), merged(lq()))
