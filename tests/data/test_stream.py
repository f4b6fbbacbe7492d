"""Pair n is a function of (seed, n), however many processes share the stream."""

import json

import cv2
import pytest
import torch

from lafr.commands.devices import share_cores
from lafr.data.degradation.first_order import Degradation
from lafr.data.degradation.second_order import SecondOrderDegradation
from lafr.data.faces import Faces
from lafr.data.stream import PairStream, rebuilt
from lafr.errors import InputError
from lafr.images import read_image


@pytest.fixture
def stream(face_folder, degradation):
    return PairStream(Faces(sorted(face_folder.glob("*.png")), 16), degradation, seed=5)


def numbers(loader) -> list[list[int]]:
    return [batch["n"].tolist() for batch in loader]


def test_a_pair_made_alone_is_the_pair_of_the_sequence(stream, face_folder, degradation):
    sequence = [stream[n] for n in range(25)]
    fresh = PairStream(Faces(sorted(face_folder.glob("*.png")), 16), degradation, seed=5)
    for n in (24, 0, 11, 7):
        assert torch.equal(fresh[n]["hq"], sequence[n]["hq"])
        assert torch.equal(fresh[n]["lq"], sequence[n]["lq"])
        assert int(fresh[n]["n"]) == n


def test_every_face_is_visited_once_an_epoch_in_a_new_order(stream):
    epochs = [[stream.face_index(n) for n in range(10 * e, 10 * e + 10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_one_face_is_degraded_differently_on_every_visit(stream):
    first = stream.face_index(0)
    again = next(n for n in range(10, 20) if stream.face_index(n) == first)
    assert not torch.equal(stream[0]["lq"], stream[again]["lq"])


def test_seeds_differ(stream, degradation):
    other = PairStream(stream.faces, degradation, seed=6)
    assert [stream.face_index(n) for n in range(10)] != [other.face_index(n) for n in range(10)]
    assert not any(torch.equal(stream[n]["lq"], other[n]["lq"]) for n in range(10))


def test_a_flip_mirrors_both_images_of_a_pair_and_half_are_flipped(stream):
    plain = lambda hq, rng: hq  # noqa: E731
    pairs = PairStream(stream.faces, plain, 5)
    flipped = 0
    for n in range(100):
        face, pair = stream.faces[stream.face_index(n)], pairs[n]
        mirrored = not torch.equal(pair["hq"], face)
        assert torch.equal(pair["hq"], face.flip(-1) if mirrored else face)
        assert torch.equal(pair["lq"], pair["hq"])
        flipped += mirrored
    assert 35 < flipped < 65


def test_two_processes_see_the_micro_batches_of_one_in_rank_order(stream, accumulation=2):
    one = list(stream.loader(0, 3, batch_size=8, accumulation=accumulation))
    both = [list(stream.loader(0, 3, batch_size=8, accumulation=accumulation, rank=r, world=2)) for r in (0, 1)]
    assert len(one) == 3 * accumulation
    for whole, first, second in zip(one, *both, strict=True):
        for key in ("hq", "lq", "n"):
            assert torch.equal(whole[key], torch.cat([first[key], second[key]]))


def test_accumulation_splits_a_step_and_changes_no_pair(stream):
    whole = numbers(stream.loader(0, 2, batch_size=8))
    parts = numbers(stream.loader(0, 2, batch_size=8, accumulation=4))
    assert whole == [list(range(8)), list(range(8, 16))]
    assert [parts[i] for i in range(8)] == [list(range(s, s + 2)) for s in range(0, 16, 2)]


def test_starting_at_a_step_is_the_tail_of_starting_at_zero(stream):
    whole = list(stream.loader(0, 5, batch_size=2))
    tail = list(stream.loader(3, 5, batch_size=2))
    assert len(tail) == len(stream.loader(3, 5, batch_size=2)) == 2
    for a, b in zip(whole[3:], tail, strict=True):
        assert torch.equal(a["lq"], b["lq"])


def test_worker_processes_change_nothing(stream):
    here = list(stream.loader(0, 2, batch_size=2))
    there = list(stream.loader(0, 2, batch_size=2, num_workers=1))
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a["lq"], b["lq"])


class Threads(PairStream):
    """Tells how many threads OpenCV and torch have where the pairs are made."""

    def __getitem__(self, n):
        return torch.tensor([cv2.getNumThreads(), torch.get_num_threads()])


def test_a_worker_has_one_thread_and_a_process_its_share_of_the_cores(stream, monkeypatch):
    threads = Threads(stream.faces, stream.degradation, seed=5)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    for processes, share in ((1, 8), (2, 4), (16, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        torch.set_num_threads(8)
        share_cores()
        assert threads[0].tolist() == [share, share]
        assert next(iter(threads.loader(0, 1, batch_size=1, num_workers=1))).tolist() == [[1, 1]]
    torch.set_num_threads(1)
    share_cores()  # a lower number of torch's, as OMP_NUM_THREADS gives, is OpenCV's too
    assert threads[0].tolist() == [1, 1]


def test_a_set_larger_than_memory_gives_the_same_pairs(stream):
    tight = PairStream(Faces(stream.faces.paths, 16, memory_gb=0), stream.degradation, seed=5)
    for n in range(20):
        for key in ("hq", "lq"):
            assert torch.equal(tight[n][key], stream[n][key])


def test_a_batch_that_cannot_be_shared_is_refused(stream):
    with pytest.raises(InputError, match=r"batch_size .*multiple of 4: 2 processes x 2.* 6"):
        stream.loader(0, 1, batch_size=6, accumulation=2, world=2)


def test_loading_leaves_the_global_random_state_alone(stream):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(stream.loader(0, 2, batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("chain", [SecondOrderDegradation(), Degradation(gray=0.5, gray_target=True)])
def test_a_pair_is_rebuilt_from_its_record_and_the_face_that_it_names(face_folder, chain):
    stream = PairStream(Faces(sorted(face_folder.glob("*.png")), 16), chain, seed=5)
    mirrored = gray = 0
    for n in range(30):
        record = json.loads(json.dumps(stream.record(n)))
        face = read_image(face_folder / f"{record['face']}.png", 16)
        pair, again = stream[n], rebuilt(record, face)
        assert all(torch.equal(pair[key], again[key]) for key in ("hq", "lq", "n"))
        mirrored += record["mirrored"]
        gray += torch.equal(pair["hq"][0], pair["hq"][2])
    assert 5 < mirrored < 25
    assert (5 < gray < 25) == getattr(chain, "gray_target", False)
