"""`patience` ends a stage when validation no longer falls; the result is the best step's weights."""

import os
import socket

import pytest
import torch
from torch import nn

from lafr.data.stream import PairStream
from lafr.errors import InputError
from lafr.training.loop import train
from lafr.training.objectives import Objective

# what validation measures at steps 2, 4, 6, ...: lowest at step 6
ERRORS = (5.0, 4.0, 1.0, 2.0, 3.0, 1.5, 2.0, 0.5)


class Colour(Objective):
    """One colour that follows the mean of the degraded faces: other weights after every step."""

    weights = {"mse": 1.0}  # noqa: RUF012

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.colour = nn.Parameter(torch.tensor([0.9, -0.9, 0.5]))
        self.stop_at, self.after = stop_at, {}

    def forward(self, batch):
        return {"mse": (self.colour - batch["lq"].mean((0, 2, 3))).square().mean()}

    def before_step(self, batches, step, gather):
        if step == self.stop_at:
            raise InterruptedError

    def after_step(self, step, gather):
        self.after[step + 1] = self.colour.detach().clone()


def validate(objective, step):
    return {"error": ERRORS[step // 2 - 1], "other": 0.0}


SETTINGS = {"batch_size": 4, "learning_rate": 1e-2, "validate_every": 2, "checkpoint_every": 5, "monitor": "error"}


@pytest.fixture
def run(faces, degradation, accelerator, tmp_path):
    """Train `Colour` in a folder; return the objective and the summary."""

    def run(folder="run", stop_at=None, **settings):
        objective, settings = Colour(stop_at), {"max_steps": 14, "patience": 6} | SETTINGS | settings
        pairs = PairStream(faces, degradation, 0)
        return objective, train(objective, pairs, accelerator(), tmp_path / folder, validate, **settings)

    return run


def test_the_stage_ends_when_patience_is_spent_with_the_weights_of_the_best_step(run):
    objective, summary = run()
    assert (summary["steps"], summary["best_step"]) == (12, 6)  # validated at 2, 4, ..., 12: none under that of 6
    assert torch.equal(objective.colour, objective.after[6])
    assert not torch.equal(objective.colour, objective.after[12])
    assert summary["validation"] == validate(objective, 12)


def test_the_last_step_is_a_candidate_although_no_validation_is_due_there(run):
    objective, summary = run(max_steps=16, patience=100)
    assert (summary["steps"], summary["best_step"]) == (16, 16)
    assert torch.equal(objective.colour, objective.after[16])


def test_with_averaged_weights_the_best_are_an_average(run):
    objective, summary = run(ema_decay=0.8)
    average = torch.tensor([0.9, -0.9, 0.5])
    for step in range(6):
        decay = min(0.8, 1 - (1 + step) ** -0.75)
        average = decay * average + (1 - decay) * objective.after[step + 1]
    assert summary["best_step"] == 6
    torch.testing.assert_close(objective.colour.detach(), average)


@pytest.mark.parametrize("stop_at", [9, 11])  # the checkpoints of steps 5 and 10: before and after the best
def test_a_run_stopped_between_ends_as_one_that_was_not(run, stop_at):
    whole, summary = run("whole")
    with pytest.raises(InterruptedError):
        run("stopped", stop_at)
    resumed, again = run("stopped")
    assert torch.equal(resumed.colour, whole.colour)
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}


def test_patience_without_validation_and_an_unknown_monitor_are_refused(run):
    with pytest.raises(InputError, match="patience"):
        run(validate_every=None)
    with pytest.raises(InputError, match=r"monitor .*error, other.*'psnr'"):
        run(monitor="psnr")


def train_as(rank, port, face_folder, folder):
    """Train as process `rank` of two; save what it ends with."""
    from accelerate import Accelerator
    from conftest import SIZE, enter_group

    from lafr.data.degradation.first_order import Degradation
    from lafr.data.faces import Faces

    os.environ["OMP_NUM_THREADS"] = "1"
    enter_group(rank, 2, port)
    objective = Colour()
    pairs = PairStream(Faces(sorted(face_folder.glob("*.png")), SIZE), Degradation(), 0)
    summary = train(objective, pairs, Accelerator(cpu=True), folder, validate, max_steps=14, patience=6, **SETTINGS)
    torch.save((objective.colour.detach(), objective.after, summary["steps"]), folder / f"{rank}.pt")


def test_two_processes_stop_at_the_same_step_with_the_same_weights(workers, face_folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [workers.Process(target=train_as, args=(rank, port, face_folder, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    (first, after, steps), (second, _, other_steps) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert steps == other_steps == 12
    assert torch.equal(first, second) and torch.equal(first, after[6])


@pytest.mark.parametrize("patience", [6, None])
def test_a_crash_in_the_last_validation_costs_no_step(run, monkeypatch, patience):
    whole, _ = run("whole", patience=patience)
    last, seen, measure = (12 if patience else 14), [], validate

    def crash_at_the_end(objective, step):
        seen.append(step)
        if seen.count(last) > (1 if patience else 0):
            raise MemoryError
        return measure(objective, step)

    monkeypatch.setitem(globals(), "validate", crash_at_the_end)
    with pytest.raises(MemoryError):
        run("crashed", patience=patience)
    monkeypatch.undo()
    resumed, summary = run("crashed", stop_at=0, patience=patience)
    assert resumed.after == {} and summary["steps"] == last  # nothing is trained again
    assert torch.equal(resumed.colour, whole.colour)
