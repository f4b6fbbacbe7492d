"""A run keeps its settings, a number its interval and its origin."""

import json
import subprocess

import numpy as np
import pytest
import scipy.stats

import lafr.provenance
from lafr.evaluation.summary import mean_and_interval
from lafr.provenance import differences, provenance
from lafr.storage import write_json


def test_a_setting_that_appears_or_goes_away_is_a_change():
    assert differences({"a": 1}, {}) == ["a: 1 -> None"]
    assert differences({}, {"a": {"b": 1}}) == ["a: None -> {'b': 1}"]


def test_the_interval_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).gamma(2.0, 3.0, 60)
    ours = mean_and_interval(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours["mean"] == pytest.approx(values.mean())
    assert ours["low"] < ours["mean"] < ours["high"]
    assert ours["low"] == pytest.approx(theirs.low, abs=0.08 * width)
    assert ours["high"] == pytest.approx(theirs.high, abs=0.08 * width)


def test_the_interval_is_the_same_every_time_and_a_point_for_one_image():
    values = np.arange(10.0)
    assert mean_and_interval(values) == mean_and_interval(values)
    assert mean_and_interval(np.array([3.0])) == {"mean": 3, "low": 3, "high": 3}


def test_a_record_is_whole_or_the_one_before(tmp_path):
    write_json({"a": 1}, tmp_path / "results" / "r.json")
    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "results" / "r.json")
    assert json.loads((tmp_path / "results" / "r.json").read_text()) == {"a": 1}
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["r.json"]


def test_a_number_says_where_it_came_from():
    made = provenance("python scripts/eval.py benchmark=mini", seed=3)
    assert made["command"] == "python scripts/eval.py benchmark=mini"
    assert made["seed"] == 3
    assert {"torch", "diffusers", "vector-quantize-pytorch", "torchmetrics"} <= made["versions"].keys()
    assert json.loads(json.dumps(made)) == made


def test_results_that_a_run_before_has_written_are_no_change_to_the_code(monkeypatch, tmp_path):
    code, written = tmp_path / "lafr" / "results.py", tmp_path / "results" / "one.json"
    for path in (code, written):
        path.parent.mkdir()
        path.write_text("as committed")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init"], ["add", "."], ["commit", "-m", "all"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    monkeypatch.setattr(lafr.provenance, "__file__", str(code))
    written.write_text("written since")
    assert provenance("", 0)["uncommitted_changes"] is False
    code.write_text("edited since")
    assert provenance("", 0)["uncommitted_changes"] is True
