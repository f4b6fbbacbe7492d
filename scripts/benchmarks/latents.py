"""Time that cached HQ latents save in each stage, and the number of steps after which filling the cache pays off."""

import time
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from lafr.commands.devices import choose_device
from lafr.data.faces.sources import FaceSet
from lafr.data.latents import cached_latents
from lafr.data.stream import PairStream
from lafr.evaluation import markdown
from lafr.models.codec import Codec
from lafr.models.restorer import Restorer
from lafr.training.objectives import Objective
from lafr.training.timing import measure


def latents(cfg: DictConfig) -> dict:
    """Return seconds of an optimiser step with and without z_hq in the batch, in turn, and the cost of the cache."""
    device = choose_device(cfg.device)
    faces, _ = instantiate(cfg.data, _convert_="all")
    pairs = PairStream(faces, instantiate(cfg.degradation, _convert_="all"), cfg.seed)
    codec = Restorer.from_pretrained(cfg.model.folder).codec.to(device)
    pairs.latents, cache = filled(faces, codec, device)
    batch = {key: value.to(device) for key, value in next(iter(pairs.loader(0, 1, cfg.batch_size))).items()}
    with torch.no_grad():
        difference = float((codec.encode(batch["hq"]) - batch["z_hq"]).abs().max())
        encode = measure(lambda: codec.encode(batch["hq"]), device, 3 * cfg.rounds)
    make = measure(lambda: [pairs[n] for n in range(cfg.batch_size)], torch.device("cpu"), 3 * cfg.rounds)
    stages = {}
    for name, settings in tqdm(cfg.stage.items(), desc="latents", unit="stage"):
        objective = instantiate(settings.objective, _convert_="all")(Restorer.from_pretrained(cfg.model.folder))
        stages[name] = compared(objective.to(device).train(), batch, device, cfg.rounds)
    return {
        "stages": stages,
        "cache": cache,
        "encode_seconds": encode.seconds,  # of a batch's HQ faces: what the cache saves
        "pairs_seconds": make.seconds,  # to make a batch in one process: what the cache cannot save
        "pays_after_steps": cache["fill_seconds"] / encode.seconds,
        "largest_difference": difference,  # of a cached latent from one encoded in the batch
        "batch_size": cfg.batch_size,
        "resolution": cfg.model.resolution,
        "device": str(device),
    }


def filled(faces: FaceSet, codec: Codec, device: torch.device) -> tuple:
    """Return the latents, and the seconds to fill the cache and to read it again."""
    for i in range(len(faces)):  # decoded before the clock starts
        faces[i]
    seconds = []
    with TemporaryDirectory() as folder:
        for _ in range(2):
            started = time.perf_counter()
            z = cached_latents(faces, lambda images: codec.encode(images.to(device)), folder, codec.fingerprint())
            seconds.append(time.perf_counter() - started)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
    return z, {"faces": len(faces), "fill_seconds": seconds[0], "read_seconds": seconds[1], "megabytes": size / 1e6}


def compared(objective: Objective, batch: dict[str, Tensor], device: torch.device, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step that encodes and of one that reads the cache, and their ratio over rounds."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    def step(given: dict) -> None:
        objective.before_step([given], 0, lambda tensor: tensor)
        objective.total(objective(given)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(0, lambda tensor: tensor)

    ways = {"encoded": {key: value for key, value in batch.items() if key != "z_hq"}, "cached": batch}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for given in ways.values():
        step(given)
    for _ in range(rounds):
        for way, given in ways.items():
            seconds[way].append(measure(partial(step, given), device, repeats=3, warm_up=0).seconds)
    ratios = [cached / encoded for encoded, cached in zip(seconds["encoded"], seconds["cached"], strict=True)]
    return {
        **{f"{way}_seconds": median(own) for way, own in seconds.items()},
        "ratio": median(ratios),
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
    }


def latents_table(record: dict) -> str:
    """Return what the cache saves in each stage as a Markdown table, and what it costs in a line below."""
    rows = []
    for name, s in record["stages"].items():
        rows.append([name, f"{s['ratio']:.2f}", f"{s['smallest_ratio']:.2f}–{s['largest_ratio']:.2f}"])
    table = markdown.table(["stage", "step with the cache / without", "smallest–largest"], rows)
    cache = record["cache"]
    return (
        f"{table}\n\n{cache['faces']} faces take {cache['megabytes']:.1f} MB. Filling takes as long as encoding "
        f"{record['pays_after_steps']:.0f} batches of {record['batch_size']}, which is when it has paid."
    )
