"""Two launches over loopback, as two machines would be, learn what one launch of two processes does, bit for bit."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from training_script import SCRIPT, overrides

STAGES = ("codebook", "alignment", "restoration")


def launch(folder, arguments, machines):
    """Start `accelerate launch` once a machine, two processes in all, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = []
    for rank in range(machines):
        options = [
            "--multi_gpu",
            "--num_machines",
            str(machines),
            "--num_processes",
            "2",
            "--machine_rank",
            str(rank),
            "--rdzv_backend",
            "static",
            "--main_process_ip",
            "127.0.0.1",
            "--main_process_port",
            port,
        ]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(SCRIPT), *arguments]
        output = open(folder / f"output_{machines}_{rank}.txt", "w+", encoding="utf-8")  # noqa: SIM115
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        started.append((process, output))
    for process, output in started:
        code = process.wait(900)
        output.seek(0)
        assert code == 0, output.read()[-3000:]
        output.close()


@pytest.mark.slow
def test_two_machines_learn_what_two_processes_of_one_do(base_folder, face_folder, tmp_path):
    run = [*overrides(base_folder, face_folder, 3), "trainer.cache_latents=true", "trainer.validation_images=1"]
    for machines in (1, 2):
        folder = tmp_path / str(machines)
        folder.mkdir()
        launch(folder, run, machines)  # both machines work in one folder, as on a file system that they share
    for stage in STAGES:
        one, two = (load_file(tmp_path / str(n) / "runs/test" / stage / "final/trained.safetensors") for n in (1, 2))
        assert one.keys() == two.keys() and one
        assert all(torch.equal(one[name], two[name]) for name in one), stage
    assert (tmp_path / "2/runs/test/model/lafr.json").is_file()
