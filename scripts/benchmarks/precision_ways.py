"""Ways of computing a part of the pipeline: ours, and those of libraries that nothing else here needs."""

import copy
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from lafr.export.onnx import OPSET
from lafr.models.fast import choose_dtype, optimised
from lafr.models.restorer import Restorer
from scripts.benchmarks import inference

PARTS = ("encoder", "UNet", "decoder")
EXACT, HALF = "torch_float32", "torch_bfloat16"
LIBRARIES = {"torch": "PyTorch", "torchao": "torchao", "ort": "ONNX Runtime", "openvino": "OpenVINO"}
CPU = torch.device("cpu")


class Part(nn.Module):
    """A part of a restorer as a module of its own, for exporters."""

    def __init__(self, restorer: Restorer, part: str):
        super().__init__()
        self.owner = restorer.denoiser if part == "UNet" else restorer.codec
        self.compute = inference.parts_of(restorer, "base")[part]

    def forward(self, x: Tensor) -> Tensor:
        """Map the part's input to its result."""
        return self.compute(x)


@dataclass(frozen=True)
class Way:
    """How to compute a part: `build(restorer, part, inputs, only_for_speed)` returns the function of one batch.

    `inputs` are batches of one shape that the part is given, for tracing and calibration.
    """

    build: Callable[[Restorer, str, tuple[Tensor, ...], bool], Callable[[Tensor], Tensor]]
    packages: tuple[str, ...] = ()
    parts: tuple[str, ...] = PARTS
    bfloat16: bool = False
    restrictable: bool = True  # whether the variables of `speed.AVX2` reach it

    def hindrance(self) -> str:
        """Return why this processor, as it is restricted, cannot run the way; nothing where it can."""
        if self.bfloat16 and choose_dtype("auto", CPU) != torch.bfloat16:
            return "no bfloat16 without AVX512"
        limited = "ONEDNN_MAX_CPU_ISA" in os.environ and not self.restrictable
        return "no variable restricts its instructions" if limited else ""


def by_torch(restorer: Restorer, part: str, inputs: tuple[Tensor, ...], only_for_speed: bool) -> Callable:
    """Return a part in bfloat16 as `--fast` computes it."""
    return inference.parts_of(optimised(copy.deepcopy(restorer), CPU, "bfloat16"), "base")[part]


def by_torchao(restorer: Restorer, part: str, inputs: tuple[Tensor, ...], only_for_speed: bool) -> Callable:
    """Return the UNet, its linear layers in eight bits with the range of each input taken as it comes."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    fast = optimised(copy.deepcopy(restorer), CPU, "float32")
    quantize_(fast.denoiser.unet, Int8DynamicActivationInt8WeightConfig())
    return fast.denoiser


def by_onnxruntime(
    restorer: Restorer, part: str, inputs: tuple[Tensor, ...], only_for_speed: bool, int8: str = ""
) -> Callable:
    """Return a part as ONNX Runtime computes it; in eight bits "dynamic", ranges taken as they come, or "static"."""
    import onnxruntime
    from onnxruntime import quantization

    graph = Path(exported(restorer, part, inputs[0]).name) / "part.onnx"
    with TemporaryDirectory() as place:
        small = Path(place) / "part.onnx"
        if int8 == "dynamic":  # a convolution with dynamic ranges takes unsigned weights alone
            unsigned = quantization.QuantType.QUInt8
            quantization.quantize_dynamic(graph, small, weight_type=unsigned, use_external_data_format=True)
        elif int8 == "static":
            batches = iter([{"x": x.numpy()} for x in inputs])
            quantization.quantize_static(
                graph,
                small,
                SimpleNamespace(get_next=partial(next, batches, None)),
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                use_external_data_format=True,
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        chosen = str(small if int8 else graph)
        session = onnxruntime.InferenceSession(chosen, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@lru_cache(maxsize=len(PARTS))  # a library's ways share them; see `forget`
def exported(restorer: Restorer, part: str, x: Tensor) -> TemporaryDirectory:
    """Return a folder with a part's graph for batches of `x`'s shape; it is deleted with the last reference."""
    place = TemporaryDirectory()
    module = Part(restorer, part).eval().requires_grad_(False)
    program = torch.onnx.export(module, (x,), dynamo=True, opset_version=OPSET, input_names=["x"], verbose=False)
    program.save(Path(place.name) / "part.onnx", external_data=True)
    return place


def by_openvino(
    restorer: Restorer,
    part: str,
    inputs: tuple[Tensor, ...],
    only_for_speed: bool,
    hint: str = "f32",
    int8: bool = False,
) -> Callable:
    """Return a part as OpenVINO computes it, what is not in eight bits in the precision `hint`."""
    import openvino

    how = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": hint}
    model = converted(restorer, part, inputs, only_for_speed, int8)
    network = openvino.Core().compile_model(model, "CPU", {**how, "PERFORMANCE_HINT": "LATENCY"})
    return lambda x: torch.from_numpy(network(x.numpy())[0])


@lru_cache(maxsize=2 * len(PARTS))
def converted(restorer: Restorer, part: str, inputs: tuple[Tensor, ...], only_for_speed: bool, int8: bool) -> object:
    """Return a part as OpenVINO's model for batches of one shape, in eight bits calibrated by NNCF on `inputs`."""
    import nncf
    import openvino

    if not int8:
        module = Part(restorer, part).eval().requires_grad_(False)
        return openvino.convert_model(module, example_input=inputs[0], input=[inputs[0].shape])
    return nncf.quantize(
        converted(restorer, part, inputs, only_for_speed, False),
        nncf.Dataset([x.numpy() for x in inputs]),
        preset=nncf.QuantizationPreset.MIXED,  # asymmetric activations: those after a SiLU are
        subset_size=len(inputs),
        advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=only_for_speed),
    )


ORT, OPENVINO = ("onnx", "onnxscript", "onnxruntime"), ("openvino", "nncf")
# LIBRARY_PRECISION -> way, those of a library one after another
WAYS = {
    HALF: Way(by_torch, bfloat16=True),
    "torchao_int8_dynamic": Way(by_torchao, ("torchao",), parts=("UNet",)),  # elsewhere few layers are linear
    "ort_float32": Way(by_onnxruntime, ORT, restrictable=False),
    "ort_int8_dynamic": Way(partial(by_onnxruntime, int8="dynamic"), ORT, restrictable=False),
    "ort_int8_static": Way(partial(by_onnxruntime, int8="static"), ORT, restrictable=False),
    "openvino_float32": Way(by_openvino, OPENVINO),
    "openvino_bfloat16": Way(partial(by_openvino, hint="bf16"), OPENVINO, bfloat16=True),
    "openvino_int8": Way(partial(by_openvino, int8=True), OPENVINO),
    "openvino_int8_bfloat16": Way(partial(by_openvino, hint="bf16", int8=True), OPENVINO, bfloat16=True),
}


def label(way: str) -> str:
    """Return a way's name as tables show it."""
    library, _, rest = way.partition("_")
    return f"{LIBRARIES[library]} {rest.replace('_', ' ')}"


def forget() -> None:
    """Free the graphs that the ways of a part share."""
    exported.cache_clear()
    converted.cache_clear()
    gc.collect()
