"""Fewer bits by kept libraries: what each part of the pipeline gains at full size, and what the miniature loses."""

import copy
import gc
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from math import inf, log10
from statistics import fmean, median
from time import perf_counter

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from lafr.commands.launch import composed
from lafr.data.packaged import packaged_benchmark
from lafr.errors import InputError, need, reason_of
from lafr.evaluation import markdown
from lafr.models.fast import memory_kept, optimised
from lafr.models.restorer import Restorer
from scripts.benchmarks import inference
from scripts.benchmarks.parts import once
from scripts.benchmarks.precision_ways import CPU, EXACT, HALF, LIBRARIES, PARTS, WAYS, forget, label

LEAST = {"speed": 1.3, "psnr": 40.0}  # what a library must win, and keep, to be added
EQUAL = 1e-16  # squared error of equal images: 160 dB instead of an infinite PSNR


def precision(cfg: DictConfig) -> dict:
    """Return seconds and speed of each part by each way at full size, and the PSNR that the miniature keeps.

    Where `cfg.folder` is given, what is done is kept there and not done again: a stopped benchmark resumes. What a
    library fails to compute is left out, with its reason.
    """
    for name, known in (("ways", WAYS), ("parts", PARTS)):
        if not cfg[name] or set(cfg[name]) - set(known):
            raise InputError(name, list(cfg[name]), f"some of {', '.join(known)}")
    not_run = {way: why for way in cfg.ways if (why := WAYS[way].hindrance())}
    chosen = [way for way in cfg.ways if way not in not_run]
    packages = sorted({package for way in chosen for package in WAYS[way].packages})
    for package in packages:
        need(package, package)

    def kept(asked: Mapping, name: str, measure: Callable[[], dict]) -> dict:
        try:
            if name in cfg.left_out:
                raise InputError(cfg.left_out[name])
            return once(cfg.folder, f"{cfg.file}_{name}", asked, lambda: {"found": measure()})["found"]
        except Exception as error:  # a library's: the next way may work
            traceback.print_exc()
            not_run[name] = reason_of(error)
            return {}

    side = cfg.resolution or composed("benchmark_inference")[cfg.scale].resolution
    asked = {"scale": cfg.scale, "resolution": side, "repeats": cfg.repeats, "seed": cfg.seed}
    asked["instructions"] = inference.instructions()
    ways: dict[str, dict] = {way: {"parts": {}, "psnr": {}} for way in chosen}
    seconds = {"adapter": adapter_seconds(cfg, side)}
    for part in tqdm([part for part in PARTS if part in cfg.parts], desc="speed", unit="part"):
        turns = of_part(cfg, part, side, [way for way in chosen if part in WAYS[way].parts], partial(kept, asked))
        for way, found in turns.items():
            ways[way]["parts"][part] = summary(found)
        if turns:
            seconds[part] = median(exact for found in turns.values() for exact in found["exact"])
    miniature = Miniature.of(cfg)
    for way in tqdm([way for way in chosen if ways[way]["parts"]], desc="PSNR", unit="way"):
        parts = list(ways[way]["parts"])
        faces = {"parts": parts, "draws": cfg.draws, "calibration": cfg.calibration, **asked}
        ways[way]["psnr"] = kept(faces, f"{way}_psnr", partial(miniature.psnr, way, parts))
    forget()
    return {
        "file": cfg.file,
        "float32": seconds,
        "ways": ways,
        "not_run": not_run,
        **asked,
        "images": 7 * cfg.draws,
        "packages": {name: version(name) for name in packages},
    }


def full_size(cfg: DictConfig, part: str, side: int) -> tuple[Restorer, Callable, Tensor]:
    """Return a restorer with random weights, a part of it in PyTorch's float32, and a batch for this part.

    Where the UNet is not the part, a small one takes its place, and less memory.
    """
    sizes = composed("benchmark_inference", f"seed={cfg.seed}")
    size = sizes[cfg.scale]
    if part != "UNet":
        size.build.unet = sizes.mini.build.unet
    generator = torch.Generator().manual_seed(cfg.seed)
    lq = torch.rand(1, 3, side, side, generator=generator).mul(2).sub(1)
    restorer = inference.new_restorer(instantiate(size.build, _convert_="all"), size, lq, cfg.seed)
    restorer.denoiser.merge_lora()
    exact = inference.parts_of(optimised(copy.deepcopy(restorer), CPU, "float32"), "base")[part]
    width = side // restorer.codec.downscale
    z = torch.randn(1, restorer.codec.latent_channels, width, width, generator=generator)
    return restorer, exact, lq if part == "encoder" else z


def adapter_seconds(cfg: DictConfig, side: int) -> float:
    """Return how long the adapter takes, which every way computes in PyTorch's float32."""
    _, adapter, z = full_size(cfg, "adapter", side)
    return median(seconds_of(adapter, z) for _ in range(3))


def of_part(cfg: DictConfig, part: str, side: int, ways: Sequence[str], kept: Callable) -> dict[str, dict]:
    """Return way -> seconds of a part's turns by it, and in PyTorch's float32: see `in_turns`."""
    plain, exact, x = full_size(cfg, part, side)
    found = {}
    for way in ways:
        found[way] = kept(f"{way}_{part}", partial(in_turns, way, part, plain, exact, x, cfg.repeats))
        gc.collect()  # one way at a time is in memory
    forget()
    return {way: turns for way, turns in found.items() if turns}


def in_turns(way: str, part: str, plain: Restorer, exact: Callable, x: Tensor, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each turn of a part in PyTorch's float32 and by a way; the first is not counted."""
    own = WAYS[way].build(plain, part, (x,), True)
    with memory_kept():
        turns = [(seconds_of(exact, x), seconds_of(own, x)) for _ in range(repeats + 1)][1:]
    return {"exact": [turn[0] for turn in turns], "own": [turn[1] for turn in turns]}


def seconds_of(compute: Callable, x: Tensor) -> float:
    """Return how long a function of a batch takes."""
    with torch.inference_mode():
        started = perf_counter()
        compute(x)
        return perf_counter() - started


def summary(turns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return a part's seconds, and its speed relative to float32 in the same turn."""
    ratios = [exact / own for exact, own in zip(turns["exact"], turns["own"], strict=True)]
    return {"seconds": median(turns["own"]), "speed": median(ratios), "lowest": min(ratios), "highest": max(ratios)}


@dataclass(frozen=True)
class Miniature:
    """The miniature in float32, and what each of its parts is given for faces to calibrate on and to compare."""

    restorer: Restorer
    others: Sequence[dict[str, Tensor]]
    faces: Sequence[dict[str, Tensor]]

    @classmethod
    def of(cls, cfg: DictConfig) -> "Miniature":
        """Load the miniature and restore the packaged faces, with other degradations for calibration."""
        restorer = Restorer.from_pretrained(cfg.model.folder, merged=True)
        degradation = instantiate(cfg.degradation, _convert_="all")

        def restored(draws: int, seed: int) -> list[dict[str, Tensor]]:
            pairs = packaged_benchmark("mini", restorer.resolution, degradation, draws, seed)
            parts = inference.parts_of(restorer, "base")
            return [passed(parts, pairs[n].lq[None]) for n in range(len(pairs))]

        others = restored(-(-cfg.calibration // 7), cfg.seed + 1)[: cfg.calibration]
        return cls(restorer, others, restored(cfg.draws, cfg.seed))

    def psnr(self, way: str, parts: Sequence[str]) -> dict[str, float]:
        """Return the mean PSNR in dB of restored faces to float32: each part alone by a way, and "all" of them."""
        exact = inference.parts_of(self.restorer, "base")
        own = {
            part: WAYS[way].build(self.restorer, part, tuple(face[part] for face in self.others), False)
            for part in parts
        }
        found: dict[str, list[float]] = {}
        for face in self.faces:
            for name, changed in {**{part: {part: own[part]} for part in parts}, "all": own}.items():
                restored = passed(exact | changed, face["encoder"])["restored"]
                error = float((restored - face["restored"]).square().mean())
                # of images in [-1, 1]: the range is 2; the same codes make of another encoder's latents equal images
                found.setdefault(name, []).append(-10 * log10(max(error / 4, EQUAL)))
        return {name: fmean(values) for name, values in found.items()}


def passed(parts: Mapping[str, Callable], lq: Tensor) -> dict[str, Tensor]:
    """Return what each part is given, for the images `lq`, and the "restored" ones."""
    found, x = {}, lq
    with torch.no_grad():
        for name, part in parts.items():
            found[name] = x
            x = part(x)
    return {**found, "restored": x.clamp(-1, 1)}


def precision_table(record: dict) -> str:
    """Return speed and PSNR of each way compared with PyTorch's float32, and whether a library is worth adding."""
    rows = [[label(EXACT), *["1.00x"] * (len(PARTS) + 1), *[""] * (len(PARTS) + 1)]]
    for way, found in record["ways"].items():
        speeds = [f"{found['parts'][part]['speed']:.2f}x" if part in found["parts"] else "" for part in PARTS]
        whole = f"{speed_of(record, dict.fromkeys(found['parts'], way)):.2f}x"
        psnr = [f"{found['psnr'][name]:.1f}" if name in found["psnr"] else "" for name in (*PARTS, "all")]
        rows.append([label(way), *speeds, whole, *psnr])
    columns = ["way", *PARTS, "whole", *(f"PSNR, dB: {name}" for name in (*PARTS, "all"))]
    packages = ", ".join(f"{name} {number}" for name, number in record["packages"].items())
    notes = [
        f"{record['resolution']} px, {record['instructions']}, {record['threads']} threads; speed relative to "
        f"PyTorch's float32 (`--fast --dtype float32`) in the same turn, median of {record['repeats']}; in the whole, "
        f"what a way lacks is float32. PSNR to float32 of the miniature on {record['images']} faces.",
        f"By {packages}." if packages else "",
        "".join(f"Not run: {label(name)} ({why}). " for name, why in record["not_run"].items()),
    ]
    return f"{markdown.table(columns, rows)}\n\n{' '.join(filter(None, notes)).strip()}\n\n{verdict(record)}"


def verdict(record: dict) -> str:
    """Return the fastest mix of ours with each library that keeps the PSNR, and which is worth adding."""
    base = HALF if HALF in record["ways"] else EXACT
    ours = speed_of(record, dict.fromkeys(record["ways"].get(HALF, {"parts": ()})["parts"], HALF))
    rows, worth = [], []
    for library in dict.fromkeys(way.partition("_")[0] for way in record["ways"] if way != HALF):
        mix = best_mix(record, library)
        speed, psnr = speed_of(record, mix) / ours, psnr_of(record, mix)
        shown = [f"{speed:.2f}x", "exact" if psnr == inf else f"{psnr:.1f}"]
        rows.append([LIBRARIES[library], *(label(mix[part]) for part in PARTS), *shown])
        worth += [LIBRARIES[library]] if speed >= LEAST["speed"] else []
    if not rows:
        return "No library was measured."
    columns = ["library", *PARTS, f"whole, relative to {label(base)}", "PSNR, dB"]
    return (
        f"{markdown.table(columns, rows)}\n\nThe fastest mix of each library with our own PyTorch at "
        f"{LEAST['psnr']:.0f} dB or more, squared errors of parts added. {LEAST['speed']}x is worth adding a library: "
        f"{', '.join(worth) or 'none'}."
    )


def best_mix(record: dict, library: str) -> dict[str, str]:
    """Return part -> way of the fastest mix of a library's ways and PyTorch's that keeps the PSNR."""
    ways = {way: found for way, found in record["ways"].items() if way.partition("_")[0] in ("torch", library)}
    choices = [[EXACT, *(way for way, found in ways.items() if part in found["psnr"])] for part in PARTS]
    mixes = [dict(zip(PARTS, chosen, strict=True)) for chosen in product(*choices)]
    return max((mix for mix in mixes if psnr_of(record, mix) >= LEAST["psnr"]), key=partial(speed_of, record))


def speed_of(record: dict, mix: Mapping[str, str]) -> float:
    """Return the pipeline's speed relative to float32, each part by its way, float32 where it has none."""
    seconds, ways = record["float32"], record["ways"]
    own = {part: ways[way]["parts"][part]["speed"] for part, way in mix.items() if way != EXACT}
    return sum(seconds.values()) / sum(taken / own.get(part, 1) for part, taken in seconds.items())


def psnr_of(record: dict, mix: Mapping[str, str]) -> float:
    """Return the PSNR in dB of several parts, each by its way: their squared errors are taken to add."""
    alone = [record["ways"][way]["psnr"][part] for part, way in mix.items() if way != EXACT]
    return -10 * log10(sum(10 ** (-value / 10) for value in alone)) if alone else inf
