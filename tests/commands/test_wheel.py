"""The commands of an installed wheel run in an empty folder: it carries configurations, lists and the miniature."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lafr import Restorer
from lafr.data.packaged import aligned
from lafr.storage import sha256_of_file
from lafr.weights import EXTERNAL

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The wheel's files, unpacked by pip into a folder of their own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    install = [sys.executable, *pip, folder / "site"]
    subprocess.run([*install, next(folder.glob("*.whl"))], check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def lafr(site, tmp_path):
    """Run `lafr ARGUMENTS` of the wheel in an empty folder; return what it prints."""

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "lafr", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_an_installed_wheel_restores_a_photo_as_the_checkout_does(lafr, tmp_path):
    photo = aligned("astronaut").resize((64, 64))
    photo.save(tmp_path / "photo.png")
    lafr("restore", "photo.png", "-o", "out")
    restored = np.asarray(Image.open(tmp_path / "out" / "photo.png"), int)
    expected = np.asarray(Restorer.from_pretrained("mini")(photo), int)
    assert restored.shape == (128, 128, 3) and abs(restored - expected).max() <= 1


def test_the_wheel_carries_every_configuration_and_the_lists_of_names(site):
    data = site / "lafr" / "_data"
    for path in [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "data").glob("ffhq_*.txt")]:
        place = path.relative_to(ROOT / "data") if path.suffix == ".txt" else path.relative_to(ROOT)
        assert (data / place).read_bytes() == path.read_bytes(), path


@pytest.mark.slow
def test_every_command_of_the_wheel_runs_in_an_empty_folder(lafr, tmp_path):
    assert "torch" in lafr("check")
    lafr(
        "train",
        "+experiment=smoke",
        *(f"stage.{name}.max_steps=1" for name in ("codebook", "alignment", "restoration")),
    )
    assert (tmp_path / "runs" / "smoke" / "model" / "lafr.json").is_file()
    few = ["methods=['LQ input', LAFR]", "benchmark.build.draws=1"]
    lafr("eval", "benchmark=mini", "model.folder=runs/smoke/model", "run_name=smoke", *few)
    assert "LAFR" in lafr("tables", "runs/eval/smoke/mini/result.json", "--format", "latex")
    lafr("export", "model.folder=runs/smoke/model", "output=exported")
    lafr("prepare", "output=sheet", "draws=2")
    with pytest.raises(AssertionError, match="data/ffhq512"):  # its lists are found, its images are not there
        lafr("train", "+experiment=ffhq_0.9pct")


def test_the_wheel_carries_the_reports_page_and_the_published_values(site):
    for name in ("evaluation/report/page.html", "evaluation/report/page.css", "_data/published.csv"):
        assert (site / "lafr" / name).stat().st_size > 100


def test_the_wheel_carries_the_detector_with_its_licence_and_the_hashed_requirements(site):
    data = site / "lafr" / "_data"
    assert sha256_of_file(data / "yunet" / EXTERNAL["yunet"].name) == EXTERNAL["yunet"].sha256
    assert "Shiqi Yu" in (data / "yunet" / "LICENSE").read_text(encoding="utf-8")
    pinned = [
        line for line in (data / "requirements-no-deps.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"
    ]
    assert (
        all(re.fullmatch(r"[a-z]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", line) for line in pinned) and len(pinned) == 2
    )


def test_the_miniature_is_at_most_40_mb():
    assert sum(path.stat().st_size for path in (ROOT / "data" / "mini").rglob("*")) < 40e6
