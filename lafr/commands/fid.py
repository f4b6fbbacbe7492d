"""Statistics for FID: `lafr fid input=FOLDER output=data/fid/ffhq512.safetensors`."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from lafr.commands.launch import run
from lafr.errors import InputError, require_whole


def main(cfg: DictConfig) -> None:
    """Write the mean and covariance of Inception's features of a folder of sharp faces."""
    if not Path(cfg.input).is_dir():
        raise InputError("input", cfg.input, "a folder of images")
    require_whole(1, resolution=cfg.resolution, batch_size=cfg.batch_size)
    if cfg.count is not None:
        require_whole(2, count=cfg.count)
    print("loading Inception ...", file=sys.stderr, flush=True)
    import numpy as np

    from lafr.commands.devices import choose_device
    from lafr.images import list_images
    from lafr.metrics.distribution import Inception
    from lafr.metrics.statistics import build_statistics

    device = choose_device(cfg.device)
    images = list_images(cfg.input)
    if cfg.count is not None:
        if not 2 <= cfg.count <= len(images):
            raise InputError("count", cfg.count, f"from 2 to {len(images)}, the images in {cfg.input!r}")
        chosen = np.random.default_rng(cfg.seed).choice(len(images), cfg.count, replace=False)
        images = [images[i] for i in sorted(chosen)]
    made = build_statistics(images, cfg.output, Inception(), cfg.name, cfg.resolution, cfg.batch_size, device)
    print(
        f"statistics  {cfg.output}: {made.images} images of {made.name}, {len(made.mean)} features of {made.features}"
    )
    print(f"sha256      {made.sha256}")


def command() -> None:
    """Run the command line."""
    run(main, "fid_statistics")


if __name__ == "__main__":
    command()
