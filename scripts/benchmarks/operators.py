"""What the UNet's time goes to: convolutions, linear layers, attention and the rest, beside a matrix product's rate."""

from collections.abc import Callable
from statistics import median

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from lafr.commands.launch import composed
from lafr.evaluation import markdown
from lafr.models.fast import memory_kept, optimised
from scripts.benchmarks import inference

# kind -> what the names of its operators hold; bmm is attention's where it is not fused
KINDS = {"convolutions": ("convolution",), "linear layers": ("::addmm", "::mm"), "attention": ("scaled_dot", "::bmm")}
REST = "everything else"


def operators(cfg: DictConfig) -> dict:
    """Return the seconds and the multiplications of each kind of operator in one pass of the UNet, in float32."""
    device = torch.device("cpu")
    size = composed("benchmark_inference", f"scale={cfg.scale}")[cfg.scale]
    lq = inference.random_image(size.resolution, cfg.seed)
    restorer = inference.new_restorer(instantiate(size.build, _convert_="all"), size, lq, cfg.seed)
    optimised(restorer, device, "float32")
    ceiling, taken = 0.0, []
    with torch.inference_mode(), memory_kept():
        z = restorer.latents(lq).z_aligned.clone()
        for _ in range(cfg.repeats):
            ceiling = max(ceiling, inference.matmul_gmacs(cfg.matmul_side, torch.float32, device))
            taken.append(seconds_by_kind(lambda: restorer.denoiser(z)))
    return {
        "seconds": {kind: median(turn[kind] for turn in taken) for kind in taken[0]},
        "gmacs": gmacs_by_kind(restorer.denoiser, z.shape),
        "matmul_gmacs_per_second": ceiling,
        "repeats": cfg.repeats,
        "resolution": size.resolution,
        "instructions": inference.instructions(),
    }


def kind_of(operator: str) -> str:
    """Return the kind of an operator, named as PyTorch does: "aten::addmm"."""
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), REST)


def seconds_by_kind(run: Callable[[], object]) -> dict[str, float]:
    """Return kind -> seconds of one call, by PyTorch's profiler, an operator's own time without those that it calls."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    found = dict.fromkeys((*KINDS, REST), 0.0)
    for event in profiled.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return found


def gmacs_by_kind(module: Callable, shape: torch.Size) -> dict[str, float]:
    """Return kind -> multiplications of one call in units of 1e9."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        counts, _ = inference.multiplications(module, torch.empty(shape))
    found = dict.fromkeys(KINDS, 0.0)
    for operator, gmacs in counts.items():
        found[kind_of(f"aten::{operator.partition('.')[2]}")] += gmacs
    return found


def operators_table(record: dict) -> str:
    """Return each kind's share of the time, and of the rate of a matrix product, as Markdown."""
    whole, rows = sum(record["seconds"].values()), []
    for kind, seconds in record["seconds"].items():
        gmacs = record["gmacs"].get(kind)
        reached = f"{100 * gmacs / seconds / record['matmul_gmacs_per_second']:.0f} %" if gmacs else ""
        rows.append([kind, f"{100 * seconds / whole:.0f} %", "" if gmacs is None else f"{gmacs:.1f}", reached])
    table = markdown.table(["operators of the UNet", "share of its time", "GMACs", "share of the ceiling"], rows)
    return (
        f"{table}\n\n{record['resolution']} px, float32, {record['instructions']}, {record['threads']} threads, random "
        f"weights, median of {record['repeats']}. The ceiling is a square matrix product."
    )
