"""CONTRIBUTING's example is the code that people copy: it must run as written."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lafr.losses.multilevel import Restoration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def example(tmp_path, monkeypatch):
    code, shell = re.findall(r"```(?:python|bash)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield [shlex.split(line) for line in shell.replace("\\\n", " ").splitlines() if line.startswith("python")]
    sys.modules.pop("mine", None)


def test_the_example_adapter_loss_and_metric_are_built_by_its_commands(example):
    train, evaluate = example
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        cfg = compose("train", train[2:])
        metric = instantiate(compose("eval", evaluate[2:]).metrics.mae)
    adapter, loss = instantiate(cfg.adapter), instantiate(cfg.loss, _convert_="all")

    z = torch.randn(2, 4, 8, 8)
    assert adapter(z).shape == z.shape and not torch.equal(adapter(z), z)

    hq = torch.zeros(1, 3, 64, 64)
    striped = hq.clone()
    striped[..., ::2] = 0.5
    terms = loss(Restoration(striped.requires_grad_(), hq, z, z))
    assert loss.weights["edges"] == 0.5 and terms["edges"].item() == pytest.approx(0.5)
    assert terms["edges"].requires_grad

    assert metric(torch.full((1, 3, 8, 8), 10 / 127.5), torch.zeros(1, 3, 8, 8)).item() == pytest.approx(10, abs=0.51)
