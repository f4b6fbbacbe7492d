"""What fewer bits gain and lose: a rehearsal with the miniature, the arithmetic of the verdict, missing packages."""

import sys

import pytest

from lafr.commands.launch import composed
from lafr.errors import InputError
from lafr.storage import read_json
from scripts.benchmarks import precision_ways
from scripts.benchmarks.__main__ import measure
from scripts.benchmarks.precision import LEAST, PARTS, best_mix, precision_table, psnr_of, speed_of


def test_a_rehearsal_measures_every_part_in_our_own_bfloat16_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision_ways.Way, "hindrance", lambda way: "")  # on any processor
    settings = ["scale=mini", "resolution=64", "ways=[torch_bfloat16]", "draws=1", "calibration=1"]
    cfg = composed("benchmark_precision", *settings, f"output={tmp_path}", f"folder={tmp_path}")
    measure("precision", cfg)
    record = read_json(tmp_path / "precision.json")
    own = record["ways"]["torch_bfloat16"]
    assert record["not_run"] == {} and record["images"] == 7 and record["packages"] == {}
    assert list(record["float32"]) == ["adapter", *PARTS] and list(own["parts"]) == list(PARTS)
    assert all(30 < own["psnr"][name] < 90 for name in (*PARTS, "all"))
    # errors of parts add, roughly: the nearest code can be another one
    assert own["psnr"]["all"] == pytest.approx(psnr_of(record, dict.fromkeys(PARTS, "torch_bfloat16")), abs=2)
    assert "| PyTorch bfloat16 |" in capsys.readouterr().out
    monkeypatch.setattr("scripts.benchmarks.precision.in_turns", lambda *_: 1 / 0)
    measure("precision", cfg)
    assert read_json(tmp_path / "precision.json")["ways"] == record["ways"]


def test_the_verdict_takes_the_fastest_mix_of_one_library_and_ours_that_keeps_forty_decibels():
    speeds = {"torch_bfloat16": 2.0, "ort_int8_static": 8.0, "openvino_int8": 4.0, "openvino_bfloat16": 2.5}
    decibels = {"torch_bfloat16": 60.0, "ort_int8_static": 30.0, "openvino_int8": 42.0, "openvino_bfloat16": 60.0}
    found = {
        way: {
            "parts": {part: {"speed": speed} for part in PARTS},
            "psnr": dict.fromkeys((*PARTS, "all"), decibels[way]),
        }
        for way, speed in speeds.items()
    }
    seconds = {"adapter": 0.0, "encoder": 2.0, "UNet": 2.0, "decoder": 4.0}
    record = {"float32": seconds, "ways": found, "not_run": {}, "packages": {}, "resolution": 512, "threads": 2}
    record |= {"instructions": "AVX512", "repeats": 1, "images": 7}
    # 42 dB twice is 39 dB: one part alone may be in eight bits, and the decoder takes longest
    mix = best_mix(record, "openvino")
    assert mix == {"encoder": "openvino_bfloat16", "UNet": "openvino_bfloat16", "decoder": "openvino_int8"}
    assert speed_of(record, mix) == pytest.approx(8 / (2 / 2.5 + 2 / 2.5 + 4 / 4))
    assert 41.8 < psnr_of(record, mix) < 42
    assert set(best_mix(record, "ort").values()) == {"torch_bfloat16"}
    whole = speed_of(record, mix) / 2  # relative to ours in bfloat16
    assert whole >= LEAST["speed"] and precision_table(record).endswith("OpenVINO.")
    found["openvino_int8"]["psnr"]["decoder"] = 39.9
    found["openvino_int8"]["psnr"]["UNet"] = found["openvino_int8"]["psnr"]["encoder"] = 39.9
    assert set(best_mix(record, "openvino").values()) == {"openvino_bfloat16"}
    assert precision_table(record).endswith("none.")
    # kept to AVX2 the comparison is with float32
    del found["torch_bfloat16"], found["openvino_bfloat16"]
    found["openvino_int8"]["psnr"]["encoder"] = 45.0
    assert f"{8 / (2 / 4 + 2 + 4):.2f}x" in precision_table(record).rsplit("relative to PyTorch float32", 1)[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("ways=[openvino_int4]", "ways must be some of"),
        ("parts=[head]", "parts must be some of encoder, UNet, decoder"),
        ("ways=[openvino_int8]", "nncf cannot be imported .*: pip install nncf"),
        ("ways=[torchao_int8_dynamic]", "torchao cannot be imported .*: pip install torchao"),
    ],
)
def test_an_unknown_way_and_a_missing_package_are_named_before_anything_is_measured(
    settings, said, tmp_path, monkeypatch
):
    for package in ("openvino", "nncf", "torchao"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("scripts.benchmarks.precision.full_size", None)
    cfg = composed("benchmark_precision", settings, f"output={tmp_path}", f"folder={tmp_path}")
    with pytest.raises(InputError, match=said):
        measure("precision", cfg)
    assert list(tmp_path.iterdir()) == []


def test_ways_that_cannot_be_restricted_are_not_run_where_instructions_are(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    run = {way for way, of in precision_ways.WAYS.items() if not of.hindrance()}
    assert run == {"torchao_int8_dynamic", "openvino_float32", "openvino_int8"}
