"""A run that is killed resumes to the same bytes, and nothing that depends on something else is kept."""

import json
import os
import re
import signal

import pytest
from evaluation_script import COLOUR, FAST, run_eval, run_here

import lafr.evaluation.progress
import lafr.storage

METHODS = "methods=['LQ input','codec(LQ)',LAFR]"


def kill_at(point: str, count: int) -> None:
    """Let this process kill itself the moment it reaches a point for the `count`-th time."""
    left = [count]

    def reached() -> bool:
        left[0] -= 1
        return left[0] == 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    replace, append = os.replace, lafr.evaluation.progress.ProgressLog.append

    def replace_or_die(source, target):
        if reached():
            die()
        replace(source, target)

    def append_or_die(log, *records):
        if reached():
            if point == "torn line":
                with open(log.path, "ab") as file:
                    file.write(json.dumps(records[0]).encode()[:40])
            die()
        append(log, *records)

    if point == "before a rename":
        lafr.storage.os.replace = replace_or_die
    else:
        lafr.evaluation.progress.ProgressLog.append = append_or_die


def evaluate(arguments, folder, output, point=None, count=0):
    if point:
        kill_at(point, count)
    run_eval(arguments, folder, output)


@pytest.fixture
def arguments(model_folder, face_folder, tmp_path):
    """Score ten images by three methods."""
    (tmp_path / "list.txt").write_text("\n".join(f"{i:02d}.png" for i in range(10)), encoding="utf-8")
    given = ["benchmark=val", f"data.root={face_folder}", f"benchmark.build.file_list={tmp_path / 'list.txt'}"]
    return [*given, f"model.folder={model_folder}", METHODS]


@pytest.fixture
def run(workers, arguments, tmp_path):
    """Run the script in a process that is perhaps killed; return its exit code, what it printed and its result."""

    def once(name, *more, kill=()):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        given = [*arguments, *FAST, *more]
        child = workers.Process(target=evaluate, args=(given, folder, tmp_path / "output.txt", *kill))
        child.start()
        child.join(240)
        said = (tmp_path / "output.txt").read_text(encoding="utf-8")
        path = folder / "runs/eval/tiny/val/result.json"
        return child.exitcode, said, path.read_bytes() if path.is_file() else None

    return once


@pytest.fixture
def here(arguments, tmp_path, monkeypatch, capfd):
    """Run the script in this process; return its exit code, its error and output, and its result."""
    monkeypatch.chdir(tmp_path)

    def once(*more):
        code, said, out = run_here(monkeypatch, capfd, *arguments, *more)
        path = tmp_path / "runs/eval/tiny/val/result.json"
        return code, said + out, path.read_bytes() if path.is_file() else None

    return once


def undated(result: bytes) -> bytes:
    return re.sub(rb'"date": "[0-9-]+"', b"", result)


def test_a_run_killed_at_four_points_ends_with_the_same_bytes_as_one_that_was_not(run, tmp_path):
    code, said, straight = run("straight", COLOUR)
    assert code == 0, said
    assert "kept" not in said
    kills = ("before a rename", 2), ("before a line", 7), ("torn line", 30), ("before a rename", 9)
    for point in kills:
        code, said, result = run("killed", COLOUR, kill=point)
        assert code == -signal.SIGKILL, (point, said)
        assert result is None
    code, said, resumed = run("killed", COLOUR)
    assert code == 0, said
    kept = re.search(r"kept +(\d+) of 40 images", said)
    assert 0 < int(kept[1]) < 40
    assert undated(resumed) == undated(straight)
    for path in sorted((tmp_path / "straight").rglob("*.png")) + sorted((tmp_path / "straight").rglob("*.csv")):
        other = tmp_path / "killed" / path.relative_to(tmp_path / "straight")
        assert other.read_bytes() == path.read_bytes(), path
    assert not list((tmp_path / "killed").rglob(".*"))


def test_a_finished_run_restores_and_scores_again_only_what_changed(here, restorer, model_folder, tmp_path):
    first = here()
    assert first[0] == 0, first[1]
    again = here()
    assert "kept      40 of 40 images" in again[1]
    assert "kept      60 of 60 scores" in again[1]
    assert undated(again[2]) == undated(first[2])

    images = tmp_path / "runs/eval/tiny/val/pictures/LAFR"
    intact = (images / "04.png").read_bytes()
    (images / "04.png").write_bytes((images / "05.png").read_bytes())
    assert "kept      37 of 40 images" in here()[1]  # its batch of three is made again
    assert (images / "04.png").read_bytes() == intact

    log = tmp_path / "runs/eval/tiny/val/work/process_0.jsonl"
    lines = log.read_text(encoding="utf-8")
    key = json.loads(next(line for line in lines.splitlines() if '"LAFR"' in line))["key"]
    log.write_text(lines.replace(key, "0" * 64), encoding="utf-8")  # as other code with the same model had it
    code, said, _ = here()
    assert code == 0, said
    assert "kept      30 of 40 images" in said

    other_samples = here("seed=1")
    assert "kept      10 of 40 images" in other_samples[1]  # those of the ground truth
    assert other_samples[2] != first[2]

    restorer.denoiser.timestep += 1
    restorer.save_pretrained(model_folder, full=True)
    code, said, _ = here("seed=1")
    assert code == 1
    assert all(words in said for words in ("error: 'runs/eval/tiny/val'", "another model", "output", "run_name")), said
