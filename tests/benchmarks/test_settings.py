"""Settings of benchmarks that cannot be measured with are refused before anything is measured."""

import sys
from types import SimpleNamespace

import pytest

from lafr.commands.launch import composed
from lafr.errors import InputError
from scripts.benchmarks.__main__ import main, measure
from scripts.benchmarks.loader import eaten_by_miniature


@pytest.mark.parametrize(
    ("topic", "setting", "said"),
    [
        ("loss", "rounds=0", "rounds"),
        ("timesteps", "draws=0", "draws"),
        ("inference", "clock=sundial", "elapsed, processor"),
        ("inference", "decoders=[base,fast]", "some of base, tiny"),  # it was timed as the base's and called tiny
        ("small_faces", "sides=[64,400]", "at most 248 px"),  # they would overlap
        ("small_faces", f"sides={list(range(24, 46))}", "1 to 21 sizes"),  # the last ones would not be drawn
        ("loader", "images=20", "two batches at least, 32"),
        ("gate", "votes=bbaa", "votes must be 24 letters"),
    ],
)
def test_a_setting_that_cannot_be_measured_with_is_named(topic, setting, said, tmp_path):
    cfg = composed(f"benchmark_{topic}", setting.replace(" ", ""), f"output={tmp_path}")
    with pytest.raises(InputError, match=said):
        measure(topic, cfg)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_part_is_one_line_before_the_first_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scripts.benchmarks", "speed", "startup", "nothing"])
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(returncode=0))
    with pytest.raises(SystemExit, match=r"error: parts must be some of .* got 'nothing'"):
        main()
    assert "startup" not in capsys.readouterr().err


def test_the_pace_of_the_miniatures_training_is_measured():
    assert eaten_by_miniature(composed("benchmark_loader", "loss=latent")) > 0
