"""The shipped losses, built from their configurations on stand-ins with random weights, and stepped once."""

import copy
import json
from itertools import cycle
from pathlib import Path

import pytest
import torch
from conftest import SIZE
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.utils._pytree import tree_leaves

from lafr.commands.preflight import asks_for_text, built, definitions, hollow_objective, networks_of
from lafr.data.packaged import ASTRONAUT, PackagedFaces
from lafr.data.stream import PairStream
from lafr.errors import InputError
from lafr.losses.multilevel import MultiLevelLoss
from lafr.networks.recognisers import CLIPImage
from lafr.training import preflight
from lafr.training.hollow import HOLLOW, hollowed
from lafr.training.loop import train
from lafr.training.objectives import RestorationObjective
from lafr.weights import EXTERNAL
from scripts.benchmarks import losses

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def build(name: str, *overrides: str) -> MultiLevelLoss:
    """Return a shipped loss without the networks of the full size, which no test has."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return instantiate(compose("train", ["run_name=x", f"loss={name}", *overrides]).loss, _convert_="all")


def without(*terms: str) -> list[str]:
    """Return the overrides that remove terms, whose weights must be downloaded."""
    return [f"~loss.{part}.{name}" for part in ("terms", "weights") for name in terms]


FULL = without("perceptual", "landmark_heatmap", "landmark_distance", "parsing", "region_l1")


def batch(count: int = 2) -> dict:
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(2, count, 3, SIZE, SIZE, generator=draw) * 2 - 1
    return {"hq": images[0], "lq": images[1], "n": torch.arange(count)}


@pytest.fixture
def clip_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=16,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_clip_is_read_from_a_local_folder_and_trains_a_step(clip_folder, restorer):
    loss = build("multilevel_clip", *FULL, f"loss.terms.identity.network.folder={clip_folder}")
    assert isinstance(loss.terms["identity"].network, CLIPImage) and loss.terms["identity"].network.size == 32
    objective = RestorationObjective(restorer, loss)
    terms = objective(batch())
    assert terms["identity"] > 0 and terms.keys() == {"pixel_mse", "latent_l1", "identity"}
    objective.total(terms).backward()
    assert all(p.grad.isfinite().all() for p in restorer.denoiser.lora_parameters())


def test_osediffs_loss_is_a_configuration_on_the_base_that_is_trained(base_folder, restorer):
    """Its LoRA learns after the step, from the latents that the step restored."""
    loss = build("osediff", *without("perceptual"), f"model.build.folder={base_folder}")
    objective = RestorationObjective(restorer, loss)
    vsd = loss.terms["vsd"]
    before = [p.clone() for p in vsd.trained_parameters()]
    assert not any(p.requires_grad for p in vsd.parameters())
    terms = objective(batch())
    objective.total(terms).backward()
    reported = objective.after_step(0, lambda tensor: tensor)
    assert reported.keys() == {"vsd/loss", "vsd/grad_norm"} and float(terms["vsd"].detach()) == 0
    assert any(not torch.equal(a, b) for a, b in zip(before, vsd.trained_parameters(), strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in vsd.parameters())
    assert float(objective(batch())["vsd"].detach()) > 0


def test_the_miniatures_recipes_train_a_step_on_shipped_networks(restorer):
    names = ("multilevel_mini_gan", "adversarial"), ("multilevel_mini_vsd", "vsd"), ("osediff_mini", "vsd")
    for name, key in names:
        loss = build(name)
        objective = RestorationObjective(restorer, loss)
        objective.total(objective(batch())).backward()
        assert all(p.grad.isfinite().all() for p in restorer.denoiser.lora_parameters())
        reported = objective.after_step(0, lambda tensor: tensor)
        assert f"{key}/loss" in reported and all(value.isfinite() for value in reported.values())


MULTILEVEL = {"torchvision_vgg16", "lpips", "facexlib", "arcface_irse50", "awing_fan", "parsenet"}
LACKING = {  # recipe -> the packages and files that it needs besides the base model and the faces
    "latent": set(),
    "appearance_lpips": {"torchvision_vgg16", "lpips"},
    "multilevel": MULTILEVEL,
    "multilevel_clip": MULTILEVEL - {"arcface_irse50"} | {"clip", "transformers"},
    "multilevel_insightface": MULTILEVEL - {"arcface_irse50"} | {"insightface_w600k_r50", "onnx"},
    "multilevel_3d": MULTILEVEL | {"deep3d"},
    "multilevel_dists": MULTILEVEL - {"lpips"} | {"dists_comparison"},
    "multilevel_edge_dists": MULTILEVEL - {"lpips"} | {"dists_comparison"},
    "multilevel_gan": MULTILEVEL,
    "multilevel_gan_features": MULTILEVEL | {"vision_transformer", "transformers"},
    "osediff": {"torchvision_vgg16", "lpips"},
}


def test_every_recipe_composes_at_full_size_and_an_empty_machine_is_told_of_all_that_it_needs(monkeypatch, tmp_path):
    """Each thing with the line that gets it; the loss itself is built all the same, so that mistakes come first."""
    monkeypatch.setenv("LAFR_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(preflight, "locate", nowhere)
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    recipes = sorted(path.stem for path in (CONFIGS / "loss").glob("*.yaml") if "_mini" not in path.stem)
    assert LACKING.keys() == {*recipes} - {"appearance"}  # it is the miniature's
    for name, preset in zip(LACKING, cycle(("gpu12", "gpu24", "gpu80"))):
        settings = losses.composed("ffhq_0.9pct", name, f"trainer={preset}", "stages=[restoration]")
        loss = settings["stage"]["restoration"]["objective"]["loss"]
        assert loss == settings["loss"]
        found = {finding.name.removeprefix("package "): finding for finding in networks_of(settings)}
        assert found.keys() == LACKING[name], name
        assert not any(finding.there for finding in found.values()) and all(f.fetch for f in found.values()), name

        # a term that needs the base model reads the very one that is trained, by the same pins, with its text
        base = [node for node in definitions(loss) if node["_target_"].endswith("Base.from_pretrained")]
        assert len(base) == asks_for_text(settings) == (name in ("multilevel_gan", "osediff"))
        for given in base:
            build = settings["model"]["build"]
            assert given["sources"] == build["folder"] and given["text"]
            assert all(given[key] == build[key] for key in ("expect", "offline", "variant", "sha256"))
        with torch.device("meta"):
            assert built(hollowed(loss)).terms.keys() == loss["weights"].keys()


def nowhere(name):
    raise InputError(f"{name} is missing; {EXTERNAL[name].remedy}")


def test_what_each_recipe_trains_at_full_size_is_what_the_page_says():
    """Counted without values: the LoRA alone is the stage's, terms have theirs."""
    record = json.loads((CONFIGS.parent / "results" / "benchmarks" / "losses.json").read_text(encoding="utf-8"))
    for name, size in {"multilevel": 0, "multilevel_gan": 1_644_689, "osediff": 4_055_712}.items():
        values = losses.trained_values(losses.hollow(losses.composed("ffhq_0.9pct", name)))
        assert values == {key: record["losses"][name][key] for key in values} == {"lora": 3_625_120, "own": size}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multilevel_mini_gan", "multilevel_mini_vsd", "osediff_mini"])
def test_a_recipe_of_the_miniature_trains_and_resumes_to_the_same_bits(
    name, restorer, accelerator, faces, degradation, tmp_path
):
    start, found = copy.deepcopy(restorer), []
    for folder, steps in ((tmp_path / "whole", (3,)), (tmp_path / "resumed", (1, 3))):
        for last in steps:
            # with more steps a finished stage resumes at its checkpoint, in objects that know nothing of before
            objective = RestorationObjective(copy.deepcopy(start), build(name))
            run = dict(max_steps=last, batch_size=2, learning_rate=1e-3, checkpoint_every=1, log_every=1)
            train(objective, PairStream(faces, degradation, 0), accelerator(), folder, **run)
        learned = torch.load(folder / "step_00000003" / "state.pt", weights_only=True)["learned"]
        found.append((objective.trained_state(), learned))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    (term,) = objective.loss.learned()
    assert [line["step"] for line in lines if f"{term}/loss" in line] == [1, 2, 3]
    whole, resumed = (tree_leaves(state) for state in found)
    assert len(whole) == len(resumed) > 20
    assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(whole, resumed, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", LACKING)
def test_a_recipe_takes_a_step_at_512_px_on_stand_ins(
    name, accelerator, base_folder, degradation, monkeypatch, tmp_path
):
    """Every network of its own size with random weights; the base model is a tiny one."""
    for part in ("lafr.models.base.model.Base.from_pretrained", "lafr.models.restorer.Restorer.from_base"):
        monkeypatch.delitem(HOLLOW, part)
    tiny = [f"model.build.folder={base_folder}", "model.build.expect=null"]
    settings = losses.composed("ffhq_0.9pct", name, *tiny)
    stage = settings["stage"]["restoration"]["objective"]
    objective = hollow_objective(stage, settings["model"]["build"])
    pairs = PairStream(PackagedFaces(512, ASTRONAUT), degradation, 0)
    before = {key: value.clone() for key, value in objective.trained_state().items()}
    run = dict(max_steps=1, batch_size=1, gradient_checkpointing=True, log_every=1)
    train(objective, pairs, accelerator(), tmp_path / name, **run)
    after = objective.trained_state()
    assert before and all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, after[key]) for key, value in before.items())
    lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0].keys() >= stage["loss"]["terms"].keys()
