"""The loss study's arithmetic: intervals over seeds, and scores by how degraded the input is."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import loss_study
    import make_tables

    yield loss_study, make_tables
    for name in ("loss_study", "make_tables", "eval"):
        sys.modules.pop(name, None)


def test_the_interval_over_seeds_is_students(scripts):
    values = [0.31, 0.34, 0.36]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    mean, half = (float(part) for part in scripts[1].over_seeds(values, 4).split(" ± "))
    assert mean == pytest.approx(np.mean(values), abs=1e-4)
    assert half == pytest.approx((high - low) / 2, abs=1e-4)
    assert scripts[1].over_seeds([0.31], 2) == "0.31"


def test_severity_is_the_inputs_and_a_failed_face_is_not_averaged_in(scripts):
    psnr = np.array([20.0, 30, 25, 10, 15, 28])
    scores = {
        "LQ input": {"psnr_rgb": psnr, "cos": psnr / 100},
        "all, seed 0": {"psnr_rgb": psnr[::-1], "cos": np.array([1.0, 2, 3, 4, np.nan, 6])},
    }
    found = scripts[0].by_severity(scores)
    assert found["LQ input"]["psnr_rgb"] == {"mild": 29, "middle": 22.5, "severe": 12.5}
    assert found["all, seed 0"]["cos"] == {"mild": 4, "middle": 2, "severe": 4}
