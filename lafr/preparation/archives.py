"""Images in a folder, a zip or a tar, read one at a time; a damaged or hostile archive is refused.

Every member is checked before anything is written, and no member is ever written under its own name: a path that
leads out of the folder is refused and would lead nowhere.
"""

import bz2
import gzip
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias, cast

from lafr.errors import InputError
from lafr.images import EXTENSIONS, list_images

CHUNK = 1 << 20
COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
DAMAGED = (  # what the standard library raises
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, RuntimeError,
)  # fmt: skip
BY_HAND = "unpack it yourself if you trust it and give the folder"


@dataclass(frozen=True)
class Limits:
    """Limits of an archive; a larger one is refused.

    Args:
        members: number of members of any kind.
        member_bytes: size of one member, unpacked.
        total_bytes: size of all members, unpacked (FFHQ at 1024 px: 90 GB).
        ratio: unpacked size over the archive's (that of an archive under 1 MB counts as 1 MB): pictures are
            compressed already, so an ordinary archive of them has about 1.
    """

    members: int = 500_000
    member_bytes: int = 200_000_000
    total_bytes: int = 200_000_000_000
    ratio: float = 100


@dataclass(frozen=True)
class Listing:
    """Name -> bytes of every image, sorted by name, and the number of other files."""

    images: dict[str, int]
    ignored: int


def list_source(source: Path, limits: Limits = Limits()) -> Listing:
    """Return the images of a folder or an archive, their names relative and with `/`.

    Raises InputError when the archive is damaged, beyond `limits`, or holds a name that leads out of its folder, a
    link, a device, an encrypted member or one name twice. Compressed tars are read to their end, so their checksum is
    compared; zips have one a member, compared when it is read.
    """
    if source.is_dir():
        sizes = {path.relative_to(source).as_posix(): path.stat().st_size for path in list_images(source)}
        return Listing(dict(sorted(sizes.items())), 0)
    with _opened(source, limits) as members:
        files = _checked(((name, size) for name, size, _ in members), source, limits)
    images = {name: size for name, size in sorted(files.items()) if _is_image(name)}
    if not images:
        raise InputError(f"{str(source)!r} holds no image ({' '.join(sorted(EXTENSIONS))}); give another source")
    return Listing(images, len(files) - len(images))


def each_image(
    source: Path, names: Collection[str], temporary: Path, limits: Limits = Limits()
) -> Generator[tuple[str, Path], None, None]:
    """Yield (name, file) for each of `names`: the file itself in a folder, a copy in `temporary` from an archive.

    The copy is deleted at the next step. Raises InputError when a member is damaged or not as long as its header says.
    """
    if source.is_dir():
        yield from ((name, source / name) for name in names)
        return
    temporary.mkdir(parents=True, exist_ok=True)
    with _opened(source, limits) as members:
        for given, size, read in members:
            name = _clean(given, source)
            if name in names and size is not None:
                copy = temporary / f"member{PurePosixPath(name).suffix}"
                try:
                    _copy(read(), size, copy, f"{name!r} in {str(source)!r}")
                    yield name, copy
                finally:
                    copy.unlink(missing_ok=True)


# (name, bytes or None for a folder, function that opens it)
Members: TypeAlias = Iterator[tuple[str, int | None, Callable[[], Any]]]


@contextmanager
def _opened(source: Path, limits: Limits) -> Iterator[Members]:
    """Open an archive; what the standard library finds wrong with it becomes an InputError of one line."""
    with open(source, "rb") as file:
        start = file.read(512)
    try:
        if start.startswith(b"PK"):
            with zipfile.ZipFile(source) as archive:
                yield _zip_members(archive, source)
            return
        decompress = next((opener for magic, opener in COMPRESSED.items() if start.startswith(magic)), None)
        if decompress is None and start[257:262] != b"ustar":
            raise InputError(f"{str(source)!r} is neither a folder nor a zip or tar archive; {BY_HAND}")
        with (decompress or open)(source, "rb") as stream:
            yield _tar_members(_Guarded(stream, source, _most_bytes(source, limits)), source)
    except InputError:
        raise
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a full disk is not the archive's fault
            raise
        raise InputError(f"{str(source)!r} is damaged or truncated ({error}); download it again") from None


def _zip_members(archive: zipfile.ZipFile, source: Path) -> Members:
    for info in archive.infolist():
        what = f"{info.filename!r} in {str(source)!r}"
        if info.flag_bits & 1:
            raise InputError(f"{what} is encrypted; {BY_HAND}")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"{what} is a link or a device, not a file; {BY_HAND}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # only these unpack in small steps
            raise InputError(f"{what} is packed by method {info.compress_type}, which is not read here; {BY_HAND}")
        size = None if info.is_dir() else info.file_size
        yield info.orig_filename, size, partial(archive.open, info)


def _tar_members(stream: "_Guarded", source: Path) -> Members:
    with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r:") as archive:
        while (info := archive.next()) is not None:
            if not (info.isreg() or info.isdir()):
                raise InputError(f"{info.name!r} in {str(source)!r} is a link or a device, not a file; {BY_HAND}")
            size = None if info.isdir() else info.size
            yield info.name, size, partial(archive.extractfile, info)
        if stream.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken header for the end too
            raise tarfile.ReadError("it ends between two members")
        while stream.read(CHUNK):  # to the checksum
            pass


class _Guarded:
    """A decompressed stream that refuses to pass byte `most` and to read more than `CHUNK` at once.

    (tarfile reads a long name or a pax header at once, whatever length its header states.)
    """

    def __init__(self, stream: BinaryIO, source: Path, most: int):
        self.stream, self.source, self.most = stream, source, most
        self.last = b""  # what was read last

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes."""
        if not 0 <= size <= CHUNK:
            raise InputError(f"{str(self.source)!r} has a header of {size:,} bytes; {BY_HAND}")
        self._check(self.stream.tell())
        self.last = self.stream.read(size)
        return self.last

    def seek(self, offset: int) -> int:
        """Move to byte `offset`."""
        self._check(offset)
        return self.stream.seek(offset)

    def tell(self) -> int:
        """Return the position in bytes."""
        return self.stream.tell()

    def _check(self, position: int) -> None:
        if position > self.most:
            raise InputError(f"{str(self.source)!r} unpacks to more than {self.most:,} bytes; {BY_HAND}")


def _most_bytes(source: Path, limits: Limits) -> int:
    return int(min(limits.total_bytes, limits.ratio * max(source.stat().st_size, 1_000_000)))


def _checked(members: Iterator[tuple[str, int | None]], source: Path, limits: Limits) -> dict[str, int]:
    """Return name -> bytes of every file; the sums are compared with the limits while they grow."""
    files: dict[str, int] = {}
    total, most = 0, _most_bytes(source, limits)
    for number, (given, size) in enumerate(members, 1):
        if number > limits.members:
            raise InputError(f"{str(source)!r} has more than {limits.members:,} members; {BY_HAND}")
        name = _clean(given, source)
        if size is None:
            continue
        if name in files:
            raise InputError(f"{str(source)!r} holds {name!r} twice; {BY_HAND}")
        if size > limits.member_bytes:
            raise InputError(f"{name!r} in {str(source)!r} has {size:,} bytes, {limits.member_bytes:,} are the most")
        total += size
        if total > most:
            raise InputError(f"{str(source)!r} unpacks to more than {most:,} bytes; {BY_HAND}")
        files[name] = size
    return files


def _clean(name: str, source: Path) -> str:
    """Return a member's name without `./` and `//`; raises InputError when it leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name) or "\\" in name or "\0" in name:
        raise InputError(f"{str(source)!r} holds {name!r}, a name that leads out of its folder; {BY_HAND}")
    return path.as_posix()


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _copy(stream: BinaryIO, size: int, target: Path, what: str) -> None:
    """Write a member of `size` bytes; a header may be wrong, so exactly its length must be read."""
    left = size
    with stream, open(target, "wb") as file:
        while left and (data := stream.read(min(CHUNK, left))):
            left -= len(data)
            file.write(data)
        if left or stream.read(1):
            raise InputError(f"{what} is not {size:,} bytes long as its header says; download the archive again")
