"""External files: where they are looked for, and that none is read whose sha256 nobody vouches for."""

import dataclasses
import hashlib
import re
import shlex
import subprocess

import pytest
import torch

from lafr import weights
from lafr.errors import InputError
from lafr.weights import EXTERNAL, ExternalFile


@pytest.fixture
def folder(monkeypatch, tmp_path):
    folder = tmp_path / "my weights"
    folder.mkdir()
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(folder))
    return folder


@pytest.fixture
def unpinned(monkeypatch):
    file = ExternalFile("net.pth", None, "somewhere", "none stated", "download https://example.org/net.pth")
    monkeypatch.setitem(EXTERNAL, "net", file)
    return file


def known(monkeypatch, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(EXTERNAL, "net", dataclasses.replace(EXTERNAL["net"], sha256=digest))


def error_of(call, *arguments) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", EXTERNAL)
def test_every_entry_says_where_from_under_which_licence_and_how_to_get_it(name):
    file = EXTERNAL[name]
    assert file.source
    assert file.licence
    assert re.match(r"(pip install|npm pack|download https://)", file.remedy)
    assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    for stated in re.findall(r"-([0-9a-f]{8})\.pth", file.name):  # torchvision names a file by its hash
        assert file.sha256.startswith(stated)


@pytest.mark.parametrize("name", [name for name, file in EXTERNAL.items() if file.package])
def test_installed_packages_carry_the_known_files(name):
    if not any(path.is_file() for path in weights._candidates(EXTERNAL[name])):
        pytest.skip(f"{name}: {EXTERNAL[name].remedy}")
    assert weights.locate(name).name == EXTERNAL[name].name


def test_a_missing_file_that_no_package_carries_names_the_address_and_the_folder(folder):
    message = error_of(weights.locate, "awing_fan")
    assert message.startswith("awing_fan is missing: download https://github.com/xinntao/facexlib/releases/")
    assert message.endswith("/alignment_WFLW_4HG.pth into $LAFR_WEIGHTS")


def test_without_the_variable_it_is_missing_too(monkeypatch, unpinned):
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    assert "net is missing: download https://example.org/net.pth" in error_of(weights.locate, "net")


def test_an_altered_file_is_refused(folder, monkeypatch, unpinned):
    known(monkeypatch, b"true")
    (folder / "net.pth").write_bytes(b"altered")
    assert "is not the known net: its sha256 differs; download https://" in error_of(weights.locate, "net")


def test_an_unpinned_file_is_refused_and_the_command_in_the_message_pins_it(folder, unpinned):
    (folder / "net.pth").write_bytes(b"whatever")
    message = error_of(weights.locate, "net")
    assert message.startswith("the sha256 of net isn't known to LAFR")
    subprocess.run(message.split("pin it: ")[1], shell=True, check=True)
    assert shlex.quote(str(folder)) in message
    assert weights.locate("net") == folder / "net.pth"


@pytest.mark.parametrize("mark", ["  ", " *"])
def test_a_file_other_than_the_pinned_one_is_refused(folder, unpinned, mark):
    other, pinned = (hashlib.sha256(content).hexdigest() for content in (b"other", b"pinned"))
    (folder / "SHA256SUMS").write_text(f"{other}{mark}other.pth\n\n{pinned}{mark}net.pth\n")
    (folder / "net.pth").write_bytes(b"other")
    assert "its sha256 differs; correct SHA256SUMS" in error_of(weights.locate, "net")


def test_only_the_top_of_the_folder_is_searched(folder, monkeypatch, unpinned):
    known(monkeypatch, b"true")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "net.pth").write_bytes(b"true")
    assert "net is missing" in error_of(weights.locate, "net")


def test_a_pickle_of_weights_is_read(folder, monkeypatch, unpinned):
    torch.save({"weight": torch.ones(2)}, folder / "net.pth")
    known(monkeypatch, (folder / "net.pth").read_bytes())
    assert weights.load_pickle("net")["weight"].tolist() == [1, 1]


def test_code_in_a_pickle_does_not_run_and_what_is_no_pickle_is_named(folder, monkeypatch, unpinned):
    torch.save({"weight": torch.nn.Linear(1, 1)}, folder / "net.pth")
    whole = (folder / "net.pth").read_bytes()
    page = b"<!DOCTYPE html><html>Google Drive can't scan this file for viruses"
    for content, said in (
        (whole, "holds more than weights and isn't unpickled"),
        (whole[: len(whole) // 2], "cannot be read"),
        (b"", "cannot be read"),
        (page, "is a web page, not weights"),
    ):
        (folder / "net.pth").write_bytes(content)
        known(monkeypatch, content)
        weights.sha256.cache_clear()
        assert said in error_of(weights.load_pickle, "net")


def test_a_file_saved_again_is_taken_where_the_users_own_sha256_vouches_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LAFR_WEIGHTS", str(tmp_path))
    saved = tmp_path / "parsing_parsenet.pth"
    saved.write_bytes(b"the same weights, saved again")
    with pytest.raises(InputError, match="SHA256SUMS"):
        weights.locate("parsenet")
    for digest in (hashlib.sha256(saved.read_bytes()).hexdigest(), "0" * 64):
        (tmp_path / "SHA256SUMS").write_text(f"{digest}  parsing_parsenet.pth\n")
        if digest == "0" * 64:
            with pytest.raises(InputError, match="sha256 differs"):
                weights.locate("parsenet")
        else:
            assert weights.locate("parsenet") == saved and "parsing_parsenet.pth" in capsys.readouterr().err
