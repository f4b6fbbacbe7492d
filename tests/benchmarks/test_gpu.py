"""Ten minutes on a GPU, as far as a CPU can tell: the plan, its order, what a killed run keeps, and a rehearsal."""

import importlib.metadata
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lafr.commands.launch import composed
from lafr.errors import InputError
from scripts.benchmarks import gpu
from scripts.benchmarks.__main__ import main
from scripts.benchmarks.gpu import (
    FULL,
    MINIATURE,
    REHEARSAL,
    WHEELS,
    Job,
    gpu_table,
    plan,
    train_commands,
    work_through,
)

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_most_worth_knowing_fits_into_nine_minutes_and_compilation_comes_last(monkeypatch, capsys):
    jobs = plan(FULL)
    names, at, started = [job.name for job in jobs], 0.0, {}
    for job in jobs:
        started[job.name], at = at, at + job.seconds
    in_time = [job.name for job in jobs if started[job.name] + job.seconds <= 9 * 60]
    assert names[:3] == ["machine", "inference_bfloat16_16", "inference_bfloat16_1"] and len(set(names)) == len(names)
    assert {f"inference_{d}_{b}" for d in ("bfloat16", "float16") for b in (1, 4, 16)} <= set(in_time)
    assert {"training_gpu80", "training_gpu24", "training_gpu12", "smoke", "degradation"} <= set(in_time)
    assert [name.startswith("compiled_") for name in names] == sorted(name.startswith("compiled_") for name in names)
    monkeypatch.setattr(sys, "argv", ["scripts.benchmarks", "gpu", "--plan"])  # as it is called on the machine
    main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names


def test_each_result_is_written_as_it_comes_a_failure_stops_nothing_and_a_second_run_resumes(tmp_path):
    ran = []

    def job(name, seconds=1, fails=False):
        def work():
            ran.append(name)
            assert {path.stem for path in tmp_path.glob("*.json")} == {n for n in ran[:-1] if n != "broken"}
            if fails and ran.count(name) == 1:
                raise RuntimeError("CUDA out of memory")
            return {"value": name}

        return Job(name, seconds, work)

    jobs = [job("first"), job("broken", fails=True), job("last"), job("long", seconds=1e6)]
    outcome = work_through(jobs, tmp_path, time.monotonic() + 100)
    assert [text.split()[0] for text in outcome.values()] == ["done", "failed:", "done", "no"]
    assert "out of memory" in (tmp_path / "broken.failed.txt").read_text()
    assert json.loads((tmp_path / "last.json").read_text())["value"] == "last"
    jobs[1] = Job("broken", 1, lambda: ran.append("broken") or {"checks": {"offload": "failed: it", "float32": 0.0}})
    outcome = work_through(jobs[:3], tmp_path, time.monotonic() + 100)
    assert ran == ["first", "broken", "last", "broken"] and not (tmp_path / "broken.failed.txt").exists()
    assert outcome["broken"] == "failed in part: offload"  # so that the command does not exit with 0
    # a rehearsal's results are not taken for those of a GPU, nor the other way round
    rehearsal = [Job("first", 1, lambda: {"value": "mini"})]
    for scale, value in (("mini", "mini"), ("full", "first")):
        work_through(rehearsal if scale == "mini" else [Job("first", 1, lambda: {"value": "first"})], tmp_path,
                     time.monotonic() + 100, scale)  # fmt: skip
        assert json.loads((tmp_path / "first.json").read_text())["value"] == value


def test_the_table_says_missing_for_every_row_that_was_not_measured(tmp_path):
    assert gpu_table(tmp_path).count("missing") == sum(j.name.startswith(("inf", "comp")) for j in plan(FULL))


def test_the_wheels_and_the_bare_machine_have_all_that_the_wheels_require():
    there = (
        "einops filelock httpx huggingface-hub numpy packaging pillow psutil pyyaml regex requests safetensors scipy"
    )
    there += " sympy torch torchvision tqdm typing-extensions setuptools"
    unused = {"importlib-metadata"}  # Python has them
    unused |= {"filterpy", "numba", "opencv-python"}  # of facexlib's detectors, installed without here too
    names = {re.match(r"[\w-]+", line)[0] for name in WHEELS for line in importlib.metadata.requires(name) or []
             if ";" not in line}  # fmt: skip
    assert {name.lower().replace("_", "-") for name in names} - {*there.split(), *unused, *WHEELS} == set()


def test_the_miniatures_experiments_follow_each_other_on_the_prior_that_the_first_leaves(tmp_path):
    built = {}
    for command in train_commands(MINIATURE, tmp_path, "faces"):
        cfg = composed("train", *command[4:])
        assert cfg.trainer.mixed_precision == "bf16" and cfg.data.root == "faces"
        built[cfg.run_dir] = cfg.model.build
    first, last = built
    assert built[first].sources == "mini" and built[last].folder == f"{first}/model"


def test_a_training_that_runs_out_of_time_is_asked_to_save_and_one_that_fails_is_named(tmp_path, monkeypatch):
    saves = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[2]).touch(), sys.exit(75)))\n"
        "pathlib.Path(sys.argv[2] + '.started').touch(); time.sleep(60)"
    )
    for code, saved in ((saves, True), ("raise SystemExit(3)", False)):
        command = [sys.executable, "-SEc", code, "lafr", str(tmp_path / "saved")]
        monkeypatch.setattr(gpu, "train_commands", lambda *_, one=command: [one])
        if saved:
            gpu.train(["mini"], tmp_path, "faces", 1.5 / 60)
            assert (tmp_path / "saved.started").exists() and (tmp_path / "saved").exists()
        else:
            with pytest.raises(InputError, match="ended with 3"):
                gpu.train(["mini"], tmp_path, "faces", 1)


@pytest.mark.slow
def test_every_job_runs_on_the_cpu_with_the_miniature(tmp_path):
    command = [
        sys.executable,
        "-m",
        "scripts.benchmarks",
        "gpu",
        "--dry-run",
        "--out",
        str(tmp_path),
        "--minutes",
        "20",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in tmp_path.glob("*.json")} == {job.name for job in plan(REHEARSAL)}
    checks = json.loads((tmp_path / "smoke.json").read_text())["checks"]
    assert checks["float32"] == checks["offload"] == 0 and not any("failed" in str(c) for c in checks.values()), checks
