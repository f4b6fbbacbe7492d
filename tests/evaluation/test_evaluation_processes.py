"""Two processes evaluate as one does: the same images to the byte, the same scores, in the same order."""

import csv
import json
import re
import socket

import pytest
from conftest import enter_group
from evaluation_script import COLOUR, FAST, run_eval, run_here


def evaluate_as(rank, world, port, arguments, folder, output):
    """Run the script as process `rank` of `world`, as `accelerate launch` would with ACCELERATE_USE_CPU=true."""
    enter_group(rank, world, port)
    run_eval(arguments, folder, output)


def launch(workers, world, arguments, folder):
    """Run the script by so many processes in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs = [folder / f"output_{rank}.txt" for rank in range(world)]
    processes = []
    for rank in range(world):
        given = (rank, world, port, arguments, folder, outputs[rank])
        processes.append(workers.Process(target=evaluate_as, args=given))
    for process in processes:
        process.start()
    for process, output in zip(processes, outputs, strict=True):
        process.join(240)
        assert process.exitcode == 0, output.read_text(encoding="utf-8")[-3000:]


@pytest.fixture
def arguments(model_folder, face_folder, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(f"{i:02d}.png" for i in range(10)), encoding="utf-8")
    given = ["benchmark=val", f"data.root={face_folder}", f"benchmark.build.file_list={tmp_path / 'list.txt'}"]
    return [*given, f"model.folder={model_folder}", COLOUR, "output=out"]


def scores(folder):
    with (folder / "out" / "scores.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_processes_give_the_images_and_scores_of_one_and_one_resumes_them(
    workers, arguments, tmp_path, monkeypatch, capfd
):
    def alone(folder, *more):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        code, said, out = run_here(monkeypatch, capfd, *arguments, *more)
        assert code == 0, said
        return out

    one, two = tmp_path / "one", tmp_path / "two"
    alone(one)
    two.mkdir()
    launch(workers, 2, [*arguments, *FAST], two)
    shared = []
    for path in sorted((two / "out/work").glob("process_*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        shared.append({line["batch"] for line in lines if "score" in line})
    assert shared == [{0, 2}, {1, 3}]
    images = {folder: sorted(folder.rglob("*.png")) for folder in (one, two)}
    assert [p.relative_to(one) for p in images[one]] == [p.relative_to(two) for p in images[two]]
    assert len(images[one]) == 6 * 10 + 1  # LQ, four methods, HQ, and faces.png
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(images[one], images[two], strict=True))
    for a, b in zip(scores(one), scores(two), strict=True):
        assert (a.pop("image"), a.pop("row")) == (b.pop("image"), b.pop("row"))
        assert {m: float(v) for m, v in b.items()} == pytest.approx({m: float(v) for m, v in a.items()}, abs=1e-5)
    results = [json.loads((folder / "out/result.json").read_text(encoding="utf-8")) for folder in (one, two)]
    assert results[1]["latents"] == pytest.approx(results[0]["latents"], abs=1e-5)
    for method, metrics in results[0]["rows"].items():
        assert results[1]["rows"][method]["mean_colour"] == pytest.approx(metrics["mean_colour"], abs=1e-5)

    # another number of processes resumes what was done, and takes no stale line
    before = (two / "out/scores.csv").read_bytes()
    assert "kept      60 of 60 images" in alone(two)
    assert (two / "out/scores.csv").read_bytes() == before
    changed = alone(two, "seed=1")  # batches 1 and 3 are now in the first process's log
    assert re.search(r"kept +20 of 60 images", changed)  # the ground truth's, and the codec's of it
    fresh = tmp_path / "fresh"
    alone(fresh, "seed=1")
    assert scores(fresh) == scores(two)
