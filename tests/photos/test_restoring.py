"""Folders of images with any name are restored into a folder, and no input is overwritten."""

import json
import threading
from pathlib import Path

import pytest
import torch
from conftest import SIZE
from PIL import Image

from lafr.alignment import FFHQ_512
from lafr.data.packaged import aligned
from lafr.errors import InputError
from lafr.images import as_saved, read_image
from lafr.models.adapter import no_adapter
from lafr.models.restorer import Restorer, model_folder
from lafr.photos import restoring
from lafr.photos.detectors import Detection
from lafr.photos.files import Outputs, find_inputs
from lafr.photos.journal import folder_state
from lafr.photos.restorer import PhotoRestorer
from lafr.photos.video import VideoReport

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


@pytest.fixture(scope="module")
def restorer(base_folder):
    """One small model for the file."""
    torch.manual_seed(0)
    restorer = Restorer.from_base(base_folder, no_adapter(), SIZE, timestep=200)
    return restorer.requires_grad_(False).eval()


def restore_files(restorer, source, output, batch_size=8, equal_batches=False, **settings):
    """Restore with a detector that sees nothing: small squares are taken for aligned faces."""
    photos = PhotoRestorer(restorer, lambda image: [], batch_size, equal_batches=equal_batches, guard=False)
    outcome = restoring.restore_files(photos, [source], output, **settings)
    return outcome.done, outcome.skipped


def save(folder: Path, *names: str, size: int = 32) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        round_, across = Image.radial_gradient("L"), Image.linear_gradient("L")  # in colour: gray stays gray
        picture = Image.merge("RGB", [round_, across, round_]).resize((size, size))
        picture.rotate(20 * i).save(folder / name)


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
        comparison = read_image(tmp_path / "out" / "side_by_side" / name)
        assert torch.equal(comparison, torch.cat([lq, restored], dim=2))


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
    (tmp_path / "in" / "d.png").write_text("no picture", encoding="utf-8")
    seen = []

    class Bar:
        def __init__(self, total, **_):
            seen.append(total)

        def update(self, n=1):
            lines = (tmp_path / "out" / "restored.jsonl").read_text(encoding="utf-8").splitlines()
            seen.append(len(lines) if n else 0)

        def close(self):
            pass

    monkeypatch.setattr("lafr.photos.restoring.tqdm", Bar)
    restore_files(restorer, tmp_path / "in", tmp_path / "out", batch_size=3, side_by_side=False)
    assert seen == [5, 1, 2, 3, 4, 5]  # of five: each once the journal has it


def test_a_photo_is_restored_while_the_next_is_read_and_the_one_before_is_written(tmp_path, restorer, monkeypatch):
    save(tmp_path / "in", "a.png", "b.png", "c.png")
    happened = {name: threading.Event() for name in ("third read", "second restored")}
    read, write, restore = restoring.read_photo, restoring.write_photo, PhotoRestorer.restore_crops

    def reading(path, *limits):
        happened["third read"].set() if path.name == "c.png" else None
        return read(path, *limits)

    def writing(image, target):
        assert target.name != "a.png" or happened["second restored"].wait(10)
        return write(image, target)

    def restoring_crops(photos, crops, *how):
        count.append(happened["third read"].wait(10) if len(count) == 1 else True)
        happened["second restored"].set() if len(count) == 2 else None
        return restore(photos, crops, *how)

    count = []
    monkeypatch.setattr(restoring, "read_photo", reading)
    monkeypatch.setattr(restoring, "write_photo", writing)
    monkeypatch.setattr(PhotoRestorer, "restore_crops", restoring_crops)
    done, skipped = restore_files(restorer, tmp_path / "in", tmp_path / "out", batch_size=1, side_by_side=False)
    assert skipped == [] and count == [True] * 3
    assert [path.name for path in done] == ["a.png", "b.png", "c.png"]


def test_every_input_has_an_output_name_of_its_own():
    def named(*names, **how):
        return [p.as_posix() for p in Outputs(Path("o"), **how).targets([Path(name) for name in names])]

    assert named("a.jpg", "a.png", "b.jpg", "c/a.jpg") == ["o/a.jpg.png", "o/a.png.png", "o/b.png", "o/c/a.png"]
    assert len(set(named("a.jpg", "a.png", "a.jpg.png"))) == 3  # the third looks like a kept extension
    assert named("a.jpg", "b.mov", extension="webp", suffix="x") == ["o/a_x.webp", "o/b_x.mp4"]
    for wrong in dict(extension="gif"), dict(suffix="../x"):
        with pytest.raises(InputError) as raised:
            named("a.jpg", **wrong)
        assert raised.value.parameter == next(iter(wrong))


def test_what_cannot_be_read_is_skipped_reported_and_leaves_no_file(tmp_path, restorer):
    save(tmp_path / "in", "good.png", "other.png")
    (tmp_path / "in" / "bad.png").write_text("no picture", encoding="utf-8")
    Image.new("RGB", (40, 20)).save(tmp_path / "in" / "wide.png")
    done, skipped = restore_files(restorer, tmp_path / "in", tmp_path / "out", side_by_side=False, aligned=True)
    assert [p.name for p in done] == ["good.png", "other.png"]
    assert written(tmp_path / "out") == {"good.png", "other.png"}
    assert len(skipped) == 2
    assert "bad.png" in skipped[0]
    assert "40 x 20, not square" in skipped[1]


def test_a_single_input_that_cannot_be_read_is_an_error(tmp_path, restorer):
    (tmp_path / "bad.png").write_text("no picture", encoding="utf-8")
    for name in "bad.png", "nowhere":
        with pytest.raises(InputError, match=name):
            restore_files(restorer, tmp_path / name, tmp_path / "out")
    (line,) = (tmp_path / "out" / "restored.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["status"] == "skipped" and "bad.png" in json.loads(line)["reason"]


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (["a.png"], "."),  # onto the input
        (["x.png", "side_by_side/a.png"], "other/.."),  # the same folder by another path
        (["a.jpg", "side_by_side/a.png"], "."),  # the comparison of a.jpg would be the other input
        (["a.jpg", "side_by_side/a.jpg"], "out"),  # the comparison of a.jpg is the output of the other
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
    return {r["file"]: r for r in map(json.loads, (folder / "restored.jsonl").read_text(encoding="utf-8").splitlines())}


def test_a_stopped_run_resumes_and_not_under_other_settings(tmp_path, restorer):
    save(tmp_path / "in", "a.png", "b.png", "c.png")
    first = [tmp_path / "in" / name for name in ("a.png", "b.png")]
    photos = PhotoRestorer(restorer, lambda image: [], guard=False)

    def run(sources, **settings):
        outcome = restoring.restore_files(photos, sources, tmp_path / "out", side_by_side=False, **settings)
        return [[p.name for p in paths] for paths in (outcome.done, outcome.kept)]

    assert run(first) == [["a.png", "b.png"], []]
    with (tmp_path / "out" / "restored.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"file": "c.png", "sta')  # the line that a kill left
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in ("a.png", "b.png")}
    assert run([tmp_path / "in"]) == [["c.png"], ["a.png", "b.png"]]
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before
    save(tmp_path / "in", "a.png", size=40)  # another picture under the same name
    (tmp_path / "out" / "b.png").unlink()
    assert run([tmp_path / "in"]) == [["a.png", "b.png"], ["c.png"]]
    assert run([tmp_path / "in"], settings={"model": "another"}) == [["a.png", "b.png", "c.png"], []]
    assert run([tmp_path / "in"], settings={"model": "another"}, again=True)[1] == []
    (said,) = restoring.restore_files(photos, first, tmp_path / "out").warnings[:1]
    assert "restored.jsonl" in said and "1 line (3)" in said  # what the kill left, no longer the last line


def test_outputs_inside_the_input_folder_are_not_taken_for_inputs(tmp_path, restorer):
    save(tmp_path, "a.png", "b/c.png")
    for _ in range(2):
        restore_files(restorer, tmp_path, tmp_path / "restored")
        assert lines(tmp_path / "restored").keys() == {"a.png", "b/c.png"}


def test_files_folders_and_patterns_are_found_under_distinct_names(tmp_path, monkeypatch):
    save(tmp_path, "a.png", "b/a.png", "b/[x].png", "c/a.png")
    monkeypatch.chdir(tmp_path)

    def names(*sources):
        return sorted(name.as_posix() for _, name in find_inputs(sources, Path("out")).files)

    assert names("b") == ["[x].png", "a.png"]
    assert names("a.png", "b") == ["a.png", "b/[x].png", "b/a.png"]
    assert names("b/*.png") == ["[x].png", "a.png"]
    assert names("b/[x].png") == ["[x].png"]  # a file of that name, not a pattern
    assert names("b/a.png", "c/a.png") == ["b/a.png", "c/a.png"]
    assert names("**/a.png") == ["a.png", "b/a.png", "c/a.png"]
    assert names("a.png", "gone.png") == ["a.png", "gone.png"]
    assert names("a.png", "d/*.png") == ["*.png", "a.png"]  # reported when it is read
    with pytest.raises(InputError, match=r"'d/\*.png'"):
        names("d/*.png")


def test_a_pattern_and_a_folder_that_give_nothing_are_named(tmp_path, monkeypatch):
    save(tmp_path, "a.png", "b/c.png", "b/d/e.png", "out/a.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)

    def ignored(*sources):
        return {str(path): reason for path, reason in find_inputs(sources, Path("out")).ignored}

    assert ignored("*").keys() == {"b", "empty"} and "pattern" in ignored("*")["b"]
    assert ignored("**/*.png").keys() == set()
    assert ignored("**").keys() == {"empty"}  # of the others something is taken
    assert ignored("a.png", "empty") == {"empty": "a folder without files"}


def test_what_an_option_does_not_do_is_said(tmp_path, restorer, monkeypatch):
    save(tmp_path / "in", "a.png")
    (tmp_path / "in" / "b.mp4").touch()
    report = VideoReport(1, 0, 0, True, 0.0)
    monkeypatch.setattr("lafr.photos.video.restore_video", lambda *_, **__: report)
    photos = PhotoRestorer(restorer, lambda image: [], guard=False)
    output = tmp_path / "out"
    outcome = restoring.restore_files(photos, [tmp_path / "in"], output, upscale=2, save_faces=True, aligned=True)
    said = "\n".join(outcome.warnings)
    assert "'a.png': an aligned face gets the model's size" in said
    assert "'b.mp4': its faces are not saved" in said and "'b.mp4': it is restored frame by frame" in said
    for name, value in (("batch_size", 0), ("max_megapixels", float("nan"))):
        with pytest.raises(InputError, match=f"{name} must be"):
            PhotoRestorer(restorer, **{name: value})


def test_a_changed_single_file_is_another_state(tmp_path):
    file = tmp_path / "base.safetensors"
    file.write_bytes(b"1")
    before = folder_state(file)
    file.write_bytes(b"22")
    assert folder_state(file) != before
    # a name is not the folder that happens to be called so
    named = [folder_state("mini", place) for place in (tmp_path, model_folder("mini"))]
    assert named[0] != named[1] and "lafr.json" in [entry[0] for entry in named[1][1:]]


def test_sharp_aligned_faces_are_left_by_the_guard_and_restored_by_force_and_no_face_is_stale(tmp_path):
    (tmp_path / "in").mkdir()
    aligned("astronaut").resize((128, 128)).save(tmp_path / "in" / "a.png")
    photos = PhotoRestorer(Restorer.from_pretrained("mini"))
    saved = tmp_path / "out" / "restored_faces" / "a_00.png"
    for force, faces in ((True, 1), (False, 0)):
        outcome = restoring.restore_files(photos, [tmp_path / "in"], tmp_path / "out", force=force, save_faces=True)
        assert (outcome.faces, len(outcome.done), saved.is_file()) == (faces, 1, bool(faces))


def faces_at(*corners, side=40):
    """Frontal faces whose crops of `side` px have these corners."""
    points = [(FFHQ_512 + 0.5) * side / 512 - 0.5 + corner for corner in corners]
    boxes = [(x + 2, y + 2, x + side - 2, y + side - 2) for x, y in corners]
    return [Detection(box, at, 0.9) for box, at in zip(boxes, points, strict=True)]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a.jpg"
    Image.radial_gradient("L").resize((300, 200)).convert("RGB").save(path, dpi=(300, 300))
    return path


def test_a_photo_is_written_whole_with_its_faces_in_the_journal_and_a_comparison(tmp_path, restorer, photo):
    photos = PhotoRestorer(restorer, lambda image: faces_at((50, 60)), guard=False)
    restoring.restore_files(photos, [photo], tmp_path / "out")
    line = lines(tmp_path / "out")["a.jpg"]
    assert (line["aligned"], line["output"], line["status"]) == (False, "a.png", "done") and line["seconds"] > 0
    (face,) = line["faces"]
    assert (face["box"], face["status"]) == ([52, 62, 88, 98], "restored")
    assert face["side"] == pytest.approx(40, abs=0.1)
    made = Image.open(tmp_path / "out" / "a.png")
    assert made.size == (300, 200) and made.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert Image.open(tmp_path / "out" / "side_by_side" / "a.png").size == (600, 200)


def test_faces_are_saved_before_and_after_under_their_index(tmp_path, restorer, photo):
    photos = PhotoRestorer(
        restorer, lambda image: faces_at((10, 60), (125, 80), (230, 30)) if image.width > 32 else [], guard=False
    )
    save(tmp_path, "aligned.png")
    sources = [photo, tmp_path / "aligned.png"]
    how = dict(side_by_side=False, save_faces=True, only_center_face=True, suffix="new")
    restoring.restore_files(photos, sources, tmp_path / "out", **how)
    names = {"a_new_01.png", "aligned_new_00.png"}
    assert written(tmp_path / "out") == {"a_new.png", "aligned_new.png"} | {
        f"{folder}/{name}" for folder in ("cropped_faces", "restored_faces") for name in names
    }
    statuses = [face["status"] for face in lines(tmp_path / "out")["a.jpg"]["faces"]]
    assert statuses == ["left", "restored", "left"]
    cropped = read_image(tmp_path / "out" / "cropped_faces" / "a_new_01.png")
    restored = read_image(tmp_path / "out" / "restored_faces" / "a_new_01.png")
    assert torch.equal(restored, as_saved(restorer(cropped[None])[0]))
    save(tmp_path / "clash" / "cropped_faces", "b.png")
    with pytest.raises(InputError, match="cropped_faces"):
        restoring.restore_files(photos, [tmp_path / "clash"], tmp_path / "new", save_faces=True)


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_other_formats_hold_what_png_holds_within_their_loss(tmp_path, restorer, photo, extension):
    save(tmp_path, "face.png")
    Image.open(photo).convert("LA").save(tmp_path / "gray.png")
    photos = PhotoRestorer(restorer, lambda image: faces_at((50, 60)) if image.width > 32 else [], guard=False)
    sources = [photo, tmp_path / "face.png", tmp_path / "gray.png"]
    for kind in ("png", extension):
        restoring.restore_files(photos, sources, tmp_path / kind, side_by_side=False, extension=kind)
    for name in ("a", "gray"):  # the small face is noise, of which both formats lose much
        lossless, lossy = (read_image(tmp_path / kind / f"{name}.{kind}") for kind in ("png", extension))
        assert (lossy - lossless).abs().mean() < 2.5 / 127.5
    modes = [Image.open(tmp_path / extension / f"{name}.{extension}").mode for name in ("a", "face", "gray")]
    assert modes == (["RGB", "RGB", "L"] if extension == "jpg" else ["RGB"] * 3)


def test_without_progress_nothing_is_printed(tmp_path, restorer, capfd):
    save(tmp_path / "in", "a.png", "b.png")
    restore_files(restorer, tmp_path / "in", tmp_path / "out", progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_cmyk_photo_never_overwrites_a_tiff_next_to_it(tmp_path, restorer):
    Image.new("CMYK", (40, 30)).save(tmp_path / "a.jpg")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.tif")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg.tif")
    before = [(tmp_path / name).read_bytes() for name in ("a.jpg", "a.tif", "a.jpg.tif")]
    done, skipped = restore_files(restorer, tmp_path, tmp_path, side_by_side=False)
    assert [(tmp_path / name).read_bytes() for name in ("a.jpg", "a.tif", "a.jpg.tif")] == before
    assert len(done) == 2 and "would be overwritten, as CMYK is written as TIFF" in skipped[0]
