"""Restore photos and aligned faces: `python scripts/restore.py input=PHOTO|FOLDER|VIDEO|PATTERN output=FOLDER`."""

import sys
from pathlib import Path

from lafr.commands.launch import run

HOW = ("fidelity", "upscale", "force", "aligned", "side_by_side", "again")  # arguments of `restore_files`
MADE_BY = ("detector", "mask", "upscaler", "fast", "dtype", "compile")  # what else an output depends on


def main(cfg) -> None:
    """Restore every file; one that cannot be read is reported and skipped, and the exit code is 1."""
    from contextlib import nullcontext

    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from lafr.commands.devices import choose_device
    from lafr.errors import InputError
    from lafr.models.fast import memory_kept, optimised
    from lafr.models.restorer import Restorer
    from lafr.photos.journal import folder_state
    from lafr.photos.pasting import mask_named
    from lafr.photos.restorer import PhotoRestorer
    from lafr.photos.restoring import print_outcome, restore_files

    if not cfg.fast and (cfg.dtype != "auto" or cfg.compile):
        raise InputError(f"dtype={cfg.dtype} and compile={cfg.compile} are settings of the fast path; add fast=true")
    device, settings = choose_device(cfg.device), OmegaConf.to_container(cfg, resolve=True)
    restorer = Restorer.from_pretrained(cfg.model.folder).to(device)
    if cfg.fast:
        optimised(restorer, device, cfg.dtype, cfg.compile)
    detector, upscaler = instantiate(cfg.get("detector"), _convert_="all"), instantiate(cfg.get("upscaler"))
    mask = mask_named(cfg.get("mask", "ellipse"))
    photos = PhotoRestorer(restorer, detector, cfg.batch_size, mask, upscaler, equal_batches=cfg.compile)
    how = {key: settings[key] for key in HOW if key in settings}
    made_by = {"model": folder_state(cfg.model.folder), **{key: settings.get(key) for key in MADE_BY}}
    with memory_kept() if cfg.fast else nullcontext():
        outcome = restore_files(photos, [str(cfg.input)], Path(str(cfg.output)), **how, settings=made_by)
    if not print_outcome(outcome, cfg.output):
        sys.exit(1)


def command() -> None:
    """Run the command line."""
    run(main, "restore")


if __name__ == "__main__":
    command()
