"""`lafr check` prints one shell line that installs what is missing, into the environment that it runs in."""

import importlib.metadata
import shlex
import sys
from pathlib import Path

from lafr.commands import check
from lafr.storage import shipped

ROOT = Path(__file__).resolve().parents[2]


def test_the_install_line_names_the_extras_and_the_hashed_requirements():
    line = check.install_line(["samples", "faces", "demo"], no_deps=True)
    first, second = (shlex.split(part) for part in line.split(" && "))
    assert first[-1].endswith("[train,demo]") and first[-2] == "install"
    assert second[-4:] == ["--no-deps", "--require-hashes", "-r", str(shipped("requirements-no-deps.txt"))]
    assert check.install_line([], no_deps=False) == ""


def test_the_install_line_calls_the_pip_of_this_environment(monkeypatch):
    here = Path(sys.executable).parent
    monkeypatch.setattr("shutil.which", lambda name: str(here / name))
    assert check.pip() == "pip"
    for other in (None, "/usr/bin/pip"):
        monkeypatch.setattr("shutil.which", lambda name, other=other: other)
        assert shlex.split(check.pip()) == [sys.executable, "-m", "pip"]


def test_a_checkout_that_is_not_installed_is_installed_by_its_folder(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter(()))
    assert check.project() == str(ROOT)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter(["lafr"]))
    assert check.project() == "lafr"


def test_what_a_release_is_built_with_is_pinned_by_hash():
    for path in (ROOT / ".github" / "workflows").glob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "pip install" not in line or "--require-hashes" in line, path.name
