"""A tiny decoder behind the codec's interface: what it decodes, what is saved of it, and which files are refused."""

import json
import shutil

import pytest
import torch
from conftest import lq
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from lafr.errors import InputError
from lafr.evaluation.cache_keys import key_of_model
from lafr.export.pipeline import LAFRPipeline
from lafr.models.fast import optimised
from lafr.models.restorer import Restorer
from lafr.models.tiny import find_tiny

WEIGHTS = "diffusion_pytorch_model.safetensors"
SIZES = dict(decoder_block_out_channels=(8, 8, 8), num_decoder_blocks=(1, 1, 1))
SIZES |= dict(encoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1))


@pytest.fixture
def tiny(tmp_path):
    """A tiny autoencoder of the base's shapes, saved as TAESD is: both halves, no word of a teacher."""
    torch.manual_seed(0)
    made = AutoencoderTiny(**SIZES)
    made.save_pretrained(tmp_path / "taesd")
    return made


@pytest.fixture
def with_tiny(tiny, trained, tmp_path):
    trained.save_pretrained(tmp_path / "model", full=True)
    return Restorer.from_pretrained(tmp_path / "model", decoder=tmp_path / "taesd").eval()


@torch.no_grad()
def test_the_tiny_decoder_gets_latents_as_the_base_codec_scales_them_and_saturates_at_3(tiny, with_tiny, trained):
    z = with_tiny.latents(lq()).z_restored
    assert torch.equal(z, trained.latents(lq()).z_restored)  # encoder, adapter and UNet are the exact ones
    assert torch.equal(with_tiny(lq()), tiny.decode(z).sample)
    large = 100 * torch.sign(torch.randn(1, 4, 8, 8))
    torch.testing.assert_close(with_tiny.codec.decode(large), tiny.decoder.layers(large.sign() * 3) * 2 - 1)
    assert key_of_model(with_tiny) != key_of_model(trained)


@torch.no_grad()
def test_the_optimised_tiny_decoder_is_the_same_function_in_fewer_multiplications(with_tiny):
    def decoded():
        with FlopCounterMode(display=False) as counter:
            image = with_tiny.codec.decode(z)
        return image, counter.get_total_flops()

    z = with_tiny.latents(lq()).z_restored
    before, all_of_them = decoded()
    optimised(with_tiny, dtype="float32")
    after, fewer = decoded()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    at_16, at_32 = (2 * 2 * 9 * 8 * 8 * side**2 for side in (16, 32))  # of each upsampling convolution
    assert all_of_them - fewer == (at_16 + at_32) * 5 // 9


def test_a_model_with_a_tiny_decoder_is_saved_with_it_and_base_asks_for_the_exact_one(with_tiny, trained, tmp_path):
    with_tiny.save_pretrained(tmp_path / "saved", full=True)
    assert json.loads((tmp_path / "saved" / "lafr.json").read_text())["decoder"] == "tiny"
    assert all(name.startswith("decoder.") for name in load_file(tmp_path / "saved" / "tiny" / WEIGHTS))
    exact = Restorer.from_pretrained(tmp_path / "saved", decoder="base")
    with torch.no_grad():
        assert torch.equal(Restorer.from_pretrained(tmp_path / "saved")(lq()), with_tiny(lq()))
        assert torch.equal(exact(lq()), trained(lq()))


def test_the_pipeline_decodes_with_it_moves_it_and_saves_it(with_tiny, tmp_path):
    expected = (with_tiny(lq()) / 2 + 0.5).clamp(0, 1)
    pipe = LAFRPipeline(with_tiny)
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(pipe(lq() / 2 + 0.5, output_type="pt").images, expected)
    pipe.save_pretrained(tmp_path / "export", full=True)
    pipe.to(torch.bfloat16)
    assert pipe.tiny.dtype == torch.bfloat16 and "tiny" in pipe.components
    low = pipe(lq() / 2 + 0.5, output_type="pt").images
    assert 0 < (low - expected).abs().mean() < 1 / 255
    loaded = LAFRPipeline.from_pretrained(tmp_path / "export")
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(loaded(lq() / 2 + 0.5, output_type="pt").images, expected, rtol=0, atol=1e-4)


def test_a_tiny_decoder_that_does_not_fit_is_refused_on_one_line(with_tiny, tmp_path):
    folder, taesd = tmp_path / "saved", tmp_path / "taesd"
    with_tiny.save_pretrained(folder, full=True)
    config, state = json.loads((taesd / "config.json").read_text()), load_file(taesd / WEIGHTS)

    def refused(words, config=config, state=state, metadata=None):
        shutil.rmtree(folder / "tiny")
        (folder / "tiny").mkdir()
        (folder / "tiny" / "config.json").write_text(json.dumps(config))
        save_file(state, folder / "tiny" / WEIGHTS, metadata)
        with pytest.raises(InputError, match=words) as error:
            Restorer.from_pretrained(folder)
        assert "\n" not in error.value.args[0]

    refused("enlarges 2 times", {**config, **{k: v[:2] for k, v in config.items() if isinstance(v, list)}})
    refused("16 channels", config | {"latent_channels": 16})
    refused("num_decoder_blocks", config | {"num_decoder_blocks": [10**9, 1, 1]})
    refused("missing", state={k: v for k, v in state.items() if k != "decoder.layers.0.bias"})
    refused("another autoencoder", metadata={"codec": "0" * 64})
    nan = {k: v * float("nan") for k, v in state.items()}
    refused("NaN", state=nan)
    shutil.rmtree(folder / "tiny")
    with pytest.raises(InputError, match=r"decoder.*Stable Diffusion"):
        Restorer.from_pretrained(folder)
    with pytest.raises(InputError, match=r"decoder.*'nowhere'"):
        find_tiny("nowhere", with_tiny.codec)
