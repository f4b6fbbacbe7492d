"""The images of a source; folder, shards and Hugging Face dataset agree on names and order.

An item has `name`, the POSIX path relative to the source's root without the image extension; `path`, that of its file
(in a shard or a dataset, the path stored there); and `picture()`. No two items of a source share a name, and they are
sorted as `list_images` sorts files: the same files give the same order from a folder, from shards
(`lafr.data.faces.shards`) and from a Hugging Face dataset (`lafr.data.faces.huggingface`), and so the same pair n.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from os.path import relpath
from pathlib import Path, PurePath, PurePosixPath
from typing import Protocol, TypeVar

from PIL import Image
from torch import Tensor

from lafr.errors import InputError, setting
from lafr.images import EXTENSIONS, list_images, read_pil


class Item(Protocol):
    """An image of a source; `str(item)` names its place in messages."""

    @property
    def name(self) -> str:
        """Return the path without the image extension."""

    @property
    def path(self) -> PurePath:
        """Return the path of the file, or the one stored in a shard or a dataset."""

    def picture(self) -> Image.Image:
        """Return the upright 8-bit RGB image."""


AnItem = TypeVar("AnItem", bound=Item)


class FaceSet(Protocol):
    """Faces by index, each with a name: `lafr.data.faces.Faces`, or `lafr.data.packaged.PackagedFaces`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...

    def name(self, index: int) -> str:
        """Return the name of face `index`."""


@dataclass(frozen=True)
class File:
    """An image that is a file."""

    path: Path
    name: str

    def picture(self) -> Image.Image:
        """Return the upright 8-bit RGB image."""
        return read_pil(self.path)

    def __str__(self) -> str:
        return str(self.path)


def folder(root: str, folders: Sequence[str] | None = None) -> list[File]:
    """Return the images under `root`, or under its `folders`, one folder after the other."""
    # in the order of `folders`, not sorted together: a second folder must not change the faces of the first
    paths = [path for part in folders or ["."] for path in list_images(Path(root) / part)]
    return distinct([File(path, without_extension(PurePath(relpath(path, root)))) for path in paths])


def without_extension(path: PurePath) -> str:
    """Return a path as POSIX, without its extension where that is an image's."""
    return (path.with_suffix("") if path.suffix.lower() in EXTENSIONS else path).as_posix()


def number_of(name: str) -> int:
    """Return the number that an image's name seeds its random draws with: the same in every process and set."""
    # crc32, not hash(): Python salts the hash of a string in every process
    # as bytes: a file's name may hold some that are no text
    return zlib.crc32(os.fsencode(name))


def in_order(items: Iterable[AnItem]) -> list[AnItem]:
    """Return items sorted by path, folder by folder, as `list_images` sorts.

    Raises InputError when two share a name.
    """

    def place(item: Item) -> PurePosixPath:
        # a name stored without extension sorts as if one followed: "1" after "1-2", as "1.png" after "1-2.png"
        return PurePosixPath(item.path if item.path.suffix.lower() in EXTENSIONS else f"{item.path}.")

    return distinct(sorted(items, key=place))


def distinct(items: list[AnItem], key: Callable[[AnItem], str] = attrgetter("name")) -> list[AnItem]:
    """Return `items`; raises InputError when two have one key."""
    # names identify images in lists, scores and records: "1.png" and "1.jpg" cannot both be "1"
    known: dict[str, AnItem] = {}
    for item in items:
        if (other := known.setdefault(key(item), item)) is not item:
            raise InputError(
                f"{str(other)!r} and {str(item)!r} share the name {key(item)!r}",
                remedy=f"rename or remove one, or name a dataset's rows by a {setting('name_column')}",
            )
    return items
