import json
import multiprocessing
from functools import partial

import pytest
import torch
from conftest import ADAPTER, SIZE
from PIL import Image

from lafr.errors import InputError
from lafr.images import from_pil, to_pil
from lafr.models.adapter import ConvAdapter, NoAdapter
from lafr.models.denoiser import Denoiser
from lafr.models.restorer import Restorer, load_adapter


def lq():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def trained(restorer):
    """A restorer whose LoRA is no longer zero; frozen, as torch multiplies otherwise where a gradient is wanted."""
    with torch.no_grad():
        for parameter in restorer.denoiser.lora_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return restorer.requires_grad_(False).eval()


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
    weights = "adapter/diffusion_pytorch_model.safetensors"
    assert files == ["adapter/config.json", weights, "denoiser/lora.json", "denoiser/lora.safetensors", "lafr.json"]


def test_the_reference_to_the_base_holds_when_both_are_moved_together(trained, tmp_path):
    from shutil import copytree

    copytree(trained.base, tmp_path / "here" / "base")
    trained.base = str(tmp_path / "here" / "base")
    trained.save_pretrained(tmp_path / "here" / "model")
    expected = Restorer.from_pretrained(tmp_path / "here" / "model")(lq())
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(Restorer.from_pretrained(tmp_path / "there" / "model")(lq()), expected)


@pytest.mark.parametrize("make", [NoAdapter, partial(ConvAdapter, **ADAPTER)])
@torch.no_grad()
def test_the_controls_are_saved_and_loaded_too(trained, tmp_path, make):
    trained.adapter = make().eval()
    trained.save_pretrained(tmp_path)
    loaded = Restorer.from_pretrained(tmp_path)
    assert type(loaded.adapter) is type(trained.adapter)
    assert torch.equal(loaded(lq()), trained(lq()))


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no lafr\.json"):
        Restorer.from_pretrained(tmp_path)


def test_an_adapter_class_that_cannot_be_imported_is_named(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "lafr.json").read_text())
    (tmp_path / "lafr.json").write_text(json.dumps(index | {"adapter": "mine.Adapter"}))
    with pytest.raises(InputError, match=r"'mine\.Adapter' cannot be imported"):
        Restorer.from_pretrained(tmp_path)


def outputs(folder):
    """What each saved part gives when loaded: run in another process."""
    torch.set_num_threads(1)
    with torch.no_grad():
        z = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
        found = [
            Denoiser.from_pretrained(folder / "full" / "denoiser")(z),
            load_adapter(folder / "full" / "adapter", "lafr.models.adapter.CodebookAdapter").eval()(z),
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
