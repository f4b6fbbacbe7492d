"""Variants stand behind the training faces, hold nothing out, and bend a face without folding it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lafr.data.degradation.first_order import Degradation
from lafr.data.faces import train_and_validation
from lafr.data.faces.sources import File
from lafr.data.faces.training_set import training_set
from lafr.data.faces.variants import Variant, bent, recoloured
from lafr.errors import InputError
from lafr.miniature.labelled import LabelledStream
from lafr.provenance import training_set_in_words


def test_variants_stand_behind_the_faces_and_are_those_of_their_seed_and_number(face_folder):
    plain, held_out = train_and_validation(str(face_folder), 32, validation_fraction=0.3)
    faces, same = train_and_validation(str(face_folder), 32, validation_fraction=0.3, variants=2)
    assert same.items == held_out.items and faces.items[:7] == plain.items
    assert [faces.name(i) for i in (7, 13, 14)] == [f"{plain.name(0)}~1", f"{plain.name(6)}~1", f"{plain.name(0)}~2"]
    again, other = (train_and_validation(str(face_folder), 32, variants=2, num_images=3, seed=s)[0] for s in (0, 1))
    place = {again.name(i): i for i in range(len(again))}
    for name in set(place) & {faces.name(i) for i in range(7, 21)}:  # whatever else was drawn
        assert torch.equal(again[place[name]], faces[[faces.name(i) for i in range(21)].index(name)])
    different = [*(faces[i] for i in range(21)), *(other[i] for i in range(3, 9))]
    assert min((a - b).abs().mean() for i, a in enumerate(different) for b in different[:i]) > 0.01
    record = training_set(faces, held_out)
    assert (record["faces"], record["variants"], record["sets"][0]["faces"]) == (7, 2, 7)
    assert training_set_in_words(record).endswith("and 2 variants of each")


def test_bending_moves_a_face_by_some_per_cent_of_its_side_and_folds_it_nowhere():
    side = 64
    places = np.stack([*np.meshgrid(np.arange(side), np.arange(side)), np.zeros((side, side))], -1).astype(np.float32)
    inner = slice(12, -12)  # what is mirrored in from the border moved further
    moved = [bent(places, np.random.default_rng(seed))[inner, inner, :2] for seed in range(50)]
    shift = np.mean([np.linalg.norm(at - places[inner, inner, :2], axis=-1) for at in moved]) / side
    assert 0.01 < shift < 0.05
    for at in moved:
        (xy, xx), (yy, yx) = (np.gradient(at[..., axis]) for axis in (0, 1))
        assert (xx * yy - xy * yx).min() > 0.2  # of an area's size


def test_recolouring_keeps_black_and_the_order_of_gray_levels():
    gray = np.repeat(np.linspace(0, 1, 32, dtype=np.float32)[None, :, None], 3, axis=2)
    for seed in range(20):
        found = recoloured(gray, np.random.default_rng(seed))
        assert (found[:, 0] == 0).all() and found.max() <= 1 and (np.diff(found, axis=1) >= 0).all()


def test_landmarks_of_a_face_are_not_taken_for_those_of_its_variant(face_folder):
    faces, _ = train_and_validation(str(face_folder), 32, variants=1)
    known = {"/".join(Path(path).parts[-2:]): np.zeros((68, 2)) for path in face_folder.glob("*.png")}
    with pytest.raises(InputError, match=r"9 faces have no landmarks, first .*~1"):
        LabelledStream(faces, Degradation(), 0, known)


def test_a_name_that_is_no_text_seeds_its_variants_too(face_folder):
    picture = File(next(face_folder.glob("*.png")), os.fsdecode(b"caf\xe9"))
    assert Variant(picture, 1, 0).picture().size == (40, 40)


@pytest.mark.parametrize("number", [-1, 1.5, "two"])
def test_a_number_of_variants_is_whole(face_folder, number):
    with pytest.raises(InputError, match="variants"):
        train_and_validation(str(face_folder), 32, variants=number)
