"""Other methods' outputs: matched by stem, refused where they do not fit, scored as LAFR is."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from evaluation_script import run_here
from PIL import Image

from lafr.errors import InputError
from lafr.evaluation.outputs import folders_of, match_outputs
from lafr.evaluation.tables import markdown_table
from lafr.images import read_image, write_image
from lafr.metrics.fidelity import psnr_rgb
from lafr.provenance import write_training_set


@pytest.fixture
def script(tmp_path, monkeypatch, capfd):
    """Run eval.py as the interpreter would, in an empty folder but in this process: its imports are done."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return partial(run_here, monkeypatch, capfd)


@pytest.fixture
def pair(face_folder, tmp_path):
    """Five pairs at 32 px: arguments of the script, and their folders."""
    for number, path in enumerate(sorted(face_folder.glob("*.png"))[:5]):
        clear = Image.open(path).resize((32, 32))
        for side, image in (("hq", clear), ("lq", clear.resize((6, 6)).resize((32, 32)))):
            (tmp_path / side).mkdir(exist_ok=True)
            image.save(tmp_path / side / f"face{number}.png")
    return ["benchmark=pair", f"data.lq={tmp_path / 'lq'}", f"data.hq={tmp_path / 'hq'}"]


@pytest.fixture
def method(pair, tmp_path):
    """The folder of another method's images: half of LQ, half of HQ."""
    folder = tmp_path / "Method (1)"
    for path in sorted((tmp_path / "lq").glob("*.png")):
        lq, hq = read_image(path), read_image(tmp_path / "hq" / path.name)
        write_image((lq + hq) / 2, folder / f"{path.stem}_00.png")
    return folder


def columns(path: Path, method: str, metric: str) -> list[float]:
    with path.open(encoding="utf-8") as file:
        return [float(line[metric]) for line in csv.DictReader(file) if line["row"] == method]


def test_another_methods_images_get_the_scores_of_their_pixels(script, pair, method, tmp_path):
    code, said, out = script(*pair, f"outputs={method}")
    assert code == 0, said
    truth, image = (
        torch.stack([read_image(p) for p in sorted(folder.glob("*.png"))]) for folder in (tmp_path / "hq", method)
    )
    found = columns(Path("runs/eval/tiny/pair/scores.csv"), "Method (1)", "psnr_rgb")
    assert found == pytest.approx(psnr_rgb(image, truth).tolist(), rel=1e-5)
    record = json.loads(Path("runs/eval/tiny/pair/result.json").read_text(encoding="utf-8"))
    assert list(record["rows"]) == ["LQ input", "Method (1)"]  # the model is not asked
    assert record["latents"] == {}
    assert record["pictures"] == {
        name: f"pictures/{folder}"
        for name, folder in {"LQ input": "LQ_input", "Method (1)": "Method_1", "HQ": "HQ"}.items()
    }
    assert "Method (1)" in out


def test_a_file_that_fits_is_copied_and_another_kind_is_kept_as_pixels(script, pair, method, tmp_path):
    Image.open(method / "face3_00.png").convert("L").save(method / "face3_00.bmp")
    (method / "face3_00.png").unlink()
    code, said, _ = script(*pair, f"outputs={method}")
    assert code == 0, said
    drawn = Path("runs/eval/tiny/pair/pictures/Method_1")
    assert (drawn / "face0.png").read_bytes() == (method / "face0_00.png").read_bytes()
    assert Image.open(drawn / "face3.png").format == "PNG"
    assert torch.equal(read_image(drawn / "face3.png"), read_image(method / "face3_00.bmp"))


def test_outputs_are_compared_with_our_methods_and_with_other_outputs(script, pair, method, model_folder, tmp_path):
    methods = "methods=['LQ input',LAFR,A,B,'codec(HQ)']"
    model = shutil.copytree(model_folder, tmp_path / "model")
    learned = {"sets": [{"name": "ffhq_600", "filter": "bicubic", "resolution": 64}], "faces": 600, "resolution": 32}
    write_training_set(learned, model)
    code, said, out = script(
        *pair, f"model.folder={model}", f"+outputs={{A: '{method}', B: '{tmp_path / 'lq'}'}}", methods
    )
    assert code == 0, said
    table = Path("runs/eval/tiny/pair/scores.csv")
    record = json.loads(table.with_name("result.json").read_text(encoding="utf-8"))
    assert record["training_sets"] == {"LAFR": learned}
    noted = "LAFR trained on 600 faces of ffhq_600, 64 px by a bicubic filter, read at 32 px"
    assert noted in " ".join(out.split()) and noted in markdown_table(record)
    assert list(record["rows"]) == [
        "LQ input",
        "LAFR",
        "A",
        "B",
        "codec(HQ)",
    ]
    assert columns(table, "B", "psnr_rgb") == columns(table, "LQ input", "psnr_rgb")


def test_a_trial_scores_a_part_says_so_and_is_kept_apart(script, pair, method):
    code, said, out = script(*pair, f"outputs={method}", "limit=2")
    assert code == 0, said
    assert "pair (2 of 5), 2 images at 32 px" in " ".join(out.split())
    record = json.loads(Path("runs/eval/tiny/pair_limit_2/result.json").read_text(encoding="utf-8"))
    assert (record["benchmark"], record["images"], record["resolution"]) == ("pair (2 of 5)", 2, 32)
    assert record["set"]["images"] == 5 and not Path("runs/eval/tiny/pair").exists()
    code, said, _ = script(*pair, f"outputs={method}", "limit=2", "publish=true")
    assert code == 1 and "limit=2" in said
    code, said, _ = script(*pair, f"outputs={method}", "limit=0")
    assert code == 1 and "limit" in said
    assert script(*pair, f"outputs={method}", "limit=9")[0] == 0  # all of them: no trial
    record = json.loads(Path("runs/eval/tiny/pair_limit_9/result.json").read_text(encoding="utf-8"))
    assert record["benchmark"] == "pair"


def test_a_changed_output_is_scored_again_and_the_others_are_not(script, pair, method):
    assert script(*pair, f"outputs={method}")[0] == 0
    write_image(read_image(method / "face1_00.png") * 0.5, method / "face1_00.png")
    code, said, out = script(*pair, f"outputs={method}")
    assert code == 0, said
    assert "kept      12 of 15 images" in out  # its whole batch of three is read again
    table = Path("runs/eval/tiny/pair/scores.csv")
    image, hq = read_image(method / "face1_00.png")[None], read_image(method.parent / "hq" / "face1.png")[None]
    assert columns(table, "Method (1)", "psnr_rgb")[1] == pytest.approx(float(psnr_rgb(image, hq)), rel=1e-5)


def test_the_same_images_are_scored_under_a_protocol_without_being_restored(script, pair, model_folder, monkeypatch):
    assert script(*pair, f"model.folder={model_folder}")[0] == 0
    first = Path("runs/eval/tiny/pair/result.json").read_text(encoding="utf-8")
    monkeypatch.setattr("lafr.models.restorer.Restorer.forward", None)  # it would fail
    code, said, out = script(
        *pair, f"model.folder={model_folder}", "+protocol={name: other, metrics: [psnr_y, ssim_rgb]}"
    )
    assert code == 0, said
    assert "kept      30 of 30 images" in out
    assert "kept      25 of 50 scores" in out  # ssim_rgb was there
    record = json.loads(Path("runs/eval/tiny/pair/other/result.json").read_text(encoding="utf-8"))
    assert record["protocol"] == "other"
    assert list(record["metrics"]) == ["psnr_y", "ssim_rgb"]
    assert record["pictures"]["LAFR"] == "../pictures/LAFR"
    assert Path("runs/eval/tiny/pair/result.json").read_text(encoding="utf-8") == first


def test_a_set_without_ground_truth_says_what_is_not_measured_and_scores_the_rest(script, pair, model_folder):
    alone = "+metrics.brightness={_target_: test_outputs.Brightness}"
    code, said, _ = script(*pair[:2], f"model.folder={model_folder}", alone)
    assert code == 0, said
    record = json.loads(Path("runs/eval/tiny/pair/result.json").read_text(encoding="utf-8"))
    assert record["not_measured"] == dict.fromkeys(("psnr_rgb", "ssim_rgb"), "the set has no ground truth")
    assert list(record["rows"]) == ["LQ input", "codec(LQ)", "adapter only", "LAFR"]
    assert set(record["rows"]["LAFR"]) == {"brightness"}
    assert not any(name.startswith("latent_gap") or name.endswith("_hq") for name in record["latents"])
    assert record["latents"]["codebook_perplexity_lq"] > 1
    assert "HQ" not in record["pictures"]


class Brightness:
    """A metric that needs no ground truth."""

    needs_reference = False

    def __call__(self, image, hq):
        """Return the mean `[B]`."""
        assert hq is None
        return image.mean((1, 2, 3))


def test_a_metric_may_compare_with_the_input_instead_of_the_ground_truth(script, pair, method):
    code, said, _ = script(*pair[:2], f"outputs={method}", "+metrics.to_lq={_target_: test_outputs.DistanceToInput}")
    assert code == 0, said
    table = Path("runs/eval/tiny/pair/scores.csv")
    assert columns(table, "LQ input", "to_lq") == [0.0] * 5
    image, lq = (read_image(method / "face2_00.png"), read_image(method.parent / "lq" / "face2.png"))
    assert columns(table, "Method (1)", "to_lq")[2] == pytest.approx(float((image - lq).abs().mean()), rel=1e-5)


class DistanceToInput:
    """A metric that gets the LQ images in the place of the ground truth."""

    needs_reference = False
    to_input = True

    def __call__(self, image, lq):
        """Return the mean distance `[B]`."""
        return (image - lq).abs().mean((1, 2, 3))


WRONG = {
    "a missing file": ("face3_00.png", None, ["1 missing: face3;", "5 test images"]),
    "an extra file": ("other.png", (32, 32), ["1 extra: other.png;"]),
    "a stem twice": ("face2.png", (32, 32), ["1 with two files: face2.png and face2_00.png;"]),
    "a wrong size": ("face4_00.png", (64, 64), ["1 of 5", "not 32 x 32: face4_00.png 64 x 64"]),
    "the first of a wrong size": ("face0_00.png", (64, 64), ["1 of 5", "not 32 x 32: face0_00.png 64 x 64"]),
    "not square": ("face4_00.png", (32, 30), ["not 32 x 32: face4_00.png 32 x 30"]),
    "not an image": ("face1_00.png", "text", ["face1_00.png'"]),
}


def test_outputs_that_do_not_fit_are_named_in_one_line_and_nothing_is_written(script, pair, method, tmp_path):
    for case, (name, content, words) in WRONG.items():
        folder = shutil.copytree(method, tmp_path / case)
        if content is None:
            (folder / name).unlink()
        elif content == "text":
            (folder / name).write_text("not an image", encoding="utf-8")
        else:
            Image.new("RGB", content).save(folder / name)
        code, said, _ = script(*pair, f"outputs={folder}")
        assert code == 1, case
        assert said.startswith("error: ") and "\n" not in said, case
        assert all(word in said for word in words), said
        assert list(Path().rglob("*")) == [], case


def test_a_truncated_output_is_named_when_it_is_reached(script, pair, method):
    torn = method / "face4_00.png"
    torn.write_bytes(torn.read_bytes()[:150])
    code, said, _ = script(*pair, f"outputs={method}")
    assert (code, "face4_00.png' is damaged or truncated" in said) == (1, True), said
    assert not Path("runs/eval/tiny/pair/result.json").exists()


# arguments, words of the message: the parameter, the value, what is known
SETTINGS = (
    (["methods=[LAFR,GFPGAN]"], ["methods", "['GFPGAN']", "codec(LQ)"]),
    (["methods=[]"], ["methods", "[]"]),
    (["fidelity=1.5"], ["fidelity", "1.5", "0 to 1"]),
    (["fidelity=much"], ["fidelity", "much", "0 to 1"]),
    (["sweep=[0,2]"], ["fidelity", "2", "0 to 1"]),
    (["sweep=[0,1]", "curve.x=deg"], ["curve.x", "deg", "psnr_rgb"]),
    (["outputs=nowhere"], ["'nowhere'"]),
    (["outputs=LAFR"], ["outputs", "'LAFR'"]),
    (["data.hq=nowhere"], ["nowhere'"]),
    (["data.lq=null"], ["benchmark pair", "data.lq"]),
    (["data.hq=null"], ["psnr_rgb", "the set has no ground truth"]),
    (["+protocol={name: x, metrics: [psnr]}"], ["protocol x", "['psnr']"]),
    (["groups=nowhere.csv"], ["groups", "'nowhere.csv'"]),
)


def test_a_wrong_setting_is_one_line_and_nothing_is_written(script, pair, model_folder):
    for arguments, words in SETTINGS:
        code, said, out = script(*pair, f"model.folder={model_folder}", *arguments)
        assert (code, out) == (1, ""), arguments
        assert said.startswith(("error: ", "\n")), said
        assert all(word in said for word in words), said
        assert list(Path().rglob("*")) == [], arguments


def test_a_missing_truth_of_one_image_is_named(script, pair, method, tmp_path):
    (tmp_path / "hq" / "face2.png").unlink()
    code, said, _ = script(*pair, f"outputs={method}")
    assert code == 1
    assert "1 images without a reference ['face2.png']" in said


def files(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def test_a_stem_that_ends_in_a_number_is_matched_before_a_suffix_is(tmp_path):
    folder = files(tmp_path / "x", "a_00.png", "a_01_00.png", "a.png")
    found = match_outputs(folder, ["a", "a_00", "a_01"], 8)
    assert {stem: path.name for stem, path in found.items()} == {
        "a": "a.png",
        "a_00": "a_00.png",
        "a_01": "a_01_00.png",
    }


def test_of_many_wrong_names_the_first_are_listed_and_the_others_counted(tmp_path):
    folder = files(tmp_path / "x", "a.png")
    with pytest.raises(InputError, match=r"1,200 missing: b0, b1, b2,.* and 1,190 more"):
        match_outputs(folder, ["a", *(f"b{i}" for i in range(1200))], 8)


def test_two_folders_of_one_name_need_names(tmp_path):
    assert folders_of([tmp_path / "A" / "out", tmp_path / "B"]).keys() == {"out", "B"}
    with pytest.raises(InputError, match="outputs"):
        folders_of([tmp_path / "A" / "out", tmp_path / "B" / "out"])
