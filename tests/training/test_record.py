"""What may change between a run and its continuation, and what may not."""

import json

import pytest
import torch

from lafr.data.faces import Faces
from lafr.errors import InputError
from lafr.storage import seal
from lafr.training.record import pointed_at, remember, sha256_of_faces

CONFIG = {
    "seed": 0,
    "run_dir": "runs/a",
    "stages": ["codebook", "alignment"],
    "stage": {"codebook": {"max_steps": 5}, "alignment": {"max_steps": 5, "batch_size": 4}},
    "trainer": {"log_every": 10, "accumulation": 1, "mixed_precision": "no"},
    "data": {"root": "here"},
}
POINTS_TO, MACHINE = {"faces": "f" * 64, "held_out": "e" * 64, "unet": "d" * 64}, {"processes": 1, "threads": 2}


def changed(**settings) -> dict:
    """The configuration with some settings, named with two underscores for a dot, replaced."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in settings.items():
        *parts, key = name.split("__")
        place = config
        for part in parts:
            place = place.setdefault(part, {})
        place[key] = value
    return config


def test_a_run_is_not_continued_with_other_settings_faces_or_weights_and_they_are_named(tmp_path):
    assert remember(tmp_path, CONFIG, POINTS_TO, MACHINE) == []
    bound = [
        changed(seed=1),
        changed(trainer__mixed_precision="bf16"),
        changed(stage__alignment__batch_size=8),
        changed(stage__alignment__max_steps=4),
        changed(stages=["codebook"]),
        changed(stages=["alignment", "codebook"]),
    ]
    for config in bound:
        with pytest.raises(InputError, match=r": .* -> ") as error:
            remember(tmp_path, config, POINTS_TO, MACHINE)
        assert "\n" not in str(error.value)
    for name in ("faces", "unet"):
        with pytest.raises(InputError, match=f"{name}: .* -> 000000000000"):
            remember(tmp_path, CONFIG, POINTS_TO | {name: "0" * 64}, MACHINE)
    assert json.loads((tmp_path / "config.json").read_text())["config"] == CONFIG


def test_a_moved_run_and_free_settings_continue_and_what_may_change_rounding_is_said(tmp_path):
    remember(tmp_path, CONFIG, POINTS_TO, MACHINE)
    further = {"stages": ["codebook", "alignment", "multilevel"], "stage__multilevel": {"max_steps": 3}}
    for said, config in (
        ([], changed(run_dir="elsewhere", trainer__log_every=1, trainer__num_workers=4)),
        (["data.root: here -> there"], changed(data__root="there")),
        (["trainer.accumulation: 1 -> 2"], changed(trainer__accumulation=2)),
        (["stage.codebook.max_steps: 5 -> 9"], changed(stage__codebook__max_steps=9)),
        (["stages: ['codebook', 'alignment'] -> ['codebook', 'alignment', 'multilevel']"], changed(**further)),
    ):
        for record in tmp_path.glob("config*"):
            record.unlink()
        remember(tmp_path, CONFIG, POINTS_TO, MACHINE)
        assert remember(tmp_path, config, POINTS_TO, MACHINE) == said
    assert remember(tmp_path, config, POINTS_TO | {"held_out": "0" * 64}, MACHINE | {"threads": 1}) == [
        "held_out: eeeeeeeeeeee -> 000000000000",
        "threads: 2 -> 1",
    ]


def test_a_stage_from_whose_result_another_has_started_takes_no_more_steps(tmp_path):
    remember(tmp_path, CONFIG, POINTS_TO, MACHINE)
    (tmp_path / "alignment" / "step_00000001").mkdir(parents=True)
    seal(tmp_path / "alignment" / "step_00000001")
    remember(tmp_path, changed(stage__alignment__max_steps=9), POINTS_TO, MACHINE)
    with pytest.raises(InputError, match=r"stage.codebook.max_steps: 5 -> 9"):
        remember(tmp_path, changed(stage__alignment__max_steps=9, stage__codebook__max_steps=9), POINTS_TO, MACHINE)


def test_a_damaged_record_is_read_from_its_copy_and_two_are_refused(tmp_path):
    remember(tmp_path, CONFIG, POINTS_TO, MACHINE)
    record, copy = tmp_path / "config.json", tmp_path / "config.copy.json"
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))
    (said,) = remember(tmp_path, CONFIG, POINTS_TO, MACHINE)
    assert "config.json' is damaged" in said and json.loads(record.read_text())["config"] == CONFIG
    record.unlink()
    copy.write_text("")
    with pytest.raises(InputError, match=r"config.json' is missing; .*config.copy.json' is damaged"):
        remember(tmp_path, CONFIG, POINTS_TO, MACHINE)


def test_lists_of_faces_and_base_weights_have_digests_of_what_they_are_and_not_of_where(faces, face_folder, restorer):
    digests = pointed_at(restorer, faces, faces)
    assert digests.keys() == {"faces", "held_out", "codec", "unet"}
    with torch.no_grad():
        for parameter in restorer.denoiser.lora_parameters():
            parameter += 1
    assert pointed_at(restorer, faces, faces) == digests  # the LoRA is what the run trains
    fewer = Faces(sorted(face_folder.glob("*.png"))[1:], faces.resolution)
    assert sha256_of_faces(fewer) != digests["faces"]
    with torch.no_grad():
        next(p for name, p in restorer.denoiser.unet.named_parameters() if "lora_" not in name).add_(1e-3)
    assert pointed_at(restorer, faces, faces)["unet"] != digests["unet"]
