"""The miniature's diffusion prior: its validation error against images seen, and faces that it draws."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from lafr.commands.devices import choose_device
from lafr.errors import InputError, need
from lafr.evaluation import markdown
from lafr.evaluation.figures import save_svg
from lafr.images import write_image
from lafr.miniature.objectives import PriorObjective
from lafr.models.base.model import Base
from lafr.storage import JsonLines
from lafr.training.record import settings_of

ERRORS = ("eps_mse", *(f"eps_mse_t{time}" for time in PriorObjective.PROBED))


def prior(cfg: DictConfig) -> dict:
    """Return the curve; write its figure beside the record, and the sheet of samples."""
    points = curve([Path(run) for run in cfg.runs])
    figure(points, Path(cfg.output) / "prior.svg")
    if cfg.base is not None:
        device = choose_device(cfg.device)
        faces = sampled(Base.from_pretrained(cfg.base, text=True), cfg.samples, cfg.ddim_steps, cfg.seed, device)
        write_image(tiled(faces), Path(cfg.sheet))
        print(f"samples  {cfg.sheet}")
    restored = {int(images): [last_psnr(Path(run)) for run in runs] for images, runs in (cfg.restored or {}).items()}
    return {"curve": points, "runs": list(cfg.runs), "restored": restored}


def last_psnr(run: Path) -> float:
    """Return the last validation's psnr_rgb of a run's restoration."""
    log = run / "restoration" / "log.jsonl"
    found = [line["validation/psnr_rgb"] for line in JsonLines(log).read() if "validation/psnr_rgb" in line]
    if not found:
        raise InputError("restored", str(run), "a run with a validation in its restoration")
    return found[-1]


def curve(runs: Sequence[Path]) -> list[dict]:
    """Return the errors of each validation by the number of images seen, over runs that continue one another.

    Raises InputError where one of them is not there.
    """
    points, before = [], 0
    for run in runs:
        batch_size = settings_of(run)["stage"]["prior"]["batch_size"]
        lines = JsonLines(run / "prior" / "log.jsonl").read()
        for record in lines:
            if "validation/eps_mse" in record:
                errors = {name: record[f"validation/{name}"] for name in ERRORS}
                points.append({"images": before + record["step"] * batch_size, **errors})
        # its steps, after the last of which it may not have been validated
        before += batch_size * max((record["step"] for record in lines), default=0)
    if not points:
        raise InputError("runs", [str(run) for run in runs], "runs with a validation of their prior")
    return points


@torch.no_grad()
def sampled(base: Base, count: int, steps: int, seed: int, device: torch.device) -> Tensor:
    """Return `count` faces `[N, 3, H, W]` drawn from noise by DDIM (Song et al., ICLR 2021; eta = 0)."""
    codec, unet = base.codec().to(device), base.unet.to(device).eval()
    null_embedding = base.null_condition().to(device).expand(count, -1, -1)
    # alpha_bar of the last step is the schedule's first, not 1, as in Stable Diffusion
    scheduler = DDIMScheduler.from_config(base.scheduler.config, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    side, channels = unet.config.sample_size, unet.config.in_channels
    z = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed)).to(device)
    for t in tqdm(scheduler.timesteps, desc="samples", unit="step"):
        z = scheduler.step(unet(z, t, null_embedding).sample, t, z).prev_sample
    return codec.decode(z)


def tiled(images: Tensor) -> Tensor:
    """Return images `[N, 3, H, W]` as one sheet, as square as may be, filled up in black."""
    columns = math.ceil(math.sqrt(len(images)))
    missing = -len(images) % columns
    images = torch.cat([images, -torch.ones_like(images[:missing])])
    return torch.cat([torch.cat(list(row), dim=2) for row in images.split(columns)], dim=1)


def figure(points: Sequence[dict], path: Path) -> None:
    """Draw the errors, each over its first value: they differ thirtyfold between times."""
    need("matplotlib", "'lafr[figures]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    for name in ERRORS:
        label = name.replace("eps_mse_t", "t = ").replace("eps_mse", "all t")
        relative = [point[name] / points[0][name] for point in points]
        axes.plot([point["images"] for point in points], relative, lw=2.5 if name == "eps_mse" else 1.2, label=label)
    axes.set_xlabel("images seen")
    axes.set_ylabel(f"validation error / that at {points[0]['images']:,} images")
    axes.legend(frameon=False)
    axes.grid(color="#e5e5e5", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    save_svg(drawn, path)


def prior_table(record: dict) -> str:
    """Return about ten points of the curve, the last one among them, as a Markdown table."""
    points = record["curve"]
    step = max(1, len(points) // 10)
    chosen = points[:-1:step] + points[-1:]
    rows = [[f"{point['images']:,}", *(f"{point[name]:.4f}" for name in ERRORS)] for point in chosen]
    heads = ["images seen", *(name.replace("eps_mse_t", "t = ").replace("eps_mse", "all t") for name in ERRORS)]
    told = f"{markdown.table(heads, rows)}\n\nMean squared error of the predicted noise on the validation faces."
    if record["restored"]:
        by_images = [
            [f"{int(images):,}", ", ".join(f"{one:.2f}" for one in of)] for images, of in record["restored"].items()
        ]
        told += "\n\nThe same latent restoration from each, `psnr_rgb` of the validation faces, a seed each:\n\n"
        told += markdown.table(["images seen", "dB"], by_images)
    return told
