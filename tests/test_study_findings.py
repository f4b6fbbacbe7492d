"""What the studies' page says follows from the numbers: intervals, verdicts, costs, what is missing."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lafr.studies.charts import fences
from lafr.studies.costs import Curve, enough
from lafr.studies.findings import direction, headline, noises, noises_for, run_values, training_costs, values_of
from lafr.studies.intervals import Comparison, Noise, compare, half_interval, half_of, noise_of, pooled_spread
from lafr.studies.latents import in_plane_of
from lafr.studies.sheets import evenly_ranked, worst

ROOT = Path(__file__).resolve().parents[1]
STUDY = {
    "name": "alignment",
    "question": "Does alignment help?",
    "seeds": [0, 1, 2],
    "rows": {"none": {}, "hard": {}, "soft": {}},
    "titles": {"hard": "hard codebook", "none": "nothing"},
    "compare": [["hard", "none"]],
    "metrics": ["psnr_rgb", "identity_distance_dlib"],
}


def record(row, seed, held_out=(), seconds=10.0, study="alignment", benchmark="val", **scores):
    step = {"stage": "restoration", "steps": 10, "batch_size": 4, "seconds": seconds, "seconds_per_step": seconds / 10,
            "trained_parameters": 5, "validation": {"latent_l1": 0.2},
            "held_out": [{"seconds": s, "loss": v} for s, v in held_out]}  # fmt: skip
    return {"study": study, "row": row, "seed": seed, "device": "cpu", "threads": 2, "steps": [step], "latents": {},
            "scores": {benchmark: {"images": 160, **{m: {"mean": v} for m, v in scores.items()}}}, "trained_on": [],
            "trained_values": 5, "wall_seconds": {"training": 60.0 + 300 * (seed == 1), "val": 30.0}, "run_minutes": 6,
            "date": "2026-01-01",
            "machine": "a machine", "versions": {"torch": "2"}}  # fmt: skip


def test_paired_differences_have_students_interval():
    a, b = {0: 24.1, 1: 24.5, 2: 23.9}, {0: 24.0, 1: 24.2, 2: 23.85}
    found = compare(a, b, noise_of([a, b]))
    test = stats.ttest_rel(list(a.values()), list(b.values()))
    low, high = test.confidence_interval(0.95)
    assert found.difference == pytest.approx((low + high) / 2)
    assert found.half == pytest.approx((high - low) / 2)
    assert (found.verdict("↑") == "within noise") == (test.pvalue > 0.05)


def test_the_borrowed_spread_is_that_of_an_analysis_of_variance_and_widens_for_two_single_seeds():
    rows = [[1.0, 1.2, 1.1], [3.0, 3.3, 3.0], [2.0]]
    spread = pooled_spread(rows)
    within = np.sqrt((2 * np.var(rows[0], ddof=1) + 2 * np.var(rows[1], ddof=1)) / 4)
    assert (spread.deviation, spread.freedom) == (pytest.approx(within), 4)
    noise = Noise(spread, None)
    assert compare({0: 2.0}, {1: 1.0}, noise).half == pytest.approx(stats.t.ppf(0.975, 4) * within * np.sqrt(2))
    assert compare({0: 2.0}, {0: 1.0}, noise).half is None  # nothing says how noisy a pair is
    assert half_of([2.0], noise) == pytest.approx(stats.t.ppf(0.975, 4) * within)
    assert half_of([2.0] * 4, noise) == pytest.approx(stats.t.ppf(0.975, 4) * within / 2)
    assert half_of([1.0, 2.0], None) == half_interval([1.0, 2.0])
    assert half_interval([1.0]) is pooled_spread([[1.0], [2.0]]) is half_of([2.0], None) is None


def test_the_noise_of_pairs_is_the_residual_of_a_two_way_analysis_of_variance():
    table = np.random.default_rng(0).normal(size=(5, 3)) + np.arange(5)[:, None] + 10 * np.arange(3)
    rows = [dict(enumerate(row)) for row in table]
    noise = noise_of(rows)
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    assert noise.pairs.freedom == 8
    assert noise.pairs.deviation == pytest.approx(np.sqrt((residual**2).sum() / 8))
    assert noise.seeds.deviation > 5 * noise.pairs.deviation  # the seeds' own effect is in every row alike
    half = stats.t.ppf(0.975, 8) * noise.pairs.deviation * np.sqrt(2 / 3)
    assert compare(rows[1], rows[0], noise).half == pytest.approx(half)

    del rows[4][1], rows[4][2]  # a row of one seed takes part, and adds nothing to the noise
    assert noise_of(rows).pairs.deviation == pytest.approx(noise_of(rows[:4]).pairs.deviation)
    found = compare(rows[4], rows[0], noise_of(rows))
    assert found.difference == pytest.approx(table[4, 0] - table[0, 0]) and found.seeds == 1


def test_a_study_is_read_with_its_own_noise_once_all_its_rows_have_several_seeds():
    borrowed = {"psnr_rgb": "study 1's"}
    several = {"a": {"psnr_rgb": {0: 1.0, 1: 2.0}}, "b": {"psnr_rgb": {0: 2.0, 1: 3.5}}}
    assert noises_for(several, borrowed)["psnr_rgb"].pairs.freedom == 1
    assert noises_for({**several, "c": {"psnr_rgb": {0: 1.0}}}, borrowed) == borrowed


@pytest.mark.parametrize(
    ("difference", "half", "arrow", "word"),
    [
        (0.3, 0.2, "↑", "ahead"),
        (0.3, 0.2, "↓", "behind"),
        (-0.3, 0.2, "↓", "ahead"),
        (-0.3, 0.2, "↑", "behind"),
        (0.2, 0.2, "↑", "within noise"),
        (-0.1, 0.2, "↓", "within noise"),
        (9.0, None, "↑", "unsure"),
    ],
)
def test_a_verdict_follows_the_number_its_interval_and_what_is_better(difference, half, arrow, word):
    assert Comparison(difference, half, 3).verdict(arrow) == word


def test_the_table_of_differences_follows_the_numbers(page):
    import study_page

    def said(hard, none):
        runs = [record("hard", i, psnr_rgb=v, identity_distance_dlib=d) for i, (v, d) in enumerate(hard)]
        runs += [record("none", i, psnr_rgb=v, identity_distance_dlib=d) for i, (v, d) in enumerate(none)]
        values = values_of(runs, "val")
        head, _, line = study_page.differences_table(STUDY, values, noises(values)).splitlines()
        assert head == "| difference | PSNR ↑ | identity by dlib ↓ | pictures |"
        return line

    low, high = [(24.0, 0.5), (24.1, 0.5), (24.2, 0.52)], [(25.0, 0.6), (25.1, 0.61), (25.21, 0.62)]
    assert said(high, low) == (
        "| hard codebook less nothing | +1.00 ± 0.01 **ahead** | +0.1033 ± 0.0143 **behind** | mixed |"
    )
    assert "| -1.00 ± 0.01 **behind** | -0.1033 ± 0.0143 **ahead** |" in said(low, high)
    mixed = [(24.0, 0.6), (24.3, 0.5), (24.1, 0.5)]
    assert re.search(r"\| \+0.03 ± 0.\d\d \| \+0.0267 ± 0.\d{4} \| no clear difference \|", said(mixed, low))
    assert said([(25.0, 0.6)], [(24.0, 0.5)]).endswith("| +1.00 | +0.1000 | – |")  # nothing says how sure that is
    alone = values_of([record("hard", 0, psnr_rgb=1)], "val")
    assert study_page.differences_table(STUDY, alone, {}) == ""  # nothing to compare with


def test_the_short_answer_calls_pictures_better_when_two_metrics_say_so_and_none_the_contrary():
    metrics = ("psnr_rgb", "st_lpips_vgg", "identity_distance_dlib", "latent_gap_after")
    rows = {"soft": (25.0, 0.3, 0.5, 0.2), "conv": (25.0, 0.3, 0.7, 0.3), "heads": (25.0, 0.4, 0.6, 0.4),
            "far": (23.0, 0.5, 0.6, 0.3), "hard": (24.0, 0.4, 0.6, 0.3)}  # fmt: skip
    study = {**STUDY, "metrics": metrics, "compare": [[row, "hard"] for row in rows if row != "hard"], "titles": {}}
    jitter = ((0.001, -0.001, 0.001), (-0.001, 0.001, 0.001), (0.001, 0.001, -0.001))
    runs = []
    for k, (row, values) in enumerate(rows.items()):
        for seed in range(3):
            scores = [v + 0.1 * seed + jitter[seed][k % 3] for v in values]
            one = record(row, seed, **dict(zip(metrics[:3], scores, strict=False)))
            runs.append({**one, "latents": {"val": {"latent_gap_after": scores[3]}}})
    values = values_of(runs, "val")
    pictures, gaps = headline(study, runs, "val", noises(values))
    assert pictures.splitlines() == [
        "Pictures against those of hard:",
        "  - **better**: soft",
        "  - **mixed**: conv (ahead in PSNR, ST-LPIPS; behind in identity by dlib)",
        "  - **no clear difference**: heads (ahead in PSNR)",
        "  - **worse**: far",
    ]
    assert gaps.splitlines() == [
        "Latent gap against that of hard:",
        "  - **smaller**: soft",
        "  - **the same within noise**: conv; far",
        "  - **larger**: heads",
    ]


def test_a_failed_metric_and_another_benchmark_are_no_values():
    one = record("hard", 0, psnr_rgb=24.0, lmd_68=None)
    assert "lmd_68" not in run_values(one, "val") and run_values(one, "val")["latent_l1_restored"] == 0.2
    assert values_of([one], "london") == {}
    assert direction("latent_gap_after") == direction("bound_latent_l1") == "↓" and direction("psnr_rgb") == "↑"
    assert direction("dead_codes_hq") == ""  # it describes: no row is ahead in it


def test_enough_images_are_the_fewest_that_no_more_of_them_beat():
    def rows(*means):
        return [(str(i), {0: m - 0.01, 1: m, 2: m + 0.012 * (1 + i % 2)}) for i, m in enumerate(means)]

    noise = noise_of([own for _, own in rows(20, 22, 24)])
    assert enough(rows(20, 22, 24, 24, 24), "↑", noise) == "2"
    assert enough(rows(24, 24, 24), "↑", noise) == "0"
    assert enough(rows(20, 22, 24), "↑", noise) == "2"  # the last: more may go on gaining
    assert enough(rows(24, 22, 20), "↑", noise) == "0" and enough(rows(24, 22, 20), "↓", noise) == "2"
    assert enough(rows(24, 22, 25), "↑", noise) == "2"  # a dip in between does not end the search
    assert enough([("a", {0: 1.0}), ("b", {0: 2.0})], "↑") is None and enough(rows(24), "↑", noise) is None


def test_time_to_a_quality_is_the_first_point_as_good_and_quality_at_a_time_the_last_within():
    curve = Curve(((10.0, 0.9), (20.0, 0.5), (30.0, 0.6), (40.0, 0.4)))
    assert [curve.time_to(v) for v in (1.0, 0.55, 0.5, 0.45, 0.3)] == [10, 20, 20, 40, None]
    assert [curve.at(s) for s in (5, 10, 35, 99)] == [None, 0.9, 0.6, 0.4]


def test_the_claim_of_less_training_time_is_judged_by_the_time_that_was_measured():
    study = {**STUDY, "name": "cost", "compare": [], "reference": "lafr", "claim": 0.7, "titles": {"lafr": "LAFR"}}

    def said(slow):
        own = record("lafr", 0, [(10, 0.6), (30, 0.5)], study="cost")
        return training_costs(study, [own, record("encoder", 0, slow, study="cost")])[1]

    assert "in 120 s: LAFR saves 75 %, at least the 70 %" in said([(60, 0.55), (120, 0.5)])
    assert "in 60 s: LAFR saves 50 %, less than the 70 %" in said([(30, 0.55), (60, 0.49)])
    assert "at 30 s it stands at 0.5500" in said([(30, 0.55), (60, 0.49)])
    assert "in 15 s: LAFR takes 2.0 times as long, where the paper claims 70 % less;" in said([(15, 0.5)])
    assert "does not reach 0.5000 in its 90 s" in said([(90, 0.51)])


@pytest.fixture
def page(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import study_page

    results = tmp_path / "studies"
    yield lambda: study_page.write_page(results).read_text(), results
    for name in ("study_page", "study_steps", "command"):
        sys.modules.pop(name, None)


def test_the_page_names_every_missing_run_and_says_of_a_study_that_was_not_run_that_it_was_not(page):
    write, results = page
    (results / "alignment").mkdir(parents=True)
    for seed in range(3):
        for row, value in (("hard", 24.0), ("none", 23.0)):
            one = record(row, seed, psnr_rgb=value + seed / 10)
            (results / "alignment" / f"{row}_{seed}.json").write_text(json.dumps(one))
    (results / "alignment" / "none_2.json").unlink()
    known = {"val": {"rows": {"LQ input": {"psnr_rgb": {"mean": 21.234}}}}}
    (results / "references.json").write_text(json.dumps(known))
    (results / "not_run.json").write_text(json.dumps({"alignment/soft, seed 1": "no such adapter"}))
    text = write()
    missing = re.findall(r"^- alignment/(\w+), seed (\d): (.+)$", text, re.MULTILINE)
    assert len(missing) == 27 - 5 and ("soft", "1", "no such adapter") in missing
    assert ("soft", "0", "not run yet") in missing and [m[:2] for m in missing if m[0] in ("hard", "none")] == [
        ("none", "2")
    ]
    assert text.count("This study was not run yet") == 5
    assert "| hard, seed 1 | 6.5 | 0.5 |" in text and "; 2 of 5 took more than 6." in text
    assert "| hard codebook (LAFR) | 0.2000 ± 0.0000 | 24.10 ± 0.17 |" in text
    assert "| *LQ input* | – | 21.23 | – | – | – |" in text
    short = text[text.index("## In short") : text.index("## Does alignment help?")]
    assert "**Does alignment help?**\n\nOn val:\n\n- Pictures against those of nothing (z_lq):\n  - **no clear" in short
    assert short.count("- not known yet") == 4
    assert "](studies/alignment_val.svg)" in text and (results / "alignment_val.svg").stat().st_size > 5000
    drawn = (results / "alignment_val.svg").read_bytes()
    assert write() == text and (results / "alignment_val.svg").read_bytes() == drawn  # the same numbers, the same bytes


def test_a_test_set_that_not_all_runs_were_scored_on_yet_does_not_head_the_page_and_lost_models_are_counted(page):
    write, results = page
    (results / "alignment").mkdir(parents=True)

    def note(row, london=None, again=None):
        one = record(row, 0, psnr_rgb=23.0)
        if london is not None:
            one["scores"]["london"] = {"images": 102, "psnr_rgb": {"mean": london}}
        if again is not None:
            one["trained_again"] = {"london": {"restoration": {"noted": {"psnr_rgb": 24.0}, "again": again}}}
        (results / "alignment" / f"{row}_0.json").write_text(json.dumps(one))

    note("hard", 22.25, {"psnr_rgb": 24.25})
    note("none")
    text = write()
    told = text[text.index("### On london") :]
    assert "1 of 2 runs were scored so far." in told
    assert "with the same settings and seeds and up to as many threads: 1 of the models" in told
    assert "changed by up to 0.25 dB" in told
    assert "**Does alignment help?**\n\nOn val:" in text
    note("none", 22.5)
    text = write()
    assert "**Does alignment help?**\n\nOn london:" in text and "scored so far" not in text


def test_the_time_of_training_is_told_and_drawn_once_whatever_sets_the_models_were_scored_on(page):
    write, results = page
    (results / "cost").mkdir(parents=True)
    for row, held_out in (("lafr", [(10, 0.6), (30, 0.5)]), ("encoder", [(10, 0.7), (15, 0.5)])):
        one = record(row, 0, held_out, study="cost", psnr_rgb=24.0)
        one["scores"]["london"] = {"images": 102, "psnr_rgb": {"mean": 23.0}}
        (results / "cost" / f"{row}_0.json").write_text(json.dumps(one))
    text = write()
    own = text[text.index("## What does training cost?") :]
    assert own.count("takes 2.0 times as long") == own.count("](studies/cost.svg)") == 1
    assert own.index("takes 2.0 times as long") < own.index("](studies/cost.svg)") < own.index("### On val")
    assert "](studies/cost_val.svg)" in own and "](studies/cost_london.svg)" in own


def test_the_plane_of_the_latents_is_that_of_an_independent_principal_component_analysis():
    draw = np.random.default_rng(0)
    z_hq = draw.normal(size=(20, 12)) * np.linspace(5, 0.1, 12)
    found = in_plane_of("z_hq", {"z_hq": list(z_hq), "z_lq": list(z_hq + 1)})
    values, vectors = np.linalg.eigh(np.cov(z_hq.T))
    explained = values[::-1][:2] / values.sum()
    assert found["explained"] == pytest.approx(explained)
    scores = (z_hq - z_hq.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(found["points"]["z_hq"]), np.abs(scores), atol=1e-3)
    assert found["distances"] == {"z_lq": pytest.approx(1)}


def test_faces_are_chosen_by_their_scores_alone():
    scores = {f"f{i:02d}": (7 * i) % 21 / 10 for i in range(21) if i % 3}
    order = sorted(scores.values())
    chosen = [scores[face] for face in evenly_ranked(scores, 5)]
    assert chosen == sorted(chosen) and (chosen[0], chosen[-1]) == (order[0], order[-1])
    assert len(set(evenly_ranked(scores, 10))) == 10 and len(evenly_ranked({"a": 1.0}, 10)) == 1
    assert [scores[face] for face in worst(scores, 3, lowest=True)] == order[:3]
    assert [scores[face] for face in worst(scores, 3, lowest=False)] == order[::-1][:3]


def test_one_failed_row_does_not_hide_how_the_others_differ():
    rows = [23.22, 23.21, 22.99, 23.25, 23.31, 23.14, 23.27]
    low, high = fences([*rows, 17.04])
    assert all(low <= value <= high for value in rows) and low > 17.04
    assert fences([1.0, 1.0, 1.0]) == (-np.inf, np.inf) and fences([1.0, 5.0])[1] > 5  # two are no crowd
