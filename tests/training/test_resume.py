"""Kill -9 and run the same command again: nothing in the result tells that it happened."""

import json
import os
import re
import signal

import pytest
from training_script import LEARNED, overrides, run_script

import lafr.training.loop
from lafr.storage import write_sealed

# configurations name their folder, summaries hold seconds; checkpoints are of other steps
OWN_TIMES = re.compile(r"^config(\.copy)?\.json$|final/sha256\.json$|/step_")
STAGES = ("codebook", "alignment", "restoration")


def train_until_killed(arguments, output, moment=None, stage=None, step=None):
    """Run the script in this process, which kills itself at the given moment."""

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    advance, replace = lafr.training.loop.Log.advance, os.replace

    def advance_and_die(log):
        advance(log)
        if moment == "after step" and (log.name, log.bar.n) == (stage, step):
            kill()

    def replace_and_die(source, target):
        if moment == "writing" and str(target).endswith(f"{stage}/step_{step:08d}"):
            assert {path.name for path in source.iterdir()} == {"trained.safetensors", "state.pt", "sha256.json"}
            kill()
        replace(source, target)
        if moment == "finished" and str(target).endswith(f"{stage}/final"):
            kill()

    lafr.training.loop.Log.advance, os.replace = advance_and_die, replace_and_die
    run_script(arguments, output)


@pytest.fixture
def train(workers, tmp_path):
    def train(arguments, run, *death):
        output = tmp_path / f"{run}.txt"
        arguments = [*arguments, f"run_dir={tmp_path / run}"]
        process = workers.Process(target=train_until_killed, args=(arguments, output, *death))
        process.start()
        process.join()
        assert process.exitcode == (-signal.SIGKILL if death else 0), output.read_text()[-3000:]
        return output.read_text()

    return train


def files(folder):
    """Everything that a finished run leaves, by name: bytes, and of summaries what is not a time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "summary.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
        elif path.is_file() and not OWN_TIMES.search(name):
            found[name] = path.read_bytes()
    return found


def assert_same_run(one, other):
    one, other = files(one), files(other)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    return one


def test_a_run_killed_in_every_stage_ends_as_one_that_was_not(train, base_folder, face_folder, tmp_path):
    arguments = [
        *overrides(base_folder, face_folder, steps=6),
        "trainer.checkpoint_every=2",
        "trainer.validate_every=3",
        "trainer.validation_images=1",
        "trainer.feature_cache_gb=0.01",  # in memory: a resumed run computes it again, to the same bits
        "+stage.alignment.ema_decay=0.9",
        "+stage.restoration.ema_decay=0.9",
        "stage.restoration.schedule=cosine",
        "stage.restoration.learning_rate=1e-3",
        *LEARNED,
    ]
    train(arguments, "whole")
    train(arguments, "killed", "writing", "codebook", 4)  # both files written, the folder not yet renamed
    train(arguments, "killed", "finished", "codebook", 6)  # between two stages
    train(arguments, "killed", "after step", "alignment", 5)  # between two checkpoints
    train(arguments, "killed", "after step", "restoration", 5)
    assert "resuming at step 4 from" in train(arguments, "killed")

    same = assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert {f"{stage}/final/trained.safetensors" for stage in STAGES} < same.keys()
    assert {f"{stage}/log.jsonl" for stage in STAGES} < same.keys()
    lines = [json.loads(line) for line in same["restoration/log.jsonl"].decode().splitlines()]
    assert [line["step"] for line in lines if "perceptual" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "validation/psnr_rgb" in line] == [3, 6]

    # a discriminator and a score network learned along, from state in the checkpoint
    trained = [line for line in lines if "perceptual" in line]
    assert all(line.keys() > {"adversarial", "adversarial/accuracy_real", "vsd", "vsd/loss"} for line in trained)
    assert trained[0]["vsd"] == 0 < trained[-1]["vsd"]

    before = files(tmp_path / "whole")
    train(arguments, "whole")  # a finished run, run again
    assert files(tmp_path / "whole") == before


def test_the_base_models_two_stages_resume_too_with_the_latent_scale_of_the_first(train, face_folder, tmp_path):
    steps = [f"stage.{name}.{key}" for name in ("codec", "prior") for key in ("max_steps=3", "batch_size=2")]
    arguments = [
        *["+experiment=mini_base", "data=faces", f"data.root={face_folder}", *steps],
        *["model.resolution=32", "model.build.vae.block_out_channels=[8,16,16]"],
        *["model.build.unet.block_out_channels=[16,16,32]", "stage.codec.warmup_steps=0", "stage.prior.warmup_steps=0"],
        *["trainer.trackers=[]", "trainer.log_every=1", "trainer.checkpoint_every=2"],
    ]
    train(arguments, "whole")
    train(arguments, "killed", "finished", "codec", 3)
    train(arguments, "killed", "after step", "prior", 3)
    train(arguments, "killed")
    same = assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert json.loads(same["model/vae/config.json"])["scaling_factor"] != 0.18215  # diffusers' default


def test_a_run_started_with_other_settings_is_not_continued(train, base_folder, face_folder, tmp_path):
    record = {"config": {"a": 0}, "points_to": {}, "machine": {}}
    write_sealed(record, tmp_path / "run" / "config.json")
    with pytest.raises(AssertionError, match=r"error: .*a: 0 -> None"):
        train(overrides(base_folder, face_folder, steps=1), "run")
    assert os.listdir(tmp_path / "run") == ["config.json"]
