"""wandb's file and TensorBoard's events, read back: every step of every stage once, rising, after a kill too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_script import SCRIPT, overrides
from wandb_file import images, read_run

from lafr.storage import read_json
from lafr.training.trackers import held_by_wandb

pytestmark = pytest.mark.slow
STEPS = 4
STAGES = ("codebook", "alignment", "restoration")
KILL = """
import os, runpy, signal, sys
import lafr.training.log as log
terms = log.Log.terms
def killed(self, step, *args, **settings):
    terms(self, step, *args, **settings)
    if (self.name, step) == ("alignment", 3) and os.environ.get("KILLED"):
        os.kill(os.getpid(), signal.SIGKILL)
log.Log.terms = killed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def run(base_folder, face_folder, tmp_path_factory):
    """The folder of a run of three stages, tracked by both, killed in the second and resumed; and its last output."""
    folder = tmp_path_factory.mktemp("tracked")
    arguments = [
        *overrides(base_folder, face_folder, STEPS),
        "trainer.trackers=[tensorboard,wandb]",
        "trainer.checkpoint_every=2",
        "trainer.validate_every=2",
        "trainer.validation_images=1",
        "trainer.tracking.mode=offline",
        "trainer.tracking.project=faces",
        "trainer.tracking.tags=[tiny]",
    ]
    environment = os.environ | {"WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILL, str(SCRIPT), *arguments]
    killed = subprocess.run(command, cwd=folder, env=environment | {"KILLED": "1"}, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr[-2000:]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "runs" / "test", done.stdout


def wanted(stage):
    """The trackers' steps of a stage: those of the stages before are added."""
    before = STEPS * STAGES.index(stage)
    return list(range(before + 1, before + STEPS + 1))


def test_tensorboards_events_hold_every_step_once_and_the_images(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run[0] / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    for stage in STAGES:
        assert [event.step for event in events.Scalars(f"{stage}/latent_l1")] == wanted(stage)
        assert [event.step for event in events.Images(f"{stage}/validation")] == wanted(stage)[1::2]
    assert "configuration/text_summary" in events.Tags()["tensors"]
    assert "tensorboard --logdir" in run[1]


def test_wandbs_offline_file_holds_every_step_once_rising_with_configuration_and_images(run):
    folders = sorted((run[0] / "wandb").glob("offline-run-*"), key=lambda folder: folder.name)
    assert len(folders) == 2  # of the killed start, which lost its last seconds, and of the resumed one
    history, runs = read_run(run[0])
    steps = [line["step"] for line in history if "step" in line]
    assert steps == sorted(steps) and set(steps) == set(range(1, 3 * STEPS + 1))
    for stage in STAGES:
        assert [line["step"] for line in history if f"{stage}/latent_l1" in line] == wanted(stage)
        shown = [line["step"] for line in history if f"{stage}/validation" in images(line)]
        assert shown == wanted(stage)[1::2]
    held = held_by_wandb(run[0])
    assert {(step, f"{stage}/latent_l1") for stage in STAGES for step in wanted(stage)} <= held
    assert {(step, f"{stage}/validation") for stage in STAGES for step in wanted(stage)[1::2]} <= held
    identity = read_json(run[0] / "tracking.json")["id"]
    assert {(r.run_id, r.project, r.display_name, *r.tags) for r in runs} == {(identity, "faces", "test", "tiny")}
    config = {item.key: item.value_json for item in runs[0].config.update}
    assert json.loads(config["stage"])["codebook"]["max_steps"] == STEPS
    assert all(Path(folder).parent.parent == run[0] for folder in folders)
    assert "wandb sync" in run[1]
