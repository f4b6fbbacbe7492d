"""Packing the miniature: in half precision, whole or not at all; its stages stand in the order of their settings."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lafr.errors import InputError
from lafr.miniature import build
from lafr.miniature.build import pack, summaries


def test_a_pack_is_in_half_precision_and_replaces_the_old_one_only_when_it_is_whole(tmp_path, monkeypatch):
    source, target = tmp_path / "model", tmp_path / "packed"
    (source / "unet").mkdir(parents=True)
    state = {"weight": torch.tensor([1.5, -2.0]), "codes": torch.tensor([3])}
    save_file(state, source / "unet" / "a.safetensors", {"alpha": "8"})
    (source / "config.json").write_text("{}", encoding="utf-8")
    target.mkdir()
    (target / "old").touch()

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched, pytest.raises(InputError, match="packed"):
        patched.setattr(build, "save_file", full_disk)
        pack(source, target)
    assert [path.name for path in target.iterdir()] == ["old"]
    pack(source, target)
    found = load_file(target / "unet" / "a.safetensors")
    assert found["weight"].dtype == torch.float16 and torch.equal(found["weight"].float(), state["weight"])
    assert torch.equal(found["codes"], state["codes"]) and (target / "config.json").is_file()
    with safe_open(target / "unet" / "a.safetensors", "pt") as file:
        assert file.metadata()["alpha"] == "8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "packed"] and not (target / "old").exists()


def test_stages_are_listed_in_the_order_of_the_settings_whatever_the_times_of_their_files(tmp_path):
    for number, stage in enumerate(("restoration", "codebook")):
        path = tmp_path / stage / "final" / "summary.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"steps": number}), encoding="utf-8")
        os.utime(path, (number, number))  # as after a copy
    settings = {"config": {"stage": {"codebook": {}, "restoration": {}}}}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert list(summaries(tmp_path).items()) == [("codebook", {"steps": 1}), ("restoration", {"steps": 0})]
