"""Aligned faces, decoded once and kept as 8-bit pixels, from a folder, WebDataset shards or a Hugging Face dataset."""

from collections.abc import Sequence
from math import inf
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from lafr.data.faces.huggingface import rows
from lafr.data.faces.selection import read_names, training_and_held_out
from lafr.data.faces.shards import shards as in_shards
from lafr.data.faces.sources import File, Item, folder
from lafr.errors import InputError, setting
from lafr.images import from_pil, from_uint8, require_square, resize_pil, to_uint8, unicode_twins


class Faces:
    """Aligned faces by index: `faces[i]` is `hq [3, resolution, resolution]` in [-1, 1].

    Args:
        items: of a source, or paths.
        resolution: side in pixels; each image is decoded and resized (Lanczos) to it.
        memory_gb: of 8-bit pixels (0.05 MB per face at 128 px, 0.8 MB at 512 px) that each process may keep, in 10^9
            bytes. The faces read first are kept, the others are decoded at every visit: the training order is random,
            so that replacing kept faces would save no decoding.
    """

    def __init__(self, items: Sequence[Item | str | Path], resolution: int, memory_gb: float = 2.0):
        self.items = [File(Path(i), Path(i).stem) if isinstance(i, str | Path) else i for i in items]
        self.resolution = resolution
        if not 0 <= memory_gb < inf:
            raise InputError("memory_gb", memory_gb, "a number, 0 or more")
        self._room = int(memory_gb * 1e9 / (3 * resolution**2))  # faces that fit, 3 R^2 bytes each
        self._pixels: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        pixels = self._pixels.get(index)
        if pixels is None:
            image = self.items[index].picture()  # upright, 8-bit RGB, of any size
            require_square(image, str(self.items[index]))
            pixels = to_uint8(from_pil(resize_pil(image, self.resolution)))  # [3, R, R]
            if len(self._pixels) < self._room:
                self._pixels[index] = pixels
        return from_uint8(pixels)  # a new tensor each time: callers may change it in place

    @property
    def paths(self) -> list[PurePath]:
        """The path of each face's file; in shards and datasets, the path stored there."""
        return [item.path for item in self.items]

    def name(self, index: int) -> str:
        """Return the name of face `index` in its source; for a bare path, the stem."""
        return self.items[index].name


def train_and_validation(
    root: str,
    resolution: int,
    folders: Sequence[str] | None = None,
    remedy: str = f"give a folder of aligned faces, or {setting('data', 'packaged')} for a first look",
    memory_gb: float = 2.0,
    or_flat: bool = False,
    **choice: Any,
) -> tuple[Faces, Faces]:
    """Split the faces under a folder into a training and a validation set that share no file.

    Args:
        root: folder of aligned faces.
        resolution: side in pixels that every face is resized to.
        folders: subfolders to use; all of `root` when empty.
        remedy: how to get the faces, for the error when `root` is missing.
        memory_gb: as in `Faces`.
        or_flat: take all of a `root` that has none of `folders`, without their validation list.
        choice: selects among them, as in `training_and_held_out`.
    """
    # before anything is listed: the remedy says how to get the faces
    if not Path(root).is_dir():
        raise InputError("root", root, "a folder that exists", remedy)
    if or_flat and not any((Path(root) / part).is_dir() for part in folders or ()):
        folders, choice = None, choice | {"validation_list": None}
    training, held_out = training_and_held_out(folder(root, folders), setting("root", root), root, **choice)
    return Faces(training, resolution, memory_gb), Faces(held_out, resolution, memory_gb)


def from_shards(
    shards: str | Sequence[str] | None, resolution: int, memory_gb: float = 2.0, **choice: Any
) -> tuple[Faces, Faces]:
    """Split the faces in WebDataset shards, named by path, glob or braces; otherwise as `train_and_validation`."""
    # setting(...) names the source in errors: each command spells the parameter in its own words
    training, held_out = training_and_held_out(in_shards(shards), setting("shards", shards), **choice)
    return Faces(training, resolution, memory_gb), Faces(held_out, resolution, memory_gb)


def from_huggingface(
    path: str | None,
    resolution: int,
    split: str = "train",
    image_column: str = "image",
    name_column: str | None = None,
    memory_gb: float = 2.0,
    **choice: Any,
) -> tuple[Faces, Faces]:
    """Split the faces of a Hugging Face dataset (see `rows`); otherwise as `train_and_validation`."""
    found = rows(path, split, image_column, name_column)
    training, held_out = training_and_held_out(found, setting("path", path), **choice)
    return Faces(training, resolution, memory_gb), Faces(held_out, resolution, memory_gb)


def read_list(path: Path, base: Path) -> list[Path]:
    """Return the files named in a list, one path relative to `base` a line; lines that start with `#` are comments."""
    if not path.is_file():
        raise InputError(f"list {str(path)!r} does not exist")
    files = [base / name for name in read_names(path)]
    if missing := [str(file) for file in files if not file.is_file()]:
        there = [str(file) for file in Path(missing[0]).parent.glob("*")]
        raise InputError(
            f"list {str(path)!r} names {len(missing)} missing of {len(files)} files, first {missing[0]!r}"
            f"{unicode_twins(missing[:1], there)}"
        )
    return files
