"""The composed adapter: its kinds, what each phase trains, saved and resumed."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ADAPTER, SIZE
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

import lafr.training.loop
from lafr.data.stream import PairStream
from lafr.errors import InputError
from lafr.models.adapter import BUILDERS, Adapter, build_adapter, register_adapter
from lafr.models.quantizers import HardCodebook
from lafr.models.restorer import Restorer
from lafr.training.loop import train
from lafr.training.objectives import AlignmentObjective, CodebookObjective

CONFIGS = str(Path(__file__).resolve().parents[2] / "configs")
SETTINGS = {
    "none": {"latent_channels": 4},
    "conv": ADAPTER,
    "codebook": ADAPTER | {"num_codes": 16},
    "residual_codebook": ADAPTER | {"num_codes": 16, "num_residual": 3},
    "soft_codebook": ADAPTER | {"num_codes": 16},
    "topk_codebook": ADAPTER | {"num_codes": 16, "top_k": 3},
    "heads_codebook": ADAPTER | {"num_codes": 16, "heads": 4},
    "code_prediction": ADAPTER | {"num_codes": 16, "heads": 2, "ff_width": 16},
}
LEARNED = ("soft_codebook", "topk_codebook", "heads_codebook", "code_prediction")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(kind):
    torch.manual_seed(0)
    return build_adapter(kind, **SETTINGS[kind])


def made(kind):
    adapter = built(kind)
    if adapter.quantizer.has_codes:
        adapter.quantizer.initialise(draw(4, 8, 8, 8), torch.Generator().manual_seed(0))
    return adapter


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr("lafr.models.adapter.BUILDERS", dict(BUILDERS))


def test_every_kind_is_tested_here_and_has_a_configuration():
    assert SETTINGS.keys() == BUILDERS.keys()
    configurations = {path.stem: OmegaConf.load(path) for path in Path(CONFIGS, "adapter").glob("*.yaml")}
    full_size = {name for name in configurations if name.split("_")[0] == "sd"}  # the same kinds with other settings
    assert configurations.keys() - full_size == BUILDERS.keys()
    assert all(configurations[name].kind == name for name in BUILDERS)
    named = {configurations[name].get("kind") for name in full_size} - {None}  # one may take over another's kind
    assert named <= BUILDERS.keys()


@torch.no_grad()
def test_an_adapter_maps_what_its_quantizer_assigns_to_what_it_extracts():
    for kind in SETTINGS:
        adapter, z = made(kind).eval(), draw(2, 4, 8, 8)
        codes = adapter.quantizer.assign(adapter.extractor(z)).features
        assert torch.equal(adapter(z), adapter.mapper(codes))


def test_the_output_is_float32_under_autocast():
    adapter, z = made("codebook"), draw(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert adapter(z).dtype == adapter.extract(z).dtype == torch.float32


def test_no_adapter_changes_nothing_and_learns_nothing():
    z = draw(2, 4, 8, 8)
    assert torch.equal(build_adapter("none")(z), z)
    assert build_adapter("none").size() == 0


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


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_the_settings_are_those_given_and_the_defaults_of_adapter_and_quantizer():
    settings = build_adapter("topk_codebook", width=16).settings
    assert settings["width"] == 16 and settings["top_k"] == 4 and settings["temperature"] == 0.5
    assert settings.keys() == {
        "latent_channels",
        "width",
        "code_dim",
        "extractor_blocks",
        "mapper_blocks",
        "top_k",
        "temperature",
        "num_codes",
        "decay",
        "dead_below",
    }


def test_a_setting_of_another_type_or_out_of_range_is_refused_with_its_value():
    for kind, setting, value in (
        ("codebook", "num_codes", 0),
        ("codebook", "num_codes", 10**9),
        ("codebook", "num_codes", "16"),
        ("codebook", "num_codes", True),
        ("codebook", "decay", 1.5),
        ("codebook", "decay", float("nan")),
        ("conv", "width", -3),
        ("conv", "extractor_blocks", 65),
        ("soft_codebook", "temperature", 0),
        ("topk_codebook", "top_k", None),
        ("code_prediction", "heads", 0),
    ):
        with pytest.raises(InputError, match=f"{setting} must be .*got {value!r}"):
            build_adapter(kind, **{setting: value})


def test_an_unknown_kind_or_setting_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"kind.*heads_codebook.*got 'mine'"):
        build_adapter("mine")
    with pytest.raises(InputError, match=r"'conv'.*'num_codes'.*width"):
        build_adapter("conv", num_codes=4)


def test_a_registered_builder_is_a_kind_and_is_saved_by_it(registry, base_folder, tmp_path):
    @register_adapter("linear")
    def linear(latent_channels: int = 4, code_dim: int = 6) -> Adapter:
        codes = HardCodebook(code_dim, num_codes=8)
        return Adapter(nn.Conv2d(latent_channels, code_dim, 1), codes, nn.Conv2d(code_dim, latent_channels, 1))

    adapter = build_adapter("linear", code_dim=5)
    adapter.quantizer.initialise(draw(2, 5, 8, 8), torch.Generator().manual_seed(0))
    assert adapter.settings == {"latent_channels": 4, "code_dim": 5}
    restorer = Restorer.from_base(base_folder, adapter, SIZE, timestep=200).requires_grad_(False).eval()
    restorer.save_pretrained(tmp_path)
    lq = draw(1, 3, SIZE, SIZE).clamp(-1, 1)
    assert torch.equal(Restorer.from_pretrained(tmp_path)(lq), restorer(lq))
    lafr.models.adapter.BUILDERS.pop("linear")
    with pytest.raises(InputError, match=r"'linear'.*LAFR_ADAPTERS"):
        Restorer.from_pretrained(tmp_path)


def test_the_users_modules_are_imported_when_a_kind_is_not_registered(registry, tmp_path, monkeypatch):
    (tmp_path / "my_adapters.py").write_text(
        "from lafr.models.adapter import Convolutional, register_adapter\n"
        "from lafr.models.quantizers import Identity\n"
        "register_adapter('imported')(Convolutional(Identity))\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LAFR_ADAPTERS", "my_adapters")
    assert build_adapter("imported", width=16, code_dim=8).size() > 0
    monkeypatch.setenv("LAFR_ADAPTERS", "no_such_module")
    with pytest.raises(InputError, match="no_such_module"):
        build_adapter("other")


# --- phases -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def batch():
    images = {key: draw(2, 3, SIZE, SIZE, seed=seed).clamp(-1, 1) for seed, key in enumerate(("lq", "hq"))}
    return images | {"n": torch.tensor([3, 8])}


@pytest.fixture
def predicting(base_folder):
    return Restorer.from_base(base_folder, made("code_prediction"), SIZE, timestep=200)


def test_the_codebook_phase_does_not_train_the_predictor(predicting, batch):
    objective = CodebookObjective(predicting, {"latent_l1": 1.0, "commitment": 0.25}).train()
    objective.total(objective(batch)).backward()
    assert not [name for name in objective.trained_state() if "predictor" in name]
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)  # none unused: processes would wait for it


def test_in_the_codebook_phase_faces_are_rebuilt_through_the_nearest_codes(predicting, batch):
    objective = CodebookObjective(predicting, {"latent_l1": 1.0}).eval()
    adapter, codebook = predicting.adapter, predicting.adapter.quantizer.layers[0].codebook
    with torch.no_grad():
        features = adapter.extract(predicting.codec.encode(batch["hq"]))
        nearest = torch.cdist(features.permute(0, 2, 3, 1).flatten(1, 2), codebook).argmin(-1)
        codes = codebook[nearest].transpose(1, 2).reshape(features.shape)
        expected = predicting.codec.decode(adapter.map(codes))
        torch.testing.assert_close(objective.restore(batch), expected, rtol=1e-4, atol=1e-4)


def test_alignment_trains_extractor_and_predictor_by_the_hq_codes_and_no_gradient_passes_the_choice(predicting, batch):
    objective = AlignmentObjective(predicting, {"latent_l1": 1.0, "feature_mse": 1.0, "index_ce": 0.5}).train()
    terms, adapter = objective(batch), predicting.adapter
    assert not terms["latent_l1"].requires_grad
    with torch.no_grad():
        wanted = adapter.quantizer.quantize(adapter.extract(predicting.codec.encode(batch["hq"]))).indices
        logits = adapter.quantizer.predictor(adapter.extract(predicting.codec.encode(batch["lq"])))
        expected = F.cross_entropy(logits.permute(0, 3, 1, 2), wanted[..., 0])
    torch.testing.assert_close(terms["index_ce"], expected)
    objective.total(terms).backward()
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert {part(name) for name in trained} == {"extractor", "predictor"}
    assert all(p.grad is not None for p in trained.values())


def part(name):
    """Return which part of an adapter a trained value belongs to."""
    _, own, inner, *_ = name.split(".")
    return "predictor" if inner == "predictor" else own


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
        restorer = Restorer.from_base(base_folder, built(kind), SIZE, timestep=200)
        trained, fallen = [], []
        for name, count in zip(("codebook", "alignment"), steps, strict=True):
            objective = (
                CodebookObjective(restorer, {"latent_l1": 1.0, "commitment": 0.25})
                if name == "codebook"
                else AlignmentObjective(
                    restorer, {"latent_l1": 1.0, "feature_mse": 1.0, "index_ce": 0.5 * (kind == "code_prediction")}
                )
            )
            start = None if name == "codebook" else total(objective, faces, degradation)
            train(
                objective,
                PairStream(faces, degradation, 0),
                accelerator(),
                tmp_path / folder / name,
                max_steps=count,
                batch_size=4,
                learning_rate=3e-3,
                schedule="cosine",
                log_every=1,
                **of_loop,
            )
            trained.append({key: value.clone() for key, value in objective.trained_state().items()})
            fallen.append(start and total(objective, faces, degradation) / start)
        return restorer, trained, fallen[-1]

    return stages


def losses(folder, term):
    return [line[term] for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if term in line]


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEARNED)
def test_both_phases_learn_and_train_what_they_say(stages, tmp_path, kind):
    restorer, (codebook, alignment), fallen = stages(kind, "run")
    found = losses(tmp_path / "run" / "codebook", "latent_l1")
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    assert fallen < 0.99
    parts = {"extractor", "predictor"} if kind == "code_prediction" else {"extractor"}
    assert {part(name) for name in codebook} == {"extractor", "mapper", "quantizer"}
    assert {part(name) for name in alignment} == parts
    for name, value in codebook.items():  # frozen in alignment
        if part(name) != "extractor":
            assert torch.equal(value, restorer.adapter.state_dict()[name.removeprefix("adapter.")])


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEARNED)
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


# --- saved ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_saved_restorer_restores_bit_for_bit_with_every_kind(base_folder, tmp_path):
    lq = draw(2, 3, SIZE, SIZE).clamp(-1, 1)
    for kind in SETTINGS:
        restorer = Restorer.from_base(base_folder, made(kind), SIZE, timestep=200).requires_grad_(False).eval()
        restorer.save_pretrained(tmp_path / kind)
        before = torch.get_rng_state()
        loaded = Restorer.from_pretrained(tmp_path / kind)
        assert torch.equal(torch.get_rng_state(), before)
        assert (loaded.adapter.kind, loaded.adapter.settings) == (kind, restorer.adapter.settings)
        own = restorer.adapter.state_dict()
        assert loaded.adapter.state_dict().keys() == own.keys()
        assert all(torch.equal(value, own[name]) for name, value in loaded.adapter.state_dict().items())
        assert torch.equal(loaded(lq), restorer(lq))


def test_an_adapter_composed_by_hand_is_not_saved(base_folder, tmp_path):
    adapter = Adapter(nn.Conv2d(4, 8, 1), HardCodebook(8, num_codes=4), nn.Conv2d(8, 4, 1))
    restorer = Restorer.from_base(base_folder, adapter, SIZE, timestep=200)
    with pytest.raises(InputError, match="register_adapter"):
        restorer.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
