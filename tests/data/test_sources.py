"""The same files in a folder, in WebDataset shards and in a Hugging Face dataset give the same training pairs."""

import gzip
import inspect
import io
import multiprocessing
import os
import pickle
import random
import sys
import tarfile
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from PIL import Image
from webdataset import ShardWriter

from lafr.data.degradation.first_order import Degradation
from lafr.data.faces import Faces
from lafr.data.faces.huggingface import rows
from lafr.data.faces.selection import training_and_held_out
from lafr.data.faces.shards import shards
from lafr.data.faces.sources import folder
from lafr.data.stream import PairStream
from lafr.errors import InputError
from lafr.images import list_images, read_image

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# As strings, with or without extensions, these sort in other ways than as paths.
FILES = ["a/1.png", "a/1-2.PNG", "a/10.5.webp", "a-b/1.jpg", "B.JPEG", "a b.tiff", "c.bmp", "é.png"]
SIZE = 24


def save(path: Path, index: int) -> None:
    """Write a smooth picture in one of the ways that a decoder can get wrong: turned, 16-bit, see-through, palette."""
    rng = np.random.default_rng(index)
    image = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((30, 30), Image.Resampling.BICUBIC)
    options = {}
    if path.suffix.lower() in (".jpg", ".jpeg"):
        options["exif"] = Image.Exif()
        options["exif"][274] = 6  # orientation
    elif index == 0:
        image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    elif index == 1:
        image.putalpha(image.convert("L"))
    elif path.suffix == ".bmp":
        image = image.quantize(16)
    path.parent.mkdir(exist_ok=True)
    image.save(path, **options)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same files three times, stored in another order each time: by source, what its function takes."""
    base = tmp_path_factory.mktemp("sources")
    root = base / "folder"
    root.mkdir()
    for index, file in enumerate(FILES):
        save(root / file, index)
    with ShardWriter(str(base / "faces-%06d.tar"), maxcount=3, verbose=0) as writer:
        for number, file in enumerate(FILES[::-1]):
            name, _, extension = file.rpartition(".")
            data = (root / file).read_bytes()
            writer.write({"__key__": name, extension: data, "json": {"age": number}, "txt": "a face"})
    mixed = FILES[3:] + FILES[:3]
    table = {
        "picture": [{"bytes": (root / f).read_bytes(), "path": None} for f in mixed],
        "file": mixed,
        "stem": [f.rpartition(".")[0] for f in mixed],
    }
    dataset = datasets.Dataset.from_dict(table).cast_column("picture", datasets.Image())
    datasets.DatasetDict({"faces": dataset}).save_to_disk(base / "saved")
    dataset.select_columns(["picture"]).save_to_disk(base / "nameless")
    return {
        "folder": str(root),
        "shards": str(base / "faces-{000000..000002}.tar"),
        "saved": str(base / "saved"),
        "nameless": str(base / "nameless"),
    }


def sources(places) -> dict[str, list]:
    return {
        "folder": folder(places["folder"]),
        "shards": shards(places["shards"]),
        "datasets": rows(places["saved"], "faces", "picture", "file"),
    }


def pairs(items, num_workers: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """Two optimiser steps of four pairs, or this process's share of them."""
    stream = PairStream(Faces(items, SIZE), Degradation(), seed=7)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
        batches = list(stream.loader(0, 2, batch_size=4, rank=rank, world=world, num_workers=num_workers))
    return {key: torch.stack([batch[key] for batch in batches]) for key in ("hq", "lq", "n")}


def share_of_pairs(rank: int, places: dict, target: Path) -> None:
    """What process `rank` of two sees, from every source and with every number of workers."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that a launcher starts
    torch.save({(name, k): pairs(items, k, rank, 2) for name, items in sources(places).items() for k in (0, 2)}, target)


def test_pair_n_is_the_same_from_every_source_with_any_workers_and_processes(places, workers, tmp_path):
    processes = [workers.Process(target=share_of_pairs, args=(r, places, tmp_path / f"{r}.pt")) for r in (0, 1)]
    for process in processes:
        process.start()
    alone = {(name, k): pairs(items, k) for name, items in sources(places).items() for k in (0, 2)}
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    expected = alone["folder", 0]
    assert expected["n"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len({face.numpy().tobytes() for face in expected["hq"].flatten(0, 1)}) == len(FILES)
    assert len(alone) == len(first) == len(second) == 6
    for case, values in alone.items():
        for key, value in values.items():
            assert torch.equal(value, expected[key]), case
            assert torch.equal(torch.cat([first[case][key], second[case][key]], 1), expected[key]), case


def test_every_source_holds_the_pixels_of_the_files_in_the_order_of_the_folder(places):
    files = list_images(places["folder"])
    for name, items in sources(places).items():
        relative = [path.relative_to(places["folder"]).as_posix() for path in files]
        assert [item.name for item in items] == [path.rpartition(".")[0] for path in relative], name
        faces = Faces(items, SIZE)
        for i, file in enumerate(files):
            assert torch.equal(faces[i], read_image(file, SIZE)), (name, file)


def test_faces_of_every_source_go_to_new_interpreters_whole(places):
    for items in sources(places).values():
        faces = Faces(items, SIZE)
        sent = pickle.loads(pickle.dumps(Faces(items, SIZE)))
        assert torch.equal(sent[5], faces[5]) and sent.name(5) == faces.name(5)


def test_reading_a_source_leaves_the_global_random_states_alone(places):
    states = lambda: (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: E731
    before = states()
    for items in sources(places).values():
        Faces(items, SIZE)[0]
    assert states() == before


def test_a_name_column_needs_no_extensions_and_rows_without_names_are_numbered(places):
    by_stem = rows(places["saved"], "faces", "picture", "stem")
    assert [item.name for item in by_stem] == [item.name for item in folder(places["folder"])]
    numbered = rows(places["nameless"], image_column="picture")
    assert [item.name for item in numbered] == [str(i) for i in range(len(FILES))]
    first = read_image(Path(places["folder"]) / FILES[3], SIZE)
    assert torch.equal(Faces(numbered, SIZE)[0], first)


@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_folders_that_datasets_itself_reads_have_the_names_of_the_files(kind, places, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    files = list_images(places["folder"])
    root = places["folder"]
    if kind == "parquet":
        root = str(tmp_path / "parquet")
        table = [{"bytes": f.read_bytes(), "path": f.relative_to(places["folder"]).as_posix()} for f in files[::-1]]
        features = datasets.Features({"image": datasets.Image()})
        Path(root).mkdir()
        dataset = datasets.Dataset.from_dict({"image": table}, features=features)
        dataset.to_parquet(f"{root}/train-00000.parquet")
    (tmp_path / "link").symlink_to(root)
    for written in (str(tmp_path / "link"), f"{tmp_path}/../{tmp_path.name}/link", os.path.relpath(root)):
        assert [item.name for item in rows(written)] == [item.name for item in folder(places["folder"])]
    found = rows(root)
    assert [item.name for item in found] == [item.name for item in folder(places["folder"])]
    faces = Faces(found, SIZE)
    assert all(torch.equal(faces[i], read_image(file, SIZE)) for i, file in enumerate(files))


def test_a_configuration_of_each_source_trains_on_the_same_faces(places, tmp_path):
    (tmp_path / "scores.csv").write_text("".join(f"{file},{i}\n" for i, file in enumerate(FILES)))
    options = [
        "run_name=x",
        "model.resolution=24",
        f"data.scores={tmp_path}/scores.csv",
        "data.min_score=2",
        "data.num_images=3",
        "seed=4",
    ]
    given = {
        "faces": [f"data.root={places['folder']}"],
        "webdataset": [f"data.shards='{places['shards']}'"],
        "huggingface": [
            f"data.path={places['saved']}",
            "data.split=faces",
            "data.image_column=picture",
            "data.name_column=file",
        ],
    }
    chosen = {}
    with initialize_config_dir(str(CONFIGS), version_base=None):
        for name, own in given.items():
            training, held_out = instantiate(compose("train", [f"data={name}", *options, *own]).data, _convert_="all")
            chosen[name] = [[faces.name(i) for i in range(len(faces))] for faces in (training, held_out)]
            assert training[0].shape == (3, 24, 24)
    assert len(chosen["faces"][0]) == 3
    assert chosen["faces"] == chosen["webdataset"] == chosen["huggingface"]


def test_every_option_of_a_data_file_is_one_of_its_function_or_of_the_choice():
    known = inspect.signature(training_and_held_out).parameters.keys() - {"items", "where", "root"}
    with initialize_config_dir(str(CONFIGS), version_base=None):
        for name in ("faces", "webdataset", "huggingface", "congress_omi"):
            data = OmegaConf.to_container(compose("train", ["+experiment=smoke", f"data={name}"]).data, resolve=True)
            own = inspect.signature(get_object(data.pop("_target_"))).parameters.keys() - {"choice"}
            assert known <= data.keys() <= known | own, name


@pytest.fixture
def shard(tmp_path):
    """Write a tar of members with these names; return its path."""

    def write(*names: str, file: str = "s.tar") -> Path:
        picture = io.BytesIO()
        Image.radial_gradient("L").save(picture, "PNG")
        with tarfile.open(tmp_path / file, "w") as tar:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size = len(picture.getvalue())
                tar.addfile(entry, io.BytesIO(picture.getvalue()))
        return tmp_path / file

    return write


def test_a_torn_shard_is_refused_wherever_it_is_torn(shard):
    path = shard("1.png", "2.png", "3.png")
    whole, starts = path.read_bytes(), [member.offset for member in shards(str(path))]
    assert len(starts) == 3
    for end in (100, starts[1] - 512, starts[1] - 100, starts[1] + 100, starts[2] + 10):  # also between two members
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"shard '.*s.tar' is (truncated|not a whole)"):
            shards(str(path))
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(InputError, match=r"is not a whole uncompressed tar .* or gunzip it"):
        shards(str(path))
    path.write_bytes(whole)
    items = shards(str(path))
    path.write_bytes(whole[: starts[2] + 100])  # while training
    with pytest.raises(InputError, match=r"s.tar: 3.png' is damaged or truncated"):
        items[2].picture()


def test_a_shard_gives_its_images_alone_each_once(shard):
    mixed = shard("./x/1.PNG", "x/1.json", "x/._1.png", "x/1.cls", "x/2.jpeg")
    assert [item.name for item in shards(str(mixed))] == ["x/1", "x/2"]
    with pytest.raises(InputError, match=r"holds no image \(.*\.png.*\); leave it out"):
        shards(str(shard("1.json", file="none.tar")))
    with pytest.raises(InputError, match=r"s.tar: 1.jpg' and '.*s.tar: 1.mask.png' share the name '1'; rename"):
        shards(str(shard("1.jpg", "1.mask.png")))
    first, second = shard("1.png", file="a0.tar"), shard("1.png", file="a1.tar")
    with pytest.raises(InputError, match=r"a0.tar: 1.png' and '.*a1.tar: 1.png' share the name '1'"):
        shards([str(first), str(second)])
    assert len(shards([str(first), str(first.parent / "a0*.tar")])) == 1


def test_shards_that_do_not_exist_are_counted_and_the_form_is_shown(shard, monkeypatch):
    path = shard("1.png", file="f-0.tar")
    for pattern, said in (
        (path.parent / "f-{0..2}.tar", r"2 of 3 do not exist, first '.*f-1.tar'"),
        (path.parent / "g*.tar", "1 of 1 do not exist, first .*"),
    ):
        with pytest.raises(InputError, match=rf"shards .*faces-{{000000..000009}}.tar.*{said}"):
            shards(str(pattern))
    with pytest.raises(InputError, match=r"shards .*None"):
        shards(None)
    assert len(shards(str(shard("1.png", file="odd {name} [1].tar")))) == 1
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(InputError, match=r"braceexpand cannot be imported .* pip install 'lafr\[data\]'"):
        shards(str(path.parent / "f-{0..0}.tar"))


def test_a_dataset_that_cannot_be_used_says_what_can(places, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for path, split, said in (
        (places["saved"], "test", r"split='test' cannot be loaded \('test'\)"),
        (str(tmp_path / "empty"), "train", "doesn't contain any data files"),
        ("nobody/nothing_like_it", "train", "cannot be loaded"),
    ):
        with pytest.raises(InputError, match=rf"{said}.*save_to_disk"):
            rows(path, split)
    with pytest.raises(InputError, match=r"image_column .*\['picture'\], got 'image'"):
        rows(places["saved"], "faces")
    with pytest.raises(InputError, match=r"name_column .*'file'.*, got 'x'"):
        rows(places["saved"], "faces", "picture", "x")
    twice = datasets.load_from_disk(places["saved"])["faces"].map(
        lambda row: {"file": "same"}, load_from_cache_file=False
    )
    twice.save_to_disk(tmp_path / "twice")
    with pytest.raises(InputError, match=r"'row 0, same' and 'row 1, same' share the name 'same'.*name_column"):
        rows(str(tmp_path / "twice"), "any", "picture", "file")
    with pytest.raises(InputError, match=r"path .*None"):
        rows(None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"datasets cannot be imported .* pip install 'lafr\[data\]'"):
        rows(places["saved"])


def test_two_files_of_one_stem_are_refused(tmp_path):
    for file in ("1.png", "1.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / file)
    with pytest.raises(InputError, match=r"1.jpg' and '.*1.png' share the name '1'; rename or remove one"):
        folder(str(tmp_path))


def test_bytes_that_are_no_image_are_reported_with_their_place(shard, tmp_path):
    path = shard("1.png")
    data = bytearray(path.read_bytes())
    data[512:520] = b"no image"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"s.tar: 1.png' is not an image that can be read"):
        Faces(shards(str(path)), SIZE)[0]
    wide = io.BytesIO()
    Image.new("RGB", (20, 10)).save(wide, "PNG")
    datasets.Dataset.from_dict({"image": [{"bytes": wide.getvalue(), "path": "wide.png"}]}).cast_column(
        "image", datasets.Image()
    ).save_to_disk(tmp_path / "wide")
    with pytest.raises(InputError, match=r"'row 0, wide.png' is 20 x 10, not square"):
        Faces(rows(str(tmp_path / "wide")), SIZE)[0]
