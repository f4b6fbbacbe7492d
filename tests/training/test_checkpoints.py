import os
import random
import subprocess
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lafr.training.checkpoints
from lafr.errors import InputError
from lafr.storage import MANIFEST, atomic_folder, remove_temporaries
from lafr.training.checkpoints import TRAINED, Checkpoints, random_state, set_random_state
from lafr.training.objectives import AlignmentObjective, CodebookObjective

TENSORS = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.int64)}


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def saved(checkpoints, step):
    checkpoints.save(step, {"a": torch.full((3,), float(step))}, {"seconds": 1.5}, [random_state()])


def loaded(checkpoints):
    step, damage = checkpoints.newest_whole()
    assert damage == []
    return checkpoints.load(step)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, TENSORS, {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, [random_state()])
    trained, state = loaded(checkpoints)
    assert trained.keys() == TENSORS.keys()
    assert all(
        torch.equal(value, TENSORS[name]) and value.dtype == TENSORS[name].dtype for name, value in trained.items()
    )
    assert state["step"] == 7 and torch.equal(state["optimizer"]["state"][0]["exp_avg"], torch.ones(3))


@pytest.mark.parametrize("kind", ["codebook", "alignment"])
def test_a_checkpoint_holds_what_is_trained_and_no_more(restorer, tmp_path, kind):
    objective = {"codebook": CodebookObjective, "alignment": AlignmentObjective}[kind](restorer, {"latent_l1": 1.0})
    Checkpoints(tmp_path).save(1, objective.trained_state(), {}, [random_state()])
    path = tmp_path / "step_00000001" / TRAINED
    wanted = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert wanted and all(".extractor." in name or kind == "codebook" for name in wanted)
    if kind == "codebook":
        wanted |= {
            f"adapter.quantizer.layers.0._codebook.{x}" for x in ("embed", "embed_avg", "cluster_size", "initted")
        }
    stored = load_file(path)
    assert stored.keys() == wanted
    values = sum(value.numel() * value.element_size() for value in stored.values())
    assert values <= path.stat().st_size < values + 200 * len(stored) + 100
    assert path.stat().st_size < sum(p.numel() for p in restorer.parameters())  # a fraction of 4 bytes a weight


def test_the_newest_are_kept_in_order_of_their_steps(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (9, 10, 200, 1000):
        saved(checkpoints, step)
    assert checkpoints.steps() == [200, 1000]
    assert listing(tmp_path) == ["step_00000200", "step_00001000"]
    assert loaded(checkpoints)[1]["step"] == 1000


def test_a_number_of_checkpoints_that_would_leave_none_is_refused(tmp_path):
    for keep in (0, -1, True, 1.5):
        with pytest.raises(InputError, match="keep_checkpoints must be a whole number, 1 or more"):
            Checkpoints(tmp_path, keep)


def test_the_result_replaces_the_checkpoints_but_the_last(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.final_is_whole() == (False, [])
    saved(checkpoints, 5), saved(checkpoints, 6)
    checkpoints.finish(TENSORS, {"steps": 6})
    assert checkpoints.final_is_whole() == (True, [])
    trained, summary = checkpoints.load_final()
    assert torch.equal(trained["a"], TENSORS["a"]) and summary == {"steps": 6}
    assert listing(tmp_path) == ["final", "step_00000006"]  # for more steps, or where the result is damaged


def test_every_damage_of_the_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    def flip(path, at):
        data = bytearray(path.read_bytes())
        data[at] ^= 1 << (at % 8)
        path.write_bytes(data)

    sizes = {}
    for file in ("state.pt", TRAINED, MANIFEST):
        checkpoints = Checkpoints(tmp_path / file)
        saved(checkpoints, 1), saved(checkpoints, 2)
        sizes[file] = (checkpoints.path(2) / file).stat().st_size
    damages = [(file, "flip", at) for file, size in sizes.items() for at in range(0, size, size // 9)]
    damages += [(file, damage, None) for file in sizes for damage in ("cut", "empty", "missing")]
    for number, (file, damage, at) in enumerate(damages):
        checkpoints = Checkpoints(tmp_path / str(number))
        saved(checkpoints, 1), saved(checkpoints, 2)
        path = checkpoints.path(2) / file
        if damage == "flip":
            flip(path, at)
        elif damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-7] if damage == "cut" else b"")
        step, said = checkpoints.newest_whole()
        assert step == 1 and len(said) == 1 and file in said[0], (file, damage, at)
        assert listing(checkpoints.folder) == ["damaged_step_00000002", "step_00000001"]
        assert torch.equal(checkpoints.load(1)[0]["a"], torch.full((3,), 1.0))
    (checkpoints.path(1) / TRAINED).unlink()
    with pytest.raises(InputError, match=r"no checkpoint .* can be used"):
        checkpoints.newest_whole()


def full_disk(*_):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("where", ["tensors", "state"])
def test_a_disk_that_fills_while_saving_costs_only_the_new_checkpoint(tmp_path, monkeypatch, where):
    checkpoints = Checkpoints(tmp_path, keep=1)
    saved(checkpoints, 1)
    if where == "tensors":
        monkeypatch.setattr(lafr.training.checkpoints, "save_file", full_disk)
    else:
        monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(InputError, match="No space left on device") as error:
        saved(checkpoints, 2)
    assert "\n" not in str(error.value) and "free space" in str(error.value)
    assert listing(tmp_path) == ["step_00000001"]
    assert torch.equal(loaded(checkpoints)[0]["a"], torch.full((3,), 1.0))


def test_any_other_failure_keeps_its_own_name_and_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    saved(checkpoints, 1)
    with pytest.raises(AttributeError):
        checkpoints.save(2, {"a": "not a tensor"}, {}, [])
    assert checkpoints.steps() == [1] and listing(tmp_path) == ["step_00000001"]


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot save"):
        saved(Checkpoints(tmp_path / "file" / "run"), 1)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or os.getuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system failed: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("megabytes", [0.9, 2.0])
def test_on_a_really_full_disk_the_previous_checkpoint_survives(small_disk, megabytes):
    checkpoints = Checkpoints(small_disk / "stage")
    big = {"a": torch.zeros(int(megabytes * 2**18))}
    saved(checkpoints, 1)
    with pytest.raises(InputError, match="No space left on device") as error:
        checkpoints.save(2, big, {"optimizer": big}, [random_state()])
    assert "\n" not in str(error.value)
    assert listing(small_disk / "stage") == ["step_00000001"]
    assert torch.equal(loaded(checkpoints)[0]["a"], torch.full((3,), 1.0))
    saved(checkpoints, 2)  # the space is free again
    assert loaded(checkpoints)[1]["step"] == 2


def test_what_a_killed_process_left_half_written_is_not_a_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    saved(checkpoints, 1)
    half = tmp_path / ".step_00000002.0123456789abcdef.part"
    half.mkdir()
    (half / TRAINED).write_bytes(b"half")
    assert checkpoints.steps() == [1]
    saved(checkpoints, 2)
    remove_temporaries(tmp_path)
    assert listing(tmp_path) == ["step_00000001", "step_00000002"]
    assert torch.equal(loaded(checkpoints)[0]["a"], torch.full((3,), 2.0))


def test_an_existing_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    atomic_folder(folder, lambda path: (path / "old").write_text("1"))

    def half(path):
        (path / "new").write_text("1")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError):
        atomic_folder(folder, half)
    assert listing(folder) == ["old"]
    atomic_folder(folder, lambda path: (path / "new").write_text("2"))
    assert listing(folder) == ["new"] and listing(tmp_path) == ["model"]


def test_a_reader_finds_a_whole_folder_while_it_is_replaced(tmp_path):
    folder, done, lacking = tmp_path / "model", threading.Event(), []
    atomic_folder(folder, lambda path: (path / "one").write_text("0"))

    def read():
        while not done.is_set():
            lacking.extend([] if (folder / "one").is_file() else ["one"])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        atomic_folder(folder, lambda path: (path / "one").write_text(str(number)))  # noqa: B023
    done.set()
    reader.join()
    assert lacking == [] and listing(tmp_path) == ["model"]


def test_the_random_state_of_torch_numpy_and_python_survives_a_checkpoint(tmp_path):
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]

    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    draws()
    checkpoints = Checkpoints(tmp_path)
    saved(checkpoints, 1)
    expected = draws()
    draws()
    set_random_state(loaded(checkpoints)[1]["random"][0])
    assert draws() == expected
