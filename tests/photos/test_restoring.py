"""Folders of pictures with any name are restored beside, never over, what was given."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from lafr.alignment import FFHQ_512
from lafr.errors import InputError
from lafr.images import as_saved, read_image
from lafr.photos import restoring
from lafr.photos.detectors import Detection
from lafr.photos.files import find_inputs, output_paths
from lafr.photos.restorer import PhotoRestorer

WEIRD = (
    "fête.jpg",
    "IMG (1).jpg",
    "a,b.jpg",
    "it's.jpg",
    "2024.10/face.v2.png",
    "a=b.png",
    "x${y}.png",
    'quote".png',
    "back\\slash.png",
    "[1].png",
    "deep/er/face.PNG",
)


@pytest.fixture
def restorer(restorer):
    return restorer.eval()


def restore_files(restorer, source, output, batch_size=8, equal_batches=False, **settings):
    """Restore with a detector that sees nothing: small squares are taken for aligned faces."""
    photos = PhotoRestorer(restorer, lambda image: [], batch_size, equal_batches=equal_batches)
    outcome = restoring.restore_files(photos, [source], output, **settings)
    return outcome.done, outcome.skipped


def save(folder: Path, *names: str, size: int = 32) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.radial_gradient("L").resize((size, size)).rotate(20 * i).convert("RGB").save(folder / name)


def written(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"restored.jsonl"}


def test_any_name_is_restored_under_the_same_name(tmp_path, restorer):
    save(tmp_path / "in", *WEIRD)
    done, skipped = restore_files(restorer, tmp_path / "in", tmp_path / "out", batch_size=4, side_by_side=False)
    assert skipped == []
    expected = {Path(name).with_suffix(".png").as_posix() for name in WEIRD}
    assert written(tmp_path / "out") == expected == {p.relative_to(tmp_path / "out").as_posix() for p in done}


def test_each_output_is_the_restoration_of_its_own_input(tmp_path, restorer):
    save(tmp_path / "in", "a.png", "b.png", "c/a.png")
    restore_files(restorer, tmp_path / "in", tmp_path / "out", batch_size=2)
    for name in ("a.png", "b.png", "c/a.png"):
        lq = read_image(tmp_path / "in" / name, 32)
        with torch.no_grad():
            expected = as_saved(restorer(lq[None])[0])
        restored = read_image(tmp_path / "out" / name)
        assert (restored - expected).abs().max() <= 2 / 127.5  # batches differ in the last bits
        beside = read_image(tmp_path / "out" / "side_by_side" / name)
        assert torch.equal(beside, torch.cat([lq, restored], dim=2))


def test_equal_batches_show_the_restorer_one_size_and_restore_each_input_once(tmp_path, restorer):
    save(tmp_path / "in", *(f"{i}.png" for i in range(5)))
    sizes = []
    watch = restorer.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    done, _ = restore_files(restorer, tmp_path / "in", tmp_path / "equal", 3, equal_batches=True)
    assert sizes == [3, 3]
    watch.remove()
    restore_files(restorer, tmp_path / "in", tmp_path / "plain", 3)
    assert [p.name for p in done] == [f"{i}.png" for i in range(5)]
    assert written(tmp_path / "equal") == written(tmp_path / "plain")
    for path in done:
        plain = tmp_path / "plain" / path.name
        assert (read_image(path) - read_image(plain)).abs().max() <= 2 / 127.5  # batches differ in the last bits


def test_progress_counts_pictures_restored_or_skipped_not_read(tmp_path, restorer, monkeypatch):
    save(tmp_path / "in", "a.png", "b.png", "c.png", "e.png")
    (tmp_path / "in" / "d.png").write_text("no picture")
    seen = []

    class Bar:
        def __init__(self, total, **_):
            seen.append(total)

        def update(self, n=1):
            seen.append(n)

        def close(self):
            pass

    monkeypatch.setattr("lafr.photos.restoring.tqdm", Bar)
    restore_files(restorer, tmp_path / "in", tmp_path / "out", batch_size=3, side_by_side=False)
    assert [n for n in seen if n] == [5, 3, 1, 1]  # of five: the first batch, the one that is no picture, the last


def test_a_file_can_be_given_instead_of_a_folder_and_any_size_is_resized(tmp_path, restorer):
    save(tmp_path, "big.png", size=50)
    done, _ = restore_files(restorer, tmp_path / "big.png", tmp_path / "out", side_by_side=False)
    assert done == [tmp_path / "out" / "big.png"]
    assert read_image(done[0]).shape == (3, 32, 32)


def test_two_names_that_differ_in_the_extension_keep_it():
    names = [Path("a.jpg"), Path("a.png"), Path("b.jpg"), Path("c/a.jpg")]
    paths = [p.as_posix() for p in output_paths(names, Path("o"))]
    assert paths == ["o/a.jpg.png", "o/a.png.png", "o/b.png", "o/c/a.png"]


def test_a_name_that_looks_like_a_kept_extension_collides_with_nothing():
    names = [Path("a.jpg"), Path("a.png"), Path("a.jpg.png")]
    assert len(set(output_paths(names, Path("o")))) == 3


def test_what_cannot_be_read_is_skipped_reported_and_leaves_no_file(tmp_path, restorer):
    save(tmp_path / "in", "good.png", "other.png")
    (tmp_path / "in" / "bad.png").write_text("no picture")
    Image.new("RGB", (40, 20)).save(tmp_path / "in" / "wide.png")
    done, skipped = restore_files(restorer, tmp_path / "in", tmp_path / "out", side_by_side=False, aligned=True)
    assert [p.name for p in done] == ["good.png", "other.png"]
    assert written(tmp_path / "out") == {"good.png", "other.png"}
    assert len(skipped) == 2
    assert "bad.png" in skipped[0]
    assert "40 x 20, not square" in skipped[1]


def test_a_single_picture_that_cannot_be_read_is_an_error(tmp_path, restorer):
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(InputError, match="not an image"):
        restore_files(restorer, tmp_path / "bad.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_input_is_named(tmp_path, restorer):
    with pytest.raises(InputError, match=r"input .*nowhere' does not exist; give an image or a folder"):
        restore_files(restorer, tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (["a.png"], "."),  # straight onto the input
        (["x.png", "side_by_side/a.png"], "other/.."),  # the same folder, said another way
        (["a.jpg", "side_by_side/a.png"], "."),  # the picture beside a.jpg would be the other input
        (["a.jpg", "side_by_side/a.jpg"], "out"),  # a.jpg's picture beside is where the other is restored to
    ],
)
def test_no_input_and_no_other_output_is_ever_overwritten(tmp_path, restorer, inputs, output):
    save(tmp_path, *inputs)
    (tmp_path / "other").mkdir()
    before = {name: (tmp_path / name).read_bytes() for name in inputs}
    with pytest.raises(InputError, match="would overwrite"):
        restore_files(restorer, tmp_path, tmp_path / output)
    assert {name: (tmp_path / name).read_bytes() for name in inputs} == before
    assert written(tmp_path) == set(inputs)


def lines(folder: Path) -> dict[str, dict]:
    return {r["file"]: r for r in map(json.loads, (folder / "restored.jsonl").read_text().splitlines())}


def test_a_stopped_run_goes_on_where_it_stopped_and_not_under_other_settings(tmp_path, restorer):
    save(tmp_path / "in", "a.png", "b.png", "c.png")
    first = [tmp_path / "in" / name for name in ("a.png", "b.png")]
    photos = PhotoRestorer(restorer, lambda image: [])

    def run(sources, **settings):
        outcome = restoring.restore_files(photos, sources, tmp_path / "out", side_by_side=False, **settings)
        return [[p.name for p in paths] for paths in (outcome.done, outcome.kept)]

    assert run(first) == [["a.png", "b.png"], []]
    with (tmp_path / "out" / "restored.jsonl").open("a") as file:
        file.write('{"file": "c.png", "sta')  # the line that a kill left
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in ("a.png", "b.png")}
    assert run([tmp_path / "in"]) == [["c.png"], ["a.png", "b.png"]]
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before
    save(tmp_path / "in", "a.png", size=40)  # another picture under the same name
    (tmp_path / "out" / "b.png").unlink()
    assert run([tmp_path / "in"]) == [["a.png", "b.png"], ["c.png"]]
    assert run([tmp_path / "in"], settings={"model": "another"}) == [["a.png", "b.png", "c.png"], []]
    assert run([tmp_path / "in"], settings={"model": "another"}, again=True)[1] == []


def test_outputs_inside_the_input_folder_are_not_taken_for_inputs(tmp_path, restorer):
    save(tmp_path, "a.png", "b/c.png")
    for _ in range(2):
        restore_files(restorer, tmp_path, tmp_path / "restored")
        assert lines(tmp_path / "restored").keys() == {"a.png", "b/c.png"}


def test_files_folders_and_patterns_are_found_under_distinct_names(tmp_path, monkeypatch):
    save(tmp_path, "a.png", "b/a.png", "b/[x].png", "c/a.png")
    monkeypatch.chdir(tmp_path)

    def names(*sources):
        return sorted(name.as_posix() for _, name in find_inputs(sources, Path("out")))

    assert names("b") == ["[x].png", "a.png"]
    assert names("a.png", "b") == ["a.png", "b/[x].png", "b/a.png"]
    assert names("b/*.png") == ["[x].png", "a.png"]
    assert names("b/[x].png") == ["[x].png"]  # a file of that name, not a pattern
    assert names("b/a.png", "c/a.png") == ["b/a.png", "c/a.png"]
    assert names("**/a.png") == ["a.png", "b/a.png", "c/a.png"]
    assert names("a.png", "gone.png") == ["a.png", "gone.png"]
    with pytest.raises(InputError, match=r"'d/\*.png': no file there"):
        names("d/*.png")


def test_a_photo_is_written_whole_with_its_faces_in_the_journal_and_a_picture_beside(tmp_path, restorer):
    photo = Image.radial_gradient("L").resize((300, 200)).convert("RGB")
    photo.save(tmp_path / "a.jpg", dpi=(300, 300))
    at = (FFHQ_512 + 0.5) * 40 / 512 - 0.5 + (50, 60)
    photos = PhotoRestorer(restorer, lambda image: [Detection((52, 62, 88, 98), at, 0.9)])
    restoring.restore_files(photos, [tmp_path / "a.jpg"], tmp_path / "out")
    line = lines(tmp_path / "out")["a.jpg"]
    assert (line["aligned"], line["output"], line["status"]) == (False, "a.png", "done") and line["seconds"] > 0
    (face,) = line["faces"]
    assert (
        face["box"] == [52, 62, 88, 98] and face["status"] == "restored" and face["side"] == pytest.approx(40, abs=0.1)
    )
    made = Image.open(tmp_path / "out" / "a.png")
    assert made.size == (300, 200) and made.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert Image.open(tmp_path / "out" / "side_by_side" / "a.png").size == (600, 200)


def test_a_cmyk_photo_never_overwrites_the_tiff_beside_it(tmp_path, restorer):
    Image.new("CMYK", (40, 30)).save(tmp_path / "a.jpg")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.tif")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg.tif")
    before = [(tmp_path / name).read_bytes() for name in ("a.jpg", "a.tif", "a.jpg.tif")]
    done, skipped = restore_files(restorer, tmp_path, tmp_path, side_by_side=False)
    assert [(tmp_path / name).read_bytes() for name in ("a.jpg", "a.tif", "a.jpg.tif")] == before
    assert len(done) == 2 and "would be overwritten, as CMYK is written as TIFF" in skipped[0]
