"""Likeness of the faces of whole photos: of those that are left it is the input's, and they are not in the means."""

import numpy as np
from PIL import Image

from lafr.commands.launch import composed
from lafr.data.packaged import ASTRONAUT
from lafr.images import from_pil, read_pil
from lafr.metrics.fidelity import psnr_rgb
from lafr.weights import locate
from scripts.benchmarks import photos


def test_of_a_face_that_is_left_the_likeness_is_the_inputs_and_no_mean_counts_it(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "on_this_machine", lambda names: list(ASTRONAUT))
    settings = [
        "severities.mild=[0.5,1,2,90]",
        "severities.medium=[3,3,4,60]",
        "~severities.strong",
        f"pictures={tmp_path}",
    ]
    record = photos.photos(composed("benchmark_photos", *settings))
    sharp, blurred = (record["photos"][f"astronaut, {name}"] for name in ("mild", "medium"))
    assert [one["faces"][0]["status"] for one in (sharp, blurred)] == ["left", "restored"]
    for measure in ("sface", "dlib"):
        assert sharp[measure]["input"] == sharp[measure]["restored"]
        assert blurred[measure]["input"] != blurred[measure]["restored"]
    rows = [line.split("|")[2:-1] for line in photos.photos_table(record).splitlines()[2:4]]
    assert [cell.strip() for cell in rows[0]] == ["1", "0", *[""] * 6]
    assert float(rows[1][2]) == round(blurred["sface"]["input"][0], 3)
    assert Image.open(tmp_path / "astronaut_medium.png").size == (3 * 512, 512)


def test_a_photo_keeps_its_size_and_loses_more_under_a_stronger_degradation():
    photo = read_pil(locate("astronaut"))
    kept = []
    for values in ([1, 1, 4, 75], [2, 2, 8, 60], [3, 4, 12, 45]):
        worse = photos.degraded(photo, values, np.random.default_rng(0))
        assert worse.size == photo.size
        kept.append(psnr_rgb(from_pil(worse)[None], from_pil(photo)[None]).item())
    assert kept == sorted(kept, reverse=True)
