"""Images that other methods restored: found, matched to the test images, refused where they do not fit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from lafr.errors import InputError, setting
from lafr.images import list_images, read_pil, unicode_twins

LISTED = 10  # names in an error


def folders_of(outputs: str | Sequence[str] | Mapping[str, str]) -> dict[str, Path]:
    """Return method -> folder: a mapping's own names, or the folders' names; raises InputError for two alike."""
    if isinstance(outputs, Mapping):
        return {str(name): Path(str(folder)) for name, folder in outputs.items()}
    given = [Path(str(folder)) for folder in ([outputs] if isinstance(outputs, str | Path) else outputs)]
    named = {folder.resolve().name or "outputs": folder for folder in given}
    if len(named) < len(given):
        folders = [str(folder) for folder in given]
        remedy = f"name them: {setting('outputs')}={{NAME: FOLDER, ...}}"
        raise InputError("outputs", folders, "folders of different names", remedy)
    return named


def side_of(folder: Path) -> int:
    """Return the width in pixels of most images in a folder: one of another size is then the wrong one."""
    widths = Counter(size_of(path)[0] for path in list_images(folder))
    return widths.most_common(1)[0][0]


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height, from the file's header; raises InputError when it is no image."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return read_pil(path).size  # says what is wrong with it


def match_outputs(folder: Path, stems: Sequence[str], side: int) -> dict[str, Path]:
    """Return stem -> file for each of `stems`: the same stem, or that and a number such as `_00`.

    Raises InputError that lists missing and extra files, stems with two files, and images not of `side` x `side`.
    """
    found: dict[str, list[Path]] = {stem: [] for stem in stems}
    extra: list[Path] = []
    for path in list_images(folder):
        shorter, _, suffix = path.stem.rpartition("_")
        stem = shorter if path.stem not in found and suffix.isdigit() else path.stem
        found.get(stem, extra).append(path)
    twice = [files for files in found.values() if len(files) > 1]
    problems = {
        "{:,} missing": [stem for stem, files in found.items() if not files],
        "{:,} extra": [path.name for path in extra],
        "{:,} with two files": [f"{files[0].name} and {files[1].name}" for files in twice],
    }
    said = [f"{kind.format(len(names))}: {listing(names)}" for kind, names in problems.items() if names]
    if said:
        unseen = unicode_twins(problems["{:,} missing"], [path.stem for path in extra])
        raise InputError(
            f"outputs in {str(folder)!r} do not match the {len(stems)} test images: {'; '.join(said)}{unseen}",
            remedy="give one image for each, named as the LQ image is",
        )
    chosen = {stem: files[0] for stem, files in found.items()}
    sizes = {path.name: size_of(path) for path in chosen.values()}
    wrong = [f"{name} {width} x {height}" for name, (width, height) in sizes.items() if {width, height} != {side}]
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(chosen)} outputs in {str(folder)!r} are not {side} x {side}: {listing(wrong)}",
            remedy="give them at the benchmark's size, as resizing would change their scores",
        )
    return chosen


def listing(names: Sequence[str]) -> str:
    """Return the first names and the number of the others."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
