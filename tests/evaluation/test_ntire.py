"""NTIRE 2026's total score and identity gate against numbers computed by hand."""

import math

import numpy as np
import pytest

from lafr.evaluation.publishing import add_gate, add_total_scores
from lafr.evaluation.tables import gate_note
from lafr.metrics.ntire import ALLOWED, THRESHOLDS, faces_below, passes, total_score


def test_the_total_score_is_the_sum_by_hand():
    means = {"clipiqa": 0.7, "maniqa": 0.6, "musiq": 75.0, "niqe_pyiqa": 4.0, "qalign": 4.0, "fid_ffhq": 45.0}
    # 0.7 + 0.6 + 0.75 + 0.6 + 0.8 + 0.55
    assert total_score(means) == pytest.approx(4.0)
    assert total_score(means, without_qalign=True) == pytest.approx(3.2)
    # a NIQE above 10 and an FID above 100 add nothing, they do not take away
    assert total_score(means | {"niqe_pyiqa": 12.0, "fid_ffhq": 130.0}) == pytest.approx(2.85)


def test_the_gate_counts_faces_below_the_sets_threshold_and_lets_ten_pass():
    assert (THRESHOLDS["wider_test"], THRESHOLDS["webphoto_test"]) == (0.30, 0.30)
    assert (THRESHOLDS["lfw_test"], THRESHOLDS["celebchild_test"], THRESHOLDS["celeba_test"]) == (0.60, 0.60, 0.50)
    cosines = [0.29, 0.30, 0.31, math.nan, 0.9]
    assert faces_below(cosines, 0.30) == 2  # one below and one that could not be measured; 0.30 itself is not below
    assert faces_below(cosines, 0.60) == 4
    assert passes(ALLOWED) and not passes(ALLOWED + 1) and ALLOWED == 10


MEANS = {"clipiqa": 0.7, "maniqa": 0.6, "musiq": 75.0, "niqe_pyiqa": 4.0, "fid_ffhq": 45.0}


def test_a_result_holds_the_score_and_the_gates_verdict_of_each_method():
    rows = {
        name: {metric: {"mean": value} for metric, value in MEANS.items()} for name in ("LQ input", "LAFR", "Other")
    }
    rows["Other"]["qalign"] = {"mean": 4.0}
    lacking = add_total_scores(rows)
    assert rows["Other"]["ntire26_score"]["mean"] == pytest.approx(4.0)
    assert rows["LAFR"]["ntire26_score_without_qalign"]["mean"] == pytest.approx(3.2)
    assert "qalign" in lacking["ntire26_score"] and "ntire26_score" not in rows["LAFR"]

    cosines = {"LQ input": np.ones(30), "LAFR": np.linspace(0.21, 0.5, 30), "Other": np.linspace(0.1, 0.39, 30)}
    gate = add_gate(rows, "wider_test", {name: {"identity_lq_adaface": values} for name, values in cosines.items()})
    assert (gate["threshold"], gate["below"]) == (0.30, {"LQ input": 0, "LAFR": 9, "Other": 20})
    assert gate["passed"] == {"LQ input": True, "LAFR": True, "Other": False}
    assert rows["Other"]["ntire26_faces_below"]["mean"] == 20
    note = gate_note(gate)
    assert "LAFR passes (9)" in note and "Other fails (20)" in note and "0.30" in note
    assert add_gate(rows, "london", {}) == {}
