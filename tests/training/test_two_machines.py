"""Two launches over loopback, as two machines would be, do what one launch of two processes does, bit for bit."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from evaluation_script import FAST
from evaluation_script import SCRIPT as EVALUATION
from safetensors.torch import load_file
from training_script import SCRIPT, overrides

from lafr.storage import read_json

pytestmark = pytest.mark.slow
STAGES = ("codebook", "alignment", "restoration")


@dataclass
class Machine:
    """One launch: its process, and the file of its output."""

    process: subprocess.Popen
    output: Path

    def die(self):
        """Kill everything at once, as a loss of power would: the launcher, and the workers in sessions of their own."""
        launcher = psutil.Process(self.process.pid)
        for process in (*launcher.children(recursive=True), launcher):
            process.kill()
        return self.process.wait()

    def finish(self, seconds=900):
        return self.process.wait(seconds), self.output.read_text(encoding="utf-8")


def launch(folders, script, arguments):
    """Start `accelerate launch` once in each folder, a machine each, two processes in all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    machines = []
    for rank, folder in enumerate(folders):
        options = [
            "--multi_gpu",
            *("--num_machines", str(len(folders))),
            *("--num_processes", "2"),
            *("--machine_rank", str(rank)),
            *("--rdzv_backend", "static"),
            *("--main_process_ip", "127.0.0.1"),
            *("--main_process_port", port),
        ]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(script), *arguments]
        output = folder / f"output_{len(folders)}_{rank}_{port}.txt"
        with output.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
        machines.append(Machine(process, output))
    return machines


def work(folders, script, arguments):
    """Launch, and wait until all have done their work."""
    for machine in launch(folders, script, arguments):
        code, said = machine.finish()
        assert code == 0, said[-3000:]


@pytest.fixture(scope="module")
def run(base_folder, face_folder):
    """The command line of a tiny run."""
    tiny = [*overrides(base_folder, face_folder, 4), "trainer.cache_latents=true", "trainer.validation_images=1"]
    return [*tiny, "trainer.checkpoint_every=1"]


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    """The folder of one launch of two processes."""
    folder = tmp_path_factory.mktemp("alone")
    work([folder], SCRIPT, run)
    return folder


def require_same_bits(one, two):
    for stage in STAGES:
        a, b = (load_file(folder / "runs/test" / stage / "final/trained.safetensors") for folder in (one, two))
        assert a.keys() == b.keys() and a
        assert all(torch.equal(a[name], b[name]) for name in a), stage
    assert (two / "runs/test/model/lafr.json").is_file()


def test_two_machines_learn_what_one_does_and_go_on_after_one_was_killed(run, alone, tmp_path):
    both = [tmp_path, tmp_path]  # one folder, as on a file system that they share
    first, second = launch(both, SCRIPT, run)
    give_up = time.monotonic() + 900
    while not list(tmp_path.glob("runs/test/alignment/step_*")):
        assert time.monotonic() < give_up and first.process.poll() is None, first.output.read_text()[-3000:]
        time.sleep(0.02)
    assert second.die() == -signal.SIGKILL
    code, said = first.finish(300)  # what is left of the run ends too, and not as if it were done
    assert code != 0 and not (tmp_path / "runs/test/model").exists(), said[-3000:]
    assert (tmp_path / "runs/test/codebook/final").is_dir() and not (tmp_path / "runs/test/restoration/final").exists()
    work(both, SCRIPT, run)  # the same two commands again
    require_same_bits(alone, tmp_path)


def test_two_machines_score_what_one_does(alone, face_folder, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(f"{i:02d}.png" for i in range(10)), encoding="utf-8")
    given = ["benchmark=val", f"data.root={face_folder}", f"benchmark.build.file_list={tmp_path / 'list.txt'}"]
    given += [f"model.folder={alone / 'runs/test/model'}", "output=out", *FAST]
    folders = {}
    for count in (1, 2):
        folders[count] = tmp_path / str(count)
        folders[count].mkdir()
        work([folders[count]] * count, EVALUATION, given)
    one, two = (read_json(folder / "out/result.json") for folder in folders.values())
    assert one["rows"] == two["rows"] and one["latents"] == two["latents"]
    images = {count: sorted((folder / "out").rglob("*.png")) for count, folder in folders.items()}
    assert len(images[1]) == len(images[2]) > 10
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*images.values(), strict=True))
    assert (folders[1] / "out/scores.csv").read_bytes() == (folders[2] / "out/scores.csv").read_bytes()


def test_machines_that_do_not_share_the_runs_folder_or_the_cache_are_told_so(run, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    for arguments, name in ((run, "run_dir"), ([*run, f"run_dir={tmp_path / 'run'}"], "trainer.latent_cache")):
        for machine in launch(folders, SCRIPT, arguments):
            code, said = machine.finish()
            assert code != 0 and f"{name} " in said and "is not shared: 1 of 2 processes" in said, said[-3000:]
    assert not list(tmp_path.rglob("step_*")) and not list(tmp_path.rglob(".shared_*"))
