from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ADAPTER
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from vector_quantize_pytorch import VectorQuantize

from lafr.errors import InputError
from lafr.models.adapter import CodebookAdapter, NoAdapter
from lafr.models.restorer import load_adapter

CONFIGS = str(Path(__file__).resolve().parents[2] / "configs")


def random_features(seed=1, batch=4, side=8):
    return torch.randn(batch, 8, side, side, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def adapter_with(num_codes=16, **settings):
    torch.manual_seed(0)
    adapter = CodebookAdapter(**ADAPTER, num_codes=num_codes, **settings)
    adapter.initialise_codes(random_features(0), generator())
    return adapter


def rows(features):
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def buffers(adapter):
    return {name: value.clone() for name, value in adapter.code_buffers().items()}


def codebook(adapter):
    return adapter.quantizer._codebook


def distortion(features, codes):
    return torch.cdist(rows(features), codes).square().min(1).values.mean()


@pytest.mark.parametrize("training", [True, False])
def test_the_matched_code_is_the_nearest_one(codebook_adapter, training):
    features = random_features()
    matched = codebook_adapter.train(training).quantize(features)
    codes = codebook_adapter.quantizer.codebook
    nearest = (rows(features)[:, None] - codes[None]).square().sum(-1).argmin(1)  # brute force
    assert torch.equal(matched.indices.flatten(), nearest)
    torch.testing.assert_close(rows(matched.features), codes[nearest], rtol=0, atol=1e-6)


@pytest.mark.parametrize("residual", [1, 3])
def test_the_gradient_passes_straight_through_the_matching_once(residual):
    features = random_features().requires_grad_()
    matched = adapter_with(num_residual=residual).train().quantize(features).features
    weight = torch.randn_like(matched)
    matched.backward(weight)
    torch.testing.assert_close(features.grad, weight, rtol=0, atol=0)


def test_commitment_is_the_squared_distance_to_the_code_and_pulls_the_features_only(codebook_adapter):
    features = random_features().requires_grad_()
    matched = codebook_adapter.train().quantize(features)
    codes = codebook_adapter.quantizer.codebook[matched.indices[..., 0]].permute(0, 3, 1, 2)
    torch.testing.assert_close(matched.commitment, F.mse_loss(features, codes))
    matched.commitment.backward()
    torch.testing.assert_close(features.grad, 2 * (features - codes).detach() / features.numel())


@pytest.mark.parametrize("residual", [1, 3])
def test_a_forward_pass_in_training_changes_no_code(residual):
    adapter = adapter_with(num_residual=residual).train()
    before = buffers(adapter)
    for seed in range(3):
        adapter(torch.randn(2, 4, 8, 8, generator=generator(seed)))
    assert before and all(torch.equal(value, before[name]) for name, value in buffers(adapter).items())


def test_the_kmeans_start_is_the_librarys_own_from_the_same_seed():
    adapter = CodebookAdapter(**ADAPTER, num_codes=16)
    adapter.initialise_codes(random_features(), generator(5))
    library = VectorQuantize(dim=8, codebook_size=16, kmeans_init=True)
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator(5))))
    library._codebook.init_embed_(rows(random_features())[None])
    torch.testing.assert_close(adapter.quantizer.codebook, library.codebook)


def test_the_kmeans_start_is_closer_to_the_features_than_codes_drawn_from_them():
    features = random_features()
    adapter = CodebookAdapter(**ADAPTER, num_codes=16)
    adapter.initialise_codes(features, generator())
    drawn = [rows(features)[torch.randperm(256, generator=generator(seed))[:16]] for seed in range(10)]
    assert distortion(features, adapter.quantizer.codebook) < 0.8 * min(distortion(features, d) for d in drawn)


def test_codes_move_by_the_moving_average_of_the_features_they_matched():
    adapter = adapter_with(decay=0.9, dead_below=0.0).train()
    features = random_features()
    matched = adapter.quantize(features)
    size, total = codebook(adapter).cluster_size[0].clone(), codebook(adapter).embed_avg[0].clone()
    adapter.update_codes(features, matched.indices, generator())

    onehot = F.one_hot(matched.indices.flatten(), 16).float()  # van den Oord et al., 2017, appendix A.1
    size = 0.9 * size + 0.1 * onehot.sum(0)
    total = 0.9 * total + 0.1 * onehot.T @ rows(features)
    smoothed = (size + 1e-5) / (size.sum() + 16e-5) * size.sum()
    torch.testing.assert_close(codebook(adapter).cluster_size[0], size)
    torch.testing.assert_close(adapter.quantizer.codebook, total / smoothed[:, None])


def test_a_code_in_too_little_use_is_reset_to_a_feature_of_the_batch_and_the_others_are_not():
    adapter = adapter_with(decay=0.5, dead_below=1.0).train()
    codebook(adapter).embed[0, 3] = 100.0  # out of reach: never matched
    codebook(adapter).cluster_size[0] = torch.tensor([1.5 if i == 3 else 20.0 for i in range(16)])
    before = adapter.quantizer.codebook.clone()
    features = random_features()
    adapter.update_codes(features, adapter.quantize(features).indices, generator())
    after = adapter.quantizer.codebook
    is_a_feature = [(rows(features) == code).all(1).any().item() for code in after]
    assert is_a_feature == [i == 3 for i in range(16)]
    assert not torch.equal(after[3], before[3])


def test_the_update_does_not_depend_on_the_order_in_which_the_batch_is_gathered_but_for_rounding():
    features, turned = random_features(), random_features().flip(0)
    one, other = adapter_with(dead_below=0.0), adapter_with(dead_below=0.0)
    one.update_codes(features, one.quantize(features).indices, generator())
    other.update_codes(turned, other.quantize(turned).indices, generator())
    torch.testing.assert_close(one.quantizer.codebook, other.quantizer.codebook, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("residual", [1, 3])
def test_start_and_update_are_decided_by_the_generator_and_leave_the_global_one_alone(residual):
    torch.manual_seed(7)
    before, ends = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            adapter = CodebookAdapter(**ADAPTER, num_codes=16, num_residual=residual, dead_below=30.0).train()
        adapter.initialise_codes(random_features(), generator(seed))
        adapter.update_codes(random_features(2), adapter.quantize(random_features(2)).indices, generator(seed))
        ends.append(buffers(adapter))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def test_residual_codes_add_up_and_each_is_the_nearest_to_what_is_left_over():
    adapter = adapter_with(num_residual=3).eval()
    features = random_features()
    matched = adapter.quantize(features)
    left, total = rows(features), torch.zeros(256, 8)
    for layer, chosen in zip(adapter.code_layers(), matched.indices.reshape(-1, 3).unbind(1), strict=True):
        assert torch.equal(chosen, (left[:, None] - layer.codebook[None]).square().sum(-1).argmin(1))
        total, left = total + layer.codebook[chosen], left - layer.codebook[chosen]
    torch.testing.assert_close(rows(matched.features), total)
    assert left.square().mean() < 0.7 * F.mse_loss(adapter_with().eval().quantize(features).features, features)


def test_a_residual_quantiser_starts_from_what_the_one_before_it_left_over():
    features = random_features(0)
    first, second = adapter_with(num_residual=2).code_layers()
    chosen = (rows(features)[:, None] - first.codebook[None]).square().sum(-1).argmin(1)
    left = rows(features) - first.codebook[chosen]
    library, draws = VectorQuantize(dim=8, codebook_size=16, kmeans_init=True), generator()
    torch.randint(2**62, (), generator=draws)  # the first quantiser's
    torch.manual_seed(int(torch.randint(2**62, (), generator=draws)))
    library._codebook.init_embed_(left[None])
    torch.testing.assert_close(second.codebook, library.codebook)


def test_residual_codes_are_updated_with_what_is_left_over_for_them():
    adapter = adapter_with(num_residual=2, decay=0.0, dead_below=0.0).train()
    features = random_features()
    indices = adapter.quantize(features).indices
    first, second = (layer.codebook.clone() for layer in adapter.code_layers())
    adapter.update_codes(features, indices, generator())
    left = rows(features) - first[indices[..., 0].flatten()]
    code = indices[..., 1].flatten().bincount().argmax()
    matched = left[indices[..., 1].flatten() == code]
    torch.testing.assert_close(adapter.code_layers()[1].codebook[code], matched.mean(0), rtol=1e-4, atol=1e-4)
    assert not torch.equal(second, adapter.code_layers()[1].codebook)


@pytest.mark.parametrize("residual", [1, 3])
def test_index_cross_entropy_is_that_of_a_softmax_over_negative_distances(residual):
    adapter = adapter_with(num_residual=residual).train()
    wanted = adapter.quantize(random_features(3)).indices
    features = random_features().requires_grad_()
    left, expected = rows(features), 0.0
    for layer, chosen in zip(adapter.code_layers(), wanted.reshape(-1, residual).unbind(1), strict=True):
        expected = expected + F.cross_entropy(-torch.cdist(left, layer.codebook), chosen)
        left = left - layer.codebook[chosen]
    loss = adapter.index_cross_entropy(features, wanted)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(loss, features)[0].abs().sum() > 0


@pytest.mark.parametrize("residual", [1, 3])
def test_codes_are_matched_in_float32_under_autocast_and_the_output_is_float32(residual):
    adapter, features = adapter_with(num_residual=residual).train(), random_features()
    matched = adapter.quantize(features)
    cross_entropy = adapter.index_cross_entropy(features, matched.indices)
    with torch.autocast("cpu", torch.bfloat16):
        found = adapter.quantize(features)
        assert torch.equal(found.features, matched.features) and torch.equal(found.indices, matched.indices)
        assert torch.equal(found.commitment, matched.commitment)
        assert torch.equal(adapter.index_cross_entropy(features, matched.indices), cross_entropy)
        assert adapter(torch.randn(2, 4, 8, 8)).dtype == adapter.extract(torch.randn(2, 4, 8, 8)).dtype == torch.float32


def test_no_adapter_changes_nothing_and_learns_nothing():
    z = torch.randn(2, 4, 8, 8)
    assert torch.equal(NoAdapter()(z), z)
    assert NoAdapter().size() == 0


def test_what_is_compared_with_the_adapter_is_as_large_within_5_percent():
    equal = ("residual_codebook", "soft_codebook", "topk_codebook", "heads_codebook")
    with initialize_config_dir(CONFIGS, version_base=None):
        size = {
            name: instantiate(compose("train", [f"adapter={name}", "run_name=test"]).adapter).size()
            for name in ("codebook", "conv", "code_prediction", "sd", *equal)
        }
    for name in ("conv", "code_prediction"):
        assert abs(size[name] / size["codebook"] - 1) < 0.05
    assert {size[name] for name in equal} == {size["codebook"]}
    assert abs(size["sd"] / 3.9e6 - 1) < 0.05


@pytest.fixture
def saved(codebook_adapter, tmp_path):
    codebook_adapter.save_pretrained(tmp_path)
    name = f"{CodebookAdapter.__module__}.{CodebookAdapter.__qualname__}"
    return tmp_path, name, load_file(tmp_path / "diffusion_pytorch_model.safetensors")


def test_a_saved_adapter_loads_bit_for_bit_codes_included(saved, codebook_adapter):
    folder, name, _ = saved
    loaded = load_adapter(folder, name)
    own = codebook_adapter.state_dict()
    assert own.keys() >= codebook_adapter.code_buffers().keys()
    assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(loaded.eval()(torch.ones(1, 4, 8, 8)), codebook_adapter.eval()(torch.ones(1, 4, 8, 8)))


@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_adapter_weights_with_a_missing_or_an_unexpected_key_are_refused(saved, kind):
    folder, name, state = saved
    if kind == "missing":
        del state["quantizer._codebook.embed"]
    else:
        state["quantizer.more"] = torch.zeros(1)
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match=f"1 {kind} ..quantizer"):
        load_adapter(folder, name)
