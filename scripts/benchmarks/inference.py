"""How fast one step is, part by part, compared with a full UNet with prompt and time: what OSEDiff computes.

With the tiny decoder encoder, adapter and UNet are the same modules, timed again.
"""

import copy
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median

import torch
from diffusers import AutoencoderTiny
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from lafr.commands.devices import choose_device
from lafr.errors import InputError
from lafr.evaluation import markdown
from lafr.models.base.model import Base
from lafr.models.codec import Codec
from lafr.models.denoiser import Denoiser
from lafr.models.fast import choose_dtype, memory_kept, optimised
from lafr.models.restorer import Restorer
from lafr.training.timing import first_call, measure

REFERENCE_TIMESTEP = 999  # OSEDiff's
CLOCKS = {"elapsed": time.perf_counter, "processor": time.process_time}
DECODERS = ("base", "tiny")


@dataclass
class Method:
    """One method of restoring: its parts in order, each a function of the previous result, and its measurements."""

    dtype: torch.dtype
    parts: dict[str, Callable]
    keeps_memory: bool = False
    psnr: float | None = None
    first_seconds: float = 0.0
    peak_mb: float = 0.0
    gmacs: dict[str, float] = field(default_factory=dict)
    seconds: list[dict[str, float]] = field(default_factory=list)

    def each(self, batch_size: int) -> list[dict[str, float]]:
        """Return the seconds of each turn for one image."""
        return [scaled(turn, 1 / batch_size) for turn in self.seconds]


def inference(cfg: DictConfig) -> dict:
    """Return time of each part, peak memory, multiplications and quality, for each dtype and batch size."""
    device, size = choose_device(cfg.device), cfg[cfg.scale]
    if cfg.clock not in CLOCKS:
        raise InputError("clock", cfg.clock, f"one of {', '.join(CLOCKS)}")
    clock = CLOCKS[cfg.clock]
    if cfg.clock == "processor":
        torch.set_num_threads(1)  # waiting threads would count as working
    methods = build_methods(cfg, size, device)
    generator = torch.Generator().manual_seed(cfg.seed)
    found: dict[str, dict] = {}
    ceiling: dict = {}
    first: dict[str, list[dict[str, float]]] = {}
    bar = tqdm(total=len(cfg.batch_sizes) * len(methods) * (cfg.repeats + 1), desc="inference", unit="pass")
    for batch_size in cfg.batch_sizes:
        shape = (batch_size, 3, size.resolution, size.resolution)
        lq = torch.rand(shape, generator=generator).mul(2).sub(1).to(device)
        for method in methods.values():
            method.seconds.clear()
            warm_up(method, lq, device)
            bar.update()
        for _ in range(cfg.repeats):  # in turns: what slows the machine for a while slows every method
            for method in methods.values():
                method.seconds.append(timed_pass(method, lq, device, clock))
                ceiling.setdefault(str(method.dtype), []).append(
                    matmul_gmacs(cfg.matmul_side, method.dtype, device, clock)
                )
                bar.update()
        for name, method in methods.items():
            # without a reference a method is compared with itself at the first batch size, image by image
            own = [scaled(turn, batch_size) for turn in first.setdefault(name, method.each(batch_size))]
            compared = methods["reference"].seconds if cfg.reference else own
            found.setdefault(str(batch_size), {})[name] = summary(method, batch_size, compared)
    bar.close()
    return {
        "file": cfg.file or ("inference" if cfg.scale == "full" else f"inference_{cfg.scale}"),
        "scale": cfg.scale,
        "batches": found,
        "matmul_gmacs_per_second": {dtype.removeprefix("torch."): max(values) for dtype, values in ceiling.items()},
        "repeats": cfg.repeats,
        "resolution": size.resolution,
        "reference": cfg.reference,
        "clock": cfg.clock,
        "instructions": instructions(),
        "device": str(device),
    }


def instructions() -> str:
    """Return the processor's vector instructions in use, and which variable restricts them."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    found = torch.backends.cpu.get_cpu_capability()
    return f"{found}, simulated by ONEDNN_MAX_CPU_ISA={limit} and ATEN_CPU_CAPABILITY" if limit else found


def scaled(turn: dict[str, float], times: float) -> dict[str, float]:
    """Return a turn's seconds, multiplied."""
    return {part: times * seconds for part, seconds in turn.items()}


def build_methods(cfg: DictConfig, size: DictConfig, device: torch.device) -> dict[str, Method]:
    """Return the reference and each of LAFR's methods, which know their PSNR, on the same random weights."""
    if set(cfg.decoders) - set(DECODERS) or not cfg.decoders:
        raise InputError("decoders", list(cfg.decoders), f"some of {', '.join(DECODERS)}")
    with device:  # random weights are made where they are needed
        base = instantiate(size.build, _convert_="all")
    lq = random_image(size.resolution, cfg.seed)
    methods, exact = {}, None
    for dtype in cfg.dtypes:
        for compiled in cfg.compile if dtype != "exact" else [False]:
            restorer = new_restorer(base, size, lq, cfg.seed).to(device)
            if "tiny" in cfg.decoders:
                restorer.codec.tiny = tiny_decoder(size, cfg.seed, device)
            if exact is None:
                exact = decoded(restorer, lq.to(device), cfg.decoders)
            chosen = torch.float32
            if dtype != "exact":
                chosen = choose_dtype(dtype, device)
                optimised(restorer, device, dtype, compile=compiled)
            name = f"LAFR {dtype if dtype == 'exact' else str(chosen)[6:]}{', compiled' if compiled else ''}"
            images = decoded(restorer, lq.to(device), cfg.decoders)
            for decoder in cfg.decoders:
                own = name if decoder == "base" else f"{name}, tiny decoder"
                methods[own] = Method(chosen, parts_of(restorer, decoder), keeps_memory=dtype != "exact")
                methods[own].psnr = psnr(images[decoder], exact[decoder])
    if not cfg.reference:
        return methods
    reference = reference_method(base, size, device)  # last: it puts the base itself on the device
    return {"reference": reference, **methods}


def parts_of(restorer: Restorer, decoder: str) -> dict[str, Callable]:
    """Return a restorer's parts with one of its two decoders, "base" or "tiny"."""
    codec = restorer.codec if decoder == "tiny" else Codec(restorer.codec.vae)
    return {
        "encoder": restorer.codec.encode,
        "adapter": restorer.adapter,
        "UNet": restorer.denoiser,
        "decoder": codec.decode,
    }


def decoded(restorer: Restorer, lq: Tensor, decoders: Sequence[str]) -> dict[str, Tensor]:
    """Return what each decoder makes of a batch."""
    with torch.inference_mode(), memory_kept():
        z = restorer.latents(lq).z_restored
        return {decoder: parts_of(restorer, decoder)["decoder"](z) for decoder in decoders}


def tiny_decoder(size: DictConfig, seed: int, device: torch.device) -> AutoencoderTiny:
    """Return a tiny decoder with random weights, by default of TAESD's shape."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tiny = AutoencoderTiny(**size.get("tiny", {}))
    tiny.encoder = torch.nn.Identity()
    return tiny.to(device).requires_grad_(False).eval()


def new_restorer(base: Base, size: DictConfig, lq: Tensor, seed: int) -> Restorer:
    """Return a frozen restorer on a copy of `base`; its codes are fitted to the latents of `lq`, as training would."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = instantiate(size.adapter, _convert_="all")
    own = copy.deepcopy(base)
    denoiser = Denoiser.from_base(own.unet, own.scheduler, size.timestep)
    denoiser.add_lora(seed=seed)
    restorer = Restorer(own.codec(), adapter, denoiser, size.resolution).requires_grad_(False).eval()
    if adapter.quantizer.has_codes:
        device = next(restorer.codec.parameters()).device  # the adapter is still on the CPU, as its random numbers are
        with torch.no_grad():
            features = adapter.extract(restorer.codec.encode(lq.to(device)).cpu())
        adapter.quantizer.initialise(features, torch.Generator().manual_seed(seed))
    return restorer


def reference_method(base: Base, size: DictConfig, device: torch.device) -> Method:
    """Return OSEDiff's pass with the same modules: eager, contiguous, float32 on a CPU and float16 on a GPU.

    Its LoRA is merged, as OSEDiff's is; its prompt is given as an embedding, so that no text encoder is timed.
    """
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    vae, unet = (torch.nn.Module.to(part, device, dtype).eval() for part in (base.vae, base.unet))
    prompt = torch.randn(
        1, size.prompt_tokens, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(0)
    ).to(device, dtype)
    signal = float(base.scheduler.alphas_cumprod[REFERENCE_TIMESTEP]) ** 0.5
    noise = (1 - signal**2) ** 0.5
    timestep = torch.tensor(REFERENCE_TIMESTEP, device=device)

    def step(z: Tensor) -> Tensor:
        return (z - noise * unet(z, timestep, prompt.expand(len(z), -1, -1)).sample) / signal

    scale = vae.config.scaling_factor
    return Method(
        dtype,
        {
            "encoder": lambda lq: vae.encode(lq.to(dtype)).latent_dist.mode() * scale,
            "UNet": step,
            "decoder": lambda z: vae.decode(z / scale).sample,
        },
    )


def run(method: Method, x: Tensor) -> Tensor:
    """Return the method's result for the batch `x`."""
    with torch.inference_mode():
        for part in method.parts.values():
            x = part(x)
    return x


def warm_up(method: Method, lq: Tensor, device: torch.device) -> None:
    """Run the method once, for compilation, caches and peak memory, and count its multiplications."""
    with memory_kept_by(method):
        method.first_seconds, method.peak_mb = first_call(lambda: run(method, lq), device)
    method.gmacs = counted(method, lq)


def counted(method: Method, lq: Tensor) -> dict[str, float]:
    """Return the multiplications of each part in units of 1e9: matrix products, convolutions and attention."""
    found, x = {}, lq
    for name, part in method.parts.items():
        if name == "adapter":  # its search reads values, and it is small
            found[name], _ = multiplications(part, torch.zeros(x.shape, device=lq.device))
        else:
            with FakeTensorMode(allow_non_fake_inputs=True):
                found[name], x = multiplications(part, torch.empty(x.shape, dtype=x.dtype, device=lq.device))
    return {name: sum(of.values()) for name, of in found.items()}


def multiplications(compute: Callable, x: Tensor) -> tuple[dict[str, float], Tensor]:
    """Return operator -> its multiplications in units of 1e9, in one call with `x`, and what the call returns."""
    counter = FlopCounterMode(display=False)
    plain_attention = sdpa_kernel(SDPBackend.MATH)  # the counter doesn't know a CPU's fused one
    with torch.no_grad(), plain_attention, torch.compiler.set_stance("force_eager"), counter:
        result = compute(x)
    counts = counter.get_flop_counts().get("Global", {})
    return {str(operator): flops / 2e9 for operator, flops in counts.items()}, result


def random_image(side: int, seed: int) -> Tensor:
    """Return one image `[1, 3, side, side]` of noise in [-1, 1]."""
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed)).mul(2).sub(1)


def timed_pass(
    method: Method, lq: Tensor, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the seconds of each part of one pass, and of the whole: their sum."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    seconds, x = {}, lq
    with torch.inference_mode(), memory_kept_by(method):
        for name, part in method.parts.items():
            started = now()
            x = part(x)
            seconds[name] = now() - started
    return seconds | {"whole": sum(seconds.values())}


def memory_kept_by(method: Method) -> AbstractContextManager:
    """Return the context that the method runs in."""
    return memory_kept() if method.keeps_memory else nullcontext()


def matmul_gmacs(
    side: int, dtype: torch.dtype, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the 1e9 multiplications a second of a square matrix product: a ceiling for any network."""
    a = torch.ones(side, side, dtype=dtype, device=device)
    if clock is time.perf_counter:
        return side**3 / 1e9 / measure(lambda: a @ a, device, repeats=3).fastest
    fastest = float("inf")
    for _ in range(4):
        started = clock()
        a @ a
        fastest = min(fastest, clock() - started)
    return side**3 / 1e9 / fastest


def psnr(restored: Tensor, exact: Tensor) -> float:
    """Return the PSNR in dB of a restored batch, relative to the range of the exact one."""
    error = (restored.float() - exact.float()).square().mean()
    return float(10 * ((exact.max() - exact.min()).square() / error).log10())


def summary(method: Method, batch_size: int, reference: Sequence[dict[str, float]]) -> dict:
    """Return a method's part of the record; `reference` holds the seconds of each turn that it is compared with."""
    parts = {}
    for name in method.seconds[0]:
        own = [seconds[name] for seconds in method.seconds]
        parts[name] = {
            "seconds": median(own),
            "fastest": min(own),
            "slowest": max(own),
            "gmacs": method.gmacs[name] if name != "whole" else sum(method.gmacs.values()),
        }
        if name in reference[0]:
            ratios = [theirs[name] / ours for theirs, ours in zip(reference, own, strict=True)]
            parts[name] |= {"speed": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    whole = parts["whole"]["seconds"]
    return {
        "dtype": str(method.dtype).removeprefix("torch."),
        "parts": parts,
        "ms_per_image": 1000 * whole / batch_size,
        "images_per_second": batch_size / whole,
        "first_seconds": method.first_seconds,
        "peak_mb": method.peak_mb,
        "psnr_to_exact": method.psnr,
    }


def inference_table(record: dict) -> str:
    """Return speed relative to the reference as a Markdown table, and its bound below; on a GPU milliseconds too."""
    names = ("encoder", "UNet", "decoder", "whole")
    absolute = record["device"] != "cpu"
    speeds, shares = [], []
    for batch, methods in record["batches"].items():
        for name, found in methods.items():
            parts, whole = found["parts"], found["parts"]["whole"]
            quality = "" if found["psnr_to_exact"] is None else f"{found['psnr_to_exact']:.1f}"
            speed = [f"{parts[part]['speed']:.2f}x" for part in names]
            spread = f"{whole['lowest']:.2f}–{whole['highest']:.2f}x"
            times = [f"{found['ms_per_image']:.1f}", f"{found['images_per_second']:.1f}"] if absolute else []
            speeds.append([batch, name, *speed, spread, f"{found['peak_mb']:.0f}", quality, *times])
            ceiling = record["matmul_gmacs_per_second"][found["dtype"]]
            share = [parts[part]["gmacs"] / parts[part]["seconds"] / ceiling for part in names]
            shares.append(
                [batch, name, f"{whole['gmacs'] / int(batch):.1f}", *(f"{100 * value:.0f} %" for value in share)]
            )
    columns = ["batch", "method", *names, "lowest–highest", "peak memory, MB", "PSNR to exact, dB"]
    of_speeds = markdown.table([*columns, *(["ms an image", "images/s"] if absolute else [])], speeds)
    columns = ["batch", "method", "GMACs an image", "share of the ceiling: encoder", "UNet", "decoder", "whole"]
    of_shares = markdown.table(columns, shares)
    where = "on a GPU" if absolute else f"cpu ({record.get('instructions', 'AVX512')}), {record['threads']} threads"
    where += ", processor time on a shared machine" if record.get("clock") == "processor" else ""
    alone = not record.get("reference", True)
    compared = "itself at the first batch size, an image" if alone else "the reference in the same turn"
    return (
        f"{of_speeds}\n\n{of_shares}\n\n{record['resolution']} px, {where}, random weights; speed relative to "
        f"{compared}, median of {record['repeats']}. The ceiling is a square matrix product in the method's dtype; "
        "PSNR is to float32 with the same decoder."
    )
