"""The installed command restores any file name, says in one line what is wrong, and its exit code tells."""

import json

import numpy as np
import pytest
from PIL import Image

from lafr.commands.cli import main
from lafr.data.packaged import aligned
from lafr.models.restorer import Restorer


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-o.png", "a,b=c.png"):
        aligned("astronaut").resize((64, 64)).save(name)
    return tmp_path


def test_files_are_restored_as_the_model_does_alone(photos, model_folder, capsys):
    assert main(["restore", "-o", "out", "--model", str(model_folder), "--", "-o.png", "a,b=c.png"]) == 0
    assert "restored 2 of 2 into out" in capsys.readouterr().out
    expected = Restorer.from_pretrained(model_folder)(Image.open("a,b=c.png"))
    for name in ("-o.png", "a,b=c.png"):
        assert abs(np.asarray(Image.open(f"out/{name}"), int) - np.asarray(expected)).max() <= 2  # a batch of two
    assert main(["restore", "a,b=c.png", "--output=out", "--model", str(model_folder)]) == 0
    assert "restored 0 of 1 into out (1 were done already)" in capsys.readouterr().out


def test_every_option_arrives(photos, model_folder):
    Image.radial_gradient("L").crop((0, 0, 60, 40)).save("wide.png")
    command = ["restore", "wide.png", "-o", "out", "--model", str(model_folder), "--upscale", "2", "--aligned", "false",
               "--force", "--batch-size", "3", "--device", "cpu", "--detector", "yunet", "--mask", "parsing",
               "--fidelity", "0.5", "--no-side-by-side"]  # fmt: skip
    assert main(command) == 0
    line = json.loads((photos / "out" / "restored.jsonl").read_text())
    expected = {
        "fidelity": 0.5,
        "upscale": 2,
        "force": True,
        "aligned": False,
        "side_by_side": False,
        "mask": "parsing",
    }
    assert {key: line["settings"][key] for key in expected} == expected
    assert Image.open("out/wide.png").size == (120, 80) and not (photos / "out" / "side_by_side").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], "input 'nowhere.png' does not exist; give an image"),
        (["-", "--model", "nowhere"], "'nowhere' holds no lafr.json"),
        (["a,b=c.png", "--detector", "haar"], "haar"),
        (["a,b=c.png", "--device", "tpu"], "device=tpu is not available here"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(photos, model_folder, capsys, arguments, words):
    model = [] if "--model" in arguments else ["--model", str(model_folder)]
    assert main(["restore", *arguments, "-o", "out", *model]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and words in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (photos / "out").exists()


def test_a_bad_file_among_good_ones_is_said_and_the_exit_code_is_1(photos, model_folder, capsys):
    (photos / "bad.png").write_text("no picture")
    assert main(["restore", "a,b=c.png", "bad.png", "gone.png", "-o", "out", "--model", str(model_folder)]) == 1
    said = capsys.readouterr()
    assert "skipped: 'bad.png' is not an image" in said.err and "skipped: image 'gone.png' does not exist" in said.err
    assert "restored 1 of 3 into out" in said.out
