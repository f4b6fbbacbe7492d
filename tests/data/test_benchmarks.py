"""Test sets: the same pixels every time, and no pair that is not one."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lafr.commands.doors import as_hydra
from lafr.data.benchmarks import (
    PairedBenchmark,
    PartialBenchmark,
    SyntheticBenchmark,
    folder_benchmark,
    match_by_stem,
    pair_benchmark,
)
from lafr.data.faces import Faces
from lafr.data.severity import SETS
from lafr.errors import InputError
from lafr.evaluation.checking import SAMPLE, check_set
from lafr.evaluation.summary import Evaluation, write_scores
from lafr.images import read_image
from lafr.storage import sha256_of_file


def paths(*names: str) -> list[Path]:
    return [Path(name) for name in names]


def test_pairs_are_matched_by_stem_or_by_the_stem_before_a_number():
    references = paths("hq/b.png", "hq/a_1.jpg", "hq/a.jpg")
    images = paths("lq/a_00.png", "lq/a_01.png", "lq/b.png", "lq/a_1.png")
    assert match_by_stem(images, references) == paths("hq/a.jpg", "hq/a.jpg", "hq/b.png", "hq/a_1.jpg")


def test_both_sides_of_a_mismatch_are_reported():
    with pytest.raises(InputError, match="1 images without a reference"):  # a suffix that is no number
        match_by_stem(paths("a_blurred.png"), paths("a.png"))
    with pytest.raises(InputError, match=r"1 images without a reference \['c.png'\], 1 .*image \['b.png'\]"):
        match_by_stem(paths("a.png", "c.png"), paths("a.png", "b.png"))
    with pytest.raises(InputError, match=r"'hq/a.jpg' and 'hq/a.png' are both the reference 'a'"):
        match_by_stem(paths("a.png"), paths("hq/a.jpg", "hq/a.png"))
    with pytest.raises(InputError, match=r"'Zo\\xeb' and 'Zoe\\u0308' look alike, the first with composed \(NFC\)"):
        match_by_stem(paths("Zo\xeb.png"), paths("Zoe\u0308.png"))


def test_a_faces_lq_does_not_depend_on_what_else_is_in_the_set(face_folder, degradation):
    files = sorted(face_folder.glob("*.png"))
    whole = SyntheticBenchmark("whole", Faces(files, 32), degradation, draws=2)
    part = SyntheticBenchmark("part", Faces([files[7], files[2]], 32), degradation, draws=2)
    assert [pair.stem for pair in part] == ["07_00", "07_01", "02_00", "02_01"]
    for mine, theirs in {0: 14, 1: 15, 2: 4, 3: 5}.items():
        assert part[mine].stem == whole[theirs].stem
        assert torch.equal(part[mine].lq, whole[theirs].lq)
    assert not torch.equal(part[0].lq, part[1].lq)
    assert torch.equal(part[0].hq, read_image(files[7], 32))


def test_a_benchmark_yields_the_same_pixels_every_time_and_others_for_another_seed(face_folder, degradation):
    first, again, other = (folder_benchmark("b", str(face_folder), 32, degradation, seed=s) for s in (0, 0, 1))
    assert torch.equal(first[3].lq, again[3].lq)
    assert torch.equal(first[3].lq, first[3].lq)
    assert not torch.equal(first[3].lq, other[3].lq)


def test_a_list_chooses_the_faces(face_folder, degradation, tmp_path):
    (tmp_path / "list.txt").write_text("04.png\n01.png\n")
    chosen = folder_benchmark("b", str(face_folder), 32, degradation, file_list=str(tmp_path / "list.txt"))
    assert [chosen[i].stem for i in range(len(chosen))] == ["04", "01"]


def test_a_missing_folder_and_a_wrong_count_name_the_remedy(face_folder, degradation):
    for root in (None, str(face_folder / "nowhere")):
        with pytest.raises(InputError, match=r"root .*london.*; get it there"):
            folder_benchmark("london", root, 32, degradation, remedy="get it there")
    with pytest.raises(InputError, match=r"london has 102 images, .* holds 10; get it there"):
        folder_benchmark("london", str(face_folder), 32, degradation, count=102, remedy="get it there")


def paired(folder: Path, side: str, *names: str) -> None:
    (folder / side).mkdir(exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (16, 16), (i * 40 + (side == "hq") * 10,) * 3).save(folder / side / name)


def test_a_paired_set_reads_lq_and_hq_of_one_face(tmp_path):
    paired(tmp_path, "lq", "a.png", "b.png")
    paired(tmp_path, "hq", "a.png", "b.png")
    benchmark = PairedBenchmark("pairs", str(tmp_path), 8, count=2)
    assert [pair.stem for pair in benchmark] == ["a", "b"]
    assert torch.equal(benchmark[1].lq, read_image(tmp_path / "lq" / "b.png", 8))
    assert torch.equal(benchmark[1].hq, read_image(tmp_path / "hq" / "b.png", 8))


def test_a_paired_set_without_a_root_is_looked_for_under_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="'data/celeba_test/lq' does not exist"):
        PairedBenchmark("celeba_test", None, 8)


def test_an_incomplete_paired_set_names_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"celeba is missing: .*lq' does not exist; get it there"):
        PairedBenchmark("celeba", str(tmp_path), 8, remedy="get it there")
    paired(tmp_path, "lq", "a.png")
    with pytest.raises(InputError, match=r"celeba is missing: .*hq' does not exist; get it there"):
        PairedBenchmark("celeba", str(tmp_path), 8, remedy="get it there")
    paired(tmp_path, "hq", "a.png")
    with pytest.raises(InputError, match=r"celeba has 3000 images, .* holds 1; get it there"):
        PairedBenchmark("celeba", str(tmp_path), 8, count=3000, remedy="get it there")


def test_a_set_without_truth_may_lie_in_the_folder_itself(tmp_path):
    paired(tmp_path, "faces", "b.png", "a.png")
    wild = PairedBenchmark("wild", str(tmp_path / "faces"), 8, hq=None, count=2)
    assert [wild.stem(i) for i in range(2)] == [pair.stem for pair in wild] == ["a", "b"]
    assert wild[0].hq is None


def test_two_images_of_one_name_are_refused(tmp_path):
    paired(tmp_path, "lq", "a.png", "a.jpg")
    with pytest.raises(InputError, match="several images are named 'a'; rename them"):
        PairedBenchmark("wild", str(tmp_path), 8, hq=None)


def test_any_two_folders_are_a_pair_and_lq_alone_has_no_truth(tmp_path, monkeypatch):
    paired(tmp_path, "degraded", "a_00.png", "a_01.png")
    paired(tmp_path, "clear", "a.png")
    monkeypatch.chdir(tmp_path)
    both = pair_benchmark("pair", "degraded", "clear", 8)
    assert [pair.stem for pair in both] == ["a_00", "a_01"]
    assert all(torch.equal(pair.hq, read_image(tmp_path / "clear" / "a.png", 8)) for pair in both)
    assert pair_benchmark("pair", "degraded", None, 8)[0].hq is None


@pytest.fixture
def noisy(tmp_path):
    """Write so many pairs whose LQ has so many decibels of noise, with the index of a set that was prepared."""

    def make(name, decibels, count=40):
        rng = np.random.default_rng(0)
        sigma = 255 * 10 ** (-decibels / 20)
        files = []
        for number in range(count):
            hq = rng.integers(60, 196, (16, 16, 3)).astype(np.float64)
            for side, image in (("hq", hq), ("lq", 128 + (hq - 128) * (1 - sigma / hq.std()))):
                path = tmp_path / name / side / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.round().astype(np.uint8)).save(path)
                files.append({"file": f"{side}/{path.name}", "sha256": sha256_of_file(path)})
        index = {"dataset": name, "settings": {"resolution": 16}, "files": files}
        (tmp_path / name / "index.json").write_text(json.dumps(index))
        return lambda: PairedBenchmark(name, str(tmp_path / name), 16, count=count)

    return make


def test_a_prepared_set_says_what_of_it_was_checked(noisy):
    said = check_set(noisy("celeba_test", 21.3)(), "severe")
    assert said[0] == f"80 files as index.json names them, sha256 of {SAMPLE} compared"
    assert said[1].startswith("LQ against HQ has 21.") and said[1].endswith("dB on 40 pairs: severe")


@pytest.mark.parametrize(
    ("name", "decibels", "severity", "other"),
    [
        ("celeba_test", 26, "severe", "celeba_test_mild"),
        ("celeba_test_mild", 21, "mild", "celeba_test"),
    ],
)
def test_each_of_the_two_sets_is_refused_under_the_others_name(noisy, name, decibels, severity, other):
    with pytest.raises(
        InputError, match=rf"is not {name}: the mean PSNR .* benchmark='{other}', or give severity=None"
    ):
        check_set(noisy(name, decibels)(), severity)


@pytest.mark.parametrize(("severity", "decibels"), [("severe", 23.9), ("mild", 23.1), ("severe", 23.0)])
def test_within_one_decibel_of_the_boundary_a_set_is_taken_with_a_warning_that_names_the_override(
    noisy, severity, decibels
):
    warnings = []
    said = check_set(noisy(SETS[severity], decibels)(), severity, warnings.append)
    assert "near the boundary" in said[1]
    assert "within 1 dB" in str(warnings[0]) and warnings[0].spelled(as_hydra).count("benchmark.severity=null") == 1


def test_what_was_measured_when_a_set_was_prepared_is_not_measured_again(noisy, tmp_path, monkeypatch):
    make = noisy("celeba_test", 21.3)
    path = tmp_path / "celeba_test" / "index.json"
    index = json.loads(path.read_text())
    for entry in index["files"]:
        entry |= {"psnr_rgb": 20.5, "sharper": False} if entry["file"].startswith("lq/") else {}
    path.write_text(json.dumps(index))
    monkeypatch.setattr("lafr.evaluation.checking.psnr", None)  # it would fail
    assert check_set(make(), "severe")[1].startswith("LQ against HQ has 20.50 dB on 40 pairs")


def test_a_part_of_a_set_is_spread_over_it_and_says_so(noisy):
    whole = noisy("celeba_test", 21.3)()
    part = PartialBenchmark(whole, 4)
    assert (part.name, len(part)) == ("celeba_test (4 of 40)", 4)
    assert [part.stem(i) for i in range(4)] == ["0000", "0013", "0026", "0039"]
    assert torch.equal(part[1].lq, whole[13].lq)


def test_the_name_in_the_index_is_believed_before_anything_is_measured(noisy, tmp_path):
    benchmark = noisy("celeba_test_mild", 26)()
    benchmark.name = "celeba_test"
    with pytest.raises(InputError, match="is celeba_test_mild, not celeba_test; run with benchmark='celeba_test_mild'"):
        check_set(benchmark, "severe")


def test_lq_and_hq_in_each_others_place_are_told(noisy, tmp_path):
    make = noisy("celeba_test", 21)
    (tmp_path / "celeba_test" / "index.json").unlink()
    for old, new in (("hq", "x"), ("lq", "hq"), ("x", "lq")):
        (tmp_path / "celeba_test" / old).rename(tmp_path / "celeba_test" / new)
    with pytest.raises(InputError, match=r"in 40 of 40 pairs .* the LQ image is the sharper one"):
        check_set(make(), "severe")


def test_a_prepared_set_that_was_altered_is_refused(noisy, tmp_path):
    make = noisy("celeba_test", 21, count=10)
    folder = tmp_path / "celeba_test"
    for side in ("lq", "hq"):
        (folder / side / "0004.png").rename(folder / side / "0004b.png")
    with pytest.raises(InputError, match=r"2 files of index.json are missing \['hq/0004.png', .* 2 are not in it"):
        check_set(make(), None)
    for side in ("lq", "hq"):
        (folder / side / "0004b.png").rename(folder / side / "0004.png")
    assert check_set(make(), None) == ["20 files as index.json names them, sha256 of 20 compared"]
    Image.new("RGB", (16, 16)).save(folder / "hq" / "0007.png")
    with pytest.raises(InputError, match=r"hq/0007.png' was altered since it was prepared"):
        check_set(make(), None)


def test_a_folder_that_nobody_prepared_is_said_to_be_unchecked(tmp_path):
    paired(tmp_path, "lq", "a.png")
    # other programs write an index.json too
    for index in (None, '{"a": 1}', "[1]", '"x"', '{"settings": 3, "files": []}', '{"settings": {}, "files": 3}'):
        if index is not None:
            (tmp_path / "index.json").write_text(index)
        said = check_set(PairedBenchmark("wild", str(tmp_path), 8, hq=None))
        assert said == [f"1 images in {tmp_path}: no index.json, so no file was checked by its hash"]


def test_a_name_that_is_no_text_is_degraded_and_scored_as_any_other(tmp_path, degradation):
    paired(tmp_path, "faces", "a.png")
    os.rename(tmp_path / "faces" / "a.png", os.fsencode(tmp_path / "faces") + b"/\xff.png")
    benchmark = folder_benchmark("own", str(tmp_path / "faces"), 16, degradation)
    assert benchmark[0].stem == "\udcff"
    write_scores(Evaluation([benchmark.stem(0)], {"LQ": {"psnr_rgb": np.zeros(1)}}), tmp_path / "scores.csv")
    assert "\\udcff" in (tmp_path / "scores.csv").read_text(encoding="utf-8")
