"""The page of claims: from finished runs to differences with intervals, and blanks where nothing was run."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import save_file

from lafr.errors import InputError
from lafr.miniature.build import PARTS
from scripts.benchmarks.findings import findings, findings_table, finished_runs, references, verdict

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STEP = "stage@stage.restoration"


def configuration(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("benchmark_findings", list(overrides))


def written(stage, tensors, summary):
    """Write a stage's result as training leaves it."""
    (stage / "final").mkdir(parents=True)
    save_file(tensors, stage / "final" / "trained.safetensors")
    (stage / "final" / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


@pytest.fixture
def runs(trained, face_folder, tmp_path):
    """Two methods of the claim about parts, two seeds each, as training leaves them; and faces to score them on."""
    names = [f"{part},seed={seed}" for part in ("restoration", "unet") for seed in (0, 11)]
    for number, name in enumerate(names):
        folder = tmp_path / "runs" / "claim_parts" / f"{STEP}={name}"
        with torch.no_grad():
            for parameter in trained.denoiser.lora_parameters():
                parameter.mul_(1 - 0.3 * number)  # no two restore alike
        trained.save_pretrained(folder / "model", full=True)
        settings = {"config": {"stage": {"alignment": {}, "restoration": {}}}}
        (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        # 3 values are trained in both stages, and 4 are codes, whose statistics are not counted
        codes = {f"adapter.quantizer._codebook.{name}": torch.zeros(1, 2, 2) for name in ("embed", "embed_avg")}
        stage = folder / "alignment"
        written(stage, {"adapter.extractor": torch.zeros(3), **codes}, {"steps": 1, "seconds": 0.0})
        stage = folder / "restoration"
        trained_here = {"restorer.adapter.extractor": torch.zeros(3), "restorer.denoiser.lora": torch.zeros(7)}
        written(stage, trained_here, {"steps": 10, "seconds": 5.0 + number})
        lines = [{"step": 4, "validation/psnr_rgb": 11.0}, {"step": 5, "pixel_mse": 1.0}]
        (stage / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    faces = tmp_path / "faces"
    shutil.copytree(face_folder, faces)
    (faces / "val.txt").write_text("".join(f"{path.name}\n" for path in sorted(faces.glob("*.png"))[:4]))
    return tmp_path


def test_finished_runs_make_differences_and_a_page_and_the_rest_is_named_as_not_run(runs, monkeypatch):
    monkeypatch.chdir(runs)
    arguments = ["data.root=faces", "measured=[psnr_rgb]", "output=out"]
    found = findings(configuration(*arguments))["claims"]
    assert [found[name]["methods"] for name in ("shipped", "adapters", "faces", "terms")] == [{}] * 4
    parts = found["parts"]
    assert list(parts["methods"]) == ["LoRA", "whole UNet"] and parts["not_run"] == ["VAE encoder and LoRA"]
    lora, unet = parts["methods"].values()
    assert (lora["seeds"], lora["against"], unet["seeds"], unet["against"]) == ([0, 11], None, [0, 11], "LoRA")
    assert (lora["seconds"], unet["seconds"], lora["curve"]) == (5.5, 7.5, [[2.0, 11.0]])
    # image by image, and between seeds
    difference = unet["difference"]["psnr_rgb"]
    assert difference["low"] <= difference["mean"] <= difference["high"] and difference["mean"] != 0
    assert difference["between_seeds"] > 0 and (runs / "out" / "findings" / "parts.svg").is_file()

    text = findings_table({"claims": found})
    assert text.count("**Not run:**") == 7 and text.count("| method |") == 1
    assert f"{difference['mean']:+.2f}" in text and "| LoRA | 2 | 6 | 14 |" in text
    few = findings(configuration(*arguments, "claims=[parts]", "+known.parts.images='0[13]'"))["claims"]["parts"]
    assert (parts["images"], few["images"]) == (4, 2) and few["methods"]["LoRA"]["metrics"] != lora["metrics"]
    # another claim's turn keeps what is recorded
    (runs / "out" / "findings.json").write_text(json.dumps({"claims": found}), encoding="utf-8")
    shutil.rmtree(runs / "runs")
    assert findings(configuration(*arguments, "claims=[terms]"))["claims"] == found
    for wrong in ("claims=[term]", "measured=[psnr]"):
        with pytest.raises(InputError, match=r"have no (term|psnr); choose among .*(terms|psnr_rgb)"):
            findings(configuration(*arguments, wrong))


@pytest.mark.parametrize(
    ("metric", "mean", "low", "high", "between_seeds", "said"),
    [
        ("psnr_rgb", 0.2, 0.1, 0.5, None, "ahead"),
        ("lmd_68", 0.2, 0.1, 0.5, None, "behind"),
        ("psnr_rgb", 0.2, -0.1, 0.3, None, "within noise"),
        ("psnr_rgb", -0.2, -0.5, -0.1, 0.15, "behind"),
        ("psnr_rgb", -0.2, -0.3, -0.1, 0.25, "within noise"),
        ("psnr_rgb", None, None, None, None, "not measured"),
    ],
)
def test_a_difference_counts_beyond_both_of_its_intervals(metric, mean, low, high, between_seeds, said):
    value = {"mean": mean, "low": low, "high": high, "between_seeds": between_seeds}
    assert verdict({"difference": {metric: value}, "seeds": [0]}, metric) == said


def test_each_term_is_compared_with_the_one_before_and_distribution_with_perceptual():
    claim = OmegaConf.to_container(configuration().known.terms)
    methods = list(claim["runs"])
    before = references(claim, methods)
    assert before == dict(zip(methods, [None, *methods[:-2], "and perceptual"], strict=True))
    # the one before of those that were run
    assert references(claim, methods[:1] + methods[2:])["and identity"] == "latents"


def test_the_claims_runs_are_those_of_the_experiments_that_they_name(tmp_path):
    known = dict(configuration().known.items())
    shipped = known.pop("shipped")
    assert set(shipped.runs.values()) < set(PARTS) and shipped.command == "lafr build-mini"
    for claim in known.values():
        for name in claim.runs.values():
            experiment, _, chosen = name.partition("/")
            assert f"+experiment={experiment} " in claim.command
            with initialize_config_dir(str(CONFIGS), version_base=None):
                given = [f"+experiment={experiment}", *chosen.split(",")]
                assert compose("train", given).run_dir == f"runs/{experiment}"
            values = {one.partition("=")[2] for one in chosen.split(",")}
            assert values <= set(claim.command.replace(",", " ").replace("=", " ").split())
    assert finished_runs(tmp_path, dict(claim.runs)) == {}


def test_each_step_of_the_claim_about_terms_adds_terms_and_keeps_the_weights():
    steps = []
    for name in configuration().known.terms.runs.values():
        with initialize_config_dir(str(CONFIGS), version_base=None):
            steps.append(compose("train", ["run_name=x", name.partition("/")[2]]).loss)
    *chain, adversarial, distribution = steps
    # the latent's own weight is a scale where it is alone
    for before, after in [
        *pairwise(chain[1:]),
        (chain[-1], adversarial),
        (chain[-1], distribution),
    ]:
        kept = {name: weight for name, weight in after.weights.items() if name in before.weights}
        assert kept == before.weights and len(after.weights) > len(before.weights)
        assert {name: after.terms[name] for name in before.terms} == before.terms
