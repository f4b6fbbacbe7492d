"""Saved models, format 2: one schema; whatever else a folder holds is refused on one line."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from conftest import BASE
from safetensors.torch import load_file

from lafr.errors import InputError
from lafr.models.base.model import new_base
from lafr.models.restorer import Restorer
from lafr.weights import mini_folder
from scripts.benchmarks.faults.folders import CASES, LOADERS, trials

KEYS = {
    "format",
    "resolution",
    "timestep",
    "scale_input",
    "text",
    "adapter",
    "lora",
    "fidelity",
    "decoder",
    "base",
    "base_settings",
    "trained_with",
}
ADAPTER = "adapter.safetensors"
LORA = "denoiser/pytorch_lora_weights.safetensors"


@pytest.fixture
def saved(restorer, tmp_path):
    restorer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(folder, words=None):
    with pytest.raises(InputError, match=words) as error:
        Restorer.from_pretrained(folder)
    assert "\n" not in error.value.args[0] and len(error.value.args[0]) < 700
    return str(error.value)


def rewrite(folder, change):
    path = folder / "lafr.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_the_shipped_models_are_of_format_2():
    for name in ("lafr", "paper", "none", "conv"):
        index = json.loads((mini_folder() / name / "lafr.json").read_text())
        assert index.keys() == KEYS and index["format"] == 2
        files = {p.relative_to(mini_folder() / name).as_posix() for p in (mini_folder() / name).rglob("*.*")}
        assert files == {"lafr.json", "training_set.json", LORA} | ({ADAPTER} if name != "none" else set())
        tensors = [v for file in files & {LORA, ADAPTER} for v in load_file(mini_folder() / name / file).values()]
        assert {v.dtype for v in tensors if v.is_floating_point()} == {torch.float16}


def test_an_index_says_what_the_model_is_and_no_more(saved):
    index = json.loads((saved / "lafr.json").read_text())
    assert index.keys() == KEYS | {"base_mark"}
    assert index["adapter"]["kind"] == "codebook" and index["adapter"]["settings"]["num_codes"] == 16
    assert index["lora"]["rank"] == 2 and index["lora"]["alpha"] == 4
    assert (index["fidelity"], index["decoder"]) == ("blend_latents", "base")


def test_a_folder_of_an_older_format_is_refused_with_what_to_do(tmp_path):
    for index in (
        {"format": 1, "resolution": 128, "adapter": "lafr.models.adapter.CodebookAdapter"},
        {"resolution": 128, "adapter": "os.system"},
        {"format": None},
    ):
        (tmp_path / "lafr.json").write_text(json.dumps(index))
        assert "train it again" in refused(tmp_path, "earlier version")


def test_an_unknown_format_is_refused(saved):
    for value in (3, "2", 2.0, True, [], {"a": 1}):
        rewrite(saved, lambda index, value=value: index.update(format=value))
        refused(saved, "format")


VALUES = [
    ("resolution", 0),
    ("resolution", 10**9),
    ("resolution", "128"),
    ("resolution", True),
    ("resolution", 128.0),
    ("timestep", -1),
    ("timestep", 10**6),
    ("scale_input", 1),
    ("scale_input", "true"),
    ("text", "prompt"),
    ("text", None),
    ("adapter", "lafr.models.adapter.CodebookAdapter"),
    ("adapter", None),
    ("lora", []),
    ("fidelity", "blend_everything"),
    ("decoder", "tiny"),
    ("base", 3),
    ("base", ["mini"]),
    ("base", "a\nb"),
    ("base_settings", {}),
    ("base_settings", {"expect": None, "variant": None, "sha256": None}),
    ("trained_with", "st_lpips"),
    ("trained_with", [1]),
    ("trained_with", ["a"] * 5000),
]


def test_a_value_of_another_type_or_out_of_range_is_refused_by_name(saved):
    right = (saved / "lafr.json").read_text()
    for name, value in VALUES:
        (saved / "lafr.json").write_text(right)
        rewrite(saved, lambda index, name=name, value=value: index.update({name: value}))
        refused(saved, name)


def test_a_missing_or_unknown_key_is_refused_by_name(saved):
    right = (saved / "lafr.json").read_text()
    for name in KEYS - {"format"}:
        (saved / "lafr.json").write_text(right)
        rewrite(saved, lambda index, name=name: index.pop(name))
        refused(saved, name)
    for where in ("adapter", "lora", "base_settings", None):
        (saved / "lafr.json").write_text(right)
        rewrite(saved, lambda index, where=where: (index[where] if where else index).update(extra=1))
        refused(saved, "extra")


def test_settings_that_do_not_fit_the_kind_or_the_weights_are_refused_before_memory_is_taken(saved):
    right = (saved / "lafr.json").read_text()
    for name, value, words in (
        ("num_codes", 10**12, "num_codes"),
        ("num_codes", 1.5, "num_codes"),
        ("width", 4096, "do not fit"),
        ("extractor_blocks", 10**9, "extractor_blocks"),
        ("decay", math.nan, "decay"),
        ("decay", None, "decay"),
        ("width", 0, "width"),
        ("extra", 1, "extra"),
        ("dead_below", -1, "dead_below"),
    ):
        (saved / "lafr.json").write_text(right)
        rewrite(saved, lambda index, name=name, value=value: index["adapter"]["settings"].update({name: value}))
        refused(saved, words)


def test_settings_and_kind_are_complete_and_known(saved):
    rewrite(saved, lambda index: index["adapter"]["settings"].pop("decay"))
    refused(saved, "decay")
    rewrite(saved, lambda index: index["adapter"].update(kind="os.system"))
    refused(saved, "os.system")


def test_no_module_is_imported_because_a_folder_names_it(saved, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for kind in ("evil", "evil.Adapter", "LAFR_ADAPTERS"):
        rewrite(saved, lambda index, kind=kind: index["adapter"].update(kind=kind))
        refused(saved, kind)
    assert not (tmp_path / "ran").exists()


def test_each_of_120_hostile_folders_is_refused_on_one_line_that_names_its_file_and_runs_nothing(tmp_path, capsys):
    found = list(trials(len(CASES), 0, tmp_path))
    assert len(found) >= 120
    assert [trial for trial in found if trial.outcome != "held"] == []
    for kind in ("reference", "full", "export", "diffusers", "text"):
        LOADERS[kind](tmp_path / "sound" / kind)
    # what runs only where the user asks for it is not looked at
    for name in ("pipeline.py", "adapter.py", "lafr.py"):
        (tmp_path / "sound" / "export" / name).write_text("raise SystemExit")
    LOADERS["export"](tmp_path / "sound" / "export")


def test_a_base_outside_the_folder_is_read_where_the_user_vouches_for_it(restorer, base_folder, tmp_path, monkeypatch):
    restorer.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("LAFR_BASES", str(tmp_path))
    refused(tmp_path / "model", "LAFR_BASES")
    Restorer.from_pretrained(tmp_path / "model", base=base_folder)
    # a part of its name is no folder above it
    monkeypatch.setenv("LAFR_BASES", base_folder[:-1])
    refused(tmp_path / "model", "LAFR_BASES")
    monkeypatch.setenv("LAFR_BASES", f"{tmp_path}{os.pathsep}{Path(base_folder).parent}")
    Restorer.from_pretrained(tmp_path / "model")


def test_another_base_of_the_same_shapes_is_refused_and_the_same_in_half_precision_is_not(restorer, base, tmp_path):
    restorer.save_pretrained(tmp_path / "model")
    base.save_pretrained(tmp_path / "half", variant=torch.float16)
    Restorer.from_pretrained(tmp_path / "model", base=str(tmp_path / "half"))
    new_base(**BASE, seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"other.*its weights differ.*base"):
        Restorer.from_pretrained(tmp_path / "model", base=str(tmp_path / "other"))
    # a model that was saved before there were marks
    rewrite(tmp_path / "model", lambda index: index.pop("base_mark"))
    Restorer.from_pretrained(tmp_path / "model", base=str(tmp_path / "other"))


def test_a_snapshots_links_into_the_blobs_of_its_repository_are_its_own_files(restorer, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0", tmp_path / "models--a--b" / "blobs"
    restorer.save_pretrained(snapshot, full=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    Restorer.from_pretrained(snapshot)
