"""Restore aligned faces: `python scripts/restore.py input=FILE_OR_FOLDER output=FOLDER`."""

import sys
from pathlib import Path

from command import run


def main(cfg) -> None:
    """Restore every image, in batches; one that cannot be read is reported and skipped, and the exit code is 1."""
    from lafr.devices import choose_device
    from lafr.models.restorer import Restorer
    from lafr.restoring import restore_files

    source = Path(str(cfg.input))
    restorer = Restorer.from_pretrained(cfg.model.folder).to(choose_device(cfg.device))
    done, skipped = restore_files(restorer, source, Path(str(cfg.output)), cfg.batch_size, cfg.side_by_side)
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    print(f"restored {len(done)} of {len(done) + len(skipped)} into {cfg.output}")
    if skipped:
        sys.exit(1)


if __name__ == "__main__":
    run(main, "restore")
