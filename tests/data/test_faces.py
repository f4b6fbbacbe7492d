"""Training and validation faces share no file; seeds, lists and scores choose as they say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lafr.data.faces import Faces, train_and_validation
from lafr.data.faces.selection import training_and_held_out
from lafr.data.faces.sources import File, folder
from lafr.data.faces.training_set import training_set
from lafr.errors import InputError
from lafr.images import read_image
from lafr.provenance import read_training_set, training_set_in_words, write_training_set
from lafr.storage import write_json

FFHQ_600 = Path(__file__).resolve().parents[2] / "data" / "ffhq_600.txt"


def names(faces: Faces) -> list[str]:
    return [path.name for path in faces.paths]


def stems(items) -> list[str]:
    return [item.path.stem for item in items]


def ffhq(layout: str) -> list[File]:
    """The items of a whole FFHQ, flat or in the thousands' folders of its publisher."""
    paths = [Path("00000" if layout == "flat" else f"{i // 1000 * 1000:05d}") / f"{i:05d}.png" for i in range(70_000)]
    return [File(path, path.with_suffix("").as_posix()) for path in paths]


def choose(face_folder, **choice) -> list[list[str]]:
    """The names to train on and to hold out, of the ten in the folder."""
    return [names(faces) for faces in train_and_validation(str(face_folder), 32, **choice)]


def test_the_split_shares_no_file_and_loses_none(face_folder):
    training, held_out = train_and_validation(str(face_folder), 32, validation_fraction=0.3)
    assert len(held_out) == 3
    assert sorted(names(training) + names(held_out)) == [f"{i:02d}.png" for i in range(10)]


def test_the_split_is_a_function_of_the_seed(face_folder):
    splits = [names(train_and_validation(str(face_folder), 32, validation_fraction=0.3, seed=s)[1]) for s in (1, 1, 2)]
    assert splits[0] == splits[1] != splits[2]


def test_the_validation_list_is_held_out_as_written(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "val.txt").write_text("b/1.png\n\na/2.png\n")
    training, held_out = train_and_validation(str(tmp_path), 8, folders=["a", "b"], validation_list="val.txt")
    relative = [p.relative_to(tmp_path).as_posix() for p in held_out.paths]
    assert relative == ["b/1.png", "a/2.png"]
    assert [p.relative_to(tmp_path).as_posix() for p in training.paths] == ["a/1.png"]


def test_a_subset_does_not_depend_on_what_is_held_out_which_comes_from_the_rest(face_folder):
    drawn = [choose(face_folder, num_images=6, validation_fraction=f, seed=s) for s in range(5) for f in (0.1, 0.3, 1)]
    for i, (training, held_out) in enumerate(drawn):
        assert len(training) == 6 and training == drawn[i - i % 3][0] == sorted(training)
        assert len(held_out) == (1, 3, 4)[i % 3] and not set(training) & set(held_out)
    assert len({tuple(training) for training, _ in drawn}) > 1


def test_without_a_subset_the_split_is_the_one_that_results_were_made_with(face_folder):
    """The files of a run on a folder that was split by LAFR 0.1."""
    training, held_out = choose(face_folder, validation_fraction=0.3, seed=5)
    order = np.random.default_rng([5, 1]).permutation(10)
    assert held_out == [f"{i:02d}.png" for i in sorted(order[:3])]
    assert training == [f"{i:02d}.png" for i in sorted(order[3:])]


def test_the_published_list_is_floyds_sample_of_600_in_70000():
    """NumPy draws a small sample by Floyd's algorithm (Bentley, CACM 1987); here it is written out."""
    rng, drawn = np.random.default_rng(0), set()
    for top in range(70_000 - 600, 70_000):
        number = int(rng.integers(0, top, endpoint=True))
        drawn.add(top if number in drawn else number)
    lines = FFHQ_600.read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [f"{number:05d}" for number in sorted(drawn)]


def test_the_published_validation_list_shares_nothing_with_the_600_and_follows_its_rule():
    trained, validated = (
        [name for name in (FFHQ_600.parent / file).read_text().splitlines() if name[0] != "#"]
        for file in ("ffhq_600.txt", "ffhq_val.txt")
    )
    order = np.random.default_rng([0, 1]).permutation(70_000)
    rest = np.setdiff1d(np.arange(70_000), [int(name) for name in trained])
    expected = order[np.isin(order, rest)][:100]
    assert validated == sorted(f"{number:05d}" for number in expected)


def test_600_of_ffhq_by_seed_0_and_by_the_list_are_the_published_ones_whatever_is_held_out():
    flat, thousands = ffhq("flat"), ffhq("thousands")
    published = [name for name in FFHQ_600.read_text().splitlines() if name[0] != "#"]
    for items, choice in (
        (flat, {"num_images": 600}),
        (thousands, {"num_images": 600, "validation_fraction": 0.3}),
        (thousands, {"file_list": str(FFHQ_600)}),
    ):
        training, held_out = training_and_held_out(items, "ffhq", **choice)
        assert stems(training) == published
        assert len(held_out) == (21_000 if "validation_fraction" in choice else 3_500)
        assert not set(stems(held_out)) & set(published)


def test_a_list_chooses_exactly_its_names_with_or_without_folder_and_extension(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/3.5.png", "4.png", "5.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("# chosen by hand\n\n 3.5 \nb/1\n2.png\n  # not 5\n./4.png\n")
    training, held_out = train_and_validation(str(tmp_path), 8, file_list="list.txt", validation_fraction=1)
    assert [training.name(i) for i in range(4)] == ["4", "a/2", "b/1", "b/3.5"]
    assert [held_out.name(i) for i in range(2)] == ["5", "a/1"]
    for text, said in (
        ("1\n", r"'1' may be '.*a/1.png' or '.*b/1.png'; write the folder too"),
        ("4\n4.png\n", r"names '.*4.png' twice, '4' and '4.png'"),
        ("4\n6\n7\n", r"names 2 missing of 3 files, first '6'"),
        ("# nothing\n", "names no file"),
    ):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(InputError, match=rf"list '.*list.txt':? {said}"):
            train_and_validation(str(tmp_path), 8, file_list="list.txt")
    (tmp_path / "list.txt").write_text("b/1.png\n")
    with pytest.raises(InputError, match="names 1 missing of 1 files"):  # there, but not among the folders
        train_and_validation(str(tmp_path), 8, folders=["a"], file_list="list.txt")


def test_a_validation_list_is_taken_out_before_the_subset_is_drawn(face_folder, tmp_path):
    (tmp_path / "val.txt").write_text("03\n07.png\n")
    training, held_out = choose(face_folder, validation_list=str(tmp_path / "val.txt"), num_images=8)
    assert held_out == ["03.png", "07.png"]
    assert training == [f"{i:02d}.png" for i in range(10) if i not in (3, 7)]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_scores_keep_the_best_and_what_is_good_enough(form, face_folder, tmp_path):
    score = [0.5, 0.9, 0.72, 0.1, 0.9, 0.3, 0.9, 0.71, 0.9, 0.2]
    rows = [("elsewhere", 1.0), *[(f"{i:02d}", value) for i, value in enumerate(score)][::-1]]
    as_csv = "name,score\n" + "".join(f"{name}.png,{value}\n" for name, value in rows)
    as_json = "".join(json.dumps({"name": name, "score": value, "by": "x"}) + "\n" for name, value in rows)
    file = tmp_path / f"scores.{form}"
    file.write_text(as_csv if form == "csv" else as_json)
    good = {f"{i:02d}.png" for i, value in enumerate(score) if value >= 0.72}
    training, held_out = choose(face_folder, scores=str(file), min_score=0.72)
    assert set(training) | set(held_out) == good and len(held_out) == 1
    training, held_out = choose(face_folder, scores=str(file), num_images=3, rank_by_score=True)
    assert training == ["01.png", "04.png", "06.png"]  # of four equals the first three
    assert set(training).isdisjoint(held_out)
    training, held_out = choose(face_folder, scores=str(file), min_score=0.72, num_images=4)
    assert set(training) | set(held_out) == good


def test_scores_that_leave_a_doubt_are_refused(face_folder, tmp_path):
    file = tmp_path / "scores.csv"
    whole = [f"{i:02d},0.{i}" for i in range(10)]
    for lines, said in (
        (whole[:7], r"3 of 10 images have none, first '.*07.png'"),
        ([*whole, "03.png,1"], r"names '.*03.png' twice, '03' and '03.png'"),
        ([*whole[:9], "09,nan"], "line 10, '09,nan': nan is no score; write 00000,0.7"),
        ([*whole[:9], "09"], "line 10, '09': not enough values"),
    ):
        file.write_text("\n".join(lines))
        with pytest.raises(InputError, match=said):
            choose(face_folder, scores=str(file), min_score=0)
    file.write_text("\n".join(whole))
    for choice in ({}, {"rank_by_score": True}):
        with pytest.raises(InputError, match=r"min_score.*rank_by_score.*num_images"):
            choose(face_folder, scores=str(file), **choice)
    with pytest.raises(InputError, match=r"scores.*min_score"):
        choose(face_folder, min_score=0.5)
    with pytest.raises(InputError, match=r"0 images to train on and 0 .*min_score"):
        choose(face_folder, scores=str(file), min_score=2)


def test_a_face_is_the_resized_image_on_every_visit(face_folder):
    faces = Faces(sorted(face_folder.glob("*.png")), 32)
    expected = read_image(faces.paths[3], 32)
    assert torch.equal(faces[3], expected)
    faces[3].zero_()  # what a caller does to its copy
    assert torch.equal(faces[3], expected)


def test_what_was_trained_on_is_named_by_the_index_of_its_preparation_or_by_its_folder(tmp_path, face_folder):
    for number in range(3):
        path = tmp_path / "ffhq512" / "00000" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(path)
    index = {"dataset": "ffhq_600", "settings": {"filter": "bicubic", "resolution": 64}, "files": []}
    write_json(index, tmp_path / "ffhq512/index.json")
    faces, own = Faces(folder(str(tmp_path / "ffhq512")), 64), Faces(folder(str(face_folder)), 32)
    record = training_set(faces, own)
    assert record["sets"] == [{"name": "ffhq_600", "filter": "bicubic", "resolution": 64, "faces": 3}]
    assert training_set_in_words(record) == "3 faces of ffhq_600, 64 px by a bicubic filter"
    assert training_set_in_words(training_set(own, faces)) == f"10 faces of {face_folder.name}, read at 32 px"
    # a model from elsewhere: no markup, and nothing that is no record
    record["sets"][0]["name"] = "<b>|`"
    write_training_set(record, tmp_path)
    assert "of _b___," in training_set_in_words(read_training_set(tmp_path))
    for damaged in ("[" * 9000, "{}", '{"sets": [1], "faces": 2}', "x" * 200_000):
        (tmp_path / "training_set.json").write_text(damaged, encoding="utf-8")
        assert read_training_set(tmp_path) is None


def test_a_small_memory_changes_no_pixel_and_keeps_no_more_than_it_may(face_folder, monkeypatch):
    paths, read = sorted(face_folder.glob("*.png")), []
    whole = Faces(paths, 32)
    tight = Faces(paths, 32, memory_gb=4 * 3 * 32 * 32 / 1e9)
    picture = File.picture
    monkeypatch.setattr(File, "picture", lambda item: read.append(item.path) or picture(item))
    for _ in range(3):
        assert all(torch.equal(tight[i], whole[i]) for i in range(10))
    assert [read.count(path) for path in paths] == [1 + 1] * 4 + [1 + 3] * 6  # one of each is the other's


def test_wrong_folders_lists_and_sizes_are_named(tmp_path, face_folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("nobody.png\n")
    root = str(face_folder)
    with pytest.raises(InputError, match=r"root .*nowhere'; get it there"):
        train_and_validation(str(tmp_path / "nowhere"), 32, remedy="get it there")
    with pytest.raises(InputError, match="holds no image"):
        train_and_validation(str(tmp_path / "empty"), 32)
    with pytest.raises(InputError, match=r"'val.txt' does not exist, .*faces0"):
        train_and_validation(root, 32, validation_list="val.txt")
    with pytest.raises(InputError, match=r"names 1 missing of 1 files, first .*nobody.png"):
        train_and_validation(root, 32, validation_list=str(tmp_path / "list.txt"))
    for number, choice in ((10, {}), (0, {}), (9, {"validation_list": str(tmp_path / "one.txt")})):
        (tmp_path / "one.txt").write_text("00\n01\n")
        most = 8 if choice else 9
        with pytest.raises(InputError, match=rf"num_images .*from 1 to {most}, .* {number}$"):
            train_and_validation(root, 32, num_images=number, **choice)
    (tmp_path / "all.txt").write_text("".join(f"{i:02d}\n" for i in range(10)))
    with pytest.raises(InputError, match=r"10 images to train on and 0 .*validation_list"):
        train_and_validation(root, 32, file_list=str(tmp_path / "all.txt"))
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="holds one image"):
        train_and_validation(str(tmp_path), 8)
