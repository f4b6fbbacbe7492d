"""The inputs of a restoration (files, folders, patterns), and a distinct path for each output."""

import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lafr.errors import InputError
from lafr.images import EXTENSIONS as IMAGES
from lafr.images import is_file
from lafr.photos.journal import NAME as JOURNAL

VIDEOS = frozenset([".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mts"])
PHOTOS = IMAGES | {".jfif", ".jpe", ".avif", ".heic", ".heif"}  # more than training reads: its sets must not change
EXTENSIONS = ("png", "jpg", "webp")
SIDE_BY_SIDE, CROPPED_FACES, RESTORED_FACES = "side_by_side", "cropped_faces", "restored_faces"
LONGEST_NAME = 235  # bytes of an output's name: file systems end at 255, and its temporary file has a longer one


@dataclass(frozen=True)
class Found:
    """What `sources` name: each file with the relative name of its output, and each other entry with the reason."""

    files: list[tuple[Path, Path]]
    ignored: list[tuple[Path, str]]


def find_inputs(sources: Sequence[str | Path], output: Path) -> Found:
    """Return each file that `sources` name, once, and the relative name that its output gets.

    A source is a file, a folder (its photos and videos, recursive; files in `output` are left out) or a pattern such
    as `photos/*.jpg`. A file that exists is never read as a pattern. One folder's files keep their place in it; among
    several sources a folder's name comes first. Raises InputError when no file is found; one missing file, or a pattern
    that matches nothing, among several sources is returned, and reported when it is read.
    """
    found: dict[Path, Path] = {}
    ignored: list[tuple[Path, str]] = []
    for source in map(Path, sources):
        if source.is_dir():
            top = Path() if len(sources) == 1 else Path(os.path.basename(os.path.realpath(source)))
            files, others = _entries(source, output)
            found |= {path: top / path.relative_to(source) for path in files}
            ignored += [(top / path.relative_to(source), reason) for path, reason in others]
            if not files and not others:
                ignored.append((source, "a folder without files"))
        elif os.path.lexists(source):
            found[source] = Path(source.name)
        elif matches := [Path(match) for match in sorted(glob.glob(str(source), recursive=True))]:
            files = [path for path in matches if not path.is_dir() and not _inside(path, output, Path())]
            top = Path(os.path.commonpath([path.parent for path in files])) if files else Path()
            found |= {path: path.relative_to(top) for path in files}
            ignored += _folders_alone(matches, files, output)
        elif len(sources) > 1:
            found[source] = Path(source.name)
        else:
            raise InputError(f"input {str(source)!r} does not exist; give an image or a folder of images")
    if not found:
        what = ", ".join(repr(str(s)) for s in sources)
        raise InputError(f"{what}: no file there; give a photo or a video, or a folder of them")
    if len(set(found.values())) < len(found):  # files of one name in several folders
        absolute = {path: Path(os.path.abspath(path)) for path in found}
        top = Path(os.path.commonpath([path.parent for path in absolute.values()]))
        found = {path: absolute[path].relative_to(top) for path in found}
    return Found(list(found.items()), ignored)


def _folders_alone(matches: Sequence[Path], files: Sequence[Path], output: Path) -> list[tuple[Path, str]]:
    """Return the folders that a pattern matches and of whose contents it matches nothing."""
    taken = {parent for path in files for parent in path.parents}
    others = [path for path in matches if path.is_dir() and path not in taken]
    alone = [path for path in others if not _inside(path / "file", output, Path())]
    return [(path, "a folder, of which a pattern takes nothing; give it by its name") for path in alone]


def _entries(source: Path, output: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the photos and videos under a folder, sorted, and every other entry with the reason it is not one."""
    files: list[Path] = []
    others: list[tuple[Path, str]] = []

    def unlisted(error: OSError) -> None:
        others.append((Path(error.filename), f"a folder that cannot be listed ({error.strerror})"))

    for place, folders, names in os.walk(source, onerror=unlisted):
        here = Path(place)
        links = [name for name in folders if os.path.islink(here / name)]  # could lead back, or out of the folder
        others += [(here / name, "a link to a folder") for name in links]
        for path in (here / name for name in names):
            if _inside(path, output, source) or path.name == JOURNAL:
                continue
            if path.name.startswith("."):
                others.append((path, "hidden"))
            elif path.suffix.lower() in PHOTOS | VIDEOS:
                files.append(path)
            elif is_file(path):
                others.append((path, "neither a photo nor a video by its extension"))
            else:
                others.append((path, "not a regular file"))
    return sorted(files), sorted(others)


def _inside(path: Path, output: Path, source: Path) -> bool:
    """Return whether a file is an earlier run's output: `output` is inside `source`, and the file inside `output`."""
    output = Path(os.path.realpath(output))
    return output != Path(os.path.realpath(source)) and Path(os.path.realpath(path.parent)).is_relative_to(output)


@dataclass(frozen=True)
class Outputs:
    """Where a run writes: the restored files, the before | after images, the faces.

    Args:
        folder: of all outputs.
        extension: of restored images: "png", "jpg" or "webp"; see `write_photo` for what each holds. Videos become MP4
            where it holds all of their streams.
        suffix: added to each name with an underscore: `photo_SUFFIX.png`.
        side_by_side: whether before | after images are written into `side_by_side`.
        save_faces: whether each restored face is written, before and after, as `NAME_00.png` (the number is the face's
            index in the journal) into `cropped_faces` and `restored_faces`.
    """

    folder: Path
    extension: str = "png"
    suffix: str = ""
    side_by_side: bool = False
    save_faces: bool = False

    def __post_init__(self) -> None:
        if self.extension not in EXTENSIONS:
            raise InputError("extension", self.extension, f"one of {', '.join(EXTENSIONS)}")
        if set("/\\\0") & set(self.suffix):
            raise InputError("suffix", self.suffix, "part of a file's name, without a slash")

    def targets(self, names: Sequence[Path], containers: Mapping[Path, str] = {}) -> list[Path]:
        """Return a distinct path in the folder for each relative name.

        Two inputs whose names differ only in the extension keep it (`a.jpg.png`).

        Args:
            names: of the outputs.
            containers: name of a video -> the extension of its output; ".mp4" where it is not named.
        """
        kinds = [
            containers.get(name, ".mp4") if name.suffix.lower() in VIDEOS else f".{self.extension}" for name in names
        ]
        end = f"_{self.suffix}" if self.suffix else ""
        plain = [name.with_name(f"{name.stem}{end}{kind}") for name, kind in zip(names, kinds, strict=True)]
        full = [name.with_name(f"{name.name}{end}{kind}") for name, kind in zip(names, kinds, strict=True)]
        uses = Counter(plain)
        chosen = [long if uses[short] > 1 else short for short, long in zip(plain, full, strict=True)]
        distinct = chosen if len(set(chosen)) == len(names) else full
        return [self.folder / name for name in distinct]

    def comparison(self, target: Path) -> Path:
        """Return the path of the before | after image of a target."""
        return self.folder / SIDE_BY_SIDE / target.relative_to(self.folder)

    def faces(self, target: Path, index: int) -> tuple[Path, Path]:
        """Return the paths of a face as it was cropped from the input of `target`, and as it was restored."""
        inside = target.relative_to(self.folder)
        name = inside.with_name(f"{inside.stem}_{index:02d}.png")
        return self.folder / CROPPED_FACES / name, self.folder / RESTORED_FACES / name

    def require_new(self, paths: Sequence[Path], targets: Sequence[Path]) -> set[str]:
        """Return the real paths of the inputs; raises InputError when an output is an input or another output."""
        inputs = {os.path.realpath(path) for path in paths}
        comparisons = [self.comparison(target) for target in targets] if self.side_by_side else []
        taken = set(inputs)
        for target in [*targets, *comparisons]:
            place = os.path.realpath(target)
            if place in taken:
                raise InputError(f"{str(target)!r} would overwrite an input or another output; choose another folder")
            taken.add(place)
        if self.save_faces:  # how many faces there will be is not known yet: their folders must be free
            for name in (CROPPED_FACES, RESTORED_FACES):
                folder = Path(os.path.realpath(self.folder / name))
                if any(Path(place).is_relative_to(folder) for place in taken):
                    raise InputError(f"{str(folder)!r} is where faces are saved; choose another folder for the output")
        return inputs
