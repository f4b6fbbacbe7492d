"""Protocols: their lists agree with their definitions, and the explanation shows each number with its reason."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import get_object

from lafr.evaluation.protocols import PROTOCOLS, QUANTITIES, explain, metrics_of, other_metrics
from lafr.metrics import METRICS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def configured(group: str, name: str):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose(f"{group}/{name}")[group]


def test_a_protocols_file_lists_the_metrics_that_its_definitions_name():
    assert {path.stem for path in (CONFIGS / "protocol").glob("*.yaml")} == set(PROTOCOLS)
    known = set(configured("metrics", "full"))  # where each is built
    for protocol in PROTOCOLS:
        file = configured("protocol", protocol)
        assert file.name == protocol
        assert sorted(file.metrics) == sorted(metrics_of(protocol))
        assert set(file.metrics) <= known


def test_vqfrs_deg_leaves_out_near_identical_pairs_and_osdfaces_does_not():
    full = configured("metrics", "full")
    settings = {p: QUANTITIES["Deg"].protocols[p].metric for p in ("vqfr", "osdface")}
    assert full[settings["vqfr"]].exclude_below == 1.0
    assert full[settings["osdface"]].get("exclude_below") is None


def test_protocols_that_call_two_metrics_by_one_name_are_kept_apart():
    for quantity, of_vqfr, of_osdface in (
        ("LPIPS", "lpips_vgg", "lpips_alex"),
        ("NIQE", "niqe", "niqe_pyiqa"),
        ("FID to FFHQ", "fid_ffhq_50k", "fid_ffhq"),
    ):
        protocols = QUANTITIES[quantity].protocols
        assert (protocols["vqfr"].metric, protocols["osdface"].metric) == (of_vqfr, of_osdface)
    full = configured("metrics", "full")
    assert full.lpips_vgg.trunk == "vgg" and full.lpips_alex.trunk == "alex"
    assert full.fid_ffhq_50k.statistics != full.fid_ffhq.statistics
    assert get_object(full.niqe._target_) is not get_object(full.niqe_pyiqa._target_)


def test_every_metric_that_is_explained_is_one_of_ours():
    named = {d.metric for q in QUANTITIES.values() for d in q.protocols.values() if d.metric}
    assert named <= METRICS.keys()
    assert {record.quantity for record in METRICS.values() if record.quantity} <= QUANTITIES.keys()
    assert other_metrics("LPIPS") == ["st_lpips_vgg", "st_lpips_alex"] and other_metrics("Deg") == ["ida_rad"]


def section(text: str, name: str) -> str:
    return next(part for part in text.split("\n\n") if part.startswith(f"{name}\n"))


def test_two_definitions_of_one_name_stand_side_by_side_with_their_values_and_the_reason():
    text = section(explain({"deg": 33.123, "deg_vqfr": {"mean": 34.5, "low": 30, "high": 40}, "psnr_rgb": 24.3}), "Deg")
    vqfr, osdface = (
        next(line for line in text.splitlines() if line.startswith(f"  {p} ")) for p in ("vqfr", "osdface")
    )
    assert "deg_vqfr" in vqfr and "34.50" in vqfr
    assert "33.12" in osdface and "34.50" not in osdface
    assert "drops pairs under 1 degree" in " ".join(text.split())


RECORD = {
    "benchmark": "celeba_test",
    "rows": {
        "LQ input": {"lpips_vgg": {"mean": 0.9, "low": 0.8, "high": 1.0}},
        "LAFR": {"lpips_vgg": {"mean": 0.3, "low": 0.2, "high": 0.4}, "deg": {"mean": None, "low": None, "high": None}},
        "codec(HQ)": {"lpips_vgg": {"mean": 0.1, "low": 0.0, "high": 0.2}},
    },
    "not_measured": {"niqe": "NIQE is undefined for 128 x 128 pixels"},
}


def test_a_record_shows_the_method_asked_for_what_failed_and_what_was_not_measured_and_why():
    text = explain(RECORD)
    assert "'LAFR' on celeba_test" in text
    assert "0.3000" in section(text, "LPIPS") and "0.9000" not in text
    assert "failed" in section(text, "Deg")
    assert "not measured" in section(text, "NIQE") and "undefined for 128 x 128" in " ".join(text.split())
    assert "0.9000" in explain(RECORD, method="LQ input")


def test_the_same_images_under_two_protocols_are_explained_together():
    other = {"benchmark": "celeba_test", "rows": {"LAFR": {"lpips_alex": {"mean": 0.21}, "niqe": {"mean": 4.5}}}}
    text = explain([RECORD, other])
    lpips = section(text, "LPIPS")
    assert "0.3000" in lpips and "0.2100" in lpips
    assert "4.500" in section(text, "NIQE")
    assert "undefined for 128" not in text  # the other record measured it
    assert text.count("'LAFR' on celeba_test") == 1
    assert "'GFPGAN' on wider" in explain({"benchmark": "wider", "rows": {"GFPGAN": {"musiq": {"mean": 70.1}}}})
    assert max(map(len, explain(RECORD).splitlines())) <= 120
