import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import ADAPTER, BASE, SIZE
from torch import nn

import lafr.networks.perceptual
from lafr.data.stream import PairStream
from lafr.errors import InputError
from lafr.losses.appearance import LatentL1, PerceptualLPIPS, PerceptualSTLPIPS, PixelL1, PixelMSE
from lafr.losses.multilevel import MultiLevelLoss, Restoration
from lafr.miniature.objectives import CodecObjective, PriorObjective
from lafr.models.adapter import build_adapter
from lafr.models.base.model import new_base
from lafr.training.loop import train
from lafr.training.objectives import (
    AlignmentObjective,
    CodebookObjective,
    RestorationObjective,
)

CODEBOOK = {"latent_l1": 1.0, "commitment": 0.25}
ALIGNMENT = {"latent_l1": 1.0, "feature_mse": 1.0, "index_ce": 0.1}
APPEARANCE = {"pixel_mse": PixelMSE, "pixel_l1": PixelL1, "perceptual": PerceptualSTLPIPS, "latent_l1": LatentL1}


def appearance(**weights):
    return MultiLevelLoss({name: APPEARANCE[name]() for name in weights}, weights)


def restoration(equal=False):
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(2, 2, 3, SIZE, SIZE, generator=draw) * 2 - 1
    latents = torch.randn(2, 2, 4, 8, 8, generator=draw)
    other = 0 if equal else 1
    return Restoration(images[0].requires_grad_(), images[other].detach(), latents[0].requires_grad_(), latents[other])


def test_a_term_is_zero_for_equal_images_and_positive_otherwise():
    for term in APPEARANCE.values():
        assert term()(restoration(equal=True)).abs() < 1e-7
        assert term()(restoration()) > 1e-3


def test_pixel_and_latent_terms_are_the_mean_distances_they_are_named_after():
    r = restoration()
    torch.testing.assert_close(PixelMSE()(r), (r.restored - r.hq).square().mean())
    torch.testing.assert_close(PixelL1()(r), (r.restored - r.hq).abs().mean())
    torch.testing.assert_close(LatentL1()(r), (r.z_restored - r.z_hq).abs().mean())


def test_weights_must_name_terms_and_one_of_them_must_count(restorer):
    with pytest.raises(InputError, match=r"terms a, got \['b'\]"):
        MultiLevelLoss({"a": PixelMSE()}, {"b": 1.0})
    for wrong in (float("nan"), -1.0):
        with pytest.raises(InputError, match=r"weights must be numbers, 0 or more, got \{.a"):
            MultiLevelLoss({"a": PixelMSE()}, {"a": wrong})
    terms = {name: torch.ones(()) for name in ("latent_l1", "latent_gap_before")}  # of an adapter without codes
    for weights in ({"latent_l1": 1.0, "feature_mze": 1.0}, {"latent_l1": 0.0}):
        with pytest.raises(InputError, match=r"weights must be .*latent_l1"):
            AlignmentObjective(restorer, weights).total(terms)
    assert AlignmentObjective(restorer, ALIGNMENT).total(terms) == 1


def test_a_term_of_weight_0_is_reported_but_trains_nothing(restorer):
    loss = appearance(pixel_mse=1.0, pixel_l1=0.0)
    objective = RestorationObjective(restorer, loss)
    terms = loss(restoration())
    assert terms["pixel_l1"] > 0 and not terms["pixel_l1"].requires_grad and terms["pixel_mse"].requires_grad
    assert torch.equal(objective.total(terms), terms["pixel_mse"])


def test_the_total_is_the_weighted_sum_and_so_is_its_gradient(restorer):
    r, loss = restoration(), appearance(pixel_mse=0.5, pixel_l1=2.0, latent_l1=0.3)
    total = RestorationObjective(restorer, loss).total(loss(r))
    expected = (
        0.5 * F.mse_loss(r.restored, r.hq) + 2 * F.l1_loss(r.restored, r.hq) + 0.3 * F.l1_loss(r.z_restored, r.z_hq)
    )
    torch.testing.assert_close(total, expected)
    wanted = torch.autograd.grad(expected, [r.restored, r.z_restored])
    for found, gradient in zip(torch.autograd.grad(total, [r.restored, r.z_restored]), wanted, strict=True):
        torch.testing.assert_close(found, gradient)


def test_a_term_that_holds_dropout_or_weights_stays_frozen_and_in_eval_mode(restorer):
    term = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    objective = RestorationObjective(restorer, MultiLevelLoss({"mine": term}, {"mine": 1.0}))
    objective.train()
    assert not any(module.training for module in term.modules())
    assert not any(p.requires_grad for p in term.parameters())


def test_lpips_draws_nothing_in_training(monkeypatch):
    pytest.importorskip("lpips", reason="LPIPS is the package's; it is a development requirement")
    torch.manual_seed(0)
    trunk = torchvision.models.alexnet(weights=None).state_dict()
    monkeypatch.setattr(lafr.networks.perceptual, "load_pickle", lambda name: trunk)
    loss = MultiLevelLoss({"perceptual": PerceptualLPIPS("alex")}, {"perceptual": 1.0}).train()
    r = Restoration(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64), None, None)
    assert torch.equal(loss(r)["perceptual"], loss(r)["perceptual"])


class Whole(nn.Module):
    """Every part of a restorer and the base it came from, to see what a stage changes."""

    def __init__(self, **parts):
        super().__init__()
        self.parts = nn.ModuleDict(parts)


def changed(parts, objective, faces, degradation, accelerator, folder):
    """Train two steps; return the names of all parameters and buffers that are not bit-equal afterwards."""
    whole = Whole(**parts)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    pairs = PairStream(faces, degradation, 0)
    train(objective, pairs, accelerator(), folder, max_steps=2, batch_size=4, learning_rate=1e-3, weight_decay=0.1)
    found = {n.removeprefix("parts.") for n, v in whole.state_dict().items() if not torch.equal(v, before[n])}
    started = [name for name in objective.trained_state() if name.endswith("initted")]  # was true before
    assert len(objective.trained_state()) == len(found) + len(started)
    return found


def parameters(parts, *prefixes):
    return {n.removeprefix("parts.") for n, _ in Whole(**parts).named_parameters() if n.startswith(tuple(prefixes))}


def test_the_codebook_stage_changes_extractor_mapper_and_codes_only(
    restorer, faces, degradation, accelerator, tmp_path
):
    parts = {"restorer": restorer}
    expected = parameters(parts, "parts.restorer.adapter.extractor", "parts.restorer.adapter.mapper")
    found = changed(parts, CodebookObjective(restorer, CODEBOOK), faces, degradation, accelerator, tmp_path)
    codes = {f"restorer.adapter.quantizer.layers.0._codebook.{name}" for name in ("embed", "embed_avg", "cluster_size")}
    assert found == expected | codes


def test_the_alignment_stage_changes_the_extractor_only(restorer, faces, degradation, accelerator, tmp_path):
    parts = {"restorer": restorer}
    found = changed(parts, AlignmentObjective(restorer, ALIGNMENT), faces, degradation, accelerator, tmp_path)
    assert found == parameters(parts, "parts.restorer.adapter.extractor")


def test_the_restoration_stage_changes_the_lora_and_if_asked_the_extractor(
    restorer, faces, degradation, accelerator, tmp_path
):
    parts = {"restorer": restorer}
    loss = appearance(pixel_mse=1.0, perceptual=0.3, latent_l1=0.3)
    found = changed(parts, RestorationObjective(restorer, loss), faces, degradation, accelerator, tmp_path / "lora")
    lora = {name for name in parameters(parts, "parts.restorer.denoiser") if ".lora_" in name}
    assert found == lora
    objective = RestorationObjective(restorer, loss, train_extractor=True)
    found = changed(parts, objective, faces, degradation, accelerator, tmp_path / "both")
    assert found == lora | parameters(parts, "parts.restorer.adapter.extractor")


def test_the_codec_stage_changes_the_autoencoder_only(base, faces, degradation, accelerator, tmp_path):
    parts = {"vae": base.vae, "unet": base.unet}
    objective = CodecObjective(base, PerceptualSTLPIPS(), {"pixel_l1": 1.0, "perceptual": 0.1, "kl": 1e-3})
    found = changed(parts, objective, faces, degradation, accelerator, tmp_path)
    assert found == parameters(parts, "parts.vae")


def test_the_prior_stage_changes_the_unet_only(base, faces, degradation, accelerator, tmp_path):
    parts = {"vae": base.vae, "unet": base.unet}
    found = changed(parts, PriorObjective(base), faces, degradation, accelerator, tmp_path)
    assert found == parameters(parts, "parts.unet")


def test_the_control_without_codes_trains_extractor_and_mapper_in_both_phases(
    restorer, faces, degradation, accelerator, tmp_path
):
    restorer.adapter = build_adapter("conv", **ADAPTER)
    parts = {"restorer": restorer}
    for name, make in (("codebook", CodebookObjective), ("alignment", AlignmentObjective)):
        weights = CODEBOOK if name == "codebook" else ALIGNMENT
        found = changed(parts, make(restorer, weights), faces, degradation, accelerator, tmp_path / name)
        assert found == parameters(parts, "parts.restorer.adapter")


def batch(faces, degradation, count=4):
    pairs = [PairStream(faces, degradation, 0)[n] for n in range(count)]
    return {key: torch.stack([pair[key] for pair in pairs]) for key in pairs[0]}


def test_alignments_targets_come_from_the_extractor_as_it_was(restorer, faces, degradation):
    objective = AlignmentObjective(restorer, ALIGNMENT).train()
    b = batch(faces, degradation)
    z_lq, z_hq = (restorer.codec.encode(b[key]) for key in ("lq", "hq"))
    with torch.no_grad():
        hq_code = restorer.adapter.quantizer.quantize(restorer.adapter.extract(z_hq))
        for parameter in restorer.adapter.extractor.parameters():
            parameter += 0.1
        features = restorer.adapter.extract(z_lq)
        terms = objective(b)
        torch.testing.assert_close(terms["feature_mse"], F.mse_loss(features, hq_code.features))
        expected = restorer.adapter.quantizer.index_cross_entropy(features, hq_code.indices)
        torch.testing.assert_close(terms["index_ce"], expected)
        torch.testing.assert_close(terms["latent_l1"], F.l1_loss(restorer.adapter(z_lq), z_hq), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(terms["latent_gap_before"], F.l1_loss(z_lq, z_hq))


def test_the_codebook_phase_never_looks_at_the_degraded_face(restorer, faces, degradation):
    objective = CodebookObjective(restorer, CODEBOOK).eval()
    b = batch(faces, degradation)
    seen, blank = objective(b), objective(b | {"lq": torch.zeros_like(b["lq"])})
    z_hq = restorer.codec.encode(b["hq"])
    assert torch.equal(seen["latent_l1"], blank["latent_l1"])
    torch.testing.assert_close(seen["latent_l1"], F.l1_loss(restorer.adapter(z_hq), z_hq))


def test_the_restoration_terms_are_those_of_the_restorers_own_output(restorer, faces, degradation):
    loss = appearance(pixel_mse=1.0, latent_l1=1.0)
    b = batch(faces, degradation)
    terms = RestorationObjective(restorer, loss).eval()(b)
    torch.testing.assert_close(terms["pixel_mse"], F.mse_loss(restorer(b["lq"]), b["hq"]))
    expected = F.l1_loss(restorer.latents(b["lq"]).z_restored, restorer.codec.encode(b["hq"]))
    torch.testing.assert_close(terms["latent_l1"], expected)


@pytest.mark.parametrize(
    "stage, encoded", [("prior", []), ("codebook", []), ("alignment", ["lq"]), ("restoration", ["lq"])]
)
def test_a_batch_that_brings_its_hq_latents_has_only_its_degraded_faces_encoded(
    stage, encoded, restorer, base, faces, degradation
):
    make = {
        "prior": lambda: PriorObjective(base),
        "codebook": lambda: CodebookObjective(restorer, CODEBOOK),
        "alignment": lambda: AlignmentObjective(restorer, ALIGNMENT),
        "restoration": lambda: RestorationObjective(restorer, appearance(pixel_mse=1.0, latent_l1=1.0)),
    }
    objective, b = make[stage]().eval(), batch(faces, degradation)
    expected, z_hq = objective(b), objective.codec.encode(b["hq"])
    seen, encode = [], objective.codec.vae.encode
    objective.codec.vae.encode = lambda image: (
        seen.append("hq" if torch.equal(image, b["hq"]) else "lq") or encode(image)
    )
    for name, value in objective(b | {"z_hq": z_hq}).items():
        assert torch.equal(value, expected[name])
    assert seen == encoded


def test_the_codes_start_from_the_latents_that_a_batch_brings(restorer, faces, degradation):
    started, b = [], batch(faces, degradation)
    for z_hq in ({}, {"z_hq": restorer.codec.encode(b["hq"])}, {"z_hq": torch.randn(4, 4, 8, 8)}):
        restorer.adapter.quantizer.code_buffers()["layers.0._codebook.initted"].fill_(False)
        CodebookObjective(restorer, CODEBOOK).before_step([b | z_hq], 0, lambda t: t)
        started.append(restorer.adapter.quantizer.code_buffers()["layers.0._codebook.embed"].clone())
    assert torch.equal(started[0], started[1]) and not torch.equal(started[0], started[2])


def test_the_prior_learns_the_noise_of_ddpms_forward_process(base, faces, degradation):
    objective = PriorObjective(base, seed=3)
    b = batch(faces, degradation)
    fed = {}

    class Spy(nn.Module):
        def forward(self, z_t, t, condition):
            fed.update(z_t=z_t, t=t, condition=condition)
            return type("Out", (), {"sample": torch.zeros_like(z_t)})

    objective.unet = Spy()
    mse = objective(b)["eps_mse"]
    z = base.codec().encode(b["hq"])
    abar = base.scheduler.alphas_cumprod[fed["t"]][:, None, None, None]
    noise = (fed["z_t"] - abar.sqrt() * z) / (1 - abar).sqrt()
    torch.testing.assert_close(fed["z_t"], base.scheduler.add_noise(z, noise, fed["t"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mse, noise.square().mean(), rtol=1e-3, atol=1e-3)
    assert 0.8 < noise.std() < 1.2
    assert torch.equal(fed["condition"], base.null_embedding.expand(4, -1, -1))


def test_a_prior_without_a_null_condition_is_refused_with_the_remedy(base):
    base.null_embedding, base.source = None, "data/sd15"
    with pytest.raises(InputError, match=r"'data/sd15'.*null_embedding\.safetensors"):
        PriorObjective(base)


def test_the_times_that_the_prior_sees_are_spread_evenly(base, faces, degradation):
    objective, times = PriorObjective(base), []
    objective.unet.forward = lambda z_t, t, _: times.append(t) or type("Out", (), {"sample": z_t})
    hq = torch.zeros(100, 3, SIZE, SIZE)
    for start in range(0, 1000, 100):
        objective({"hq": hq, "n": torch.arange(start, start + 100)})
    counts = torch.cat(times).div(100, rounding_mode="floor").bincount(minlength=10)
    assert counts.min() >= 95 and counts.max() <= 105


def test_the_codecs_noise_depends_on_the_pair_alone_and_is_off_in_eval_mode(base, faces, degradation):
    weights = {"pixel_l1": 1.0}
    objective = CodecObjective(base, nn.Identity(), weights).train()
    objective.perceptual.forward = lambda r: r.restored.mean()
    whole = batch(faces, degradation)
    with torch.no_grad():
        base.vae.quant_conv.bias[4:] += 2.0  # a wide posterior, so that its noise shows
        together = objective(whole)["pixel_l1"]
        apart = [objective({k: v[i : i + 1] for k, v in whole.items()})["pixel_l1"] for i in range(4)]
        torch.testing.assert_close(together, torch.stack(apart).mean())
        quiet = objective.eval()(whole)["pixel_l1"]
        torch.testing.assert_close(quiet, F.l1_loss(objective.restore(whole), whole["hq"]))
        assert (together - quiet).abs() > 1e-5


def test_after_the_codec_stage_the_latents_of_the_training_faces_have_unit_deviation(faces):
    base = new_base(**BASE)
    CodecObjective(base, nn.Identity(), {"pixel_l1": 1.0}).eval().finish(faces, torch.device("cpu"))
    z = base.codec().encode(torch.stack([faces[i] for i in range(len(faces))]))
    assert abs(z.std() - 1) < 1e-3


def test_two_micro_batches_move_the_codes_as_one_batch_does(restorer, faces, degradation):
    ends = []
    whole = batch(faces, degradation)
    start = {name: value.clone() for name, value in restorer.adapter.quantizer.code_buffers().items()}
    for parts in ([whole], [{k: v[:2] for k, v in whole.items()}, {k: v[2:] for k, v in whole.items()}]):
        for name, value in restorer.adapter.quantizer.code_buffers().items():
            value.copy_(start[name])
        objective = CodebookObjective(restorer, CODEBOOK).train()
        objective.before_step(parts, 0, lambda t: t)
        for part in parts:
            objective(part)
        objective.after_step(0, lambda t: t)
        ends.append({name: value.clone() for name, value in restorer.adapter.quantizer.code_buffers().items()})
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-5, atol=1e-5)
        assert name.endswith("initted") or not torch.equal(value, start[name])


def test_validation_in_between_leaves_no_trace_in_the_codes(restorer, faces, degradation):
    objective = CodebookObjective(restorer, CODEBOOK).train()
    b = batch(faces, degradation)
    objective(b)
    with torch.no_grad():
        objective.eval()(b)
        objective.train()(b)
    assert len(objective._seen) == 1


def test_a_trained_state_with_a_missing_or_an_unexpected_name_is_refused(restorer):
    objective = AlignmentObjective(restorer, ALIGNMENT)
    state = objective.trained_state()
    name = next(iter(state))
    for wrong in ({k: v for k, v in state.items() if k != name}, state | {"more": torch.zeros(1)}):
        with pytest.raises(ValueError, match=r"missing .* unexpected"):
            objective.load_trained_state(wrong)
