"""The cache holds what the codec says, for the codec and the pixels that it was asked about, and nothing else."""

import errno
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import SIZE, enter_group
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from torch import nn
from training_script import overrides

import lafr.data.latents
from lafr.commands.train import latents_of, main
from lafr.data.faces import Faces
from lafr.data.latents import cached_latents
from lafr.data.stream import PairStream
from lafr.errors import InputError
from lafr.losses.appearance import LatentL1, PixelMSE
from lafr.losses.multilevel import MultiLevelLoss
from lafr.miniature.objectives import PriorObjective
from lafr.models.base.model import Base
from lafr.models.codec import Codec
from lafr.provenance import read_training_set
from lafr.training.loop import train
from lafr.training.objectives import AlignmentObjective, CodebookObjective, RestorationObjective

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Encoded in another batch a latent may be rounded otherwise: by 1e-6 with two threads on the miniature, 0 with one.
ROUNDING = dict(rtol=1e-5, atol=1e-5)


def refuse(images):
    raise AssertionError("this face was encoded already")


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def codec(base):
    return base.codec()


@pytest.fixture
def fill(faces, codec, tmp_path):
    """Fill, or read, a cache of the ten faces in a folder of the test."""

    def fill(encode=codec.encode, codec_key="codec", faces=faces, folder=tmp_path / "cache"):
        return cached_latents(faces, encode, folder, codec_key, progress=False)

    return fill


def test_a_cached_latent_is_the_codecs_own_of_the_plain_and_of_the_mirrored_face(fill, faces, codec):
    z = fill()
    assert z.shape == (10, 2, 4, 8, 8) and z.dtype == torch.float32
    for i in range(10):
        torch.testing.assert_close(z[i, 0], codec.encode(faces[i][None])[0], **ROUNDING)
        torch.testing.assert_close(z[i, 1], codec.encode(faces[i].flip(-1)[None])[0], **ROUNDING)
    assert (z[:, 0].flip(-1) - z[:, 1]).abs().max() > 1e-2  # to mirror the latent would not do


def test_a_second_filling_encodes_nothing_and_returns_the_same_bits(fill):
    assert torch.equal(fill(), fill(refuse))


def fill_as(rank, port, base_folder, face_paths, folder):
    """Fill or read the cache as process `rank` of two, and note how many faces were encoded, and when."""
    enter_group(rank, 2, port)
    accelerator, codec = Accelerator(), Base.from_pretrained(base_folder).codec()
    encode, cached, notes = codec.encode, cached_latents, {"encoded": 0}

    def slowly(images):
        time.sleep(0.05)  # a second process that did not wait would find most of the files missing
        notes["encoded"] += 1
        return encode(images)

    def noted(*arguments, **settings):
        notes["began"] = time.monotonic()
        z = cached(*arguments, **settings)
        notes["ended"] = time.monotonic()
        return z

    codec.encode, lafr.data.latents.cached_latents = slowly, noted
    notes["z"] = latents_of(Faces(face_paths, SIZE), codec, accelerator, str(folder / "cache"))
    torch.save(notes, folder / f"{rank}.pt")


def test_one_process_fills_the_cache_while_the_other_waits(workers, base_folder, faces, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        workers.Process(target=fill_as, args=(rank, port, base_folder, faces.paths, tmp_path)) for rank in range(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (first["encoded"], second["encoded"]) == (10, 0)
    assert second["began"] >= first["ended"] and torch.equal(first["z"], second["z"])


def test_one_level_of_one_pixel_or_another_shape_makes_another_image(fill, faces, tmp_path):
    face = faces[0]
    altered = face.clone()
    altered[2, 31, 31] += 1 / 127.5
    for number, other in enumerate((face, altered, torch.zeros(3, 32, 8), torch.zeros(3, 8, 32)), 1):
        fill(faces=[other])
        assert len(files(tmp_path / "cache")) == number


def test_latents_of_another_codec_are_not_used_even_where_their_files_lie_in_its_folder(fill, codec, tmp_path):
    own = fill()
    other = fill(lambda images: codec.encode(images) + 1, "other")
    assert torch.equal(other, own + 1)
    shutil.rmtree(tmp_path / "cache" / "codec")
    shutil.copytree(tmp_path / "cache" / "other", tmp_path / "cache" / "codec")
    assert torch.equal(fill(), own)


def truncate(path, other):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path, other):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "truncated": truncate,
    "empty": lambda path, other: path.write_bytes(b""),
    "one bit": flip_a_bit,
    "another face's": lambda path, other: shutil.copy(other, path),
}


def test_a_damaged_file_is_rebuilt_with_the_bits_that_it_held(fill, codec, tmp_path):
    whole = fill()
    first, second = (tmp_path / "cache" / name for name in files(tmp_path / "cache")[:2])
    for damage, apply_to in DAMAGE.items():
        encoded = []
        apply_to(first, second)
        assert torch.equal(fill(lambda images: encoded.append(images) or codec.encode(images)), whole), damage  # noqa: B023
        assert len(encoded) == 1, damage
        assert torch.equal(fill(refuse), whole)


def test_an_interrupted_filling_leaves_whole_files_and_resumes_where_it_was(fill, codec, tmp_path):
    calls = []

    def stopped(images):
        if len(calls) == 4:
            raise KeyboardInterrupt
        return calls.append(1) or codec.encode(images)

    with pytest.raises(KeyboardInterrupt):
        fill(stopped)
    assert len(files(tmp_path / "cache")) == 4
    again = []
    fill(lambda images: again.append(1) or codec.encode(images))
    assert len(again) == 6


def test_a_full_disk_leaves_no_half_file(fill, tmp_path, monkeypatch):
    def full(path, data):
        with open(path, "wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lafr.data.latents.Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"No space left on device.*latent_cache"):
        fill()
    assert files(tmp_path / "cache") == []


def test_a_pair_brings_the_latent_of_its_own_face_mirrored_or_not(fill, faces, degradation, codec):
    plain, cached = (PairStream(faces, degradation, 3) for _ in range(2))
    cached.latents = fill()
    mirrored = 0
    for n in range(20):
        pair = cached[n]
        torch.testing.assert_close(pair["z_hq"], codec.encode(pair["hq"][None])[0], **ROUNDING)
        assert all(torch.equal(value, pair[name]) for name, value in plain[n].items())
        mirrored += not torch.equal(pair["hq"], faces[plain.face_index(n)])
    assert 0 < mirrored < 20


class Stopped(Exception):
    pass


OBJECTIVES = {
    "codebook": lambda restorer, base: CodebookObjective(restorer, {"latent_l1": 1.0, "commitment": 0.25}),
    "alignment": lambda restorer, base: AlignmentObjective(restorer, {"latent_l1": 1.0, "index_ce": 0.1}),
    "restoration": lambda restorer, base: RestorationObjective(
        restorer, MultiLevelLoss({"a": PixelMSE(), "b": LatentL1()}, {"a": 1.0, "b": 1.0})
    ),
    "prior": lambda restorer, base: PriorObjective(base),
}


@pytest.fixture
def trained(restorer, base, faces, degradation, accelerator, tmp_path):
    """Train a stage for four steps from the same start; with a cache, and stopped in the third step, if asked."""
    parts = nn.ModuleDict({"restorer": restorer, "unet": base.unet})
    start = {name: value.clone() for name, value in parts.state_dict().items()}

    def trained(stage, cache=False, stopped=False, folder="run"):
        parts.load_state_dict(start)
        objective = OBJECTIVES[stage](restorer, base)
        pairs = PairStream(faces, degradation, 0)
        if cache:
            key = objective.codec.fingerprint()
            pairs.latents = cached_latents(faces, objective.codec.encode, tmp_path / "cache", key, progress=False)

        def stop(step, gather, done=objective.after_step):
            if stopped and step == 2:
                raise Stopped
            done(step, gather)

        objective.after_step = stop
        train(
            objective,
            pairs,
            accelerator(),
            tmp_path / stage / folder,
            max_steps=4,
            batch_size=4,
            learning_rate=1e-4,
            checkpoint_every=2,
        )
        return {name: value.clone() for name, value in objective.trained_state().items()}

    return trained


@pytest.mark.parametrize("stage", OBJECTIVES)
def test_a_stage_learns_the_same_weights_with_cached_latents(trained, stage):
    encoded, cached = trained(stage, folder="encoded"), trained(stage, cache=True, folder="cached")
    assert encoded and encoded.keys() == cached.keys()
    for name, value in encoded.items():
        torch.testing.assert_close(cached[name], value, **ROUNDING)


def test_a_stopped_run_resumes_from_the_files_of_the_cache_bit_for_bit(trained, monkeypatch):
    whole = trained("codebook", cache=True, folder="whole")
    with pytest.raises(Stopped):
        trained("codebook", cache=True, stopped=True, folder="stopped")
    monkeypatch.setattr(Codec, "encode", refuse)
    resumed = trained("codebook", cache=True, folder="stopped")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.fixture
def script(accelerator, tmp_path):
    """Run the train command in this process, once for each list of arguments."""

    def script(**runs):
        for name, arguments in runs.items():
            accelerator()  # forgets the state of the one before
            AcceleratorState._reset_state(True)
            with initialize_config_dir(str(CONFIGS), version_base=None):
                cfg = compose("train", [*arguments, f"run_dir={tmp_path / name}", "trainer.validation_images=1"])
            main(cfg)

    return script


def test_the_script_trains_the_same_from_a_cache_of_the_training_faces_alone(
    script, fill, base_folder, face_folder, tmp_path
):
    arguments, cache = [*overrides(base_folder, face_folder, steps=2), "stages=[codebook]"], tmp_path / "cache"
    codec = Base.from_pretrained(base_folder).codec()
    key = f"{codec.fingerprint()}-fp32"
    fill(lambda images: codec.encode(images) + 1, key, folder=tmp_path / "wrong")
    use = [*arguments, "trainer.cache_latents=true"]
    script(
        encoded=arguments,
        cached=[*use, f"trainer.latent_cache={cache}"],
        misled=[*use, f"trainer.latent_cache={tmp_path / 'wrong'}"],
    )
    encoded, cached, misled = (
        load_file(tmp_path / run / "codebook" / "final" / "trained.safetensors")
        for run in ("encoded", "cached", "misled")
    )
    for name, value in encoded.items():
        torch.testing.assert_close(cached[name], value, **ROUNDING)
    learned = {"faces": 9, "held_out": 1, "resolution": 32, "sets": [{"name": face_folder.name, "faces": 9}]}
    assert read_training_set(tmp_path / "cached") == read_training_set(tmp_path / "cached/model") == learned
    codes = "adapter.quantizer.layers.0._codebook.embed"
    assert not torch.allclose(misled[codes], encoded[codes], atol=1e-2)
    assert os.listdir(cache) == [key]
    assert len(files(cache)) == 9  # of ten faces one validates


def test_a_codec_that_is_still_learning_is_not_cached_and_the_next_stage_caches_the_finished_one(
    script, face_folder, tmp_path
):
    cache = tmp_path / "cache"
    steps = [f"stage.{name}.{key}" for name in ("codec", "prior") for key in ("max_steps=1", "batch_size=2")]
    script(
        base=[
            *["+experiment=mini_base", "data=faces", f"data.root={face_folder}", *steps],
            *["model.resolution=32", "model.build.vae.block_out_channels=[8,16,16]"],
            *["model.build.unet.block_out_channels=[16,16,32]", "trainer.trackers=[]"],
            *["trainer.cache_latents=true", f"trainer.latent_cache={cache}"],
        ]
    )
    (codec,) = cache.iterdir()
    assert codec.name == f"{Base.from_pretrained(tmp_path / 'base' / 'model').codec().fingerprint()}-fp32"
