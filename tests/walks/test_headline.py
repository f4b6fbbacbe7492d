"""The two headline commands, walked as a user walks them: from an empty folder, by commands alone, on stand-ins.

Beyond sizes, counts, name lists, steps (the warm-up's too), `expect` and hashes vouched for, no command needs a
further setting.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stand_ins import PAIRS, SIDE, write_all
from wandb_file import images, read_run

from lafr import LAFRPipeline
from lafr.evaluation.paper import ALIGNMENT, OURS
from lafr.evaluation.tables import shown
from lafr.storage import read_json

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STAGES = ("codebook", "alignment", "restoration")
FACES = [f"resolution={SIDE}", "only=[train.txt,val.txt]"]
SET = [f"resolution={SIDE}", f"count={PAIRS}"]
EVAL = [f"benchmark.resolution={SIDE}", f"benchmark.build.count={PAIRS}"]


def training(steps: int, batch: int = 1) -> list[str]:
    """The sizes of a training: nothing else differs from the experiment's own."""
    # with a warm-up the first step has a rate of zero: one step would train nothing
    sizes = {"max_steps": steps, "batch_size": batch, "warmup_steps": 0}
    stages = [f"stage.{stage}.{key}={value}" for stage in STAGES for key, value in sizes.items()]
    lists = ["data.file_list=train.txt", "data.validation_list=val.txt"]
    counts = ["trainer.accumulation=1", "trainer.validation_images=1", "trainer.checkpoint_every=1"]
    return [f"model.resolution={SIDE}", "model.build.expect=null", *lists, *stages, *counts, "trainer.log_every=1"]


TRACKED = ["trainer.trackers=[tensorboard,wandb]", "trainer.tracking.mode=offline"]


class Walk:
    """A folder in which a user works, and what the screen showed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "LAFR_WEIGHTS": str(folder / "weights"),
            "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "160",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start `lafr ...` as a shell would."""
        self.started = time.monotonic()
        return subprocess.Popen(
            [sys.executable, "-m", "lafr", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def lafr(self, *arguments: str, code: int = 0) -> str:
        """Run `lafr ...` to its end; return what the screen showed."""
        process = self.start(*arguments)
        shown = self.ended(process, arguments)
        assert process.returncode == code, shown[-3000:]
        return shown

    def ended(self, process: subprocess.Popen, arguments: Sequence[str]) -> str:
        """Wait for a command; return what the screen showed, and add it to `transcript.txt`."""
        shown = process.communicate(timeout=1500)[0].decode("utf-8")
        # of a progress bar the last state remains
        shown = re.sub(r"[^\n]*\r", "", shown).rstrip() + "\n"
        killed = "Killed\n" if process.returncode == -signal.SIGKILL else ""
        seconds = f"[{time.monotonic() - self.started:.0f} s]\n\n"
        lines = [f"$ lafr {shlex.join(arguments)}", f"{shown}{killed}{seconds}"]
        with (self.folder / "transcript.txt").open("a", encoding="utf-8") as file:
            file.write("\n".join(lines).replace(f"{self.folder}/", ""))
        return shown


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """An empty folder, with what the user has downloaded."""
    folder = tmp_path_factory.mktemp("headline")
    write_all(folder)
    yield Walk(folder)
    shutil.rmtree(folder / "weights")  # half a gigabyte, which pytest would keep


@pytest.fixture(scope="module")
def prepared(walk):
    """The same folder after `lafr prepare` of the faces and of the test set."""
    walk.lafr("prepare", "dataset=ffhq_600", "source=images1024x1024", *FACES)
    walk.lafr("prepare", "dataset=celeba_test", "source=self_celeba_512_v2", "source_hq=celeba_512_validation", *SET)
    return walk


@pytest.fixture(scope="module")
def trained(prepared):
    """The same folder after `lafr train`, killed between two steps of the last stage and started again."""
    arguments = ("train", f"+experiment={OURS}", *training(2), *TRACKED)
    process = prepared.start(*arguments)
    checkpoint = prepared.folder / "runs" / OURS / "restoration" / "step_00000001"
    deadline = time.monotonic() + 1500
    while not checkpoint.is_dir():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()[-3000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)  # wandb's own process writes its file once a second
    process.send_signal(signal.SIGKILL)
    prepared.ended(process, arguments)
    assert not (prepared.folder / "runs" / OURS / "model").exists()
    prepared.printed = prepared.lafr(*arguments)
    return prepared


@pytest.fixture(scope="module")
def evaluated(trained):
    """The same folder after `lafr eval`."""
    trained.lafr("eval", "benchmark=celeba_test", *EVAL)
    return trained


def test_on_the_empty_folder_one_line_names_what_is_missing(walk):
    said = walk.lafr("reproduce", OURS, "--train", " ".join(training(2)), "--eval", " ".join(EVAL), code=1)
    (error,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert "faces" in error and "images" in error and "--faces" in error and "--images" in error
    assert "lafr prepare dataset=ffhq_600" in said and "Traceback" not in said


def test_after_preparation_the_check_finds_everything_that_training_needs(prepared):
    out = prepared.lafr("check", f"+experiment={OURS}", *training(2), "--no-timing")
    assert "MISSING" not in out and "32 to train on, 8 to validate on" in out


def test_training_survives_a_kill_and_wandbs_file_holds_every_step_once(trained):
    run = trained.folder / "runs" / OURS
    for stage in STAGES:
        lines = [json.loads(line) for line in (run / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
        assert list(rates) == [1, 2] and min(rates.values()) > 0
    history, runs = read_run(run)
    for place, stage in enumerate(STAGES):
        steps = [line["step"] for line in history if f"{stage}/learning_rate" in line]
        assert steps == [2 * place + 1, 2 * place + 2], stage
        assert [line["step"] for line in history if f"{stage}/validation" in images(line)] == [2 * place + 2], stage
    rising = [line["step"] for line in history if "step" in line]
    assert rising == sorted(rising)
    assert len({each.run_id for each in runs}) == 1 and {each.display_name for each in runs} == {OURS}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["stage"]["restoration"]["max_steps"] == 2 and config["model"]["resolution"] == SIDE
    assert "wandb sync" in trained.printed and "tensorboard --logdir" in trained.printed


def test_the_benchmark_takes_the_trained_model_and_says_first_what_it_cannot_measure(evaluated):
    result = read_json(evaluated.folder / f"runs/eval/runs-{OURS}-model/celeba_test/result.json")
    assert result["images"] == PAIRS and result["resolution"] == SIDE
    assert {"psnr_rgb", "lpips_alex", "dists", "lmd", "identity_cos_adaface"} <= result["rows"]["LAFR"].keys()
    assert {"musiq", "fid_ffhq"} <= result["not_measured"].keys()
    said = (evaluated.folder / "transcript.txt").read_text(encoding="utf-8").partition("$ lafr eval")[2]
    assert said.index("not measured here") < said.index("celeba_test: 100%")


def test_the_table_stands_next_to_the_published_ones_in_latex(evaluated):
    file = f"runs/eval/runs-{OURS}-model/celeba_test/result.json"
    out = evaluated.lafr("tables", file, "--published", "--format", "latex")
    result = read_json(evaluated.folder / file)
    ours, *others = out.split(r"\begin{table")[1:]
    assert "LAFR" in ours and f"{result['rows']['LAFR']['psnr_rgb']['mean']:.2f}" in ours
    assert others and all("CodeFormer" in each or "GFPGAN" in each for each in others)
    assert "3000 images" in others[0]  # why ours are not in theirs: a few pairs are no set


def test_the_export_restores_what_the_evaluation_restored(evaluated):
    evaluated.lafr("export", f"model.folder=runs/{OURS}/model", "output=export", "full=true")
    pipeline = LAFRPipeline.from_pretrained(str(evaluated.folder / "export"))
    restored = evaluated.folder / f"runs/eval/runs-{OURS}-model/celeba_test/pictures/LAFR"
    for path in sorted(restored.glob("*.png"))[:2]:
        image = pipeline(Image.open(evaluated.folder / "data/celeba_test/lq" / path.name)).images[0]
        difference = np.asarray(image).astype(int) - np.asarray(Image.open(path).convert("RGB"))
        assert np.abs(difference).max() <= 1


def test_reproduce_skips_what_is_there_and_ends_with_the_table(evaluated):
    arguments = ("reproduce", OURS, "--train", " ".join(training(2)), "--eval", " ".join(EVAL))
    said = evaluated.lafr(*arguments)
    assert f"skip     model {OURS}" in said and "run      lafr eval" in said and "run      lafr train" not in said
    assert f"kept      {PAIRS * 6} of {PAIRS * 6} images" in said
    again = evaluated.lafr(*arguments)
    assert "run   " not in again and "check   " not in again
    result = read_json(evaluated.folder / f"runs/eval/runs-{OURS}-model/celeba_test/lafr/result.json")
    assert rows_of(again)["LAFR"] == [shown(result, "LAFR", metric) for metric in result["rows"]["LAFR"]]
    assert rows_of(again) == rows_of(said)


def test_reproduce_does_all_of_it_with_two_processes(walk, tmp_path):
    for name in ("data", "images1024x1024", "celeba_512_validation", "self_celeba_512_v2", "train.txt", "val.txt"):
        place = walk.folder / name
        if name == "data":
            shutil.copytree(place / "sd21_base", tmp_path / "data/sd21_base")
        else:
            (tmp_path / name).symlink_to(place)
    two = Walk(tmp_path)
    two.environment |= {"LAFR_WEIGHTS": str(walk.folder / "weights"), "OMP_NUM_THREADS": "1"}
    faces = " ".join(["source=images1024x1024", *FACES])
    pairs = " ".join(["source=self_celeba_512_v2", "source_hq=celeba_512_validation", *SET])
    said = two.lafr(
        "reproduce", OURS, "--faces", faces, "--images", pairs, "--train", " ".join(training(1, batch=2)),
        "--eval", " ".join(EVAL), "--launch", "--multi_gpu --num_processes 2",
    )  # fmt: skip
    ran = [line.split()[2] for line in said.splitlines() if line.startswith("run      lafr")]
    assert ran == ["prepare", "prepare", "train", "eval"]
    summary = read_json(tmp_path / "runs" / OURS / "restoration/final/summary.json")
    assert summary["steps"] == 1
    assert rows_of(said)["LAFR"]


def test_the_papers_tables_1_and_4_hold_the_numbers_of_the_results(evaluated):
    said = evaluated.lafr("paper", "1", "4", "--run", "--train", " ".join(training(1)), "--eval", " ".join(EVAL))
    assert said.count("run      lafr train") == len(ALIGNMENT) - 1  # ours is there
    first, fourth = said.split("## Table ")[1:]
    compared = 0
    for text, rows in ((first, {"LAFR": OURS}), (fourth, {row.method: row.experiment for row in ALIGNMENT})):
        cells = rows_of(text)
        for method, experiment in rows.items():
            result = read_json(evaluated.folder / f"runs/eval/runs-{experiment}-model/celeba_test/lafr/result.json")
            assert cells[method] == [shown(result, "LAFR", metric) for metric in result["rows"]["LAFR"]], method
            compared += len(cells[method])
    assert compared == 7 * 6
    latex = evaluated.lafr("paper", "4", "--format", "latex")
    for row in ALIGNMENT:
        result = read_json(evaluated.folder / f"runs/eval/runs-{row.experiment}-model/celeba_test/lafr/result.json")
        assert f"{result['rows']['LAFR']['psnr_rgb']['mean']:.2f}" in latex


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of the first Markdown table in a text, without the marks of the best, by method."""
    rows = {}
    for line in text.partition("|---")[2].splitlines()[1:]:
        if not line.startswith("|"):
            break
        method, *cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        rows[method] = cells
    return rows
