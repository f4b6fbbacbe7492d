import sys
from pathlib import Path
from shutil import copytree

import onnx
import onnxruntime
import pytest
import torch
from conftest import BASE

import lafr.export.onnx
from lafr.data.degradation.first_order import Degradation
from lafr.data.packaged import packaged_benchmark
from lafr.errors import InputError
from lafr.export.onnx import GRAPH, Fused, run_onnx, save_onnx
from lafr.export.pipeline import fused
from lafr.images import from_pil, to_pil
from lafr.models.adapter import build_adapter
from lafr.models.base.model import new_base
from lafr.models.quantizers import flatten
from lafr.models.restorer import Restorer

SIDE = 16
SMALL = dict(latent_channels=4, width=8, code_dim=8, extractor_blocks=1, mapper_blocks=1)


def images(count):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def with_codes(num_residual=1):
    torch.manual_seed(0)
    adapter = build_adapter("residual_codebook", **SMALL, num_codes=32, num_residual=num_residual)
    adapter.quantizer.initialise(torch.randn(4, 8, 8, 8), torch.Generator().manual_seed(0))
    return adapter


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Smaller than conftest's: tracing takes its time by the layer."""
    vae = dict(block_out_channels=[8], down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"])
    unet = dict(block_out_channels=[16], down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"])
    folder = tmp_path_factory.mktemp("base")
    new_base(BASE["vae"] | vae, BASE["unet"] | unet, BASE["scheduler"]).save_pretrained(folder)
    return str(folder)


def small(base, adapter):
    restorer = Restorer.from_base(base, adapter, SIDE, timestep=200, lora=dict(rank=2, alpha=4))
    with torch.no_grad():
        for parameter in restorer.denoiser.lora_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return restorer.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    """A restorer with two residual codebooks, the folder of its graph with weights in a second file, the difference."""
    restorer, folder = small(base, with_codes(num_residual=2)), tmp_path_factory.mktemp("onnx") / "graph"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lafr.export.onnx, "ONE_FILE", 0)
        before = torch.get_rng_state()
        difference = save_onnx(restorer, folder)
        assert torch.equal(torch.get_rng_state(), before)
    return restorer, folder, difference


@torch.no_grad()
def test_the_graph_restores_any_batch_as_pytorch_does_with_the_lora(exported):
    restorer, folder, difference = exported
    for batch in (1, 2, 5):
        torch.testing.assert_close(run_onnx(folder / GRAPH, images(batch)), restorer(images(batch)), rtol=0, atol=1e-4)
    assert 0 <= difference < 1e-4
    assert restorer.denoiser.lora_config is not None  # the exported one keeps its LoRA


def test_weights_in_their_own_file_move_with_the_graph_and_the_cards_example_runs(exported, tmp_path, monkeypatch):
    restorer, folder, _ = exported
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", GRAPH, f"{GRAPH}.data"]
    copytree(folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    picture = to_pil(images(1)[0])
    picture.save("aligned_face.png")
    named = {}
    exec(Path("README.md").read_text(encoding="utf-8").split("```python")[1].split("```")[0], named)
    with torch.no_grad():
        expected = restorer(from_pil(picture)[None])
    torch.testing.assert_close(torch.from_numpy(named["restored"]), expected, rtol=0, atol=1e-4)


def test_another_resolution_is_refused_by_the_graph(exported):
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="invalid dimensions"):
        run_onnx(exported[1] / GRAPH, torch.zeros(1, 3, 2 * SIDE, 2 * SIDE))


@pytest.mark.parametrize(
    "adapter",
    [with_codes, lambda: with_codes(3), lambda: build_adapter("conv", **SMALL), lambda: build_adapter("none")],
)
@torch.no_grad()
def test_what_is_traced_equals_the_restorer_with_every_adapter(base, adapter):
    restorer = fused(small(base, adapter()))
    torch.testing.assert_close(Fused(restorer)(images(4)), restorer(images(4)), rtol=0, atol=1e-5)


def test_a_missing_package_is_one_line_with_its_command_and_nothing_is_written(base, tmp_path, monkeypatch):
    restorer = small(base, build_adapter("none"))
    for package in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=rf"{package}.*pip install 'lafr\[onnx\]'"):
                save_onnx(restorer, tmp_path / "graph")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """The miniature, its graph, and the packaged faces degraded as `benchmark=mini` degrades them."""
    restorer, folder = Restorer.from_pretrained("mini"), tmp_path_factory.mktemp("mini") / "graph"
    save_onnx(restorer, folder)
    degradation = Degradation(noise_sigma=(0, 15), jpeg_quality=(40, 101))
    pairs = packaged_benchmark("mini", 128, degradation, draws=1, seed=0)
    return restorer, folder / GRAPH, torch.stack([pairs[i].lq for i in range(len(pairs))])


@pytest.mark.slow
@torch.no_grad()
def test_the_miniature_in_onnxruntime_is_within_a_thousandth_of_pytorch(mini):
    restorer, path, lq = mini
    assert [file.name for file in path.parent.iterdir() if "onnx" in file.name] == [GRAPH]  # small: one file
    for batch in (1, 2, 5):
        assert (run_onnx(path, lq[:batch]) - restorer(lq[:batch])).abs().max() < 1e-3


@pytest.mark.slow
@torch.no_grad()
def test_the_miniature_in_onnxruntime_takes_the_same_codes(mini):
    restorer, path, lq = mini
    indices = restorer.adapter.quantizer.quantize(restorer.adapter.extract(restorer.codec.encode(lq))).indices
    _, codes = run_with_codes(path, lq)
    assert indices.shape == (7, 32, 32, 1)
    assert int((codes != indices.flatten(1)).sum()) == 0


@pytest.mark.slow
@torch.no_grad()
def test_another_code_at_the_nearest_tie_would_change_the_picture_by_far_more_than_the_tolerance(mini):
    restorer, _, lq = mini
    adapter = restorer.adapter
    features = adapter.extract(restorer.codec.encode(lq))
    distances, nearest_two = torch.cdist(flatten(features), adapter.quantizer.layers[0].codebook).topk(2, largest=False)
    margins = distances[..., 1] - distances[..., 0]  # [B, h * w]
    image, position = divmod(int(margins.argmin()), margins.shape[1])
    chosen = torch.stack([nearest_two[image, :, 0]] * 2)
    chosen[1, position] = nearest_two[image, position, 1]
    codes = adapter.quantizer.layers[0].codebook[chosen].transpose(1, 2).reshape(2, *features.shape[1:])
    plain, flipped = restorer.codec.decode(restorer.denoiser(adapter.map(codes)))
    assert (flipped - plain).abs().max() > 1e-2


def run_with_codes(path, lq):
    """Run a graph whose nearest codes are made a second output."""
    graph = onnx.load(path)
    (argmin,) = [node for node in graph.graph.node if node.op_type == "ArgMin"]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(argmin.output[0], onnx.TensorProto.INT64, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    restored, codes = session.run(None, {"lq": lq.numpy()})
    return torch.from_numpy(restored), torch.from_numpy(codes).reshape(len(lq), -1)
