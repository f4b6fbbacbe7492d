"""Signals, locks, and a launcher that is gone: a run ends after its running step, which is saved."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
import torch.nn.functional as F
from conftest import enter_group
from safetensors.torch import load_file
from torch import nn
from training_script import LEARNED, SCRIPT, overrides, run_script

import lafr.training.loop
from lafr.data.stream import PairStream
from lafr.errors import InputError, Stopped
from lafr.storage import locked
from lafr.training.loop import train
from lafr.training.objectives import Objective
from lafr.training.stopping import SIGNALS, StopSignals


class Toy(Objective):
    """Learn the mean colour of the degraded faces; `signals[n]` is sent when pair n is seen."""

    weights = {"mse": 1.0}  # noqa: RUF012

    def __init__(self, signals=()):
        super().__init__()
        self.colour = nn.Parameter(torch.tensor([0.9, -0.9, 0.5]))
        self.signals = dict(signals)

    def forward(self, batch):
        for n in batch["n"].tolist():
            if n in self.signals:
                os.kill(os.getpid(), self.signals[n])
        return {"mse": F.mse_loss(self.colour.expand(len(batch["lq"]), 3), batch["lq"].mean((2, 3)))}


@pytest.fixture
def run(faces, degradation, accelerator, tmp_path):
    """Train in a folder of its own, six steps of four pairs in two micro-batches, under `StopSignals`."""

    def run(objective, folder, **settings):
        settings = {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-2, "log_every": 2, "ema_decay": 0.9} | settings
        with StopSignals() as stop:
            train(
                objective, PairStream(faces, degradation, 0), accelerator(2), tmp_path / folder, stop=stop, **settings
            )
        return objective.colour.detach().clone(), (tmp_path / folder / "log.jsonl").read_bytes()

    return run


def test_a_signal_saves_the_running_step_and_the_resumed_run_is_the_unbroken_one(run, tmp_path):
    whole = run(Toy(), "whole")
    for number in SIGNALS:
        name, before = signal.Signals(number).name, signal.getsignal(number)
        with pytest.raises(Stopped, match=f"{name}.* step 3"):
            run(Toy({8: number}), name)  # the first micro-batch of the third step
        assert (tmp_path / name / "step_00000003" / "sha256.json").is_file()
        colour, log = run(Toy(), name)
        assert torch.equal(colour, whole[0]) and log == whole[1], name
        assert signal.getsignal(number) == before, name  # SIGINT is ignored where a shell has put the tests aside
    with pytest.raises(Stopped, match="step 6"):
        run(Toy({23: signal.SIGTERM}), "last")  # in the last step: the rest of the stage is left to the next start
    assert torch.equal(run(Toy(), "last")[0], whole[0])


def test_another_librarys_handler_is_called_after_the_step_is_saved_and_may_let_the_run_go_on(run, tmp_path):
    seen = []

    def requeue(number, frame):
        seen.append((number, sorted(path.name for path in (tmp_path / "run").glob("step_*"))))

    before = signal.signal(signal.SIGUSR2, requeue)  # as submitit does
    try:
        whole, passed = run(Toy(), "whole"), run(Toy({5: signal.SIGUSR2}), "run")
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [(signal.SIGUSR2, ["step_00000002"])]
    assert torch.equal(whole[0], passed[0]) and whole[1] == passed[1]


def test_a_second_interrupt_does_not_wait_and_outside_a_stage_none_does(run):
    with pytest.raises(KeyboardInterrupt) as error:
        run(Toy({8: signal.SIGINT, 9: signal.SIGINT}), "run")
    assert not isinstance(error.value, Stopped)
    with pytest.raises(Stopped), StopSignals():
        os.kill(os.getpid(), signal.SIGUSR1)


def hold(path, ready):
    with locked(path):
        ready.set()
        time.sleep(60)


def test_a_folder_in_use_names_its_holder_and_is_free_when_that_is_killed(tmp_path):
    path = tmp_path / "runs" / "a" / ".lock"
    with pytest.raises(ZeroDivisionError), locked(path):
        with pytest.raises(InputError, match="in use by this process"), locked(path):
            pass
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []  # the folders that were made for it are gone too
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=hold, args=(path, ready))
    holder.start()
    assert ready.wait(20)
    with pytest.raises(InputError, match=rf"process {holder.pid} on {socket.gethostname()}, since 20"), locked(path):
        pass
    holder.kill(), holder.join()
    assert path.is_file()
    with locked(path):
        assert json.loads(path.read_bytes())["pid"] == os.getpid()
    assert not path.exists()


def train_as(rank, world, port, arguments, folder, stop_at=None):
    """Run the script as process `rank` of `world`; the second one gets SIGUSR1 during step `stop_at`."""
    enter_group(rank, world, port)
    batches = lafr.training.loop.optimiser_batches

    stages = iter(("codebook", "restoration"))

    def signalled(loader, accelerator):
        stage = next(stages)
        for step, given in enumerate(batches(loader, accelerator), 1):
            if (stage, step) == stop_at and rank == world - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield given

    lafr.training.loop.optimiser_batches = signalled
    run_script([*arguments, f"run_dir={folder}"], folder.with_name(f"{folder.name}_{rank}.txt"))


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(workers, base_folder, face_folder, tmp_path):
    arguments = [
        *overrides(base_folder, face_folder, 4),
        *LEARNED,
        *["stages=[codebook,restoration]", "+stage.restoration.ema_decay=0.9", "trainer.validation_images=1"],
        *["trainer.num_workers=1", "trainer.accumulation=2"],
    ]

    def start(folder, stop_at=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = [(rank, 2, port, arguments, tmp_path / folder, stop_at) for rank in range(2)]
        processes = [workers.Process(target=train_as, args=one) for one in given]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
        return [process.exitcode for process in processes]

    assert start("whole") == [0, 0]
    assert start("stopped", ("restoration", 3)) == [Stopped.CODE, Stopped.CODE]
    assert [path.name for path in (tmp_path / "stopped/restoration").glob("step_*")] == ["step_00000003"]
    assert start("stopped") == [0, 0]
    one, two = (tmp_path / name / "restoration" for name in ("whole", "stopped"))
    assert (one / "log.jsonl").read_bytes() == (two / "log.jsonl").read_bytes()
    assert (one / "final/trained.safetensors").read_bytes() == (two / "final/trained.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_end_and_save_when_their_launcher_is_killed(base_folder, face_folder, tmp_path):
    def launch(steps):
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        options = ["--multi_gpu", "--num_machines", "1", "--num_processes", "2", "--main_process_port", port]
        arguments = [*overrides(base_folder, face_folder, steps), "stages=[codebook]", "trainer.validation_images=1"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(SCRIPT), *arguments]
        with open(tmp_path / "output.txt", "ab") as output:
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)

    stage = tmp_path / "runs" / "test" / "codebook"
    launcher = launch(100_000)
    limit = time.monotonic() + 200
    while not ((stage / "log.jsonl").is_file() and (stage / "log.jsonl").stat().st_size):
        assert launcher.poll() is None and time.monotonic() < limit, (tmp_path / "output.txt").read_text()
        time.sleep(0.2)
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill(), launcher.wait()
    gone, alive = psutil.wait_procs(ranks, timeout=60)
    assert len(gone) >= 2 and not alive
    (checkpoint,) = stage.glob("step_*")
    assert load_file(checkpoint / "trained.safetensors")
