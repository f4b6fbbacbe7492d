"""Two processes train as one does: the same pairs, codes and losses."""

import json
import os
import socket

import pytest
import torch
from conftest import enter_group
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves
from training_script import LEARNED, overrides, run_script
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

import lafr.training.loop

STEPS = 12
STAGES = ("codebook", "alignment", "restoration")


def train_as(rank, world, port, arguments, folder):
    """Run the script as process `rank` of `world`, as `accelerate launch --cpu` would, and note what it did."""
    os.environ["OMP_NUM_THREADS"] = "1"
    enter_group(rank, world, port)
    notes = {"resets": 0, "pairs": []}
    train, replace, batches = lafr.training.loop.train, Codebook.replace, lafr.training.loop.optimiser_batches

    def noted_replace(codebook, samples, batch_mask, seq_mask=None):
        notes["resets"] += int(batch_mask.sum())
        return replace(codebook, samples, batch_mask, seq_mask)

    def noted_batches(loader, accelerator):
        for step in batches(loader, accelerator):
            notes["pairs"].append([batch["n"].tolist() for batch in step])
            yield step

    def noted_train(objective, *args, name, **settings):
        notes["pairs"] = []
        summary = train(objective, *args, name=name, **settings)
        state = {"state": objective.trained_state(), "learned": objective.learned_state()}
        torch.save({**state, **notes}, folder / f"{name}_{rank}.pt")
        return summary

    Codebook.replace, lafr.training.loop.train = noted_replace, noted_train
    lafr.training.loop.optimiser_batches = noted_batches
    run_script([*arguments, f"run_dir={folder}"], folder / f"output_{rank}.txt")


@pytest.fixture
def runs(workers, base_folder, face_folder, tmp_path):
    """The folders of the same run by one process and by two."""
    arguments = [
        *overrides(base_folder, face_folder, STEPS, batch_size=4),
        "trainer.validate_every=null",
        "trainer.validation_images=1",
        "trainer.checkpoint_every=4",
        *LEARNED,
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders, started = {}, []
    for world in (1, 2):
        folders[world] = tmp_path / str(world)
        folders[world].mkdir()
        for rank in range(world):
            process = workers.Process(target=train_as, args=(rank, world, port, arguments, folders[world]))
            process.start()
            started.append((process, folders[world] / f"output_{rank}.txt"))
    for process, output in started:
        process.join(240)
        assert process.exitcode == 0, output.read_text()[-3000:]
    return folders


def notes(folder, stage, rank=0):
    return torch.load(folder / f"{stage}_{rank}.pt")


def losses(folder, stage):
    lines = [json.loads(line) for line in (folder / stage / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "latent_l1" in line]


# One test: with several test processes a shared fixture would be made in each of them.
def test_two_processes_train_as_one_does(runs):
    for stage in STAGES:
        one, (first, second) = notes(runs[1], stage), (notes(runs[2], stage, rank) for rank in range(2))
        # the pairs that one visits, in rank order
        assert one["pairs"] == [[list(range(4 * step, 4 * step + 4))] for step in range(STEPS)]
        both = zip(first["pairs"], second["pairs"], strict=True)
        assert one["pairs"] == [[a + b for a, b in zip(x, y, strict=True)] for x, y in both]
        # both end with the same weights and codes, bit for bit
        assert first["state"]
        assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())
        # so do the discriminator and the score network, and their optimisers
        assert first["learned"].keys() == ({"adversarial", "vsd"} if stage == "restoration" else set())
        for name, learned in first["learned"].items():
            tensors = [t for t in tree_leaves([learned, second["learned"][name]]) if torch.is_tensor(t)]
            half = len(tensors) // 2
            assert all(torch.equal(a, b) for a, b in zip(tensors[:half], tensors[half:], strict=True)) and half > 9
        # the losses of one
        assert [line["step"] for line in losses(runs[1], stage)] == list(range(1, STEPS + 1))
        for a, b in zip(losses(runs[1], stage), losses(runs[2], stage), strict=True):
            assert a.pop("grad_norm") == pytest.approx(b.pop("grad_norm"), rel=1e-2)
            # AdamW's first steps have the size of the learning rate however small a gradient is: rounding tells there
            learned = {key: (a.pop(key), b.pop(key)) for key in list(a) if key.startswith(("adversarial", "vsd"))}
            assert all(y == pytest.approx(x, rel=2e-2, abs=2e-3) for x, y in learned.values()), learned
            assert b == pytest.approx(a, rel=1e-4)
    # the codes of one, although some were reset
    one, two = (load_file(runs[world] / "codebook" / "final" / "trained.safetensors") for world in (1, 2))
    assert notes(runs[1], "codebook")["resets"] == notes(runs[2], "codebook", 1)["resets"] > 0
    codes = "adapter.quantizer.layers.0._codebook.embed"
    torch.testing.assert_close(two[codes], one[codes], rtol=1e-3, atol=1e-4)
