"""Each quantizer alone, against brute force, the library's own classes and torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from lafr.errors import InputError
from lafr.models.quantizers import (
    CodePredictor,
    HardCodebook,
    HeadsCodebook,
    Identity,
    PredictedCodebook,
    ResidualCodebook,
    SoftCodebook,
    TopKCodebook,
)

D, N = 8, 16
KINDS = {
    "hard": (HardCodebook, {}),
    "residual": (ResidualCodebook, {"num_residual": 3}),
    "soft": (SoftCodebook, {}),
    "top_k": (TopKCodebook, {"top_k": 3}),
    "heads": (HeadsCodebook, {"heads": 4}),
    "predicted": (PredictedCodebook, {"heads": 2, "ff_width": 16}),
}
HARD = ("hard", "residual", "heads")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def random_features(seed=1):
    return draw(4, D, 8, 6, seed=seed)


def untrained(kind, **settings):
    cls, own = KINDS[kind]
    torch.manual_seed(0)
    return cls(D, **{"num_codes": N} | own | settings)


def made(kind, **settings):
    quantizer = untrained(kind, **settings)
    quantizer.initialise(random_features(0), generator())
    return quantizer


def rows(features):
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def buffers(quantizer):
    return {name: value.clone() for name, value in quantizer.code_buffers().items()}


def distortion(features, codes):
    return torch.cdist(rows(features), codes).square().min(1).values.mean()


def nearest(vectors, codes):
    return (vectors[:, None] - codes[None]).square().sum(-1).argmin(1)  # brute force


# --- matching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_matched_code_is_the_nearest_one(training):
    quantizer, features = made("hard").train(training), random_features()
    matched, codes = quantizer.quantize(features), quantizer.layers[0].codebook
    assert torch.equal(matched.indices.flatten(), nearest(rows(features), codes))
    torch.testing.assert_close(rows(matched.features), codes[matched.indices.flatten()], rtol=0, atol=1e-6)


def test_residual_codes_add_up_and_each_is_the_nearest_to_what_is_left_over():
    quantizer, features = made("residual").eval(), random_features()
    matched = quantizer.quantize(features)
    left, total = rows(features), 0.0
    for layer, chosen in zip(quantizer.layers, matched.indices.reshape(-1, 3).unbind(1), strict=True):
        assert torch.equal(chosen, nearest(left, layer.codebook))
        total, left = total + layer.codebook[chosen], left - layer.codebook[chosen]
    torch.testing.assert_close(rows(matched.features), total)
    assert left.square().mean() < 0.7 * F.mse_loss(made("hard").eval().quantize(features).features, features)


@pytest.mark.parametrize("heads", [2, 4])
def test_every_head_takes_the_nearest_of_its_codes_to_its_part(heads):
    quantizer, features = made("heads", heads=heads).eval(), random_features()
    matched = quantizer.quantize(features)
    assert matched.indices.shape == (4, 8, 6, heads)
    parts, found = rows(features).split(D // heads, 1), rows(matched.features).split(D // heads, 1)
    for head, (part, code) in enumerate(zip(parts, found, strict=True)):
        codes = quantizer.layers[head].codebook
        chosen = torch.cdist(part.double(), codes.double()).argmin(1)
        assert torch.equal(matched.indices[..., head].flatten(), chosen)
        assert torch.equal(code, codes[chosen])


def test_several_heads_match_and_move_as_the_librarys_own_multi_head_quantiser_does():
    quantizer, features = made("heads", dead_below=0.0).train(), random_features()
    own = VectorQuantize(
        dim=D,
        codebook_dim=D // 4,
        codebook_size=N,
        heads=4,
        separate_codebook_per_head=True,
        rotation_trick=False,
        decay=0.95,
        kmeans_init=False,
        threshold_ema_dead_code=0,
    ).train()
    assert isinstance(own.project_in, nn.Identity)
    for name in ("embed", "embed_avg", "cluster_size"):
        stacked = torch.cat([getattr(layer._codebook, name) for layer in quantizer.layers])
        getattr(own._codebook, name).copy_(stacked)
    given = features.flatten(2).transpose(1, 2)
    codes, indices, commitment = own(given, freeze_codebook=True)
    matched = quantizer.quantize(features)
    assert torch.equal(matched.indices.flatten(1, 2), indices)
    torch.testing.assert_close(matched.features.flatten(2).transpose(1, 2), codes)
    torch.testing.assert_close(matched.commitment, commitment[0] if commitment.ndim else commitment)
    quantizer.update(features, matched.indices, generator())
    own.update_indices(given, indices)
    for head, layer in enumerate(quantizer.layers):
        torch.testing.assert_close(layer.codebook, own.codebook[head])


def test_the_gradient_passes_straight_through_the_matching_once():
    for kind in HARD:
        features = random_features().requires_grad_()
        matched = made(kind).train().quantize(features).features
        weight = draw(*matched.shape, seed=5)
        assert torch.equal(torch.autograd.grad(matched, features, weight)[0], weight)


def test_commitment_is_the_squared_distance_to_the_code_and_pulls_the_features_only():
    quantizer, features = made("hard").train(), random_features().requires_grad_()
    matched = quantizer.quantize(features)
    codes = quantizer.layers[0].codebook[matched.indices[..., 0]].permute(0, 3, 1, 2)
    torch.testing.assert_close(matched.commitment, F.mse_loss(features, codes))
    matched.commitment.backward()
    torch.testing.assert_close(features.grad, 2 * (features - codes).detach() / features.numel())


@pytest.mark.parametrize("kind", HARD)
def test_index_cross_entropy_is_that_of_a_softmax_over_negative_distances(kind):
    quantizer, features = made(kind).train(), random_features().requires_grad_()
    wanted = quantizer.quantize(random_features(3)).indices
    left, expected = rows(features), 0.0
    parts = left.split(D // 4, 1) if kind == "heads" else [left] * len(quantizer.layers)
    for layer, part, chosen in zip(quantizer.layers, parts, wanted.flatten(0, 2).unbind(1), strict=True):
        given = part if kind == "heads" else left
        expected = expected + F.cross_entropy(-torch.cdist(given, layer.codebook), chosen)
        if kind != "heads":
            left = left - layer.codebook[chosen]
    loss = quantizer.index_cross_entropy(features, wanted)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(loss, features)[0].abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_matched_in_float32_under_autocast(kind):
    quantizer, features = made(kind).train(), random_features()
    matched = quantizer.quantize(features)
    cross_entropy = quantizer.index_cross_entropy(features, matched.indices)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer.quantize(features)
        again = quantizer.index_cross_entropy(features, matched.indices)
    assert torch.equal(found.features, matched.features) and torch.equal(found.indices, matched.indices)
    assert torch.equal(found.commitment, matched.commitment)
    assert kind == "predicted" or torch.equal(again, cross_entropy)  # the predictor's layers follow autocast


class InGraph(nn.Module):
    """A quantizer as a graph would hold it."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, features):
        return self.quantizer.assign(features).features


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_quantizer_in_onnxruntime_gives_what_it_gives_in_pytorch(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    quantizer, features = made(kind).requires_grad_(False).eval(), draw(3, D, 8, 8)
    program = torch.onnx.export(
        InGraph(quantizer),
        (features[:2],),
        dynamo=True,
        opset_version=18,
        input_names=["features"],
        verbose=False,
        dynamic_shapes={"features": {0: torch.export.Dim("batch")}},
    )
    program.save(tmp_path / "quantizer.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "quantizer.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"features": features.numpy()})[0])
    torch.testing.assert_close(found, quantizer.assign(features).features, rtol=0, atol=1e-4)


# --- learning the codes -----------------------------------------------------------------------------------------------


def test_the_kmeans_start_is_the_librarys_own_from_the_same_seed():
    quantizer = untrained("hard")
    quantizer.initialise(random_features(), generator(5))
    library = VectorQuantize(dim=D, codebook_size=N, kmeans_init=True)
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator(5))))
    library._codebook.init_embed_(rows(random_features())[None])
    torch.testing.assert_close(quantizer.layers[0].codebook, library.codebook)


def test_the_kmeans_start_is_closer_to_the_features_than_codes_drawn_from_them():
    features, quantizer = random_features(), untrained("hard")
    quantizer.initialise(features, generator())
    drawn = [rows(features)[torch.randperm(192, generator=generator(seed))[:N]] for seed in range(10)]
    assert distortion(features, quantizer.layers[0].codebook) < 0.8 * min(distortion(features, d) for d in drawn)


def test_a_residual_codebook_starts_from_what_the_one_before_it_left_over():
    features = random_features(0)
    first, second = made("residual", num_residual=2).layers
    left = rows(features) - first.codebook[nearest(rows(features), first.codebook)]
    library, draws = VectorQuantize(dim=D, codebook_size=N, kmeans_init=True), generator()
    torch.randint(2**62, (), generator=draws)  # the first codebook's
    torch.manual_seed(int(torch.randint(2**62, (), generator=draws)))
    library._codebook.init_embed_(left[None])
    torch.testing.assert_close(second.codebook, library.codebook)


def test_codes_move_by_the_moving_average_of_the_features_they_matched():
    quantizer, features = made("hard", decay=0.9, dead_below=0.0).train(), random_features()
    indices = quantizer.quantize(features).indices
    codebook = quantizer.layers[0]._codebook
    size, total = codebook.cluster_size[0].clone(), codebook.embed_avg[0].clone()
    quantizer.update(features, indices, generator())

    onehot = F.one_hot(indices.flatten(), N).float()  # van den Oord et al., 2017, appendix A.1
    size = 0.9 * size + 0.1 * onehot.sum(0)
    total = 0.9 * total + 0.1 * onehot.T @ rows(features)
    smoothed = (size + 1e-5) / (size.sum() + N * 1e-5) * size.sum()
    torch.testing.assert_close(codebook.cluster_size[0], size)
    torch.testing.assert_close(quantizer.layers[0].codebook, total / smoothed[:, None])


def test_residual_codes_are_updated_with_what_is_left_over_for_them():
    quantizer, features = made("residual", num_residual=2, decay=0.0, dead_below=0.0).train(), random_features()
    indices = quantizer.quantize(features).indices
    first, second = (layer.codebook.clone() for layer in quantizer.layers)
    quantizer.update(features, indices, generator())
    left = rows(features) - first[indices[..., 0].flatten()]
    code = indices[..., 1].flatten().bincount().argmax()
    matched = left[indices[..., 1].flatten() == code]
    torch.testing.assert_close(quantizer.layers[1].codebook[code], matched.mean(0), rtol=1e-4, atol=1e-4)
    assert not torch.equal(second, quantizer.layers[1].codebook)


def test_a_code_in_too_little_use_is_reset_to_a_feature_of_the_batch_and_the_others_are_not():
    quantizer, features = made("hard", decay=0.5, dead_below=1.0).train(), random_features()
    codebook = quantizer.layers[0]._codebook
    codebook.embed[0, 3] = 100.0  # out of reach: never matched
    codebook.cluster_size[0] = torch.tensor([1.5 if i == 3 else 20.0 for i in range(N)])
    before = quantizer.layers[0].codebook.clone()
    quantizer.update(features, quantizer.quantize(features).indices, generator())
    after = quantizer.layers[0].codebook
    is_a_feature = [(rows(features) == code).all(1).any().item() for code in after]
    assert is_a_feature == [i == 3 for i in range(N)]
    assert not torch.equal(after[3], before[3])


def test_the_update_does_not_depend_on_the_order_in_which_the_batch_is_gathered_but_for_rounding():
    features, turned = random_features(), random_features().flip(0)
    one, other = made("hard", dead_below=0.0), made("hard", dead_below=0.0)
    one.update(features, one.quantize(features).indices, generator())
    other.update(turned, other.quantize(turned).indices, generator())
    torch.testing.assert_close(one.layers[0].codebook, other.layers[0].codebook, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", HARD)
def test_start_and_update_are_decided_by_the_generator_and_leave_the_global_one_alone(kind):
    torch.manual_seed(7)
    before, ends = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        with torch.random.fork_rng():
            quantizer = untrained(kind, dead_below=30.0).train()
        quantizer.initialise(random_features(), generator(seed))
        quantizer.update(random_features(2), quantizer.quantize(random_features(2)).indices, generator(seed))
        ends.append(buffers(quantizer))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def test_matching_in_training_changes_no_code():
    for kind in KINDS:
        quantizer = made(kind).train()
        before = buffers(quantizer)
        for seed in range(3):
            quantizer.quantize(random_features(seed))
        assert before and all(torch.equal(value, before[name]) for name, value in buffers(quantizer).items())


def test_soft_codes_are_learned_as_the_hard_codebooks_are():
    hard, soft, features = made("hard"), made("soft"), random_features()
    for quantizer in (hard, soft):
        quantizer.train().update(features, quantizer.quantize(features).indices, generator(3))
    assert torch.equal(soft.layers[0].codebook, hard.layers[0].codebook)


# --- soft assignment --------------------------------------------------------------------------------------------------


def test_a_soft_assignment_tends_to_the_hard_one_as_the_temperature_falls():
    features, far = random_features(), []
    wanted = made("hard").eval().quantize(features)
    for temperature in (10.0, 1.0, 0.1, 1e-6):
        soft = made("soft", temperature=temperature).eval().quantize(features)
        assert torch.equal(soft.indices, wanted.indices)
        far.append(float((soft.features - wanted.features).abs().max()))
    assert far[0] > far[1] > far[2] > 0.1 and far[3] < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_the_mean_of_one_code_is_the_hard_codebook_gradient_included(training):
    found = []
    for quantizer in (made("hard"), made("top_k", top_k=1)):
        features = random_features().requires_grad_()
        matched = quantizer.train(training).quantize(features)
        loss = (matched.features**2).sum() + matched.commitment
        gradient = torch.autograd.grad(loss, features)[0] if training else torch.ones(1)
        found.append((matched, gradient))
    (one, gradient), (other, same) = found
    assert torch.equal(one.features, other.features) and torch.equal(one.indices, other.indices)
    assert torch.equal(gradient, same) and gradient.abs().sum() > 0


@pytest.mark.parametrize("kind", ["soft", "top_k"])
def test_a_soft_code_is_the_mean_under_a_softmax_of_negative_distances(kind):
    quantizer, features = made(kind, temperature=0.7).train(), random_features()
    codes = quantizer.layers[0].codebook
    expected = torch.empty(4 * 8 * 6, D)
    for i, vector in enumerate(rows(features)):
        distance = (codes - vector).norm(dim=1)
        chosen = distance.argsort()[: 3 if kind == "top_k" else N]
        weights = torch.exp(-distance[chosen] / 0.7)
        expected[i] = (weights[:, None] * codes[chosen]).sum(0) / weights.sum()
    torch.testing.assert_close(rows(quantizer.quantize(features).features), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_soft_assignment_is_its_own_and_not_straight_through():
    quantizer = made("soft").train().double()
    features = random_features()[:1, :, :2, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: quantizer.quantize(f).features, features)


# --- predicted codes --------------------------------------------------------------------------------------------------


def test_an_lq_latent_gets_the_most_probable_code_and_not_the_nearest():
    quantizer, features = made("predicted").train(), draw(2, D, 8, 6)
    found = quantizer.assign(features)
    probable = quantizer.predictor(features).softmax(-1).argmax(-1)
    looked_up = F.embedding(probable, quantizer.layers[0].codebook).permute(0, 3, 1, 2)
    assert torch.equal(found.features, looked_up) and torch.equal(found.indices[..., 0], probable)
    assert not torch.equal(found.indices, quantizer.quantize(features).indices)


def test_the_index_term_is_the_cross_entropy_of_the_predictor_and_not_of_distances():
    quantizer = made("predicted").train()
    features, wanted = draw(2, D, 8, 6), quantizer.quantize(draw(2, D, 8, 6, seed=1)).indices
    probabilities = quantizer.predictor(features).softmax(-1)
    expected = -probabilities.gather(-1, wanted).log().mean()
    torch.testing.assert_close(quantizer.index_cross_entropy(features, wanted), expected)


def test_the_predictor_is_torchs_own_pre_norm_transformer_with_the_same_weights():
    torch.manual_seed(0)
    predictor = CodePredictor(8, 16, layers=2, heads=2, ff_width=24).eval()
    layers = []
    for block in predictor.layers:
        layer = torch.nn.TransformerEncoderLayer(
            8, 2, 24, dropout=0.0, activation=lambda x: F.gelu(x), batch_first=True, norm_first=True
        )
        attention, feed = block.attn1, block.ff.net
        layer.self_attn.in_proj_weight.data = torch.cat(
            [p.weight for p in (attention.to_q, attention.to_k, attention.to_v)]
        )
        layer.self_attn.in_proj_bias.data = torch.cat(
            [p.bias for p in (attention.to_q, attention.to_k, attention.to_v)]
        )
        for own, given in (
            (layer.self_attn.out_proj, attention.to_out[0]),
            (layer.linear1, feed[0].proj),
            (layer.linear2, feed[2]),
            (layer.norm1, block.norm1),
            (layer.norm2, block.norm3),
        ):
            own.load_state_dict(given.state_dict())
        layers.append(layer.eval())
    features = draw(2, 8, 4, 6)
    place = torch.empty(4, 6, 8)
    for y in range(4):
        for x in range(6):
            for half, where in ((0, x * 16 / 6), (1, y * 16 / 4)):  # sines of the place, on a face of 16 x 16
                angles = where / 10_000 ** (torch.arange(2) / 2)
                place[y, x, 4 * half : 4 * half + 4] = torch.cat([angles.sin(), angles.cos()])
    tokens = (features.permute(0, 2, 3, 1) + place).flatten(1, 2)
    for layer in layers:
        tokens = layer(tokens)
    expected = predictor.head(predictor.norm(tokens)).unflatten(1, (4, 6))
    torch.testing.assert_close(predictor(features), expected, rtol=1e-4, atol=1e-5)


def test_a_prediction_depends_on_the_whole_face_and_on_the_place_in_it():
    predictor, features = made("predicted").predictor, draw(1, D, 8, 8)
    changed = features.clone()
    changed[..., 7, 7] = draw(D, seed=3)
    assert not torch.equal(predictor(features)[0, 0, 0], predictor(changed)[0, 0, 0])
    same = predictor(torch.ones(1, D, 8, 8))[0]
    assert not torch.allclose(same[0, 0], same[7, 7], atol=1e-3)


# --- all --------------------------------------------------------------------------------------------------------------


def test_the_size_counts_every_weight_and_every_code_once():
    for kind in KINDS:
        quantizer = made(kind)
        predictor = sum(p.numel() for p in quantizer.parameters())
        assert quantizer.size() == N * D * (3 if kind == "residual" else 1) + predictor
        assert bool(predictor) == (kind == "predicted")


def test_the_identity_assigns_what_it_is_given_and_has_no_codes():
    quantizer, features = Identity(), random_features()
    assert torch.equal(quantizer.assign(features).features, features)
    assert not quantizer.has_codes and quantizer.size() == 0 and quantizer.state_dict() == {}


def test_an_impossible_quantizer_is_refused_with_its_value():
    for make, words in (
        (lambda: TopKCodebook(8, num_codes=8, top_k=9), "top_k.*8.*got 9"),
        (lambda: HeadsCodebook(8, heads=3), "heads.*code_dim=8.*got 3"),
        (lambda: PredictedCodebook(8, heads=3), "code_dim.*heads=3.*got 8"),
    ):
        with pytest.raises(InputError, match=words):
            make()
