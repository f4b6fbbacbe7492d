"""The fidelity parameter: as trained at 0, z_lq through the base UNet at 1, a straight line between."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import SIZE, lq
from evaluation_script import run_here

from lafr.errors import InputError
from lafr.images import to_pil
from lafr.models.fast import optimised
from lafr.models.restorer import Restorer


@torch.no_grad()
def test_fidelity_0_is_the_restorer_as_trained_bit_for_bit_also_after_another_was_asked(trained):
    expected = trained.codec.decode(trained.denoiser(trained.adapter(trained.codec.encode(lq()))))
    assert torch.equal(trained(lq()), expected)
    assert not torch.equal(trained(lq(), fidelity=0.3), expected)
    assert torch.equal(trained(lq(), fidelity=0.0), expected)


@torch.no_grad()
def test_fidelity_1_is_the_input_through_the_codec_and_the_base_models_unet(trained, base_folder):
    bare = Restorer.from_base(base_folder, trained.adapter, SIZE, timestep=200)  # without a LoRA
    expected = bare.codec.decode(bare.denoiser(bare.codec.encode(lq())))
    torch.testing.assert_close(trained(lq(), fidelity=1), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fidelity", [0.25, 0.7])
def test_between_the_latent_is_mixed_and_the_lora_is_weighed_down(trained, tmp_path, fidelity):
    z_lq = trained.codec.encode(lq())
    mixed = (1 - fidelity) * trained.adapter(z_lq) + fidelity * z_lq
    found = trained(lq(), fidelity=fidelity)
    trained.save_pretrained(tmp_path)
    weaker = Restorer.from_pretrained(tmp_path)
    for name, parameter in weaker.denoiser.unet.named_parameters():
        if ".lora_B." in name:  # what a LoRA adds is linear in B
            parameter.mul_(1 - fidelity)
    expected = weaker.codec.decode(weaker.denoiser(mixed))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_picture_is_restored_at_a_fidelity_as_its_pixels_are(trained):
    picture = to_pil(lq()[0])
    from_pixels = to_pil(trained((torch.round((lq()[:1] + 1) * 127.5) / 127.5) - 1, fidelity=0.6)[0])
    assert trained(picture, fidelity=0.6) == from_pixels
    assert trained(picture) != trained(picture, fidelity=0.6)


@torch.no_grad()
def test_threads_with_different_fidelities_share_one_restorer(trained):
    fidelities, images = [0.0, 0.3, 0.8, 1.0], lq()
    expected = [trained(images, fidelity=value) for value in fidelities]
    start = threading.Barrier(len(fidelities))
    # switching threads often, amid a step, is what shows that nothing of a call lies in the model
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def restored(value):
        start.wait()
        with torch.no_grad():  # this, too, is a thread's own
            return [trained(images, fidelity=value) for _ in range(5)]

    try:
        with ThreadPoolExecutor(len(fidelities)) as pool:
            found = list(pool.map(restored, fidelities))
    finally:
        sys.setswitchinterval(before)
    for images_of_thread, wanted in zip(found, expected, strict=True):
        assert all(torch.equal(image, wanted) for image in images_of_thread)


@torch.no_grad()
def test_a_failure_amid_a_scaled_step_leaves_the_lora_as_it_was(trained):
    expected = trained(lq())
    with pytest.raises(RuntimeError):
        trained.denoiser(torch.zeros(1, 3, 8, 8), lora_scale=0.5)  # three channels, the UNet has four
    assert torch.equal(trained(lq()), expected)


def test_what_is_no_number_from_0_to_1_is_refused(trained):
    for value in (-0.1, 1.01, float("nan"), "0.5", True, None):
        with pytest.raises(InputError, match=f"fidelity must be a number from 0 to 1, got {value!r}"):
            trained(lq(), fidelity=value)


@torch.no_grad()
@pytest.mark.parametrize("merge", [lambda r: r.denoiser.merge_lora(), partial(optimised, dtype="float32")])
def test_a_merged_lora_cannot_be_scaled_and_restores_at_0_only(trained, merge):
    expected = trained(lq())
    merge(trained)
    torch.testing.assert_close(trained(lq(), fidelity=0), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match=r"this model's was merged or never added; load the model as it was trained"):
        trained(lq(), fidelity=0.5)


def test_the_curves_points_are_lafrs_scores_at_each_fidelity(trained, face_folder, tmp_path, monkeypatch, capfd):
    trained.save_pretrained(tmp_path / "model", full=True)
    (tmp_path / "list.txt").write_text("00.png\n01.png\n02.png\n03.png\n")
    monkeypatch.chdir(tmp_path)
    given = [
        "benchmark=val",
        f"data.root={face_folder}",
        f"benchmark.build.file_list={tmp_path / 'list.txt'}",
        "model.folder=model",
        "methods=['LQ input',LAFR]",
    ]
    run = partial(run_here, monkeypatch, capfd, *given)
    sweep = ["sweep=[0,0.5,1]", "curve.y=ssim_rgb", "publish=true", "output=swept"]
    code, said, _ = run(*sweep)
    assert code == 0, said
    swept = json.loads(Path("swept/result.json").read_text())
    assert list(swept["sweep"]) == ["0", "0.5", "1"]
    assert swept["sweep"]["0"] == swept["rows"]["LAFR"]
    assert list(swept["rows"]) == ["LQ input", "LAFR"]
    assert run("fidelity=0.5", "output=half")[0] == 0
    half = json.loads(Path("half/result.json").read_text())["rows"]
    assert half["LAFR"] == swept["sweep"]["0.5"] != swept["rows"]["LAFR"]
    assert half["LQ input"] == swept["rows"]["LQ input"]
    curve = {kind: Path(f"swept/curve.{kind}").read_bytes() for kind in ("png", "svg")}
    assert all(name.encode() in curve["svg"] for name in ("fidelity: psnr_rgb", "realism: ssim_rgb"))
    assert "kept      20 of 20 images" in run(*sweep)[2]
    assert {kind: Path(f"results/tiny/val_curve.{kind}").read_bytes() for kind in curve} == curve


def test_a_run_at_another_fidelity_has_a_folder_of_its_own(trained, face_folder, tmp_path, monkeypatch, capfd):
    trained.save_pretrained(tmp_path / "model", full=True)
    (face_folder / "val.txt").write_text("00.png\n")
    monkeypatch.chdir(tmp_path)
    given = ["benchmark=val", f"data.root={face_folder}", "model.folder=model", "methods=[LAFR]", "run_name=null"]
    for fidelity in ("0", "0.25"):
        assert run_here(monkeypatch, capfd, *given, f"fidelity={fidelity}")[0] == 0
    (face_folder / "val.txt").unlink()
    assert sorted(p.name for p in Path("runs/eval").iterdir()) == ["model", "model-fidelity_0.25"]


def test_a_model_whose_lora_was_merged_is_refused_before_anything_is_written(trained, tmp_path, monkeypatch, capfd):
    trained.denoiser.merge_lora()
    trained.save_pretrained(tmp_path / "model", full=True)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    model = f"model.folder={tmp_path / 'model'}"
    for given in (["fidelity=0.5"], ["sweep=[0,1]", "curve.y=ssim_rgb"]):
        code, said, out = run_here(monkeypatch, capfd, "benchmark=mini", model, *given)
        assert (code, out) == (1, "")
        assert said.startswith("error: fidelity > 0 scales the LoRA") and "\n" not in said
    assert not list(Path().rglob("*"))
