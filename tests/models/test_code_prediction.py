"""Codes that a transformer predicts (CodeFormer, DAEFR): what it looks up, what it is asked, what it is not."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ADAPTER, SIZE

from lafr.models.code_prediction import CodePredictionAdapter, CodePredictor
from lafr.models.restorer import Restorer
from lafr.training.objectives import AlignmentObjective, CodebookObjective


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    adapter = CodePredictionAdapter(**ADAPTER, num_codes=16, heads=2, ff_width=16)
    adapter.initialise_codes(draw(4, 8, 8, 8), torch.Generator().manual_seed(0))
    return adapter.train()


@pytest.fixture
def batch():
    images = {key: draw(2, 3, SIZE, SIZE, seed=seed).clamp(-1, 1) for seed, key in enumerate(("lq", "hq"))}
    return images | {"n": torch.tensor([3, 8])}


@pytest.fixture
def restorer(base_folder, adapter):
    return Restorer.from_base(base_folder, adapter, SIZE, timestep=200)


def test_an_lq_latent_gets_the_embedding_of_the_most_probable_code_and_not_the_nearest(adapter):
    features = draw(2, 8, 8, 6)
    found = adapter.assign(features)
    probable = adapter.predictor(features).softmax(-1).argmax(-1)
    looked_up = F.embedding(probable, adapter.quantizer.codebook).permute(0, 3, 1, 2)
    assert torch.equal(found.features, looked_up) and torch.equal(found.indices[..., 0], probable)
    assert not torch.equal(found.indices, adapter.quantize(features).indices)
    z = draw(2, 4, 8, 8)
    expected = adapter.map(F.embedding(adapter.predictor(adapter.extract(z)).argmax(-1), adapter.quantizer.codebook)
                           .permute(0, 3, 1, 2))  # fmt: skip
    assert torch.equal(adapter(z), expected)


def test_the_index_term_is_the_cross_entropy_of_the_predictor_and_not_of_distances(adapter):
    features, wanted = draw(2, 8, 8, 6), adapter.quantize(draw(2, 8, 8, 6, seed=1)).indices
    probabilities = adapter.predictor(features).softmax(-1)
    expected = -probabilities.gather(-1, wanted).log().mean()
    torch.testing.assert_close(adapter.index_cross_entropy(features, wanted), expected)


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
            (layer.self_attn.out_proj, attention.to_out[0]), (layer.linear1, feed[0].proj), (layer.linear2, feed[2]),
            (layer.norm1, block.norm1), (layer.norm2, block.norm3),
        ):  # fmt: skip
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


def test_a_prediction_depends_on_the_whole_face_and_on_the_place_in_it(adapter):
    features = draw(1, 8, 8, 8)
    changed = features.clone()
    changed[..., 7, 7] = draw(8, seed=3)
    assert not torch.equal(adapter.predictor(features)[0, 0, 0], adapter.predictor(changed)[0, 0, 0])
    same = adapter.predictor(torch.ones(1, 8, 8, 8))[0]
    assert not torch.allclose(same[0, 0], same[7, 7], atol=1e-3)


def test_the_codebook_phase_leaves_the_predictor_alone(restorer, batch):
    objective = CodebookObjective(restorer, {"latent_l1": 1.0, "commitment": 0.25}).train()
    objective.total(objective(batch)).backward()
    assert not [name for name in objective.trained_state() if "predictor" in name]
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)  # none unused: processes would wait for it


def test_in_the_codebook_phase_faces_are_rebuilt_through_the_nearest_codes(restorer, batch):
    objective = CodebookObjective(restorer, {"latent_l1": 1.0}).eval()
    adapter = restorer.adapter
    with torch.no_grad():
        features = adapter.extract(restorer.codec.encode(batch["hq"]))
        nearest = torch.cdist(features.permute(0, 2, 3, 1).flatten(1, 2), adapter.quantizer.codebook).argmin(-1)
        codes = adapter.quantizer.codebook[nearest].transpose(1, 2).reshape(features.shape)
        expected = restorer.codec.decode(adapter.map(codes))
        torch.testing.assert_close(objective.restore(batch), expected, rtol=1e-4, atol=1e-4)


def test_alignment_trains_extractor_and_predictor_by_the_hq_codes_and_no_gradient_passes_the_choice(restorer, batch):
    objective = AlignmentObjective(restorer, {"latent_l1": 1.0, "feature_mse": 1.0, "index_ce": 0.5}).train()
    terms = objective(batch)
    assert not terms["latent_l1"].requires_grad
    with torch.no_grad():
        wanted = restorer.adapter.quantize(restorer.adapter.extract(restorer.codec.encode(batch["hq"]))).indices
        features = restorer.adapter.extract(restorer.codec.encode(batch["lq"]))
        expected = F.cross_entropy(restorer.adapter.predictor(features).permute(0, 3, 1, 2), wanted[..., 0])
    torch.testing.assert_close(terms["index_ce"], expected)
    objective.total(terms).backward()
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in trained} == {"extractor", "predictor"}
    assert all(p.grad is not None for p in trained.values())
