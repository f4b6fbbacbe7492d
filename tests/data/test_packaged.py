"""The faces that installed packages carry: aligned where they should be, and named when they are absent."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from skimage.transform import SimilarityTransform

from lafr import weights
from lafr.alignment import FFHQ_512, similarity
from lafr.data import packaged
from lafr.data.packaged import LANDMARKS, PackagedFaces, aligned, packaged_benchmark
from lafr.errors import InputError
from lafr.images import read_pil


def test_the_alignment_is_umeyamas_similarity():
    for points in map(np.array, LANDMARKS.values()):
        umeyama = SimilarityTransform.from_estimate(points, FFHQ_512)
        # Both fit a similarity; Umeyama's scale shrinks with the residual where least squares does not, so the
        # transforms agree as closely as the landmarks fit the template: a few pixels of 512.
        ours = points @ similarity(points, FFHQ_512)[:, :2].T + similarity(points, FFHQ_512)[:, 2]
        assert np.abs(ours - umeyama(points)).max() < 3


def test_an_exact_similarity_is_recovered():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) * 1.7
    matrix = similarity(FFHQ_512, FFHQ_512 @ turn.T + [30, -12])
    assert np.allclose(matrix, np.column_stack([turn, [30, -12]]))


def test_a_mirrored_face_is_not_mirrored_back():
    mirrored = FFHQ_512 * [-1, 1]
    assert np.linalg.det(similarity(mirrored, FFHQ_512)[:, :2]) > 0


def test_the_astronauts_landmarks_land_on_the_template():
    source = np.asarray(read_pil(weights.locate("astronaut")))
    matrix = similarity(np.array(LANDMARKS["astronaut"]), FFHQ_512)
    for point, target in zip(LANDMARKS["astronaut"], FFHQ_512, strict=True):
        dot = np.zeros(source.shape[:2], np.float32)
        cv2.circle(dot, tuple(round(c) for c in point), 2, 1.0, -1)
        y, x = np.mgrid[:512, :512]
        landed = cv2.warpAffine(dot, matrix, (512, 512))
        centre = np.array([(landed * x).sum(), (landed * y).sum()]) / landed.sum()
        assert np.linalg.norm(centre - target) < 20


def test_an_aligned_face_shows_the_photo_through_that_transform():
    crop = np.asarray(aligned("astronaut"), np.float64)
    source = np.asarray(read_pil(weights.locate("astronaut")), np.float64)
    inverse = np.linalg.inv(np.vstack([similarity(np.array(LANDMARKS["astronaut"]), FFHQ_512), [0, 0, 1]]))
    for x, y in [(192, 240), (319, 240), (256, 314), (256, 371), (100, 100)]:
        sx, sy, _ = inverse @ [x, y, 1]
        assert np.abs(crop[y, x] - source[round(sy), round(sx)]).max() < 40  # within a pixel of skin and hair


def test_seven_faces_and_eight_draws_make_the_mini_benchmark(degradation):
    benchmark = packaged_benchmark("mini", 16, degradation, draws=8)
    assert len(benchmark) == 56
    assert len({benchmark[i].stem for i in range(56)}) == 56
    training, held_out = packaged.train_and_validation(16)
    assert held_out.names == ["astronaut"]
    assert sorted(training.names + held_out.names) == sorted(LANDMARKS)
    assert not any(torch.equal(training[0], training[i]) for i in range(1, 6))


def alter(monkeypatch, name: str, **changes) -> None:
    monkeypatch.setitem(weights.EXTERNAL, name, dataclasses.replace(weights.EXTERNAL[name], **changes))


def test_missing_images_are_reported_by_the_faces_that_need_them(monkeypatch, degradation, capsys):
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    alter(monkeypatch, "insightface_t1", package="not_installed_anywhere")
    assert len(PackagedFaces(8, ["astronaut"])) == 1
    with pytest.raises(InputError, match="insightface_t1 is missing: pip install"):
        PackagedFaces(8)
    # both commands run with scikit-image and matplotlib alone, and say what they leave out
    benchmark = packaged_benchmark("mini", 16, degradation, draws=8)
    assert benchmark.name == "mini (1 of 7 faces)" and len(benchmark) == 8
    training, held_out = packaged.train_and_validation(16)
    assert (training.names, held_out.names) == (["grace_hopper"], ["astronaut"])
    assert capsys.readouterr().err.count("insightface_t1 is missing: pip install") == 2


def test_an_altered_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "alex_shift_tolerant.pth").write_bytes(b"something else")
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match="is not the known st_lpips_alex: its sha256 differs"):
        weights.load_pickle("st_lpips_alex")


def test_the_weights_folder_is_searched_before_the_packages(monkeypatch, tmp_path):
    installed = weights.locate("astronaut")
    (tmp_path / "astronaut.png").write_bytes(installed.read_bytes())
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    assert weights.locate("astronaut") == tmp_path / "astronaut.png"
