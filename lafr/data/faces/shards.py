"""WebDataset shards with random access: pair n needs one image, and `webdataset` itself reads shards front to back."""

import glob
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from lafr.data.faces.sources import distinct, in_order, without_extension
from lafr.errors import InputError, need
from lafr.images import EXTENSIONS, read_pil

EXAMPLE = "a path, a glob, or braces such as 'faces-{000000..000009}.tar'"


@dataclass(frozen=True)
class Member:
    """An image that is `size` bytes of an uncompressed tar, from `offset`."""

    path: PurePosixPath
    shard: Path
    offset: int
    size: int

    @property
    def name(self) -> str:
        """Return the path without the image extension."""
        return without_extension(self.path)

    @property
    def sample(self) -> str:
        """Return the key under which webdataset groups files: the path up to the file name's first dot."""
        return str(self.path.with_name(self.path.name.partition(".")[0]))

    def picture(self) -> Image.Image:
        """Return the upright 8-bit RGB image."""
        try:
            with open(self.shard, "rb") as file:  # opened each time: forked workers would share one file position
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise InputError(f"shard {str(self.shard)!r} cannot be read: {error.strerror or error}") from None
        return read_pil(str(self), data)

    def __str__(self) -> str:
        return f"{self.shard}: {self.path}"


def shards(pattern: str | Sequence[str] | None) -> list[Member]:
    """Return the images in WebDataset shards, each a local uncompressed tar; other members are ignored.

    Args:
        pattern: path, glob or braces such as `faces-{000000..000009}.tar`, or several of them.
    """
    if not pattern:
        raise InputError("shards", pattern, EXAMPLE)
    patterns = [pattern] if isinstance(pattern, str) else pattern
    # a set: patterns may overlap, and no image may come twice
    paths = sorted({path for one in patterns for path in expanded(one)})
    # webdataset groups files by this key: "1.jpg" and "1.mask.png" would be one sample
    found = [member for path in paths for member in members(path)]
    return in_order(distinct(found, lambda member: member.sample))


def expanded(pattern: str) -> list[Path]:
    """Return the files that a pattern names; raises InputError when one does not exist."""
    if Path(pattern).is_file():  # a file's own name may hold braces and brackets
        return [Path(pattern)]
    names = [pattern]
    if "{" in pattern:
        braces = need("braceexpand", "'lafr[data]'")
        try:
            names = list(braces.braceexpand(pattern))
        except braces.UnbalancedBracesError as error:
            raise InputError("shards", pattern, EXAMPLE, str(error)) from None
    # braces name exact files, so that a missing one is noticed; a glob finds what is there
    found = {name: glob.glob(name) for name in names}
    if missing := [name for name, paths in found.items() if not paths]:
        missed = f"{len(missing)} of {len(names)} do not exist, first {missing[0]!r}"
        raise InputError("shards", pattern, EXAMPLE, missed)
    return [Path(path) for paths in found.values() for path in paths]


def members(shard: Path) -> list[Member]:
    """Return the images of one shard; only its headers are read."""
    try:
        with tarfile.open(shard, "r:") as tar:
            files = [(PurePosixPath(entry.name), entry.offset_data, entry.size) for entry in tar if entry.isreg()]
            tar.fileobj.seek(tar.offset)  # a whole tar ends with blocks of zeros
            ended = tar.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"shard {str(shard)!r} is not a whole uncompressed tar ({error}); get a whole copy, or gunzip it"
        ) from None
    if not ended:  # tarfile itself reads a truncated header as the end
        raise InputError(
            f"shard {str(shard)!r} is truncated after {len(files)} files, without an end mark; get a whole copy"
        )
    # labels, captions and macOS's "._" files lie among the images
    found = [
        Member(path, shard, offset, size)
        for path, offset, size in files
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    ]
    if not found:
        raise InputError(f"shard {str(shard)!r} holds no image ({' '.join(sorted(EXTENSIONS))}); leave it out")
    return found
