"""The adversarial term: its losses by hand, what it trains, and discriminators of latents and of images."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import SIZE
from safetensors.torch import load_file, save_file
from torch import nn

from lafr.data.stream import PairStream
from lafr.errors import InputError
from lafr.losses.adversarial import Adversarial
from lafr.losses.discriminators import (
    ConvolutionalDiscriminator,
    Discriminator,
    FeatureDiscriminator,
    UNetEncoderDiscriminator,
)
from lafr.losses.multilevel import MultiLevelLoss, Restoration
from lafr.training.loop import train
from lafr.training.objectives import RestorationObjective


class Linear(Discriminator):
    """Scores that are a product with one vector."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 4 * 8 * 8))

    def forward(self, x):
        return x.flatten(1) @ self.weight[:, None]


def latents(count=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, 4, 8, 8, generator=draw)


def restoration(z_restored, z_hq):
    images = torch.zeros(len(z_hq), 3, SIZE, SIZE)
    return Restoration(images, images, z_restored, z_hq, torch.arange(len(z_hq)))


def alone(term: Adversarial) -> MultiLevelLoss:
    return MultiLevelLoss({"adversarial": term}, {"adversarial": 1.0})


def itself(tensor):
    return tensor


def test_both_sides_are_the_hinge_loss():
    real, restored = latents()
    term = Adversarial(Linear(), r1=0)
    scores = {name: Linear()(z) for name, z in (("real", real), ("restored", restored))}
    assert torch.equal(term(restoration(restored, real)), -scores["restored"].mean())
    loss, numbers = term.own_loss(real, restored, torch.arange(4))
    torch.testing.assert_close(loss, F.relu(1 - scores["real"]).mean() + F.relu(1 + scores["restored"]).mean())
    assert float(numbers["accuracy_real"]) == float((scores["real"] > 0).float().mean())
    assert float(numbers["accuracy_restored"]) == float((scores["restored"] < 0).float().mean())


def test_r1_is_on_average_the_squared_gradient_of_the_scores_of_real_samples():
    discriminator = Linear()
    term = Adversarial(discriminator, r1=1.0, r1_sigma=0.3)
    real = latents(1)[0]
    estimates = []
    for term.updates in range(400):  # other noise at each update
        estimates.append(float(term.gradient_penalty(real, discriminator(real), torch.tensor([0])).detach()))
    real.requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real)
    # of a normal variable's square the standard deviation is sqrt(2): 0.07 of the mean of 400
    assert sum(estimates) / 400 == pytest.approx(float(gradient.square().sum()), rel=0.25)


def test_warm_up_keeps_the_gradient_and_not_the_value():
    real, restored = latents()
    found = {}
    for updates in (0, 5, 10, 20):
        term = Adversarial(Linear(), warmup=10)
        term.updates, z = updates, restored.clone().requires_grad_()
        value = term(restoration(z, real))
        value.backward()
        found[updates] = float(value.detach()), float(z.grad.norm())
    assert len({value for value, _ in found.values()}) == 1
    assert found[0][1] == 0 and found[10][1] == found[20][1] > 0
    assert found[5][1] == pytest.approx(found[10][1] / 2)


def test_the_discriminator_learns_to_tell_two_sets_apart_and_stays_frozen_in_between():
    settings = dict(learning_rate=1e-2, seed=20_261_130)  # a date: with the updates mixed in it exceeds 64 bits
    term = alone(Adversarial(ConvolutionalDiscriminator(width=8, halvings=1), **settings)).terms["adversarial"]
    real, restored = latents()
    restored = 0.5 * restored + 0.3
    for _ in range(60):
        term.remember(real, restored, torch.arange(4))
        found = term.update(itself)
    assert found["accuracy_real"] > 0.9 and found["accuracy_restored"] > 0.9
    assert not any(p.requires_grad or p.grad is not None for p in term.parameters())


class Rooted(Linear):
    """Scores whose gradient is infinite and whose value is 0."""

    def forward(self, x):
        return (0 * self.weight).sqrt().sum().expand(len(x), 1)


def test_what_would_ruin_the_discriminator_is_refused_or_reported():
    for wrong in ({"r1_sigma": 0.0}, {"r1": float("nan")}, {"warmup": -1}, {"learning_rate": 0.0}):
        with pytest.raises(InputError, match=rf"^{next(iter(wrong))} must be "):
            Adversarial(Linear(), **wrong)
    term = alone(Adversarial(Rooted(), r1=0)).terms["adversarial"]
    term.remember(*latents(), torch.arange(4))
    found = term.update(itself)
    assert found["loss"] == 2 and not found["grad_norm"].isfinite()  # which ends the run before its checkpoint


def test_weight_0_and_validation_train_nothing():
    loss = MultiLevelLoss({"adversarial": Adversarial(Linear())}, {"adversarial": 0.0})
    loss(restoration(*latents()))
    assert loss.update(itself) == {}
    with torch.no_grad():
        alone(Adversarial(Linear()))(restoration(*latents()))
    assert loss.update(itself) == {}


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    real, restored = latents(4)
    whole, parts = (alone(Adversarial(Linear(), r1=0.5)).terms["adversarial"] for _ in range(2))
    whole.remember(real, restored, torch.arange(4))
    for k in (0, 2):
        parts.remember(real[k : k + 2], restored[k : k + 2], torch.arange(k, k + 2))
    # gradients of two processes are averaged as those of micro-batches: here the other has the same
    found = [whole.update(itself), parts.update(lambda tensor: torch.cat([tensor, tensor]))]
    torch.testing.assert_close(whole.discriminator.weight, parts.discriminator.weight)
    assert all(float(found[0][key]) == pytest.approx(float(found[1][key]), rel=1e-5) for key in found[0])


def test_a_state_is_taken_up_bit_for_bit():
    one, other = (alone(Adversarial(Linear(), learning_rate=1e-2)).terms["adversarial"] for _ in range(2))
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(one.training_state())
            other.load_training_state(copy.deepcopy(state))
        for term in (one, other) if step >= 2 else (one,):
            term.remember(*latents(seed=step), torch.arange(4))
            term.update(itself)
    assert torch.equal(one.discriminator.weight, other.discriminator.weight) and one.updates == other.updates == 4
    with pytest.raises(ValueError, match="weight"):
        other.load_training_state({**state, "parameters": {}})


@pytest.fixture
def vision_folder(tmp_path):
    """Make a tiny vision transformer of random weights in a folder."""
    transformers = pytest.importorskip("transformers")
    tiny = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
    kinds = {
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(mlp_ratio=2, **tiny)),
        "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(intermediate_size=32, **tiny)),
    }

    def make(kind):
        torch.manual_seed(0)
        kinds[kind]().save_pretrained(tmp_path / kind)
        return str(tmp_path / kind)

    return make


def make_discriminator(name, base, vision_folder):
    if name == "convolutional":
        return ConvolutionalDiscriminator(width=8, halvings=1)
    if name == "unet":
        return UNetEncoderDiscriminator(base, rank=2)
    return FeatureDiscriminator(vision_folder(name), layers=(1, 2), size=28, width=8)


@pytest.mark.parametrize("name", ["convolutional", "unet", "dinov2", "clip"])
def test_training_the_term_alone_changes_the_lora_and_what_the_discriminator_learns(
    name, base, vision_folder, restorer, faces, degradation, accelerator, tmp_path
):
    discriminator = make_discriminator(name, base, vision_folder)
    objective = RestorationObjective(restorer, alone(Adversarial(discriminator, learning_rate=1e-3)))
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    pairs = PairStream(faces, degradation, 0)
    train(objective, pairs, accelerator(), tmp_path, max_steps=2, batch_size=2, learning_rate=1e-3, log_every=1)
    changed = {key for key, value in objective.state_dict().items() if not torch.equal(value, before[key])}
    learned = objective.loss.learned()["adversarial"]._named()
    learned = {f"loss.terms.adversarial.{key}" for key in learned}
    lora = {key for key in before if key.startswith("restorer.denoiser") and ".lora_" in key}
    assert changed <= learned | lora
    assert len(changed & learned) > 0.8 * len(learned) and len(changed & lora) > 0.9 * len(lora)
    # what it learned serves the stage alone: the result holds the LoRA
    assert {key for key in objective.trained_state()} == lora
    log = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert all(f'"adversarial/{key}"' in log for key in ("accuracy_real", "accuracy_restored", "r1", "loss"))


def test_the_unets_encoder_starts_as_the_bases_and_leaves_the_base_as_it_was(base):
    before = {key: value.clone() for key, value in base.unet.state_dict().items()}
    discriminator = UNetEncoderDiscriminator(base, rank=2)
    assert before.keys() == base.unet.state_dict().keys()
    z, t = latents(2)[0], torch.zeros(2, dtype=torch.long)
    found = {}
    base.unet.mid_block.register_forward_hook(lambda *call: found.update(middle=call[2]))
    with torch.no_grad():
        base.unet(z, t, base.null_embedding.expand(2, -1, -1))
        torch.testing.assert_close(discriminator(z), discriminator.head(found["middle"]))
    assert not any(name.startswith("up_blocks") for name in discriminator.unet.state_dict())


def test_frozen_features_are_the_models_own_and_another_model_is_refused(vision_folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    for kind in ("dinov2", "clip"):
        discriminator = FeatureDiscriminator(vision_folder(kind), layers=(2,), size=28, width=8)
        image = torch.rand(2, 3, 56, 56) * 2 - 1
        assert discriminator(image).shape == (2, 1, 16)
        small = F.interpolate((image + 1) / 2, (28, 28), mode="bicubic", antialias=True)
        pixels = (small - discriminator.mean) / discriminator.std
        tokens = discriminator.features(pixel_values=pixels, output_hidden_states=True).hidden_states[2][:, 1:]
        expected = discriminator.heads[0](F.layer_norm(tokens, tokens.shape[-1:]))[..., 0]
        torch.testing.assert_close(discriminator(image)[:, 0], expected)
        with pytest.raises(InputError, match=r"layers must be from 1 to 2, got \[3\]"):
            FeatureDiscriminator(vision_folder(kind), layers=(3,))
    weights = tmp_path / "dinov2" / "model.safetensors"
    state = load_file(weights)
    lost = next(name for name in state if name.startswith("encoder"))
    save_file({name: value for name, value in state.items() if name != lost}, weights, {"format": "pt"})
    with pytest.raises(InputError, match=r"dinov2.; it lacks 1 weights .*encoder"):  # not drawn at random
        FeatureDiscriminator(str(weights.parent), layers=(2,))
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    for folder in ("bert", "absent"):
        with pytest.raises(InputError, match="folder"):
            FeatureDiscriminator(str(tmp_path / folder))


def test_a_discriminator_depends_on_its_seed_and_not_on_the_global_one(base):
    for make in (lambda: ConvolutionalDiscriminator(seed=3), lambda: UNetEncoderDiscriminator(base, seed=3)):
        torch.manual_seed(1)
        one, draw = make().state_dict(), torch.rand(1)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(1), draw)
        torch.manual_seed(2)
        assert all(torch.equal(value, one[name]) for name, value in make().state_dict().items())
