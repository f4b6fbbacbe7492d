"""The examples are code that people copy: each works from a folder of its own, without a change in LAFR."""

import argparse
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from lafr.commands.evaluate import benchmark_builder, takes_no_degradation
from lafr.commands.restore import parser
from lafr.errors import InputError
from lafr.images import write_image
from lafr.losses.multilevel import Restoration
from lafr.metrics import METRICS
from lafr.metrics.card import card_of
from lafr.models.adapter import BUILDERS
from lafr.photos.detectors import detector_named

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "examples").glob("my_*.py"))


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Copy the examples into a user's folder; return their commands by name, as lists of words."""
    own = shutil.copytree(ROOT / "examples", tmp_path / "own")
    monkeypatch.syspath_prepend(own)
    monkeypatch.chdir(own)
    monkeypatch.setattr("lafr.models.adapter.BUILDERS", dict(BUILDERS))
    lines = (own / "run.sh").read_text("utf-8").splitlines()
    exports = next(line for line in lines if line.startswith("export ")).split()[1:]
    for name, value in (export.split("=") for export in exports if not export.startswith("PYTHONPATH")):
        monkeypatch.setenv(name, value)
    yield {words[1]: words[2:] for words in map(shlex.split, lines) if words[:1] == ["lafr"]}
    for name in MODULES:
        sys.modules.pop(name, None)
    METRICS.pop("mae", None)


def composed(name: str, words: list[str]):
    """Return what a command composes."""
    reader = argparse.ArgumentParser()
    reader.add_argument("--config-dir", type=Path)
    known, overrides = reader.parse_known_args(words)
    searched = f"hydra.searchpath=[file://{known.config_dir.resolve()}]"
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return compose(name, [searched, *overrides])


def test_adapter_loss_and_metric_are_built_by_the_commands(commands):
    train, evaluate = composed("train", commands["train"]), composed("eval", commands["eval"])
    adapter, loss = instantiate(train.adapter), instantiate(train.loss, _convert_="all")
    metric = instantiate(evaluate.metrics.mae)

    z = torch.randn(2, 4, 8, 8)
    assert adapter(z).shape == z.shape and not torch.equal(adapter(z), z)

    hq = torch.zeros(1, 3, 64, 64)
    striped = hq.clone()
    striped[..., ::2] = 0.5
    terms = loss(Restoration(striped.requires_grad_(), hq, z, z))
    assert loss.weights["edges"] == 0.5 and terms["edges"].item() == pytest.approx(0.5)
    assert terms["edges"].requires_grad and "pixel_l1" in terms

    assert metric(torch.full((1, 3, 8, 8), 10 / 127.5), torch.zeros(1, 3, 8, 8)).item() == pytest.approx(10, abs=0.51)
    card = card_of("mae", metric)
    assert (card.label, card.unit, card.direction, card.digits) == ("MAE", "levels", "↓", 2)
    assert card.definition.startswith("Mean absolute error") and "psnr_rgb" in evaluate.metrics


def test_a_benchmark_that_degrades_by_itself_is_built_without_a_recipe(commands, tmp_path):
    for name in "ab":
        write_image(Image.effect_noise((128, 128), 90).convert("RGB"), tmp_path / f"{name}.png")
    words = [word.replace("FOLDER", str(tmp_path)) for word in commands["eval"]]
    build = composed("eval", words).benchmark.build
    assert takes_no_degradation(build)
    benchmark = benchmark_builder(build, None)(64)
    pair = benchmark[1]
    assert (len(benchmark), benchmark.stem(0), pair.stem) == (2, "a", "b")
    assert torch.equal(pair.lq[:, ::2, ::2], pair.hq[:, ::2, ::2]) and not torch.equal(pair.lq, pair.hq)
    assert torch.equal(pair.lq, benchmark[1].lq)


def test_a_detector_is_named_on_the_command_line(commands):
    given = parser().parse_args(commands["restore"])
    (face,) = detector_named(given.detector)(Image.new("RGB", (512, 512)))
    eyes = np.array([(203.2, 101.5), (246.8, 104.0)])  # of scikit-image's astronaut
    assert np.abs(face.points[:2] - eyes).max() < 6 and face.box[0] < 203 < face.box[2]
    with pytest.raises(InputError, match="nothing:Here"):
        detector_named("nothing:Here")


def test_each_example_has_under_40_lines_and_stands_in_the_page_on_extending():
    shown = re.findall(r'--8<-- "examples/(.*?)"', (ROOT / "docs/extending.md").read_text("utf-8"))
    files = {
        path.relative_to(ROOT / "examples").as_posix() for path in (ROOT / "examples").rglob("*") if path.is_file()
    }
    files = {name for name in files if "__pycache__" not in name and not name.startswith("runs/")}
    assert set(shown) == files
    assert {name for name in files if len((ROOT / "examples" / name).read_text("utf-8").splitlines()) >= 40} == set()
