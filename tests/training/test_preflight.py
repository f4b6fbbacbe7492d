"""What a run needs is looked for before its first step, and everything that is missing is said at once."""

import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import save_file
from training_script import overrides

from lafr.commands.doors import as_hydra
from lafr.commands.preflight import require_everything, training_findings
from lafr.commands.train import precision_here
from lafr.errors import InputError
from lafr.models.restorer import Restorer
from lafr.networks import NEEDS, NETWORKS
from lafr.training import hollow, preflight
from lafr.training.preflight import Finding, base_model, disk, external_file, fetch_line, missing, networks, report
from lafr.weights import EXTERNAL

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def composed():
    def compose_run(*arguments):
        with initialize_config_dir(str(CONFIGS), version_base=None):
            return compose("train", list(arguments))

    return compose_run


def named(findings):
    return {finding.name: finding for finding in findings}


def test_what_every_network_needs_is_declared_and_known():
    assert NETWORKS.keys() <= NEEDS.keys()
    assert {file for needs in NEEDS.values() for file in needs.files} <= EXTERNAL.keys()


def test_a_network_whose_file_is_missing_is_named_with_its_users_and_the_line_that_fetches_it(monkeypatch, tmp_path):
    monkeypatch.setenv("LAFR_WEIGHTS", str(tmp_path))
    found = named(networks({"awing_fan": ["restoration", "multilevel"], "mini_parser": ["restoration"]}))
    assert found["package facexlib"].there and not found["awing_fan"].there
    assert found["awing_fan"].used_by == "restoration, multilevel"
    assert found["awing_fan"].fetch.startswith("curl") and "alignment_WFLW_4HG.pth" in found["awing_fan"].fetch
    assert found["awing_fan"].fetch in report(list(found.values()))
    # a file that the user vouches for is there
    (tmp_path / "alignment_WFLW_4HG.pth").write_bytes(b"x")
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(b'x').hexdigest()}  alignment_WFLW_4HG.pth\n")
    assert external_file("awing_fan").there


def test_every_external_file_has_a_line_that_a_shell_reads():
    for name, file in EXTERNAL.items():
        line = fetch_line(file)
        assert line.split()[0] in ("curl", "pip", "npm", "#"), name
        assert "\n" not in line


def test_a_disk_that_is_too_small_is_missing(tmp_path):
    assert disk(tmp_path / "runs" / "x", 1, "checkpoints").there
    assert not disk(tmp_path / "runs" / "x", 10**18, "checkpoints").there


def test_a_run_that_has_everything_is_let_through_and_counted(composed, base_folder, face_folder):
    cfg = composed(*overrides(base_folder, face_folder, 2))
    found = training_findings(cfg, counting=True)
    assert not missing(found)
    by_name = named(found)
    assert {"base model", "faces", "stage codebook", "stage alignment", "stage restoration", "disk", "memory"} <= set(
        by_name
    )
    assert "9 to train on" in by_name["faces"].where and "restoration 0." in by_name["memory"].where
    require_everything(cfg, show=False)


def test_a_device_that_is_too_small_is_refused_with_what_would_fit_and_a_tight_one_is_doubted(
    composed, base_folder, face_folder, monkeypatch, capsys
):
    cfg = composed(*overrides(base_folder, face_folder, 2, batch_size=4), "stages=[codebook,restoration]")
    gigabytes = {"CodebookObjective": 0.1, "RestorationObjective": 1.0}  # a face; gradient checkpointing takes half

    def peak(objective, faces, resolution, precision, checkpointing):
        return 1e9 * gigabytes[type(objective).__name__] * faces * (0.5 if checkpointing else 1)

    def free(amount):
        monkeypatch.setattr("lafr.commands.preflight.free_memory", lambda: amount * 1e9)

    monkeypatch.setattr("lafr.commands.preflight.WORTH_COUNTING", 0)
    monkeypatch.setattr(preflight, "peak_bytes", peak)
    for amount, fits in (
        (3, "trainer=gpu80 needs 1.0 GB"),  # four micro-batches; gpu24 and gpu12 make more than there are faces
        (
            1.2,
            "trainer.accumulation=4 trainer.gradient_checkpointing=true needs 0.5 GB",
        ),  # 1.0 may not fit beside the rest
        (0.9, "trainer.accumulation=4 trainer.gradient_checkpointing=true needs 0.5 GB"),
        (0.1, "even trainer.accumulation=4 trainer.gradient_checkpointing=true needs 0.5 GB"),
    ):
        free(amount)
        with pytest.raises(InputError) as error:
            require_everything(cfg, show=False)
        said = error.value.spelled(as_hydra)
        assert said.startswith("stage restoration needs 4.0 GB") and said.endswith(f"; {fits}"), said
    given = *overrides(base_folder, face_folder, 2, batch_size=4), "+model.build.expect=sd15"
    wrong = composed(*given)  # another model is told first: what is missing changes what is counted
    with pytest.raises(InputError, match="Stable Diffusion 1") as error:
        require_everything(wrong, show=False)
    assert "memory" not in str(error.value) and "needs" not in str(error.value)
    free(4.5)  # what is not counted may not fit beside it
    require_everything(cfg, show=True)
    said = capsys.readouterr().err
    assert "warning: stage restoration" in said and "trainer=gpu80" in said
    free(6)
    require_everything(cfg, show=True)
    assert not capsys.readouterr().err


def test_a_saved_model_is_built_without_values_and_what_is_missing_of_it_is_found(
    composed, restorer, base_folder, face_folder, tmp_path
):
    def stages(*more):
        run = overrides(base_folder, face_folder, 2)
        start = [f"model.build={{_target_: lafr.models.restorer.Restorer.from_pretrained, folder: '{folder}'}}"]
        run = [argument for argument in run if not argument.startswith("model.build.folder")]
        return training_findings(composed(*run, *start, *more), counting=False)

    for full in (False, True):
        folder = tmp_path / f"model_{full}"
        restorer.save_pretrained(folder, full=full)
        found = stages()
        assert not missing(found) and {"model", "stage restoration"} <= set(named(found))
        (folder / "adapter.safetensors").unlink()
        lacking = missing(stages())
        assert lacking and all("adapter.safetensors" in finding.where for finding in lacking)
        (folder / "lafr.json").unlink()
        assert any(finding.name == "model" for finding in missing(stages()))
    built = hollow.hollow_saved("mini")
    whole = Restorer.from_pretrained("mini").state_dict()
    assert all(value.is_meta for value in built.parameters())
    assert {name: value.shape for name, value in built.state_dict().items()} == {k: v.shape for k, v in whole.items()}


def test_everything_that_is_missing_is_said_at_once(composed, base_folder, face_folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LAFR_WEIGHTS", str(tmp_path))
    run = overrides(tmp_path / "no base", tmp_path / "no faces", 2, batch_size=3)
    cfg = composed(*run, "loss=multilevel", "trainer.accumulation=2", "trainer.trackers=[no_such_tracker]")
    with pytest.raises(InputError) as error:
        require_everything(cfg, show=True)
    table = capsys.readouterr().err
    for name in (
        "package no_such_tracker",
        "torchvision_vgg16",
        "arcface_irse50",
        "awing_fan",
        "parsenet",
        "base model",
        "faces",
    ):
        assert name in str(error.value)
        assert any(line.startswith("MISSING") and name in line for line in table.splitlines())
    assert "data.root" in table and "curl" in table


def test_a_mistake_in_the_last_stage_is_found_before_the_first(composed, base_folder, face_folder):
    run = overrides(base_folder, face_folder, 2)
    for wrong, word in (
        ("+loss.weights.nonsense=1", "weights"),
        ("trainer.accumulation=3", "batch_size"),
        ("+loss.terms.pixel_mse.nonsense=1", "nonsense"),
    ):
        lacking = missing(training_findings(composed(*run, wrong), counting=False))
        assert lacking and any(word in finding.where for finding in lacking), wrong


def test_a_hub_that_answers_will_give_the_base_model_and_one_that_does_not_will_not(monkeypatch):
    hub = ["hub:nobody/nothing@0123456789abcdef0123456789abcdef01234567"]
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for answers in (True, False):
        monkeypatch.setattr(preflight, "hub_answers", lambda answers=answers: answers)
        assert preflight.base_model(hub, "hf download nobody/nothing, or give a folder")[0].there == answers
    found = preflight.base_model(hub, "hf download nobody/nothing, or give a folder")[0]
    assert found.fetch == "hf download nobody/nothing"


def test_bf16_falls_back_where_the_processor_lacks_it_and_says_so(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for found, precision in (({"avx512_bf16": False}, "no"), ({"avx512_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert precision_here("bf16") == precision
        assert ("bfloat16" in capsys.readouterr().err) == (precision == "no")
        assert precision_here("fp16") == "fp16"


def test_a_flat_folder_of_ones_own_faces_trains_the_miniature(composed, face_folder):
    data = composed("+experiment=mini", f"data.root={face_folder}").data
    train, held_out = instantiate(data, _convert_="all")
    assert (len(train), len(held_out)) == (9 * (1 + data.variants), 1)


def test_the_parts_of_a_miniature_which_are_no_stages_of_a_restorer_are_checked_too(composed, face_folder):
    for name in ("mini_base", "mini_prior", "mini_networks", "mini_decoder"):
        found = training_findings(composed(f"+experiment={name}", f"data.root={face_folder}"))
        assert "memory" not in {finding.name for finding in found} and found, name


def test_the_report_says_each_line_once_and_names_the_folder_to_set(monkeypatch):
    monkeypatch.delenv("LAFR_WEIGHTS", raising=False)
    lines = report(
        [Finding("a", False, "gone", fetch='curl -o "$LAFR_WEIGHTS"/a x')] * 2 + [Finding("b", True, "here")]
    )
    assert lines.count("curl") == 1 and "export LAFR_WEIGHTS=" in lines
    assert lines.splitlines()[0].split() == ["there", "b", "here"]
    metric = Finding("m", False, "gone", fetch='curl -o "$LAFR_WEIGHTS"/m x', needed=False)
    optional = report([metric, Finding("b", True, "here")])
    assert not missing([metric]) and "MISSING" not in optional and "optional m" in optional
    assert optional.index("export LAFR_WEIGHTS=") < optional.index("/m x")


def test_a_package_that_is_missing_is_named_once_with_the_version_whose_files_are_known(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lpips" else find_spec(name))
    found = networks({"lpips_vgg": ["restoration"], "lpips_alex": ["alignment"]})
    assert report(found).count("lpips") == 3  # its line, and the command twice: beside it and below
    assert named(found)["package lpips"].fetch == "pip install lpips==0.1.4"


def test_a_single_file_of_another_model_is_refused_before_the_run(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    finding, _ = base_model(str(tmp_path / "other.safetensors"), expect="sd21_base")
    assert not finding.there and "no Stable Diffusion checkpoint" in finding.where
