import pytest
import torch
from conftest import BASE, SIZE
from diffusers import AutoencoderKL, AutoencoderTiny

from lafr.models.base.model import Base
from lafr.models.codec import Codec


def images(seed=0, size=SIZE):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def vae(**settings):
    torch.manual_seed(0)
    return AutoencoderKL(**BASE["vae"] | settings)


@torch.no_grad()
def test_the_latent_is_the_posterior_mode_scaled_and_shifted_as_the_config_says():
    model = vae(scaling_factor=0.25, shift_factor=0.5)
    mode = model.encode(images()).latent_dist.mode()
    assert torch.equal(Codec(model).encode(images()), (mode - 0.5) * 0.25)


@torch.no_grad()
def test_without_a_shift_the_latent_is_the_mode_times_the_scaling_factor(base):
    mode = base.vae.encode(images()).latent_dist.mode()
    assert torch.equal(base.codec().encode(images()), mode * 1.7)


@torch.no_grad()
def test_decode_undoes_scale_and_shift():
    z = torch.randn(2, 4, 8, 8)
    plain, scaled = vae(scaling_factor=1.0), vae(scaling_factor=0.25, shift_factor=0.5)
    expected = plain.decode(z).sample
    torch.testing.assert_close(Codec(scaled).decode((z - 0.5) * 0.25), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_encoding_draws_nothing(base):
    codec, before = base.codec(), torch.get_rng_state()
    assert torch.equal(codec.encode(images()), codec.encode(images()))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_codec_is_frozen_and_stays_in_eval_mode(base):
    codec = base.codec().train()
    assert not any(p.requires_grad for p in codec.parameters())
    assert not any(module.training for module in codec.modules())


def test_a_side_that_is_no_multiple_of_the_downscale_factor_is_refused_and_the_factor_named(base):
    with pytest.raises(ValueError, match=r"32 x 30 .* multiple of 4"):
        base.codec().encode(torch.zeros(1, 3, 30, 32))


def test_gradients_reach_the_latent_through_the_frozen_decoder(base):
    z = torch.randn(1, 4, 8, 8, requires_grad=True)
    base.codec().decode(z).sum().backward()
    assert z.grad.abs().sum() > 0


@torch.no_grad()
def test_an_autoencoder_without_a_posterior_works_the_same():
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
        scaling_factor=0.5,
    )
    codec = Codec(tiny)
    z = codec.encode(images())
    assert codec.downscale == 4 and z.shape == (2, codec.latent_channels, 8, 8)
    assert torch.equal(z, tiny.encode(images()).latents * 0.5)
    assert torch.equal(codec.decode(z), tiny.decode(z / 0.5).sample)


def test_the_fingerprint_is_that_of_the_saved_and_loaded_codec(base, tmp_path):
    base.vae.register_to_config(scaling_factor=0.3)
    base.save_pretrained(tmp_path)
    assert Base.from_pretrained(tmp_path).codec().fingerprint() == base.codec().fingerprint()


def test_one_weight_moved_by_its_last_bit_is_another_fingerprint():
    codec = Codec(vae())
    before, weight = codec.fingerprint(), codec.vae.encoder.conv_in.weight
    with torch.no_grad():
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(1.0))
    assert codec.fingerprint() != before == Codec(vae()).fingerprint()


def test_a_setting_that_no_weight_shows_is_another_fingerprint():
    settings = [{}, {"scaling_factor": 0.25}, {"shift_factor": 0.5}, {"norm_num_groups": 2}]
    assert len({Codec(vae(**changed)).fingerprint() for changed in settings}) == 4
