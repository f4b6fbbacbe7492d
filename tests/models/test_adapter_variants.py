"""Soft assignment, several heads, and what every way of choosing codes has to keep."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import ADAPTER, SIZE
from torch import nn
from vector_quantize_pytorch import VectorQuantize

import lafr.training.loop
from lafr.data.stream import PairStream
from lafr.errors import InputError
from lafr.models.adapter import CodebookAdapter, ConvAdapter, NoAdapter
from lafr.models.code_prediction import CodePredictionAdapter
from lafr.models.multi_head_codebook import MultiHeadCodebookAdapter
from lafr.models.restorer import Restorer
from lafr.models.soft_codebook import SoftCodebookAdapter
from lafr.training.loop import train
from lafr.training.objectives import AlignmentObjective, CodebookObjective

KINDS = {
    "soft": (SoftCodebookAdapter, dict(num_codes=16)),
    "top_k": (SoftCodebookAdapter, dict(num_codes=16, top_k=3)),
    "heads": (MultiHeadCodebookAdapter, dict(num_codes=16, heads=4)),
    "prediction": (CodePredictionAdapter, dict(num_codes=16, heads=2, ff_width=16)),
}


def random_features(seed=1):
    return torch.randn(4, 8, 8, 6, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(cls, **settings):
    torch.manual_seed(0)
    adapter = cls(**ADAPTER, **settings)
    adapter.initialise_codes(random_features(0), generator())
    return adapter


def rows(features):
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


@pytest.fixture
def hard():
    return made(CodebookAdapter, num_codes=16)


def test_a_soft_assignment_tends_to_the_hard_one_as_the_temperature_falls(hard):
    features, far = random_features(), []
    wanted = hard.eval().quantize(features)
    for temperature in (10.0, 1.0, 0.1, 1e-6):
        soft = made(SoftCodebookAdapter, num_codes=16, temperature=temperature).eval().quantize(features)
        assert torch.equal(soft.indices, wanted.indices)
        far.append(float((soft.features - wanted.features).abs().max()))
    assert far[0] > far[1] > far[2] > 0.1 and far[3] < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_reading_the_nearest_code_alone_is_the_hard_codebook_gradient_included(hard, training):
    top_1 = made(SoftCodebookAdapter, num_codes=16, top_k=1)
    found = []
    for adapter in (hard, top_1):
        features = random_features().requires_grad_()
        matched = adapter.train(training).quantize(features)
        gradient = None
        if training:
            (gradient,) = torch.autograd.grad((matched.features**2).sum() + matched.commitment, features)
        found.append((matched, gradient))
    (one, gradient), (other, same) = found
    assert torch.equal(one.features, other.features) and torch.equal(one.indices, other.indices)
    assert not training or (torch.equal(gradient, same) and gradient.abs().sum() > 0)


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_soft_code_is_the_mean_under_a_softmax_of_negative_distances(top_k):
    adapter = made(SoftCodebookAdapter, num_codes=16, temperature=0.7, top_k=top_k).train()
    features = random_features()
    codes = adapter.quantizer.codebook
    expected = torch.empty(4 * 8 * 6, 8)
    for i, vector in enumerate(rows(features)):
        distance = (codes - vector).norm(dim=1)
        chosen = distance.argsort()[: top_k or 16]
        weights = torch.exp(-distance[chosen] / 0.7)
        expected[i] = (weights[:, None] * codes[chosen]).sum(0) / weights.sum()
    torch.testing.assert_close(rows(adapter.quantize(features).features), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_soft_assignment_is_its_own_and_not_straight_through():
    adapter = made(SoftCodebookAdapter, num_codes=16).train().double()
    features = random_features()[:1, :, :2, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: adapter.quantize(f).features, features)


def test_soft_codes_are_learned_as_the_hard_codebooks_are(hard):
    soft, features = made(SoftCodebookAdapter, num_codes=16), random_features()
    for adapter in (hard, soft):
        adapter.train().update_codes(features, adapter.quantize(features).indices, generator(3))
    assert torch.equal(soft.quantizer.codebook, hard.quantizer.codebook)


def library(heads):
    """The library's own multi-head quantiser with the heads' codes."""
    own = VectorQuantize(
        dim=8, codebook_dim=8 // heads, codebook_size=16, heads=heads, separate_codebook_per_head=True,
        rotation_trick=False, decay=0.95, kmeans_init=False, threshold_ema_dead_code=0,
    )  # fmt: skip
    assert isinstance(own.project_in, nn.Identity)
    return own


@pytest.mark.parametrize("heads", [2, 4])
def test_every_head_takes_the_nearest_of_its_codes_to_its_part(heads):
    adapter, features = made(MultiHeadCodebookAdapter, num_codes=16, heads=heads).eval(), random_features()
    matched = adapter.quantize(features)
    assert matched.indices.shape == (4, 8, 6, heads)
    for head, part in enumerate(rows(features).split(8 // heads, 1)):
        codes = adapter.code_layers()[head].codebook
        nearest = torch.cdist(part.double(), codes.double()).argmin(1)
        assert torch.equal(matched.indices[..., head].flatten(), nearest)
        found = rows(matched.features)[:, head * 8 // heads : (head + 1) * 8 // heads]
        torch.testing.assert_close(found, codes[nearest], rtol=0, atol=0)


def test_several_heads_match_and_move_as_the_librarys_own_multi_head_quantiser_does():
    adapter, features = made(MultiHeadCodebookAdapter, num_codes=16, heads=4, dead_below=0.0).train(), random_features()
    own = library(4).train()
    for name in ("embed", "embed_avg", "cluster_size"):
        stacked = torch.cat([getattr(layer._codebook, name) for layer in adapter.code_layers()])
        getattr(own._codebook, name).copy_(stacked)
    given = features.flatten(2).transpose(1, 2)
    codes, indices, commitment = own(given, freeze_codebook=True)
    matched = adapter.quantize(features)
    assert torch.equal(matched.indices.flatten(1, 2), indices)
    torch.testing.assert_close(matched.features.flatten(2).transpose(1, 2), codes)
    torch.testing.assert_close(matched.commitment, commitment[0] if commitment.ndim else commitment)
    adapter.update_codes(features, matched.indices, generator())
    own.update_indices(given, indices)
    for head, layer in enumerate(adapter.code_layers()):
        torch.testing.assert_close(layer.codebook, own.codebook[head])


def test_the_index_cross_entropy_of_several_heads_is_the_sum_of_theirs_over_their_parts():
    adapter, features = made(MultiHeadCodebookAdapter, num_codes=16, heads=4).train(), random_features()
    indices = adapter.quantize(random_features(5)).indices
    expected = sum(
        F.cross_entropy(-torch.cdist(part, layer.codebook), given)
        for part, layer, given in zip(
            rows(features).split(2, 1), adapter.code_layers(), indices.reshape(-1, 4).unbind(1), strict=True
        )
    )
    torch.testing.assert_close(adapter.index_cross_entropy(features, indices), expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_several_heads_passes_straight_through_once():
    features = random_features().requires_grad_()
    matched = made(MultiHeadCodebookAdapter, num_codes=16, heads=4).train().quantize(features).features
    weight = torch.randn_like(matched)
    assert torch.equal(torch.autograd.grad(matched, features, weight)[0], weight)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_read_in_float32_under_autocast(kind):
    cls, settings = KINDS[kind]
    adapter, features = made(cls, **settings).train(), random_features()
    matched = adapter.quantize(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = adapter.quantize(features)
    assert torch.equal(found.features, matched.features) and torch.equal(found.indices, matched.indices)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_counts_every_weight_and_every_code_once(kind):
    cls, settings = KINDS[kind]
    adapter = made(cls, **settings)
    convolutions = ConvAdapter(**ADAPTER).size()
    predictor = sum(p.numel() for name, p in adapter.named_parameters() if name.startswith("predictor."))
    assert adapter.size() == convolutions + 16 * 8 + predictor
    assert bool(predictor) == (kind == "prediction")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_an_exported_graph_would_compute_is_what_the_adapter_computes(kind):
    cls, settings = KINDS[kind]
    adapter, z = made(cls, **settings).eval(), torch.randn(2, 4, 8, 8, generator=generator())
    torch.testing.assert_close(adapter.map(adapter.assign_in_graph(adapter.extract(z))), adapter(z))


class InGraph(nn.Module):
    """An adapter as a graph would hold it."""

    def __init__(self, adapter):
        super().__init__()
        self.adapter = adapter

    def forward(self, z):
        return self.adapter.map(self.adapter.assign_in_graph(self.adapter.extract(z)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_adapter_in_onnxruntime_gives_what_it_gives_in_pytorch(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    cls, settings = KINDS[kind]
    adapter, z = made(cls, **settings).requires_grad_(False).eval(), torch.randn(3, 4, 8, 8, generator=generator())
    program = torch.onnx.export(
        InGraph(adapter), (z[:2],), dynamo=True, opset_version=18, input_names=["z"], verbose=False,
        dynamic_shapes={"z": {0: torch.export.Dim("batch")}},
    )  # fmt: skip
    program.save(tmp_path / "adapter.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "adapter.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"z": z.numpy()})[0])
    torch.testing.assert_close(found, adapter(z), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_saved_restorer_restores_bit_for_bit_with_every_adapter(base_folder, tmp_path, kind):
    cls, settings = KINDS[kind]
    restorer = Restorer.from_base(base_folder, made(cls, **settings), SIZE, timestep=200, lora=dict(rank=2, alpha=4))
    restorer.requires_grad_(False).eval().save_pretrained(tmp_path)
    loaded, lq = Restorer.from_pretrained(tmp_path), torch.rand(2, 3, SIZE, SIZE, generator=generator()) * 2 - 1
    assert type(loaded.adapter) is cls and loaded.adapter.config == restorer.adapter.config
    assert torch.equal(loaded(lq), restorer(lq))


@torch.no_grad()
def total(objective, faces, degradation):
    """The loss over 20 pairs, always the same."""
    pairs = [PairStream(faces, degradation, 7)[n] for n in range(20)]
    batch = {key: torch.stack([torch.as_tensor(pair[key]) for pair in pairs]) for key in pairs[0]}
    objective.eval()
    return float(objective.total(objective(batch)))


@pytest.fixture
def stages(base_folder, faces, degradation, accelerator, tmp_path):
    """Train codebook and alignment of an adapter on the tiny model; return what each stage trained."""

    def stages(kind, folder, steps=(30, 60), **of_loop):
        cls, settings = KINDS[kind]
        torch.manual_seed(0)
        restorer = Restorer.from_base(base_folder, cls(**ADAPTER, **settings), SIZE, timestep=200)
        trained, fallen = [], []
        for name, count in zip(("codebook", "alignment"), steps, strict=True):
            objective = (
                CodebookObjective(restorer, {"latent_l1": 1.0, "commitment": 0.25})
                if name == "codebook"
                else AlignmentObjective(
                    restorer, {"latent_l1": 1.0, "feature_mse": 1.0, "index_ce": 0.5 * (kind == "prediction")}
                )
            )
            start = None if name == "codebook" else total(objective, faces, degradation)
            train(
                objective, PairStream(faces, degradation, 0), accelerator(), tmp_path / folder / name,
                max_steps=count, batch_size=4, learning_rate=3e-3, schedule="cosine", log_every=1, **of_loop,
            )  # fmt: skip
            trained.append({key: value.clone() for key, value in objective.trained_state().items()})
            fallen.append(start and total(objective, faces, degradation) / start)
        return restorer, trained, fallen[-1]

    return stages


def losses(folder, term):
    return [line[term] for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if term in line]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_both_phases_learn_and_train_what_they_say(stages, tmp_path, kind):
    restorer, (codebook, alignment), fallen = stages(kind, "run")
    found = losses(tmp_path / "run" / "codebook", "latent_l1")
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    assert fallen < 0.99
    parts = {"extractor", "predictor"} if kind == "prediction" else {"extractor"}
    assert {name.split(".")[1] for name in codebook} == {"extractor", "mapper", "quantizer"}
    assert {name.split(".")[1] for name in alignment} == parts
    for name, value in codebook.items():  # frozen in alignment
        if name.split(".")[1] != "extractor":
            assert torch.equal(value, restorer.adapter.state_dict()[name.removeprefix("adapter.")])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_in_either_phase_ends_as_one_that_was_not(stages, tmp_path, kind, monkeypatch):
    _, whole, _ = stages(kind, "whole", (4, 4), checkpoint_every=2)
    advance = lafr.training.loop.Log.advance
    for stage in ("codebook", "alignment"):

        def stop(log, stage=stage):
            advance(log)
            if log.path.parent.name == stage and log.bar.n == 3:
                raise InterruptedError

        monkeypatch.setattr(lafr.training.loop.Log, "advance", stop)
        with pytest.raises(InterruptedError):
            stages(kind, "stopped", (4, 4), checkpoint_every=2)
    monkeypatch.setattr(lafr.training.loop.Log, "advance", advance)
    _, resumed, _ = stages(kind, "stopped", (4, 4), checkpoint_every=2)
    for one, other in zip(whole, resumed, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftCodebookAdapter(temperature=0), "temperature=0 is not above 0"),
        (lambda: SoftCodebookAdapter(num_codes=8, top_k=9), "top_k=9 is not in 1..8"),
        (lambda: MultiHeadCodebookAdapter(code_dim=8, heads=3), "heads=3 does not divide adapter.code_dim=8"),
        (
            lambda: CodePredictionAdapter(code_dim=8, heads=3),
            "code_dim=8 is not a multiple of 4 and of adapter.heads=3",
        ),
    ],
)
def test_an_impossible_adapter_is_refused_with_its_value(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_adapters_without_choices_assign_what_they_extract():
    for adapter in (NoAdapter(), ConvAdapter(**ADAPTER)):
        z = torch.randn(2, 4, 8, 8, generator=generator())
        features = adapter.extract(z)
        assert torch.equal(adapter.assign(features).features, features)
        assert torch.equal(adapter.map(adapter.assign_in_graph(features)), adapter(z))
