"""The gate of the miniature: thresholds on known numbers, and a blind comparison whose key is right."""

import json

import numpy as np
import pytest
from PIL import Image

from lafr.errors import InputError
from lafr.miniature.gate import INPUT, blind_pairs, by_severity, measures, most_degraded_third, require_votes, wins

METRICS = {  # input, method: every line of the gate holds
    "psnr_rgb": (23.0, 24.6),
    "identity_cos_sface": (0.40, 0.46),
    "identity_distance_dlib": (0.60, 0.55),
    "st_lpips_vgg": (0.50, 0.29),
    "lmd_68": (6.0, 4.7),
}


def scores(**changed):
    rng = np.random.default_rng(0)
    noise = {f"{i:02d}": float(rng.normal(0, 0.1)) for i in range(30)}
    of: dict = {INPUT: {}, "LAFR": {}}
    for metric, (before, after) in {**METRICS, **changed}.items():
        of[INPUT][metric] = {image: before + e for image, e in noise.items()}
        of["LAFR"][metric] = {image: after + e for image, e in noise.items()}
    return of


def test_every_line_holds_where_it_should_and_each_falls_alone():
    assert all(line.passed for line in measures(scores(), "LAFR"))
    worse = {
        "PSNR": {"psnr_rgb": (23.0, 24.4)},
        "identity, dlib distance": {"identity_distance_dlib": (0.60, 0.601)},
        "ST-LPIPS vgg": {"st_lpips_vgg": (0.50, 0.31)},
        "landmarks, LMD": {"lmd_68": (6.0, 4.9)},
    }
    for name, changed in worse.items():
        assert [line.name for line in measures(scores(**changed), "LAFR") if not line.passed] == [name]


def test_identity_must_be_above_the_input_beyond_the_interval_of_the_paired_difference():
    of = scores(identity_cos_sface=(0.40, 0.40))
    rng = np.random.default_rng(1)
    for image in of["LAFR"]["identity_cos_sface"]:
        of["LAFR"]["identity_cos_sface"][image] += 0.01 + rng.normal(0, 0.1)
    line = measures(of, "LAFR")[0]
    assert line.method != line.input and not line.passed


def test_a_failed_measurement_leaves_its_pair_out():
    of = scores()
    of["LAFR"]["psnr_rgb"]["03"] = float("nan")
    lines = {line.name: line for line in measures(of, "LAFR")}
    line = lines["PSNR"]
    rest = [value for image, value in of[INPUT]["psnr_rgb"].items() if image != "03"]
    assert line.input == pytest.approx(np.mean(rest), abs=1e-12)
    assert line.failed == 1 and lines["identity, SFace"].failed == 0


def test_images_for_the_eye_are_spread_over_severity_and_depend_on_the_input_alone():
    psnr = {f"{i:03d}": float(i) for i in range(160)}
    chosen = by_severity(psnr)
    ranks = [int(image) for image in chosen]
    assert len(set(chosen)) == 24 and ranks == sorted(ranks)
    assert max(np.diff(ranks)) <= 7 and ranks[0] <= 6 and ranks[-1] >= 153
    assert most_degraded_third(psnr) == [f"{i:03d}" for i in range(53)]
    with pytest.raises(InputError, match=r"24 images .* has 23"):  # none is shown twice
        by_severity(dict(list(psnr.items())[:23]))


def test_the_key_names_the_side_that_each_image_stands_on(tmp_path):
    folders = {INPUT: tmp_path / "lq", "LAFR": tmp_path / "lafr"}
    images = [f"{i}" for i in range(12)]
    for folder, colour in zip(folders.values(), ("black", "white"), strict=True):
        folder.mkdir()
        for image in images:
            Image.new("RGB", (16, 16), colour).save(folder / f"{image}.png")
    blind_pairs(folders, "LAFR", images, 3, tmp_path / "out")
    key = json.loads((tmp_path / "out" / "key.json").read_text(encoding="utf-8"))
    assert sorted(record["image"] for record in key) == sorted(images)
    assert {record["A"] for record in key} == {INPUT, "LAFR"}  # both orders occur
    votes = {}
    for record in key:
        sheet = Image.open(tmp_path / "out" / f"{record['number']:02d}.png")
        left = sheet.getpixel((16, sheet.height - 16))
        assert left == ((255, 255, 255) if record["A"] == "LAFR" else (0, 0, 0))
        votes[f"{record['number']:02d}"] = "A" if left == (255, 255, 255) else "B"
    assert wins(votes, tmp_path / "out" / "key.json", "LAFR") == 12
    votes["00"] = "="
    assert wins(votes, tmp_path / "out" / "key.json", "LAFR") == 11


def test_votes_are_a_known_letter_a_pair():
    assert require_votes("AB=" * 8)["23"] == "=" and require_votes("") == {}
    for wrong in ("ab=" * 8, "AB=" * 7):  # small letters would count as lost
        with pytest.raises(InputError, match="votes must be 24 letters"):
            require_votes(wrong)
