import shutil

import pytest
import torch
from conftest import BASE

from lafr.errors import InputError
from lafr.models.base.model import Base, new_base


def state(base):
    return {"null": base.null_embedding} | base.vae.state_dict() | base.unet.state_dict(prefix="unet.")


def test_a_saved_base_model_loads_bit_for_bit(base, base_folder):
    loaded = Base.from_pretrained(base_folder)
    assert all(torch.equal(value, state(loaded)[name]) for name, value in state(base).items())
    assert loaded.vae.config.scaling_factor == 1.7
    assert torch.equal(loaded.scheduler.alphas_cumprod, base.scheduler.alphas_cumprod)


def test_stored_halves_load_as_float32_and_saving_leaves_the_model_in_float32(base, tmp_path):
    base.save_pretrained(tmp_path, torch.float16)
    loaded = Base.from_pretrained(tmp_path)
    for name, value in state(base).items():
        assert value.dtype == state(loaded)[name].dtype == torch.float32
        assert torch.equal(value.half().float(), state(loaded)[name])


def test_a_latent_scale_that_training_found_is_saved(tmp_path):
    base = new_base(**BASE | {"vae": {k: v for k, v in BASE["vae"].items() if k != "scaling_factor"}})
    base.vae.register_to_config(scaling_factor=0.7)
    base.save_pretrained(tmp_path)
    assert Base.from_pretrained(tmp_path).codec().scale == 0.7


def test_the_seed_alone_decides_the_start(base):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    same, other = new_base(**BASE, seed=0), new_base(**BASE, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state(same)[name]) for name, value in state(base).items())
    assert not torch.equal(base.unet.conv_in.weight, other.unet.conv_in.weight)
    assert not torch.equal(base.null_embedding, other.null_embedding)


def test_a_missing_part_is_named_with_the_remedy(base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "unet")
    with pytest.raises(InputError, match=r"has no unet; download it"):
        Base.from_pretrained(tmp_path / "base", remedy="download it")


def test_without_a_stored_null_embedding_there_is_none_and_saving_writes_none(base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "base")
    (tmp_path / "base" / "null_embedding.safetensors").unlink()
    base = Base.from_pretrained(tmp_path / "base")
    assert base.null_embedding is None
    base.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "null_embedding.safetensors").exists()
    assert Base.from_pretrained(tmp_path / "again").null_embedding is None
