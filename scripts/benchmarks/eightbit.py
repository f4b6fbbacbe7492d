"""A trial: the decoder in eight bits by OpenVINO, its loss on the miniature and its gain at full size."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from statistics import median
from time import perf_counter

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from tqdm import tqdm

from lafr.commands.launch import composed
from lafr.data.packaged import packaged_benchmark
from lafr.errors import need
from lafr.evaluation import markdown
from lafr.models.codec import Codec
from lafr.models.fast import memory_kept, optimised
from lafr.models.restorer import Restorer
from scripts.benchmarks import inference

LEAST = {"speed": 1.3, "psnr": 40.0}  # what a backend must win to be kept
WAYS = {"OpenVINO float32": False, "OpenVINO int8": True}


class Decode(nn.Module):
    """A codec's decoder as a module, for the exporter."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.codec, self.vae = codec, codec.vae

    def forward(self, z: Tensor) -> Tensor:
        """Map `z [B, C, h, w]` to images."""
        return self.codec.decode(z)


def eightbit(cfg: DictConfig) -> dict:
    """Return the PSNR of the eight-bit decoder to float32, and the seconds of each part of the pipeline, in turn."""
    for name in ("openvino", "nncf"):
        need(name, name)
    seconds = timed(cfg)
    shared = [part for part in seconds if part not in ("decoder", *WAYS)]
    wholes = {}
    for way in ("decoder", *WAYS):
        wholes[way] = [sum(turn) for turn in zip(*(seconds[part] for part in (*shared, way)), strict=True)]
    speeds = {}
    for way in WAYS:
        for what, of in (("decoder", seconds), ("whole", wholes)):
            ratios = [plain / own for plain, own in zip(of["decoder"], of[way], strict=True)]
            speeds[f"{way}, {what}"] = {"ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return {
        "psnr": {way: quality(cfg, int8) for way, int8 in WAYS.items()},
        "seconds": {part: median(values) for part, values in seconds.items()},
        "speed": speeds,
        "scale": cfg.scale,
        "repeats": cfg.repeats,
        "instructions": inference.instructions(),
        "packages": {name: version(name) for name in ("openvino", "nncf")},
    }


def quality(cfg: DictConfig, int8: bool) -> dict:
    """Return the PSNR in dB to the float32 decoder on restored latents, their mean and their least."""
    restorer = Restorer.from_pretrained(cfg.model.folder)
    degradation = instantiate(cfg.degradation, _convert_="all")

    def restored(draws: int, seed: int) -> list[Tensor]:
        pairs = packaged_benchmark("mini", restorer.resolution, degradation, draws, seed)
        with torch.no_grad():
            return [restorer.latents(pairs[n].lq[None]).z_restored for n in range(len(pairs))]

    other = restored(-(-cfg.calibration // 7), cfg.seed + 1)[: cfg.calibration]
    decode = compiled(restorer.codec, other, int8)
    values = []
    for z in restored(cfg.draws, cfg.seed):
        with torch.no_grad():
            exact = restorer.codec.decode(z).clamp(-1, 1)
        # of images in [-1, 1]: the range is 2
        error = (decode(z).clamp(-1, 1) - exact).square().mean()
        values.append(float(10 * (4 / error).log10()))
    return {"mean": sum(values) / len(values), "least": min(values), "images": len(values)}


def timed(cfg: DictConfig) -> dict[str, list[float]]:
    """Return the seconds of each turn of the pipeline's parts in PyTorch's float32, and of each way's decoder."""
    size, device = composed("benchmark_inference", f"scale={cfg.scale}")[cfg.scale], torch.device("cpu")
    side = cfg.resolution or size.resolution
    generator = torch.Generator().manual_seed(cfg.seed)
    lq = torch.rand(1, 3, side, side, generator=generator).mul(2).sub(1)
    base = instantiate(size.build, _convert_="all")
    restorer = inference.new_restorer(base, size, lq, cfg.seed)
    optimised(restorer, device, "float32")
    method = inference.Method(torch.float32, inference.parts_of(restorer, "base"), keeps_memory=True)
    with torch.inference_mode(), memory_kept():
        z = restorer.latents(lq).z_restored.clone()
    # upsampling is not folded in the base's own decoder: a transposed convolution is not computed in eight bits
    ways = {name: compiled(base.codec(), [z], int8, only_for_speed=True) for name, int8 in WAYS.items()}
    del base
    seconds: dict[str, list[float]] = {}
    for turn in tqdm(range(cfg.repeats + 1), desc="eightbit", unit="turn"):
        taken = inference.timed_pass(method, lq, device)
        taken.pop("whole")
        for name, decode in ways.items():
            started = perf_counter()
            decode(z)
            taken[name] = perf_counter() - started
        if turn:  # the first lays weights out
            for name, value in taken.items():
                seconds.setdefault(name, []).append(value)
    return seconds


def compiled(
    codec: Codec, latents: Sequence[Tensor], int8: bool, only_for_speed: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return the decoder as OpenVINO runs it for latents of one shape, in eight bits calibrated on `latents`."""
    import nncf
    import openvino

    module = Decode(codec).eval().requires_grad_(False)
    model = openvino.convert_model(module, example_input=latents[0], input=[latents[0].shape])
    if int8:
        advanced = nncf.AdvancedQuantizationParameters(disable_bias_correction=only_for_speed)
        dataset = nncf.Dataset([z.numpy() for z in latents])
        # asymmetric activations: those after a SiLU are
        preset = nncf.QuantizationPreset.MIXED
        model = nncf.quantize(model, dataset, preset=preset, subset_size=len(latents), advanced_parameters=advanced)
    how = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(model, "CPU", {**how, "PERFORMANCE_HINT": "LATENCY"})
    return lambda z: torch.from_numpy(network(z.numpy())[0])


def eightbit_table(record: dict) -> str:
    """Return speed and PSNR of each way compared with PyTorch's float32."""
    rows = []
    for way in WAYS:
        decoder, whole = (record["speed"][f"{way}, {what}"] for what in ("decoder", "whole"))
        quality = record["psnr"][way]
        speeds = [f"{of['ratio']:.2f}x ({of['lowest']:.2f}–{of['highest']:.2f})" for of in (decoder, whole)]
        rows.append([way, *speeds, f"{quality['mean']:.1f}", f"{quality['least']:.1f}"])
    columns = ["decoder by", "speed: decoder", "whole pipeline", "PSNR, dB", "least"]
    found, images = record["speed"]["OpenVINO int8, whole"]["ratio"], record["psnr"]["OpenVINO int8"]["images"]
    passes = found >= LEAST["speed"] and record["psnr"]["OpenVINO int8"]["mean"] >= LEAST["psnr"]
    packages = ", ".join(f"{name} {number}" for name, number in record["packages"].items())
    compared = (
        f"Relative to PyTorch's float32 (`--fast --dtype float32`) in the same turn, median of {record['repeats']}, "
        f"{record['instructions']}, {record['threads']} threads; {packages}. PSNR to float32 of the miniature on "
        f"{images} restored latents."
    )
    asked = f"Asked for: {LEAST['speed']}x at {LEAST['psnr']:.0f} dB, which it {'reaches' if passes else 'misses'}."
    return f"{markdown.table(columns, rows)}\n\n{compared} {asked}"
