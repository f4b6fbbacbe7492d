"""Training and validation faces share no file, and the subset is a function of the seed."""

import pytest
import torch
from PIL import Image

from lafr.data.faces import Faces, train_and_validation
from lafr.errors import InputError
from lafr.images import read_image


def names(faces: Faces) -> list[str]:
    return [path.name for path in faces.paths]


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


def test_a_subset_has_the_asked_size_and_leaves_the_validation_set_alone(face_folder):
    drawn = [train_and_validation(str(face_folder), 32, num_images=4, seed=s) for s in (0, 0, 1)]
    assert [len(training) for training, _ in drawn] == [4, 4, 4]
    assert names(drawn[0][0]) == names(drawn[1][0]) != names(drawn[2][0])
    assert names(drawn[0][1]) == names(train_and_validation(str(face_folder), 32, seed=0)[1])
    assert not set(names(drawn[0][0])) & set(names(drawn[0][1]))


def test_a_face_is_the_resized_picture_on_every_visit(face_folder):
    faces = Faces(sorted(face_folder.glob("*.png")), 32)
    expected = read_image(faces.paths[3], 32)
    assert torch.equal(faces[3], expected)
    faces[3].zero_()  # what a caller does to its copy
    assert torch.equal(faces[3], expected)


def test_wrong_folders_lists_and_sizes_are_named(tmp_path, face_folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("nobody.png\n")
    root = str(face_folder)
    with pytest.raises(InputError, match=r"data.root='.*nowhere' does not exist; get it there"):
        train_and_validation(str(tmp_path / "nowhere"), 32, remedy="get it there")
    with pytest.raises(InputError, match="holds no image"):
        train_and_validation(str(tmp_path / "empty"), 32)
    with pytest.raises(InputError, match=r"list '.*val.txt' does not exist"):
        train_and_validation(root, 32, validation_list="val.txt")
    with pytest.raises(InputError, match=r"names 1 missing of 1 files, first .*nobody.png"):
        train_and_validation(root, 32, validation_list=str(tmp_path / "list.txt"))
    with pytest.raises(InputError, match=r"num_images=10, but .* has 9 training images"):
        train_and_validation(root, 32, num_images=10, validation_fraction=0.1)
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="holds one image; two are needed"):
        train_and_validation(str(tmp_path), 8)
