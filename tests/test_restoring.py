"""Folders of pictures with any name are restored beside, never over, what was given."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from lafr.errors import InputError
from lafr.images import as_saved, read_image
from lafr.restoring import output_paths, restore_files

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


def save(folder: Path, *names: str, size: int = 32) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.radial_gradient("L").resize((size, size)).rotate(20 * i).convert("RGB").save(folder / name)


def written(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


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

    monkeypatch.setattr("lafr.restoring.tqdm", Bar)
    restore_files(restorer, tmp_path / "in", tmp_path / "out", batch_size=3, side_by_side=False)
    assert seen == [5, 3, 1, 1]  # of five: the first batch, the one that is no picture, the last


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
    done, skipped = restore_files(restorer, tmp_path / "in", tmp_path / "out", side_by_side=False)
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
