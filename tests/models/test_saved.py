"""Saved models, format 2: one schema; whatever else a folder holds is refused on one line."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lafr.errors import InputError
from lafr.models.restorer import Restorer
from lafr.weights import mini_folder

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
    for name in ("lafr", "appearance", "none", "conv"):
        index = json.loads((mini_folder() / name / "lafr.json").read_text())
        assert index.keys() == KEYS and index["format"] == 2
        files = {p.relative_to(mini_folder() / name).as_posix() for p in (mini_folder() / name).rglob("*.*")}
        assert files == {"lafr.json", LORA} | ({ADAPTER} if name != "none" else set())
        tensors = [v for file in files - {"lafr.json"} for v in load_file(mini_folder() / name / file).values()]
        assert {v.dtype for v in tensors if v.is_floating_point()} == {torch.float16}


def test_an_index_says_what_the_model_is_and_no_more(saved):
    index = json.loads((saved / "lafr.json").read_text())
    assert index.keys() == KEYS
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


def test_weights_that_are_not_finite_are_refused_by_name(saved):
    for path in saved.rglob("*.safetensors"):
        right = path.read_bytes()
        state = load_file(path)
        name = next(name for name, value in state.items() if value.is_floating_point())
        for value in (math.nan, -math.inf):
            state[name].view(-1)[-1] = value
            save_file(state, path, {"format": "pt"})
            refused(saved, name)
        path.write_bytes(right)
    Restorer.from_pretrained(saved)


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


def test_a_file_that_is_no_index_is_refused(saved):
    for content in (b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20)):
        (saved / "lafr.json").write_bytes(content)
        refused(saved, r"lafr\.json")
    (saved / "lafr.json").unlink()
    (saved / "lafr.json").mkdir()
    refused(saved, r"lafr\.json")


def changed(path, change):
    state = load_file(path)
    change(state)
    save_file(state, path)


@pytest.mark.parametrize("file", [ADAPTER, LORA])
def test_weights_that_do_not_fit_are_refused_by_name(saved, tmp_path, file):
    first = next(iter(load_file(saved / file)))
    for number, (change, words) in enumerate(
        [
            (lambda s: s.pop(first), f"{first} is missing"),
            (lambda s: s.update(extra=torch.zeros(1)), r"extra is \(1,\), not expected"),
            (lambda s: s.update({first: torch.zeros(3)}), rf"{first} is \(3,\)"),
            (lambda s: s.update({first: s[first].long()}), first),
        ]
    ):
        folder = shutil.copytree(saved, tmp_path / str(number))
        changed(folder / file, change)
        refused(folder, words)
    (saved / file).write_bytes((saved / file).read_bytes()[:500])
    refused(saved, "cannot be read")
    (saved / file).unlink()
    refused(saved, "is missing")


def test_a_folder_that_holds_everything_is_read_as_strictly(model_folder, tmp_path):
    for number, (file, change) in enumerate(
        [
            ("codec/diffusion_pytorch_model.safetensors", lambda s: s.popitem()),
            ("codec/diffusion_pytorch_model.safetensors", lambda s: s.update(extra=torch.zeros(1))),
            ("denoiser/denoiser.safetensors", lambda s: s.popitem()),
            ("denoiser/denoiser.safetensors", lambda s: s.update(extra=torch.zeros(1))),
        ]
    ):
        folder = shutil.copytree(model_folder, tmp_path / str(number))
        changed(folder / file, change)
        refused(folder, "do not fit")


def test_a_denoisers_configuration_is_checked(model_folder):
    path = model_folder / "denoiser" / "config.json"
    right = json.loads(path.read_text())
    for name, value in (
        ("alpha_bar", 0),
        ("alpha_bar", "1"),
        ("prompt_tokens", 10**9),
        ("unet", []),
        ("unet", {"in_channels": "four"}),
        ("unet", {"layers_per_block": 10**9}),
        ("extra", 1),
    ):
        path.write_text(json.dumps(right | {name: value}))
        refused(model_folder)


def test_no_module_is_imported_because_a_folder_names_it(saved, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for kind in ("evil", "evil.Adapter", "LAFR_ADAPTERS"):
        rewrite(saved, lambda index, kind=kind: index["adapter"].update(kind=kind))
        refused(saved, kind)
    assert not (tmp_path / "ran").exists()
