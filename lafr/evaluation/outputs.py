"""Other methods' restored pictures: found, matched to the test images, and refused where they do not fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from lafr.errors import InputError
from lafr.images import list_images, read_pil

LISTED = 10  # names in an error


def folders_of(outputs: str | Sequence[str] | Mapping[str, str]) -> dict[str, Path]:
    """Return row -> folder: a mapping's own names, or the folders' names; raises InputError when two are alike."""
    if isinstance(outputs, Mapping):
        return {str(name): Path(str(folder)) for name, folder in outputs.items()}
    given = [Path(str(folder)) for folder in ([outputs] if isinstance(outputs, str | Path) else outputs)]
    named = {folder.resolve().name or "outputs": folder for folder in given}
    if len(named) < len(given):
        raise InputError(
            f"outputs={[str(f) for f in given]} have the same name twice; name them: outputs={{NAME: FOLDER, ...}}"
        )
    return named


def side_of(folder: Path) -> int:
    """Return the width in pixels of the first picture in a folder."""
    return size(list_images(folder)[0])[0]


def size(path: Path) -> tuple[int, int]:
    """Return width and height, from the file's head; raises InputError when it is no image."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return read_pil(path).size  # says what is wrong with it


def matched(folder: Path, stems: Sequence[str], side: int) -> dict[str, Path]:
    """Return stem -> picture, for each of `stems`: the same stem, or that and a number such as `_00`.

    Raises InputError that lists what is missing, what is there too much, what two files claim, what is not
    `side` x `side`.
    """
    found: dict[str, list[Path]] = {stem: [] for stem in stems}
    extra = []
    for path in list_images(folder):
        shorter, _, suffix = path.stem.rpartition("_")
        stem = path.stem if path.stem in found else shorter if suffix.isdigit() else None
        found.get(stem, extra).append(path)
    problems = {
        "{:,} missing": [stem for stem, files in found.items() if not files],
        "{:,} extra": [path.name for path in extra],
        "{:,} claimed by two files": [" and ".join(f.name for f in fs) for fs in found.values() if len(fs) > 1],
    }
    said = [f"{kind.format(len(names))}: {listing(names)}" for kind, names in problems.items() if names]
    if said:
        raise InputError(
            f"outputs in {str(folder)!r} are not those of the {len(stems)} test images: {'; '.join(said)}; "
            "give one picture for each, named as the LQ image is"
        )
    chosen = {stem: files[0] for stem, files in found.items()}
    wrong = [f"{path.name} {w} x {h}" for path in chosen.values() for w, h in [size(path)] if (w, h) != (side, side)]
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(chosen)} outputs in {str(folder)!r} are not {side} x {side}: {listing(wrong)}; "
            "give them at the benchmark's size, as resizing would change their scores"
        )
    return chosen


def listing(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
