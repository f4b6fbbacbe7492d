"""Restore aligned faces: `python scripts/restore.py input=FILE_OR_FOLDER output=FOLDER`."""

import sys
from pathlib import Path

from command import run


def main(cfg) -> None:
    """Restore every image, in batches; one that cannot be read is reported and skipped, and the exit code is 1."""
    from contextlib import nullcontext

    from lafr.devices import choose_device
    from lafr.errors import InputError
    from lafr.inference import memory_kept, optimised
    from lafr.models.restorer import Restorer
    from lafr.restoring import restore_files

    if not cfg.fast and (cfg.dtype != "auto" or cfg.compile):
        raise InputError(f"dtype={cfg.dtype} and compile={cfg.compile} are settings of the fast path; add fast=true")
    source, output, device = Path(str(cfg.input)), Path(str(cfg.output)), choose_device(cfg.device)
    restorer = Restorer.from_pretrained(cfg.model.folder).to(device)
    if cfg.fast:
        optimised(restorer, device, cfg.dtype, cfg.compile)
    with memory_kept() if cfg.fast else nullcontext():
        done, skipped = restore_files(restorer, source, output, cfg.batch_size, cfg.side_by_side, cfg.compile)
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    print(f"restored {len(done)} of {len(done) + len(skipped)} into {cfg.output}")
    if skipped:
        sys.exit(1)


if __name__ == "__main__":
    run(main, "restore")
