"""The baselines as stages of a run: what they train is saved, loaded and resumed, and nothing else."""

import pytest
import torch
from conftest import BASE, SIZE, lq

import lafr.training.loop
from lafr.data.stream import PairStream
from lafr.losses.appearance import LatentL1, PixelMSE
from lafr.losses.multilevel import MultiLevelLoss
from lafr.models.adapter import build_adapter
from lafr.models.base.model import new_base
from lafr.models.restorer import Restorer
from lafr.training.baselines import EncoderObjective, FullUNetObjective, ScratchUNetObjective
from lafr.training.loop import train

BASELINES = (EncoderObjective, FullUNetObjective, ScratchUNetObjective)


def built(base_folder, baseline, loss=None):
    loss = loss or MultiLevelLoss({"pixel_mse": PixelMSE(), "latent": LatentL1()}, {"pixel_mse": 1.0, "latent": 0.3})
    restorer = Restorer.from_base(base_folder, build_adapter("none"), SIZE, timestep=200, lora=dict(rank=2, alpha=4))
    return restorer, baseline(restorer, loss)


@pytest.fixture
def run(base_folder, faces, degradation, accelerator, tmp_path):
    """Train a baseline on the tiny model, in a folder that it can be resumed from."""

    def run(baseline, folder, steps=4):
        restorer, objective = built(base_folder, baseline)
        train(
            objective,
            PairStream(faces, degradation, 0),
            accelerator(),
            tmp_path / folder,
            max_steps=steps,
            batch_size=2,
            learning_rate=1e-3,
            log_every=1,
            checkpoint_every=2,
        )
        return restorer.requires_grad_(False).eval(), objective

    return run


@pytest.mark.parametrize("baseline", BASELINES)
def test_what_a_baseline_trained_is_saved_and_loaded_bit_for_bit_without_the_base(run, tmp_path, base_folder, baseline):
    restorer, _ = run(baseline, "run", steps=2)
    restorer.save_pretrained(tmp_path / "model")
    loaded = Restorer.from_pretrained(tmp_path / "model", base="nowhere")
    assert torch.equal(loaded(lq()), restorer(lq()))
    base, vae = new_base(**BASE).vae, loaded.codec.vae
    encoder = all(map(torch.equal, base.encoder.parameters(), vae.encoder.parameters()))
    assert encoder == (baseline is not EncoderObjective)
    assert all(map(torch.equal, base.decoder.parameters(), vae.decoder.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_that_was_stopped_ends_as_one_that_was_not(run, monkeypatch, baseline):
    _, whole = run(baseline, "whole")
    advance = lafr.training.loop.Log.advance

    def stop(log):
        advance(log)
        if log.bar.n == 3:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(lafr.training.loop.Log, "advance", stop)
        with pytest.raises(InterruptedError):
            run(baseline, "stopped")
    _, resumed = run(baseline, "stopped")
    one, other = whole.trained_state(), resumed.trained_state()
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    finished, _ = run(baseline, "stopped")  # loads the finished stage
    restorer, _ = run(baseline, "whole")
    assert torch.equal(finished(lq()), restorer(lq()))


@pytest.mark.parametrize("baseline", [FullUNetObjective, ScratchUNetObjective])
def test_every_weight_of_the_unet_is_trained_and_nothing_else_is(base_folder, baseline):
    restorer, objective = built(base_folder, baseline)
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert trained == {f"restorer.denoiser.unet.{name}" for name, _ in restorer.denoiser.unet.named_parameters()}
    assert not [name for name in trained if ".lora_" in name]
    batch = {"lq": lq(), "hq": lq().flip(0), "n": torch.tensor([0, 1])}
    objective.total(objective.train()(batch)).backward()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


@torch.no_grad()
def test_full_finetuning_starts_as_lora_finetuning_does_and_from_scratch_it_does_not(base_folder):
    lora = Restorer.from_base(base_folder, build_adapter("none"), SIZE, timestep=200, lora=dict(rank=2, alpha=4)).eval()
    full, scratch = (built(base_folder, baseline)[0].eval() for baseline in (FullUNetObjective, ScratchUNetObjective))
    torch.testing.assert_close(full(lq()), lora(lq()), rtol=0, atol=1e-5)
    assert (scratch(lq()) - lora(lq())).abs().max() > 0.05


def test_a_random_start_is_decided_by_its_seed_is_torchs_own_and_leaves_the_global_state_alone(base_folder):
    loss = MultiLevelLoss({"pixel_mse": PixelMSE()}, {"pixel_mse": 1.0})
    starts = []
    for seed in (0, 0, 1):
        before = torch.get_rng_state()
        restorer, _ = built(
            base_folder, lambda restorer, loss, seed=seed: ScratchUNetObjective(restorer, loss, seed), loss
        )
        starts.append(restorer.denoiser.unet.conv_in.weight.detach().clone())
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    torch.manual_seed(0)
    assert torch.equal(starts[0], torch.nn.Conv2d(4, 16, 3, padding=1).weight)
