"""How fast a recipe's degradation chain is, as a multiple of BasicSR's speed."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from lafr.commands.devices import choose_device
from lafr.data.degradation.batched import apply_batch
from lafr.data.degradation.kernels import make_kernel
from lafr.data.degradation.operators import OPERATORS, apply
from lafr.data.packaged import ASTRONAUT, PackagedFaces
from lafr.errors import InputError
from lafr.evaluation import markdown
from scripts.benchmarks.reference import FETCH, basicsr_module

FIRST_ORDER = ["blur_down", "gaussian_noise", "jpeg", "resize"]  # steps of the chains that are compared


def degradation(cfg: DictConfig) -> dict:
    """Return images per second of a recipe's chain on one core: BasicSR's functions, ours, ours on batched tensors."""
    device = choose_device(cfg.device)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    recipe = HydraConfig.get().runtime.choices["degradation"]
    chain = instantiate(cfg.degradation, _convert_="all")
    hq = PackagedFaces(cfg.resolution, ASTRONAUT)[0]
    records = [
        chain.draw(cfg.resolution, cfg.resolution, np.random.default_rng([cfg.seed, n])) for n in range(cfg.images)
    ]
    if [step["op"] for step in records[0][:4]] != FIRST_ORDER:
        raise InputError(f"{recipe} is not of first order ({', '.join(FIRST_ORDER)}), and has no reference here")
    basicsr = basicsr_module("data/degradations.py")
    reference = "BasicSR 1.4.2" if basicsr else "the same OpenCV calls"
    if basicsr is None:
        print(f"BasicSR's source package is missing: {FETCH}")
    bgr = np.ascontiguousarray(((hq + 1) / 2).permute(1, 2, 0).numpy()[..., ::-1])
    batches = [records[start : start + cfg.batch_size] for start in range(0, len(records), cfg.batch_size)]
    faces = hq.to(device).expand(cfg.batch_size, -1, -1, -1)

    def tensors() -> None:
        for batch in batches:
            apply_batch(batch, faces[: len(batch)])
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    chains = {
        reference: lambda: [reference_chain(basicsr, bgr, record) for record in records],
        "LAFR": lambda: [apply(record, hq) for record in records],
        f"LAFR, batches of {cfg.batch_size} on {device.type}": tensors,
    }
    seconds = timed_in_turn(chains, cfg.repeats)
    speeds = {name: speed(times, seconds[reference], len(records)) for name, times in seconds.items()}
    return {
        "file": f"degradation_{recipe}",
        "reference": reference,
        "rows": speeds,
        "resolution": cfg.resolution,
        "images": len(records),
        "recipe": recipe,
        "device": str(device),
    }


def timed_in_turn(chains: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Return the seconds of each chain's repeats, taken in turn so that a busy machine slows all of them."""
    for work in chains.values():  # warm-up
        work()
    seconds: dict[str, list[float]] = {name: [] for name in chains}
    for _ in tqdm(range(repeats), desc="degradation", unit="round"):
        for name, work in chains.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(times) for name, times in seconds.items()}


def speed(own: np.ndarray, reference: np.ndarray, images: int) -> dict[str, float]:
    """Return how many times as fast as the reference a chain is, over rounds, and its images per second."""
    ratios = reference / own
    return {
        "ratio": float(np.median(ratios)),
        "lowest": float(ratios.min()),
        "highest": float(ratios.max()),
        "images_per_second": float(images / np.median(own)),
    }


def reference_chain(basicsr: Any, image: np.ndarray, record: list[dict]) -> torch.Tensor:
    """Return `lq [3, H, W]` in [-1, 1] as GFPGAN's data set makes it of BGR `image`, by the parameters of `record`."""
    blur, noise, jpeg, _, *colour = record
    height, width = image.shape[:2]
    if basicsr:
        x, y, theta = (blur["kernel"][key] for key in ("sigma_x", "sigma_y", "theta"))
        kernel = basicsr.bivariate_Gaussian(blur["kernel"]["size"], x, y, theta, isotropic=x == y)
    else:
        kernel = make_kernel(**blur["kernel"])
    lq = cv2.filter2D(image, -1, kernel)
    size = int(width // blur["factor"]), int(height // blur["factor"])
    lq = cv2.resize(lq, size, interpolation=cv2.INTER_LINEAR)
    if basicsr:
        lq = basicsr.add_gaussian_noise(lq, noise["sigma"])
        lq = basicsr.add_jpg_compression(lq, jpeg["quality"])
    else:
        lq = np.clip(lq + np.float32(np.random.randn(*lq.shape)) * noise["sigma"] / 255, 0, 1)
        pixels = np.round(lq * 255).astype(np.uint8)
        _, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, jpeg["quality"]])
        lq = np.float32(cv2.imdecode(coded, 1)) / 255
    lq = cv2.resize(lq, (width, height), interpolation=cv2.INTER_LINEAR)
    for step in colour:  # GFPGAN calls OpenCV and torchvision here, as we do
        lq = OPERATORS[step["op"]](lq, **{key: value for key, value in step.items() if key != "op"})
    planes = torch.from_numpy(cv2.cvtColor(lq, cv2.COLOR_BGR2RGB).transpose(2, 0, 1)).float()
    return (planes * 255).round().clamp(0, 255) / 127.5 - 1


def degradation_table(record: dict) -> str:
    """Return the chains' speed as a Markdown table: images per second as a multiple of the reference's."""
    rows = []
    for name, row in record["rows"].items():
        rows.append([name, f"{row['ratio']:.2f}x", f"{row['lowest']:.2f}–{row['highest']:.2f}x"])
    return markdown.table([f"chain, `{record['recipe']}` at {record['resolution']} px", "speed", "range"], rows)
