"""The fidelity parameter: as trained at 0, the input through the codec at 1, mixed between."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import lq
from evaluation_script import run_here

from lafr.errors import InputError
from lafr.images import to_pil
from lafr.models.fast import optimised


@torch.no_grad()
def test_fidelity_0_is_the_restorer_as_trained_bit_for_bit_also_after_another_was_asked(trained):
    expected = trained.codec.decode(trained.denoiser(trained.adapter(trained.codec.encode(lq()))))
    assert torch.equal(trained(lq()), expected)
    assert not torch.equal(trained(lq(), fidelity=0.3), expected)
    assert torch.equal(trained(lq(), fidelity=0.0), expected)


@torch.no_grad()
@pytest.mark.parametrize(("fidelity", "share"), [(0.5, 0.25), (1, 1)])
def test_above_0_the_restored_latent_is_mixed_with_the_inputs(trained, fidelity, share):
    z_lq = trained.codec.encode(lq())
    z_restored = trained.denoiser(trained.adapter(z_lq))
    expected = trained.codec.decode((1 - share) * z_restored + share * z_lq)
    torch.testing.assert_close(trained(lq(), fidelity=fidelity), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_picture_is_restored_at_a_fidelity_as_its_pixels_are(trained):
    picture = to_pil(lq()[0])
    from_pixels = to_pil(trained((torch.round((lq()[:1] + 1) * 127.5) / 127.5) - 1, fidelity=0.6)[0])
    assert trained(picture, fidelity=0.6) == from_pixels
    assert trained(picture) != trained(picture, fidelity=0.6)


def test_what_is_no_number_from_0_to_1_is_refused(trained):
    for value in (-0.1, 1.01, float("nan"), "0.5", True, None):
        with pytest.raises(InputError, match=f"fidelity must be a number from 0 to 1, got {value!r}"):
            trained(lq(), fidelity=value)


@torch.no_grad()
@pytest.mark.parametrize("merge", [lambda r: r.denoiser.merge_lora(), partial(optimised, dtype="float32")])
def test_a_merged_lora_restores_the_same_at_every_fidelity(trained, merge):
    expected = trained(lq(), fidelity=0.5)
    merge(trained)
    torch.testing.assert_close(trained(lq(), fidelity=0.5), expected, rtol=1e-3, atol=1e-3)


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
