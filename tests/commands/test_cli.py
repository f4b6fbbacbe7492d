"""`lafr restore` restores any file name, reports what is wrong in one line, and by its exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from lafr.commands import restore
from lafr.commands.cli import main
from lafr.data.packaged import aligned
from lafr.images import read_image, write_image
from lafr.models.fast import DTYPES
from lafr.models.restorer import Restorer
from lafr.photos.detectors import DETECTORS
from lafr.photos.files import EXTENSIONS
from lafr.photos.restorer import PhotoRestorer
from lafr.weights import locate

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = ("encoder_block_out_channels", "decoder_block_out_channels")
BLOCKS = ("num_encoder_blocks", "num_decoder_blocks")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-o.png", "a,b=c.png"):
        aligned("astronaut").resize((32, 32)).save(name)
    return tmp_path


def code_of(*arguments: str) -> int:
    """Return the exit code of a command line."""
    try:
        return main(["restore", "--no-guard", *map(str, arguments)])  # the tiny model's faces are nobody's
    except SystemExit as stop:
        if isinstance(stop.code, str):  # what the interpreter does with a message
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code


def test_files_are_restored_as_the_model_does_alone(photos, model_folder, capsys):
    # untrained networks make strangers of all faces
    assert code_of("-o", "out", "--no-guard", "--model", model_folder, "--", "-o.png", "a,b=c.png") == 0
    assert "wrote 2 of 2 into out" in capsys.readouterr().out
    expected = Restorer.from_pretrained(model_folder)(Image.open("a,b=c.png"))
    for name in ("-o.png", "a,b=c.png"):
        assert abs(np.asarray(Image.open(f"out/{name}"), int) - np.asarray(expected)).max() <= 2  # a batch of two
    assert code_of("a,b=c.png", "--output=out", "--no-guard", "--model", model_folder, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert code_of("a,b=c.png", "--output=out", "--no-guard", "--model", model_folder) == 0
    printed = capsys.readouterr()
    assert "wrote 0 of 1 into out (1 were done already)" in printed.out
    assert printed.err == f"loading {model_folder} ...\n"


def test_restoring_is_exact_unless_the_fast_path_is_asked_for(model_folder, tmp_path):
    lq = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_image(lq, tmp_path / "a.png")
    given = tmp_path / "a.png", "--model", model_folder, "--no-guard", "--device", "cpu", "-o"
    assert code_of(*given, tmp_path / "plain") == 0
    assert code_of(*given, tmp_path / "fast", "--fast", "--dtype", "bfloat16") == 0
    with torch.no_grad():
        restored = Restorer.from_pretrained(model_folder)(read_image(tmp_path / "a.png")[None])[0]
    write_image(restored, tmp_path / "expected.png")
    plain, fast, expected = (read_image(tmp_path / name) for name in ("plain/a.png", "fast/a.png", "expected.png"))
    assert torch.equal(plain, expected) and not torch.equal(fast, expected)
    tiny = AutoencoderTiny(**dict.fromkeys(CHANNELS, (8, 8, 8)), **dict.fromkeys(BLOCKS, (1, 1, 1)))
    tiny.save_pretrained(tmp_path / "tiny decoder")
    assert code_of(*given, tmp_path / "tiny", "--decoder", tmp_path / "tiny decoder") == 0
    assert not torch.equal(read_image(tmp_path / "tiny" / "a.png"), expected)


class Enlarge:
    """An upscaler."""

    def __call__(self, image, times):
        """Return the image enlarged, by the nearest pixel."""
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def test_every_option_arrives(photos, model_folder, monkeypatch):
    Image.radial_gradient("L").crop((0, 0, 60, 40)).save("wide.png")
    command = [
        "wide.png",
        "-o",
        "out",
        "--model",
        model_folder,
        "--upscale",
        "2",
        "--aligned",
        "false",
        "--force",
        "--batch-size",
        "3",
        "--device",
        "cpu",
        "--detector",
        "yunet",
        "--mask",
        "parsing",
        "--fidelity",
        "0.5",
        "--no-side-by-side",
        "--ext",
        "webp",
        "--suffix",
        "new",
        "--save-faces",
        "--only-center-face",
        "--fast",
        "--dtype",
        "float32",
        "--upscaler",
        f"{__name__}:Enlarge",
    ]
    assert code_of(*command) == 0
    line = json.loads((photos / "out" / "restored.jsonl").read_text(encoding="utf-8"))
    expected = {
        "fidelity": 0.5,
        "upscale": 2,
        "force": True,
        "aligned": False,
        "side_by_side": False,
        "mask": "parsing",
        "extension": "webp",
        "suffix": "new",
        "save_faces": True,
        "only_center_face": True,
        "fast": True,
        "dtype": "float32",
        "upscaler": f"{__name__}:Enlarge",
    }
    assert {key: line["settings"][key] for key in expected} == expected
    assert Image.open("out/wide_new.webp").size == (120, 80) and not (photos / "out" / "side_by_side").exists()


def test_wrong_input_is_one_line_and_nothing_is_written(photos, model_folder, capsys):
    (photos / "empty").mkdir()
    wrong = {
        ("nowhere.png",): "nowhere.png",
        ("a,b=c.png", "--model", "no where"): "no where",
        ("a,b=c.png", "--device", "cuda"): "device",
        ("a,b=c.png", "--dtype", "float16"): "--fast",
        ("a,b=c.png", "--upscaler", "nothing:Here"): "--upscaler",
        ("empty",): "empty",
    }
    before = sorted(photos.rglob("*"))
    for arguments, word in wrong.items():
        model = [] if "--model" in arguments else ["--model", model_folder]
        assert code_of(*arguments, "-o", "out", *model) == 1, arguments
        printed = capsys.readouterr()
        *loading, error = printed.err.splitlines()
        assert error.startswith("error: ") and word in error and printed.out == "", printed
        assert all(line.startswith("loading ") for line in loading), printed
        assert [path for path in sorted(photos.rglob("*")) if path not in before] == []


def test_a_bad_file_alone_is_one_line_and_one_line_of_the_journal(photos, model_folder, capsys):
    (photos / "bad.png").write_text("no image")
    assert code_of("bad.png", "-o", "out", "--model", model_folder) == 1
    printed = capsys.readouterr()
    *_, error = printed.err.splitlines()
    assert error.startswith("error: ") and "bad.png" in error and printed.out == ""
    assert [path.name for path in (photos / "out").iterdir()] == ["restored.jsonl"]
    journal = (photos / "out" / "restored.jsonl").read_text(encoding="utf-8")
    assert "bad.png" in journal


def test_a_bad_file_among_good_ones_is_reported_and_the_exit_code_is_1(photos, model_folder, capsys):
    (photos / "bad.png").write_text("no image")
    assert code_of("a,b=c.png", "bad.png", "gone.png", "-o", "out", "--model", model_folder) == 1
    printed = capsys.readouterr()
    skipped = [line for line in printed.err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2 and "bad.png" in skipped[0] and "gone.png" in skipped[1]
    assert "wrote 1 of 3 into out" in printed.out


STARTS = """
import sys
from lafr.commands.cli import main

def loaded(*arguments):
    try:
        main(arguments)
    except SystemExit:
        pass
    return sorted({"torch", "numpy", "hydra", "diffusers", "PIL", "scipy"} & set(sys.modules))

quick = [loaded("--help"), loaded("restore", "--help"), loaded("restore", "a.png", "-o", "out", "--wrong")]
quick += [loaded("check", "--help"), loaded("tables", "--help"), loaded("nowhere")]
seen = loaded("train", "+experiment=mini", "wrong=1")
from lafr.commands.restore import hidden
with hidden("hydra", "scipy"):  # hydra is there already, and stays
    try:
        import scipy
    except ImportError:
        seen.append("hidden")
import hydra, scipy
print(quick, seen, file=sys.stderr)
"""


def test_help_and_a_wrong_option_load_no_library_and_scipy_is_hidden_for_a_while_only():
    done = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == f"{[[]] * 6} {['hydra', 'hidden']}"


@pytest.mark.slow
def test_restoring_imports_no_peft_and_no_transformers_and_gives_the_pixels_of_the_loaded_lora(tmp_path):
    """Six seconds: a process of its own, as this one has both packages."""
    photo, said = str(locate("astronaut")), "print(*(name for name in ('peft', 'transformers') if name in sys.modules))"
    code = f"import sys; from lafr.commands.cli import main; main(['restore', {photo!r}, '-o', 'out', '--quiet']); "
    done = subprocess.run([sys.executable, "-c", code + said], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    restored = np.asarray(Image.open(tmp_path / "out" / "astronaut.png"), int)
    expected = np.asarray(PhotoRestorer(Restorer.from_pretrained("mini"))(photo).image, int)
    assert abs(restored - expected).max() <= 1


def test_the_choices_that_are_listed_before_torch_is_imported_are_those_that_exist():
    choices = {action.dest: action.choices for action in restore.parser()._actions}
    assert choices["dtype"] == DTYPES and choices["extension"] == EXTENSIONS
    described = {action.dest: action.help for action in restore.parser()._actions}
    assert [name for name in DETECTORS if name not in described["detector"]] == []


def test_a_console_that_has_no_arrows_gets_the_table():
    command = [sys.executable, "-m", "lafr", "tables", str(ROOT / "results/mini/london.json"), "--format", "markdown"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, check=True)
    assert b"| method | psnr_rgb ? |" in done.stdout and done.stderr == b""
