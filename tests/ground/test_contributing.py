"""CONTRIBUTING's example is the code that people copy: it must run as written."""

import argparse
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lafr.losses.multilevel import Restoration
from lafr.metrics import METRICS
from lafr.metrics.card import card_of
from lafr.models.adapter import BUILDERS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Write the example's files; return its commands as their configuration's name and overrides."""
    blocks = re.findall(r"```(python|yaml|bash)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    for kind, text in blocks:
        if kind != "bash":
            path = tmp_path / ("mine.py" if kind == "python" else re.match(r"# (\S+)", text)[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LAFR_ADAPTERS", "mine")
    monkeypatch.setattr("lafr.models.adapter.BUILDERS", dict(BUILDERS))
    monkeypatch.chdir(tmp_path)
    shell = next(text for kind, text in blocks if kind == "bash").replace("\\\n", " ")
    yield [shlex.split(line)[1:] for line in shell.splitlines() if line.startswith("python")]
    sys.modules.pop("mine", None)
    METRICS.pop("mae", None)


def composed(command: list[str]):
    """Return what a command composes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("script", type=Path)
    parser.add_argument("--config-dir", type=Path)
    known, overrides = parser.parse_known_args(command)
    searched = f"hydra.searchpath=[file://{known.config_dir.resolve()}]"
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return compose(known.script.stem, [searched, *overrides])


def test_the_example_adapter_loss_and_metric_are_built_by_its_commands(commands):
    train, evaluate = map(composed, commands)
    adapter, loss = instantiate(train.adapter), instantiate(train.loss, _convert_="all")
    metric = instantiate(evaluate.metrics.mae)

    z = torch.randn(2, 4, 8, 8)
    assert adapter(z).shape == z.shape and not torch.equal(adapter(z), z)

    hq = torch.zeros(1, 3, 64, 64)
    striped = hq.clone()
    striped[..., ::2] = 0.5
    terms = loss(Restoration(striped.requires_grad_(), hq, z, z))
    assert loss.weights["edges"] == 0.5 and terms["edges"].item() == pytest.approx(0.5)
    assert terms["edges"].requires_grad and "pixel_mse" in terms

    assert metric(torch.full((1, 3, 8, 8), 10 / 127.5), torch.zeros(1, 3, 8, 8)).item() == pytest.approx(10, abs=0.51)
    card = card_of("mae", metric)
    assert (card.label, card.unit, card.direction, card.digits) == ("MAE", "levels", "↓", 2)
    assert card.definition.startswith("Mean absolute error") and "psnr_rgb" in evaluate.metrics
