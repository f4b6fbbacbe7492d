"""Restore photos, aligned faces and videos: `lafr restore PATH... -o FOLDER`."""

import argparse
import glob
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from lafr.commands.doors import Parser, as_option, one_line_errors, require_device_name
from lafr.errors import InputError, Spell, as_python, need
from lafr.models.saved import Saved

# `extension`, `only_center_face` and the like are named as arguments of `restore_files`
PASSED_ON = (
    "fidelity",
    "upscale",
    "force",
    "aligned",
    "side_by_side",
    "again",
    "extension",
    "suffix",
    "save_faces",
    "only_center_face",
)
MADE_BY = ("detector", "mask", "upscaler", "fast", "dtype", "compile")  # what else an output depends on
EXAMPLES = """\
Faces of 24 px and more are restored; in photos of 24 megapixels upright ones are found from 32 px on.

examples:
  {prog} photo.jpg -o restored
  {prog} holiday/ 'more/*.png' -o restored --upscale 2 --ext jpg
  {prog} aligned_faces/ -o restored --aligned true --model runs/NAME/model --fast
"""


def parser() -> Parser:
    """Return the parser of the command's arguments: the only table of them."""
    description = "Restore the faces of photos and videos. The rest of a photo is unchanged, and so is the input."
    top = Parser(description)
    top.epilog = EXAMPLES.format(prog=top.prog)
    add = top.add_argument
    add("paths", nargs="+", metavar="PATH", help="photos, folders, videos or quoted patterns; any file name")
    add("-o", "--output", required=True, metavar="FOLDER", help="folder of the results, which keep the inputs' names")

    add = top.add_argument_group("how faces are restored").add_argument
    add("--model", default="mini", metavar="FOLDER", help='a trained model, or "mini" (128 px; default)')
    add(
        "--decoder", default=None, metavar="NAME", help="base (default), tiny (faster, less exact) or a folder with one"
    )
    add("--base", default=None, metavar="FOLDER", help="where the model's base is, if it isn't where the model says")
    add("--fidelity", type=share, default=0.0, metavar="0..1", help="0: as trained (default); 1: nearest the input")
    add("--upscale", type=int, default=1, choices=(1, 2, 4), help="times a photo's size (default 1)")
    add(
        "--aligned",
        default="auto",
        type=yes_no_auto,
        metavar="true|false|auto",
        help="whether each image is one face in FFHQ's alignment; auto (default): by shape and face",
    )
    add("--force", action="store_true", help="restore faces also where they are sharp, small, in profile or cut off")
    add("--only-center-face", action="store_true", help="restore only the face nearest to a photo's centre")
    add(
        "--no-guard",
        dest="guard",
        action="store_false",
        help="restore also where the result looks like someone else, or the face was sharp already",
    )
    add("--max-megapixels", type=float, default=64, metavar="N", help="skip photos with more (default 64)")
    add(
        "--detector",
        default="yunet",
        metavar="NAME",
        help="yunet (default), dlib, retinaface, scrfd, or your own as MODULE:CLASS: CLASS() finds an image's faces",
    )
    add("--mask", default="ellipse", choices=("ellipse", "parsing"), help="what of a face goes back into the photo")
    add(
        "--upscaler",
        default=None,
        metavar="MODULE:CLASS",
        help="enlarges what is no face, instead of Lanczos: CLASS() is called with (RGB image, 2 or 4)",
    )

    add = top.add_argument_group("what is written").add_argument
    add("--ext", dest="extension", default="png", choices=("png", "jpg", "webp"), help="format of images (default png)")
    add("--suffix", default="", metavar="TEXT", help="added to each name: photo_TEXT.png")
    add("--save-faces", action="store_true", help="write each face too: cropped_faces/ and restored_faces/")
    add("--no-side-by-side", dest="side_by_side", action="store_false", help="write no before | after images")
    add("--again", action="store_true", help="restore also what the output folder records as done")
    add("--quiet", action="store_true", help="print errors only")

    add = top.add_argument_group("where and how fast").add_argument
    add("--device", default="auto", type=device, metavar="NAME", help="auto (default), cpu, cuda, cuda:N or mps")
    add("--batch-size", type=int, default=8, metavar="N", help="faces at once (default 8)")
    add(
        "--fast",
        action="store_true",
        help="other layers, order and precision for the same function; pixels differ in the last bits",
    )
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="with --fast; auto: bfloat16 where the device has it, else float16 (CUDA) or float32",
    )
    add("--compile", action="store_true", help="with --fast: torch.compile, minutes before the first batch")
    return top


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def yes_no_auto(text: str) -> bool | str:
    """Return True, False or "auto"."""
    known: dict[str, bool | str] = {"true": True, "false": False, "auto": "auto"}
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is none of true, false, auto")
    return known[text]


def device(text: str) -> str:
    """Return a device's name."""
    try:
        return require_device_name(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def require_inputs(paths: list[str]) -> None:
    """Raise InputError when no path leads to a file; one missing file among several is reported as it is read."""
    if not any(os.path.lexists(path) or glob.glob(path, recursive=True) for path in paths):
        missing = ", ".join(map(repr, paths))
        raise InputError(f"input {missing} does not exist; give an image, a video or a folder")


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Let installed packages seem absent to what is imported meanwhile.

    diffusers imports peft and transformers, and both import SciPy, wherever they are installed: together a third of
    the time to the first result, for LoRAs in training, prompts and schedulers, which restoring never uses.
    """
    absent = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: Python's own mark of an absent module
    try:
        yield
    finally:
        for name in absent:  # what is imported later may need it
            del sys.modules[name]


def restore(given: argparse.Namespace, spell: Spell = as_python) -> bool:
    """Restore every file; returns whether none was skipped."""
    require_inputs(given.paths)
    if not given.fast and (given.dtype != "auto" or given.compile):
        raise InputError("--dtype and --compile are settings of the fast path; add --fast")
    if given.model.partition("/")[0] != "mini":
        Saved.read(Path(given.model))  # before torch is imported: a folder that is no model is said at once
    if not given.quiet:
        print(f"loading {given.model} ...", file=sys.stderr, flush=True)
        if given.model.partition("/")[0] == "mini":
            print("mini is a demonstration at 128 px, not a tool for your photographs", file=sys.stderr, flush=True)
    # diffusers looks once for what is installed, and code of the user's own may need all of it
    own_code = given.upscaler or ":" in given.detector
    with hidden("scipy", *(() if own_code else ("peft", "transformers"))):
        from lafr.commands.devices import choose_device
        from lafr.models.fast import memory_kept, optimised
        from lafr.models.restorer import Restorer, model_folder
        from lafr.photos.detectors import built, detector_named
        from lafr.photos.files import VIDEOS
        from lafr.photos.journal import folder_state
        from lafr.photos.pasting import mask_named
        from lafr.photos.restorer import PhotoRestorer
        from lafr.photos.restoring import print_outcome, restore_files

    # before the model, which takes longer: what is missing is said at once
    if all(Path(path).suffix.lower() in VIDEOS for path in given.paths):
        need("av", "'lafr[video]'")
    place, detector = choose_device(given.device), detector_named(given.detector)
    mask, upscaler = mask_named(given.mask), built("upscaler", given.upscaler) if given.upscaler else None
    restorer = Restorer.from_pretrained(given.model, given.base, decoder=given.decoder, merged=True).to(place)
    if given.fast:
        optimised(restorer, place, given.dtype, given.compile)
    photos = PhotoRestorer(
        restorer,
        detector,
        given.batch_size,
        mask,
        upscaler,
        equal_batches=given.compile,
        guard=given.guard,
        max_megapixels=given.max_megapixels,
    )
    made_by = {"model": folder_state(given.model, model_folder(given.model))}
    made_by |= {name: getattr(given, name) for name in MADE_BY}
    if given.base:
        made_by["base"] = folder_state(given.base)
    if given.decoder:  # "base" and "tiny" are names, whatever lies in the working directory
        made_by["decoder"] = given.decoder if given.decoder in ("base", "tiny") else folder_state(given.decoder)
    with memory_kept() if given.fast else nullcontext():
        outcome = restore_files(
            photos,
            given.paths,
            Path(given.output),
            **{name: getattr(given, name) for name in PASSED_ON},
            progress=not given.quiet,
            settings=made_by,
        )
    return print_outcome(outcome, given.output, given.quiet, spell)


def command() -> None:
    """Run the command line."""
    options = parser()
    given = options.parse_args()
    spell = as_option(options)
    with one_line_errors(spell):
        complete = restore(given, spell)
    if not complete:
        sys.exit(1)


if __name__ == "__main__":
    command()
