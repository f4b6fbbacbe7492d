"""A made test set: DifFace's grid, the same bytes wherever it is made, and nothing half made."""

import hashlib
import itertools
import json
import random
import shutil
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lafr.data.benchmarks import PairedBenchmark, SyntheticBenchmark
from lafr.data.degradation.first_order import Degradation
from lafr.data.degradation.operators import apply
from lafr.data.degradation.second_order import SecondOrderDegradation
from lafr.data.faces import Faces
from lafr.errors import InputError
from lafr.images import read_image, to_pil, write_stored_png
from lafr.preparation import synthetic
from lafr.preparation.synthetic import SyntheticPreparation, difface_grid, grid_draw

MADE_BY = {"command": "a test"}


@pytest.fixture
def source(tmp_path):
    """Three pictures drawn by a formula, as PNG."""
    folder = tmp_path / "hq"
    folder.mkdir()
    y, x = np.mgrid[:64, :64]
    for k in range(3):
        planes = [(x * (k + 2) + y) % 256, (y * 3 + 20 * k) % 256, (x * y // (k + 5)) % 256]
        Image.fromarray(np.stack(planes, -1).astype(np.uint8)).save(folder / f"face{k}.png")
    return folder


def make(source, output, **settings) -> dict:
    settings = {"resolution": 64, **settings}
    SyntheticPreparation("synthetic_test", str(source), **settings)(str(output), MADE_BY)
    return json.loads((output / "index.json").read_text(encoding="utf-8"))


def test_the_grid_is_diffaces_product_and_its_own_draws_of_sigma_y():
    grid = difface_grid()
    random.seed(10_000)
    expected = [
        (qf, sf, nf, sig_x, random.choice([4, 8, 12, 16]), theta)
        for qf, sf, nf, sig_x, theta in itertools.product(
            [30, 40, 50, 60, 70],
            range(4, 41, 4),
            [1, 5, 10, 15, 20],
            [4, 8, 12, 16],
            [turn * np.pi for turn in (0, 0.25, 0.5, 0.75)],
        )
    ]
    keys = ("jpeg_quality", "down", "noise_sigma", "sigma_x", "sigma_y", "theta")
    assert [tuple(cell[key] for key in keys) for cell in grid] == expected
    assert len(grid) == 4000


def test_four_thousand_images_get_the_grid_in_order_and_fewer_a_seeded_part_of_it():
    grid = difface_grid()
    draw = grid_draw(4000, seed=3)
    for number in (0, 1234, 3999):
        blur, noise, jpeg, _ = draw(number, "a", 512, 512)
        cell = grid[number]
        assert blur["kernel"] == {
            "family": "gaussian",
            "size": 41,
            "sigma_x": cell["sigma_x"],
            "sigma_y": cell["sigma_y"],
            "theta": cell["theta"],
        }
        assert (blur["factor"], noise["sigma"], jpeg["quality"]) == tuple(
            cell[key] for key in ("down", "noise_sigma", "jpeg_quality")
        )
    few, other = ([draw(i, "a", 512, 512)[2:] for i in range(9)] for draw in (grid_draw(9, 0), grid_draw(9, 1)))
    assert few != other
    with pytest.raises(InputError, match=r"count .*4000.* 4001"):
        grid_draw(4001, 0)


def test_the_bytes_are_those_of_every_other_machine(source, tmp_path):
    index = make(source, tmp_path / "set")
    files = sorted((tmp_path / "set").glob("?q/*.png"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert [file["name"] for file in index["files"]] == ["face0", "face1", "face2"] * 2
    assert (
        digest == "efbe2e0af5080344a2259d58b0ae8fe9950f0daa3fb33ce0b530725ac0431dc0"
    )  # made once; no library's version may change it


def test_a_stored_png_is_read_back_to_the_pixel(tmp_path):
    image = torch.rand(3, 301, 217, generator=torch.Generator().manual_seed(0)) * 2 - 1  # several deflate blocks
    write_stored_png(image, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(to_pil(image)))


def test_an_lq_image_is_rebuilt_from_its_record_in_the_index(source, tmp_path):
    index = make(source, tmp_path / "set")
    for entry in index["files"][3:]:
        hq = read_image(tmp_path / "set" / "hq" / f"{entry['name']}.png")
        lq = read_image(tmp_path / "set" / entry["file"])
        levels = ((apply(entry["degradation"], hq) - lq) * 127.5).abs()
        assert (levels < 1.5).float().mean() > 0.99


def test_draws_of_a_recipe_are_the_benchmarks(source, tmp_path):
    chain = Degradation()
    index = make(source, tmp_path / "set", grid=False, degradation=chain, seed=5)
    for entry in index["files"][3:]:
        rng = np.random.default_rng([5, zlib.crc32(entry["name"].encode()), 0])
        assert entry["degradation"] == chain.draw(64, 64, rng)
    made = PairedBenchmark("made", str(tmp_path / "set"), 64)
    drawn = SyntheticBenchmark("drawn", Faces(sorted(source.glob("*.png")), 64), chain, seed=5)
    with pytest.raises(InputError, match=r"64 px.*128 px.*folder"):
        PairedBenchmark("made", str(tmp_path / "set"), 128)
    for pair, expected in zip(made, drawn, strict=True):
        assert pair.stem == expected.stem
        assert torch.equal(pair.hq, expected.hq)
        assert ((pair.lq - expected.lq).abs() * 127.5 < 1.5).float().mean() > 0.99


def test_a_second_order_recipe_makes_a_set_too(source, tmp_path):
    index = make(source, tmp_path / "set", grid=False, degradation=SecondOrderDegradation(), count=2)
    assert index["images"] == 2
    assert index["settings"]["recipe"]["scale"] == 4


def test_a_stopped_run_resumes_and_makes_the_same_bytes(source, tmp_path, monkeypatch):
    whole = make(source, tmp_path / "whole")
    degrade, calls = synthetic.degrade_exactly, []

    def stop_at_the_second(hq, record):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return degrade(hq, record)

    monkeypatch.setattr(synthetic, "degrade_exactly", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "stopped")
    assert not (tmp_path / "stopped").exists()
    again = make(source, tmp_path / "stopped")
    assert len(calls) == 4  # the first was not made again
    assert again == whole
    assert sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*")) == sorted(
        p.relative_to(tmp_path / "stopped") for p in (tmp_path / "stopped").rglob("*")
    )


def test_a_finished_set_is_verified_and_other_settings_are_refused(source, tmp_path):
    make(source, tmp_path / "set")
    done = SyntheticPreparation("synthetic_test", str(source), resolution=64)(str(tmp_path / "set"), MADE_BY)
    assert "is complete: 3 images" in done
    with pytest.raises(InputError, match=r"other settings .*settings.seed: 0 -> 1"):
        make(source, tmp_path / "set", seed=1)
    (tmp_path / "set" / "lq" / "face1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"face1.png' was altered"):
        make(source, tmp_path / "set")


def test_faces_whose_files_would_be_one_and_numbers_that_are_none_are_refused(source, tmp_path):
    first = next(source.glob("*.png"))
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name in ("a/b.png", "a_b.png"):
        shutil.copy(first, tmp_path / "in" / name)
    with pytest.raises(InputError, match=r"a/b\.png.*a_b\.png"):
        SyntheticPreparation("x", str(tmp_path / "in"), resolution=32)(str(tmp_path / "out"), {})
    assert not (tmp_path / "out").exists()
    for wrong in ({"count": -1}, {"count": 0}, {"seed": -1}, {"resolution": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            SyntheticPreparation("x", str(source), **wrong)


def test_wrong_sources_leave_nothing(source, tmp_path):
    with pytest.raises(InputError, match=r"source .*'nowhere'"):
        make("nowhere", tmp_path / "set")
    with pytest.raises(InputError, match=r"count .*3.* 4"):
        make(source, tmp_path / "set", count=4)
    torn = tmp_path / "torn"
    shutil.copytree(source, torn)
    (torn / "face2.png").write_bytes((torn / "face2.png").read_bytes()[:100])
    with pytest.raises(InputError, match=r"face2.png"):
        make(torn, tmp_path / "set")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hq", "torn"]
