"""The report page: nothing from outside, nothing a name can break, and every number that of the files."""

import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from PIL import Image

import lafr.evaluation.report
from lafr.errors import InputError
from lafr.evaluation.report import write_report
from lafr.evaluation.report.charts import WIDTH, curve, edges_of, histogram
from lafr.evaluation.report.faces import Album
from lafr.evaluation.report.groups import by_group, labelled, read_groups
from lafr.evaluation.report.scores import read_image_scores, worst_first
from lafr.evaluation.summary import write_scores

HOSTILE = "a\"><script>alert(1)</script>\n'&lt; {{ 'a' * 9 }} é字 \u202ex"
VOID = {"meta", "link", "img", "input", "br", "path", "rect", "line", "circle"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, scripts, text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.scripts, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.words).append(data)

    def stems(self, kind: str) -> list[str]:
        return [a["data-stem"] for _, a in self.elements if a.get("data-kind") == kind]

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture
def result(tmp_path):
    """Twenty images of three methods as `lafr eval` writes them; the seventh's face is not found after restoring."""
    rng = np.random.default_rng(0)
    stems = [f"{i:03d}_03" for i in range(20)]
    rows = {"LQ input": (22, 0.6), "LAFR": (24, 0.3), "codec(HQ)": (32, 0.1)}
    lines, scores = [], {}
    for row, (p, d) in rows.items():
        values = np.stack([rng.normal(p, 1, 20), rng.normal(d, 0.05, 20), rng.uniform(0.2, 0.9, 20)], axis=1)
        values[6, 2] = np.nan if row == "LAFR" else values[6, 2]
        lines += [[stem, row, *(f"{v:.6g}" for v in of)] for stem, of in zip(stems, values, strict=True)]
        means = zip(("psnr_rgb", "st_lpips_vgg", "identity_cos_sface"), np.nanmean(values, axis=0), strict=True)
        scores[row] = {m: {"mean": float(v), "low": float(v) - 0.01, "high": float(v) + 0.01} for m, v in means}
    scores["LAFR"]["identity_cos_sface"]["failed"] = 1
    folder = tmp_path / "result"
    for name in ("LQ input", "LAFR", "HQ"):
        (folder / name).mkdir(parents=True)
        for i, stem in enumerate(stems):
            Image.new("RGB", (16, 16), (10 * i, len(name), 0)).save(folder / name / f"{stem}.png")
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "row", "psnr_rgb", "st_lpips_vgg", "identity_cos_sface"], *lines])
    record = {
        "benchmark": "val",
        "images": 20,
        "protocol": None,
        "rows": scores,
        "trained_on": {},
        "latents": {},
        "not_measured": {"deg": "weights 'resnet18_110.pth' not found, get them by hand"},
        "seed": 0,
        "pictures": {name: name for name in ("LQ input", "LAFR", "HQ")},
        "command": "python scripts/eval.py",
        "config": {},
        "versions": {"torch": "2"},
        "metrics": {
            "psnr_rgb": {
                "name": "psnr_rgb",
                "unit": "dB",
                "direction": "↑",
                "digits": 2,
                "definition": "RGB",
                "version": "1.9.0",
                "implementation": "torchmetrics",
                "weights": [["vgg.pth", "ab" * 32]],
                "needs_reference": True,
                "reference": {"name": "FFHQ", "images": 70000, "sha256": "cd" * 32},
            }
        },
    }
    return folder, record


def made(folder: Path, record: dict) -> Page:
    path = write_report(record, folder)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def table(folder: Path) -> pandas.DataFrame:
    return pandas.read_csv(folder / "scores.csv", dtype={"image": str}).set_index(["row", "image"])


def test_the_worst_and_best_faces_are_those_of_the_scores_in_order(result):
    before = json.dumps(result[1])
    page, scores = made(*result), table(result[0]).loc["LAFR"]["st_lpips_vgg"]
    assert json.dumps(result[1]) == before  # the record is only read
    ordered = list(scores.sort_values(ascending=False).index)
    assert page.stems("worst") == ordered[:8]
    assert page.stems("best") == ordered[::-1][:8]


def test_a_metric_of_which_more_is_better_has_its_least_first(result):
    folder, record = result
    record["trained_on"] = {"LAFR": ["st_lpips_vgg"]}  # it cannot rank what was trained with it
    page, scores = made(folder, record), table(folder).loc["LAFR"]["psnr_rgb"]
    ordered = list(scores.sort_values().index)
    assert (page.stems("worst"), page.stems("best")) == (ordered[:8], ordered[::-1][:8])


def test_a_failed_measurement_ranks_nowhere():
    assert worst_first({"a": float("nan"), "b": 2.0, "c": 1.0, "d": float("nan"), "e": 3.0}, "↓") == ["e", "b", "c"]
    assert worst_first({"a": float("nan"), "b": 2.0, "c": 1.0}, "↑") == ["c", "b"]


def test_the_identity_sheet_starts_with_the_lowest_cosine_and_names_faces_that_were_not_found(result):
    page, scores = made(*result), table(result[0]).loc["LAFR"]["identity_cos_sface"]
    assert page.stems("identity") == list(scores.sort_values().index[:12])  # NaN goes last
    assert "006_03" not in page.stems("identity")
    assert "No face was found in 1 of 20 restored images: 006_03." in page.text
    assert "[1 failed]" in page.text


def test_a_face_shows_its_own_images(result):
    folder, record = result
    page = made(folder, record)
    images = page.all("img")
    assert len(images) == 3 * (8 + 8 + 12)
    for image in images:
        kind, _, stem = image["alt"].partition(": ")
        data = base64.b64decode(image["src"].removeprefix("data:image/webp;base64,"))
        red, green, _ = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int).mean((0, 1))
        assert abs(red - 10 * int(stem[:3])) < 3 and abs(green - len(kind)) < 3


def test_the_page_fetches_nothing_and_runs_its_own_script_alone(result):
    page = made(*result)
    for tag, attrs in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#")), (tag, attrs[name][:60])
        assert not any(name.startswith("on") for name in attrs)
    text = (result[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(|https?://", text)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:")
    assert "'unsafe-inline'" not in policy.split("script-src")[1]
    (script,) = page.scripts
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


def test_no_name_can_leave_its_place(result):
    folder, record = result
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        head, *lines = csv.reader(file)
    renamed = [[HOSTILE + stem, HOSTILE if row == "LAFR" else row, *values] for stem, row, *values in lines]
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *renamed])
    record["rows"] = {HOSTILE if row == "LAFR" else row: of for row, of in record["rows"].items()}
    record |= dict.fromkeys(("benchmark", "command", "protocol"), HOSTILE)
    record |= {key: {HOSTILE: HOSTILE} for key in ("not_measured", "config", "versions", "pictures")}
    record["groups"] = {HOSTILE: {line[0]: HOSTILE for line in renamed}}
    record["metrics"] = {HOSTILE: {"unit": HOSTILE, "weights": [[HOSTILE, HOSTILE]], "reference": {"name": HOSTILE}}}
    page = made(folder, record)
    assert len(page.scripts) == len(page.all("script")) == 1 and "alert" not in page.scripts[0]
    assert page.stems("worst")[0].startswith(HOSTILE)
    assert page.text.count("<script>alert(1)</script>") > 20 and "a" * 9 not in page.text


def test_every_bar_counts_what_numpy_counts_and_none_is_lost():
    rng = np.random.default_rng(1)
    own, before = [*rng.normal(0.3, 0.1, 500), np.nan, np.nan], rng.normal(0.6, 0.1, 400)
    drawn = histogram("d", own, before)
    edges = edges_of(np.concatenate([own[:-2], before]))
    said = [re.fullmatch(r"(\S+) to (\S+): LAFR: (\d+); LQ input: (\d+)", bar.says).groups() for bar in drawn.bars]
    assert [int(s[2]) for s in said] == list(np.histogram(own[:-2], edges)[0])
    assert [int(s[3]) for s in said] == list(np.histogram(before, edges)[0])
    assert sum(int(s[2]) for s in said) == 500 and sum(int(s[3]) for s in said) == 400
    assert drawn.failed == 2 and 10 <= len(drawn.bars) <= 31
    assert [float(s[0]) for s in said] == pytest.approx(edges[:-1]) and float(said[-1][1]) == pytest.approx(edges[-1])
    heights = np.array([bar.height for bar in drawn.bars])
    assert heights / heights.max() == pytest.approx(np.array([int(s[2]) for s in said]) / max(int(s[2]) for s in said))
    (mean,) = [np.nanmean(own)]
    assert drawn.mean_x / WIDTH == pytest.approx((mean - edges[0]) / (edges[-1] - edges[0]))


def test_bins_hold_every_value_however_near_or_far():
    for values in ([5.0] * 4, [0.0], [100.0, 100.0 + 1e-12], [-3.0, 1e6], [1e-7, 2e-7]):
        drawn = histogram("m", values)
        assert sum(int(bar.says.rpartition(" ")[2]) for bar in drawn.bars) == len(values)
        assert all(0 <= x <= WIDTH + 1e-9 for x, _ in drawn.ticks)
    assert histogram("m", [np.nan, np.nan]) is None


def test_a_curve_runs_from_left_to_right_and_says_each_point():
    sweep = {
        "1.0": {"mean": 2.0, "low": 1.5, "high": 2.5},
        "0.0": {"mean": 1.0, "low": 0.5, "high": 1.5},
        "0.5": {"mean": None},
    }
    drawn = curve("m", sweep)
    assert [text for _, _, text in drawn.points] == ["fidelity 0: 1 (0.5–1.5)", "fidelity 1: 2 (1.5–2.5)"]
    (left, bottom, _), (right, top, _) = drawn.points
    assert left < right and top < bottom and (drawn.low, drawn.high) == (0.5, 2.5)
    assert curve("m", {"0.0": {"mean": 1.0}}) is None


def test_groups_are_what_pandas_groups_and_small_ones_have_no_interval(result, tmp_path):
    folder, record = result
    people = pandas.DataFrame({"face_id": [f"{i:03d}" for i in range(20)], "sex": ["f", "m", "f", "m"] * 4 + ["x"] * 4})
    people.to_csv(tmp_path / "info.csv", index=False)
    scores = table(folder).loc["LAFR"]
    expected = scores.groupby(list(people["sex"])).mean()
    groups = read_groups(tmp_path / "info.csv", list(scores.index))
    found = by_group(groups["sex"], read_image_scores(folder / "scores.csv").of["LAFR"])
    assert {name: of["images"] for name, of in found.items()} == {"f": 8, "m": 8, "x": 4}
    for name, of in found.items():
        for metric, s in of["scores"].items():
            assert s["mean"] == pytest.approx(expected.loc[name, metric], rel=1e-5)
            assert (s["low"] is None) == (name == "x")
    page = made(folder, record | {"groups": str(tmp_path / "info.csv")})
    assert "Scores by sex" in [a.get("aria-label") for _, a in page.elements]


def test_many_numbers_become_thirds_and_few_stay_as_they_are():
    ages = {str(i): str(18 + i) for i in range(30)} | {"x": "unknown"}
    thirds = labelled(ages)
    assert sorted(set(thirds.values())) == ["18–27", "28–37", "38–47", "not stated"]
    assert thirds["x"] == "not stated" and thirds["12"] == "28–37"
    assert labelled({"a": "2", "b": "1", "c": ""}) == {"a": "2", "b": "1", "c": "not stated"}


def test_groups_of_other_images_are_refused_and_no_page_is_left(result, tmp_path):
    folder, record = result
    for text in ("name,age\nbob,3\n", "", "name\n", "\xff\xfe", 'name\n"' + "x" * 200_000):
        (tmp_path / "groups.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=r"groups\.csv") as error:
            write_report(record | {"groups": str(tmp_path / "groups.csv")}, folder)
        assert "\n" not in str(error.value)
        assert not list(folder.glob("*.html")) and not list(folder.glob(".*"))


def test_no_name_is_a_formula_in_a_spreadsheet_and_each_is_read_back(tmp_path):
    names = ["=1+1", "+a", "-b", "@SUM(A1)", "\ta", "'=1", "'", "-5", "+1e3", "plain", "a=b", 'quoted", "x\ny']
    scores = {method: {"psnr_rgb": np.arange(len(names), dtype=float)} for method in ("LAFR", "=cmd|'/c calc'!A1")}
    write_scores(SimpleNamespace(scores=scores, stems=names), tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    risky = [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")]
    assert set(risky) == {"-5", "+1e3"}  # numbers
    found = read_image_scores(tmp_path / "scores.csv")
    assert found.stems == names
    assert found.of.keys() == scores.keys()
    assert found.of["LAFR"]["psnr_rgb"] == dict(zip(names, map(float, range(len(names))), strict=True))


def test_scores_that_are_missing_or_others_are_refused(result):
    folder, record = result
    for content in (
        b"a,b\n1,2\n",
        b"image,row,psnr_rgb\na,LAFR,x\n",
        b"image,row\n\xff,LAFR\n",
        b'image,row\n"' + bytes(200_000),
    ):
        (folder / "scores.csv").write_bytes(content)
        with pytest.raises(InputError, match=r"is not the scores\.csv") as error:
            write_report(record, folder)
        assert "\n" not in str(error.value)
    (folder / "scores.csv").unlink()
    with pytest.raises(InputError, match="No such file"):
        write_report(record, folder)
    assert not list(folder.glob("*.html"))


def test_what_was_not_measured_and_how_the_rest_was_are_said(result):
    text = made(*result).text
    assert text.count("weights 'resnet18_110.pth' not found, get them by hand") == 2  # below the table, and on its own
    for words in (
        "torchmetrics",
        "1.9.0",
        "vgg.pth",
        "ab" * 32,
        "FFHQ, 70000 images",
        "cd" * 32,
        "dB",
        "python scripts/eval.py",
    ):
        assert words in text, words


def test_a_set_without_ground_truth_has_no_hq_to_show(result):
    folder, record = result
    del record["pictures"]["HQ"]
    page = made(folder, record)
    assert page.all("button") == [] and not [a for a in page.all("img") if a["alt"].startswith("HQ")]
    assert len(page.all("input")) == 16


def test_a_record_without_cards_and_images_makes_a_page(result):
    folder, record = result
    for key in ("pictures", "metrics", "not_measured", "latents", "protocol", "trained_on"):
        record.pop(key)
    page = made(folder, record)
    assert page.all("img") == [] and "older version" in page.text
    assert page.text.count("no image of this face") == 16


def test_only_faces_that_are_shown_are_ever_opened(result, monkeypatch):
    folder, record = result
    stems = [f"{i:04d}" for i in range(3000)]
    values = np.random.default_rng(0).permutation(3000) / 3000
    lines = [
        [stem, row, f"{v:.6g}", f"{v:.6g}"]
        for row in ("LQ input", "LAFR")
        for stem, v in zip(stems, values, strict=True)
    ]
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "row", "st_lpips_vgg", "identity_cos_sface"], *lines])
    for name in ("LQ input", "LAFR", "HQ"):
        for stem in stems:
            (folder / name / f"{stem}.png").hardlink_to(folder / name / "000_03.png")
    opened = []
    read = lafr.evaluation.report.faces.read_pil
    monkeypatch.setattr(lafr.evaluation.report.faces, "read_pil", lambda path: opened.append(path) or read(path))
    page = made(folder, record)
    assert len(opened) == 3 * len(set(page.stems("worst") + page.stems("best"))) + 3 * 12 == 84
    assert page.stems("worst")[0] == stems[int(values.argmax())]


def test_images_stop_where_their_budget_ends(result):
    folder, _ = result
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("LQ input", "LAFR", "HQ"):
        for i in range(20):
            Image.fromarray(noise).save(folder / name / f"{i:03d}_03.png")
    pictures = {name: name for name in ("LQ input", "LAFR", "HQ")}
    one = Album(pictures, folder, "LAFR").face("000_03")
    cost = sum(map(len, (one.lq, one.restored, one.hq)))
    album = Album(pictures, folder, "LAFR", budget=3 * cost + 1)
    faces = [album.face(f"{i:03d}_03") for i in range(5)]
    assert [face.lq is not None for face in faces] == [True, True, True, False, False]
    assert album.full and sum(len(f.lq) + len(f.restored) + len(f.hq) for f in faces[:3]) <= 3 * cost + 1


def test_an_hq_image_is_found_without_the_number_of_a_sample_and_no_other_is(tmp_path):
    (tmp_path / "HQ").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "HQ" / "anna.jpg")
    album = Album({"HQ": "HQ", "LAFR": "HQ"}, tmp_path, "LAFR")
    face = album.face("anna_07")
    assert face.hq is not None and face.restored is None and album.face("anna_b").hq is None
