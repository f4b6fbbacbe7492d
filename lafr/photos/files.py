"""What a command is given to restore: files, folders and patterns; and a place of its own for each output."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lafr.errors import InputError
from lafr.images import list_images

VIDEOS = frozenset([".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mts"])
LONGEST_NAME = 230  # bytes of a name; file systems end at 255, and what is written aside has a longer one


def find_inputs(sources: Sequence[str | Path], output: Path) -> list[tuple[Path, Path]]:
    """Return each file that `sources` name, once, and the relative name that its output gets.

    A source is a file, a folder (its images, recursive; what lies in `output` is left out) or a pattern such as
    `photos/*.jpg`. A file that exists is never read as a pattern. One folder's files keep their place in it; among
    several sources a folder's name comes first. Raises InputError when nothing is named; one missing file among
    several sources is returned, and reported where it is read.
    """
    found: dict[Path, Path] = {}
    for source in map(Path, sources):
        if source.is_dir():
            top = Path() if len(sources) == 1 else Path(os.path.basename(os.path.realpath(source)))
            files = [path for path in list_images(source) if not _inside(path, output, source)]
            found |= {path: top / path.relative_to(source) for path in files}
        elif os.path.lexists(source):
            found[source] = Path(source.name)
        elif glob.has_magic(str(source)):
            matches = [Path(match) for match in sorted(glob.glob(str(source), recursive=True))]
            files = [path for path in matches if path.is_file() and not _inside(path, output, Path())]
            top = os.path.commonpath([path.parent for path in files]) if files else ""
            found |= {path: path.relative_to(top) for path in files}
        elif len(sources) > 1:
            found[source] = Path(source.name)
        else:
            raise InputError(f"input {str(source)!r} does not exist; give an image or a folder of images")
    if not found:
        raise InputError(f"{', '.join(repr(str(s)) for s in sources)}: no file there; give an image or a folder")
    if len(set(found.values())) < len(found):  # files of one name in several folders
        absolute = {path: Path(os.path.abspath(path)) for path in found}
        top = os.path.commonpath([path.parent for path in absolute.values()])
        found = {path: absolute[path].relative_to(top) for path in found}
    return list(found.items())


def _inside(path: Path, output: Path, source: Path) -> bool:
    """Tell whether a file is an earlier run's output: `output` lies inside `source`, and the file in it."""
    output = Path(os.path.realpath(output))
    return output != Path(os.path.realpath(source)) and Path(os.path.realpath(path.parent)).is_relative_to(output)


def output_paths(names: Sequence[Path], output: Path) -> list[Path]:
    """Return a distinct path under `output` for each relative name: PNG, and MP4 for a video.

    Two inputs whose names differ only in the extension keep it (`a.jpg.png`).
    """
    kinds = [".mp4" if name.suffix.lower() in VIDEOS else ".png" for name in names]
    plain = [name.with_name(name.stem + kind) for name, kind in zip(names, kinds, strict=True)]
    full = [name.with_name(name.name + kind) for name, kind in zip(names, kinds, strict=True)]
    uses = Counter(plain)
    chosen = [f if uses[p] > 1 else p for p, f in zip(plain, full, strict=True)]
    return [output / name for name in (chosen if len(set(chosen)) == len(names) else full)]


def require_new(paths: Sequence[Path], targets: Sequence[Path]) -> set[str]:
    """Return where the inputs really are; raises InputError when a target is an input or another target."""
    inputs = {os.path.realpath(path) for path in paths}
    taken = set(inputs)
    for target in targets:
        if (place := os.path.realpath(target)) in taken:
            raise InputError(f"{str(target)!r} would overwrite an input or another output; choose another folder")
        taken.add(place)
    return inputs
