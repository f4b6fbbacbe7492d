"""Two processes evaluate as one does: the same images to the byte, the same scores, in the same order."""

import csv
import json
import os
import re
import socket

import pytest
from evaluation_script import COLOUR, FAST, run_eval


def evaluate_as(rank, world, port, arguments, folder, output):
    """Run the script as process `rank` of `world`, as `accelerate launch` would with ACCELERATE_USE_CPU=true."""
    variables = {"ACCELERATE_USE_CPU": "true"}
    if world > 1:
        variables |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
                      "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    os.environ |= {name: str(value) for name, value in variables.items()}
    run_eval(arguments, folder, output)


@pytest.fixture(scope="module")
def launch(workers):
    """Run the script by so many processes in a folder; return what the first printed."""

    def run(world, arguments, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        outputs = [folder / f"output_{rank}.txt" for rank in range(world)]
        processes = [
            workers.Process(target=evaluate_as, args=(rank, world, port, arguments, folder, outputs[rank]))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process, output in zip(processes, outputs, strict=True):
            process.join(120)
            assert process.exitcode == 0, output.read_text()[-3000:]
        return outputs[0].read_text()

    return run


@pytest.fixture
def arguments(model_folder, face_folder, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(f"{i:02d}.png" for i in range(10)))
    return ["benchmark=val", f"data.root={face_folder}", f"benchmark.build.file_list={tmp_path / 'list.txt'}",
            f"model.folder={model_folder}", *FAST, COLOUR, "output=out"]  # fmt: skip


def scores(folder):
    with (folder / "out" / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_processes_share_the_batches_and_give_the_images_and_scores_of_one(launch, arguments, tmp_path):
    folders = {world: tmp_path / f"world{world}" for world in (1, 2)}
    for world, folder in folders.items():
        folder.mkdir()
        launch(world, arguments, folder)
    shared = [
        {json.loads(line)["batch"] for line in path.read_text().splitlines() if '"score"' in line}
        for path in sorted((folders[2] / "out/work").glob("process_*.jsonl"))
    ]
    assert shared == [{0, 2}, {1, 3}]
    images = {world: sorted(folder.rglob("*.png")) for world, folder in folders.items()}
    assert [p.relative_to(folders[1]) for p in images[1]] == [p.relative_to(folders[2]) for p in images[2]]
    assert len(images[1]) == 6 * 10 + 1  # LQ, four methods, HQ, and faces.png
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(images[1], images[2], strict=True)] == [True] * 61
    for one, two in zip(scores(folders[1]), scores(folders[2]), strict=True):
        assert (one.pop("image"), one.pop("row")) == (two.pop("image"), two.pop("row"))
        assert {m: float(v) for m, v in two.items()} == pytest.approx({m: float(v) for m, v in one.items()}, abs=1e-5)
    one, two = (json.loads((folder / "out/result.json").read_text()) for folder in folders.values())
    assert two["latents"] == pytest.approx(one["latents"], abs=1e-5)
    for row, metrics in one["rows"].items():
        assert two["rows"][row]["mean_colour"] == pytest.approx(metrics["mean_colour"], abs=1e-5)


def test_another_number_of_processes_resumes_what_was_done_and_takes_no_stale_line(launch, arguments, tmp_path):
    launch(2, arguments, tmp_path)
    first = (tmp_path / "out/result.json").read_text()
    kept = launch(1, arguments, tmp_path)
    assert "kept      60 of 60 images" in kept
    assert (tmp_path / "out/result.json").read_text() == first
    changed = launch(1, [*arguments, "seed=1"], tmp_path)  # batches 1 and 3 are now in the first process's log
    assert re.search(r"kept +20 of 60 images", changed)  # the ground truth's, and the codec's of it
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    launch(1, [*arguments, "seed=1"], fresh)
    assert scores(fresh) == scores(tmp_path)
