"""A wheel carries the miniature: installed outside the checkout, it restores a photo."""

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
RESTORE = """
import sys
from PIL import Image
import lafr
restored = lafr.Restorer.from_pretrained()(Image.open(sys.argv[1]))
restored.save(sys.argv[2])
print(lafr.__file__)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The wheel's files, unpacked by pip into a folder of their own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        folder / "site",
    ]
    subprocess.run([*install, next(folder.glob("*.whl"))], check=True, capture_output=True)
    return folder / "site"


def test_an_installed_wheel_restores_a_photo_as_the_checkout_does(site, tmp_path):
    photo = aligned("astronaut").resize((64, 64))
    photo.save(tmp_path / "photo.png")
    command = [sys.executable, "-c", RESTORE, tmp_path / "photo.png", tmp_path / "restored.png"]
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(site)

    restored = np.asarray(Image.open(tmp_path / "restored.png"), int)
    expected = np.asarray(Restorer.from_pretrained("mini")(photo), int)
    assert restored.shape == (128, 128, 3) and abs(restored - expected).max() <= 1


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
