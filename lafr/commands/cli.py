"""The installed command: `lafr restore PATH... -o FOLDER`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lafr import __version__
from lafr.commands.doors import as_option
from lafr.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 1 when something could not be restored."""
    given = parser().parse_args(arguments)
    try:
        return given.task(given)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
    except (InputError, OSError) as error:
        if os.environ.get("LAFR_TRACEBACK"):
            raise
        message = error.told(as_option(given.parser)) if isinstance(error, InputError) else str(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="lafr", description="Latent Alignment for Face Restoration.")
    top.add_argument("--version", action="version", version=f"lafr {__version__}")
    tasks = top.add_subparsers(required=True, metavar="COMMAND")
    restore = tasks.add_parser(
        "restore",
        help="restore the faces of photos and videos, and aligned faces",
        description="Restore the faces of photos; the rest of a photo stays as it is, and so does the input.",
    )
    restore.set_defaults(task=restore_command, parser=restore)
    add = restore.add_argument
    add("paths", nargs="+", metavar="PATH", help="photos, folders, videos or quoted patterns; any file name")
    add("-o", "--output", required=True, metavar="FOLDER", help="where the results go, under the same names")
    add("--model", default="mini", metavar="FOLDER", help='of a trained model, or "mini" (128 px)')
    add("--fidelity", type=float, default=0.0, metavar="0..1", help="0: as trained (default); 1: nearest the input")
    add("--upscale", type=int, default=1, choices=(1, 2, 4), help="times a photo's size (default 1)")
    add("--aligned", default="auto", choices=("auto", "true", "false"), help="are the pictures aligned faces?")
    add("--force", action="store_true", help="also faces already sharp, in profile or cut by the border")
    add("--detector", default="yunet", metavar="NAME", help="yunet (default), dlib, retinaface or scrfd")
    add("--mask", default="ellipse", choices=("ellipse", "parsing"), help="what of a face goes back into the photo")
    add("--batch-size", type=int, default=8, metavar="N", help="faces at once (default 8)")
    add("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda or mps")
    add("--no-side-by-side", action="store_true", help="write no before | after pictures")
    add("--again", action="store_true", help="restore also what the output folder says is done")
    return top


def restore_command(given: argparse.Namespace) -> int:
    """Restore what `lafr restore` was given."""
    from lafr.commands.devices import choose_device
    from lafr.models.restorer import Restorer
    from lafr.photos.detectors import detector_named
    from lafr.photos.journal import folder_state
    from lafr.photos.pasting import mask_named
    from lafr.photos.restorer import PhotoRestorer
    from lafr.photos.restoring import print_outcome, restore_files

    restorer = Restorer.from_pretrained(given.model).to(choose_device(given.device))
    photos = PhotoRestorer(restorer, detector_named(given.detector), given.batch_size, mask_named(given.mask))
    outcome = restore_files(
        photos,
        given.paths,
        Path(given.output),
        fidelity=given.fidelity,
        upscale=given.upscale,
        force=given.force,
        aligned={"true": True, "false": False}.get(given.aligned, "auto"),
        side_by_side=not given.no_side_by_side,
        again=given.again,
        settings={"model": folder_state(given.model), "detector": given.detector, "mask": given.mask},
    )
    return 0 if print_outcome(outcome, given.output) else 1


if __name__ == "__main__":
    sys.exit(main())
