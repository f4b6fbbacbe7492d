"""Atomic writes of files and folders, their hashes, logs that survive a killed process, and locks that fall with it."""

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lafr.errors import InputError, UnwritableError

if TYPE_CHECKING:
    from torch import Tensor  # imported late: the commands check their arguments before torch is loaded

CHUNK = 1 << 22  # bytes read at a time


def shipped(name: str) -> Path:
    """Return the path of a file or folder that travels with LAFR: in a checkout, or inside an installed wheel.

    Args:
        name: in the checkout's `data/`, or "configs"; "data/ffhq_600.txt" and "ffhq_600.txt" are the same.
    """
    package = Path(__file__).resolve().parent
    name = name.removeprefix("data/")
    top = package.parent
    places = package / "_data" / name, top / "data" / name, top / name  # only a wheel holds the first: pyproject.toml
    return next((place for place in places if place.exists()), places[1])


def atomic_write(
    path: Path, write: Callable[[Path], object], remedy: str = "free space or choose another folder"
) -> None:
    """Let `write(temporary)` make a hidden file next to `path`, then rename it: no reader ever sees half a file.

    Folders are made as needed. Raises UnwritableError, with `remedy`, when it cannot be written.
    """
    temporary = temporary_name(path, path.suffix)  # same suffix: writers choose a format by it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # exclusively: whatever has this name already, such as a link to elsewhere, is not written through
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            write(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UnwritableError(f"cannot write {str(path)!r}: {error.strerror or error}", remedy=remedy) from None


def atomic_folder(
    folder: Path, fill: Callable[[Path], object], remedy: str = "free space and run the same command again"
) -> None:
    """Let `fill(temporary)` make a folder next to `folder`, flush it to the disk, then rename it.

    An existing folder is replaced: where the system can exchange two names (Linux, macOS), a reader always finds a
    whole folder. On any error the new one is removed; a full disk is an UnwritableError with `remedy`.
    """
    temporary = temporary_name(folder, ".part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        fill(temporary)
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        if not folder.exists():
            os.replace(temporary, folder)
        elif not exchange(temporary, folder):
            old = temporary_name(folder, ".old")
            os.replace(folder, old)
            os.replace(temporary, folder)
            temporary = old
        sync(folder.parent)
        shutil.rmtree(temporary, ignore_errors=True)  # what was replaced
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # safetensors reports a full disk as an exception of its own
        if isinstance(error, OSError) or "No space left" in str(error) or "Disk quota" in str(error):
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UnwritableError(f"cannot save {str(folder)!r}: {reason}", remedy=remedy) from None
        raise


# as `temporary_name` makes them: a dot, the name's beginning, 16 hexadecimal digits and a suffix
TEMPORARY = re.compile(r"\..{0,40}\.[0-9a-f]{16}(\.[^.]*)?", re.DOTALL)


def temporary_name(path: Path, suffix: str) -> Path:
    """Return a hidden, random name next to `path`."""
    return path.with_name(f".{path.stem[:40]}.{secrets.token_hex(8)}{suffix}")


def remove_temporaries(folder: Path) -> None:
    """Delete what killed processes left half written in `folder`; only for who holds its lock."""
    for path in list(folder.rglob(".*")):
        if TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk: a rename that outlives a power failure must not name an empty file."""
    if path.is_dir() and os.name != "posix":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot, such as some of networks and of FUSE
            raise
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; return False where the system or the file system cannot."""
    if os.name != "posix":
        return False
    library, names = ctypes.CDLL(None), [os.fsencode(one), os.fsencode(other)]
    if hasattr(library, "renameat2"):  # Linux; AT_FDCWD is -100, RENAME_EXCHANGE 2
        return library.renameat2(-100, names[0], -100, names[1], 2) == 0
    if hasattr(library, "renamex_np"):  # macOS; RENAME_SWAP is 2
        return library.renamex_np(*names, 2) == 0
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`'s folder, a file named `path`, while the block runs: one run a folder.

    The system releases it when the process ends, however it ends. Raises InputError that says who holds it. Without
    effect on Windows and, with a warning, on file systems that know no locks.
    """
    if os.name != "posix":
        yield
        return
    if path.resolve() in _HELD:
        raise InputError(f"{str(path.parent)!r} is in use by this process")
    absent = [folder for folder in path.parents if not folder.exists()]
    file = _lock(path)
    _HELD.add(path.resolve())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is released: afterwards it may be another's
        _HELD.discard(path.resolve())
        file.close()
        for folder in absent:  # a wrong setting leaves nothing behind
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


_HELD: set[Path] = set()  # the system's locks are of processes: within one they do not exclude each other


def _lock(path: Path) -> BinaryIO:
    import fcntl  # absent on Windows

    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "ab+")  # noqa: SIM115 (closing it would release the lock)
        try:
            # lockf, not flock: forked loader processes would inherit that, and hold it when the run is killed
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                remedy = "wait until it ends, stop it, or choose another folder"
                raise InputError(f"{str(path.parent)!r} is in use by {_holder(file)}", remedy=remedy) from None
            print(f"warning: {str(path)!r} cannot be locked: {error.strerror}", file=sys.stderr)
            return file
        # another process may have deleted the file between `open` and `lockf`: then this lock excludes nobody
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()
    file.truncate(0)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}).encode())
    file.flush()
    return file


def _holder(file: BinaryIO) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it has not written yet
        return "another process"


class DamagedError(InputError):
    """A file or folder is not as it was written."""


MANIFEST = "sha256.json"  # of a sealed folder


def seal(folder: Path, **more: object) -> None:
    """Write the manifest of a folder, the last of its files: the sha256 of each, and `more`, plain values."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
    files = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in paths}
    write_sealed({"files": files, **more}, folder / MANIFEST)


def unsealed(folder: Path) -> dict:
    """Return the manifest of a folder; raises DamagedError that names the first file which is not as it was sealed."""
    manifest = read_sealed(folder / MANIFEST)
    for name, sha256 in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{str(path)!r} is missing")
        if sha256_of_file(path) != sha256:
            reason = "its sha256 differs" if path.stat().st_size else "it is empty"
            raise DamagedError(f"{str(path)!r} is damaged: {reason}")
    return manifest


def write_sealed(record: Mapping, path: Path) -> None:
    """Write a record as JSON with a seal, the sha256 of its values, atomically."""
    plain = json.loads(json.dumps(record))  # as it is read: without tuples, and with text for keys
    write_json({**plain, "seal": sha256_of_values(plain)}, path)


def read_sealed(path: Path, required: bool = True) -> dict:
    """Return what `write_sealed` wrote; raises DamagedError where the file is missing or not as it was written.

    Where a seal is not `required`, a record without one is taken as it is.
    """
    try:
        record = read_json(path)
        if not required and "seal" not in record:
            return record
        sha256 = record.pop("seal")
    except FileNotFoundError:
        raise DamagedError(f"{str(path)!r} is missing") from None
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise DamagedError(f"{str(path)!r} is damaged: it is no record with a seal") from None
    if sha256 != sha256_of_values(record):
        raise DamagedError(f"{str(path)!r} is damaged: its sha256 differs")
    return record


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, atomically; bytes of a file's name that are no text become `\\udcff`."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(record: Mapping | list, path: Path) -> None:
    """Write a record as UTF-8 JSON, atomically."""
    write_text(path, json.dumps(record, indent=1) + "\n")


FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # what a text begins with that a spreadsheet would calculate


def csv_cell(text: str) -> str:
    """Return a text for a CSV: an apostrophe before what a spreadsheet would take for a formula. Numbers stay."""
    try:
        float(text)
        return text
    except ValueError:
        return f"'{text}" if text.startswith(FORMULA) else text


def of_csv_cell(cell: str) -> str:
    """Return the text that `csv_cell` wrote."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def read_json(path: Path) -> Any:
    """Return what a UTF-8 JSON file holds; raises OSError or ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


class JsonLines:
    """A log of one JSON object per line, appended to by one process: what a stopped run has done.

    A killed process can leave half a line at the end. It is ignored when read, so that what it recorded is done again.

    Args:
        path: of the file.
        sealed: each line carries its `seal`, a sha256 of its values; one that is not as it was written is ignored too.
    """

    SEAL = 16  # hexadecimal digits: against damage, not against forgery

    def __init__(self, path: Path, sealed: bool = False):
        self.path, self.sealed = path, sealed
        self.damaged: list[int] = []  # numbers of the lines that the last `read` ignored, without the file's last one

    def read(self) -> list[dict]:
        """Return every whole line, in order; an absent file has none."""
        lines = self.path.read_bytes().split(b"\n") if self.path.is_file() else []
        records = [self._whole(line) for line in lines]
        numbered = enumerate(zip(lines[:-1], records, strict=False), 1)
        self.damaged = [number for number, (line, record) in numbered if line and record is None]
        return [record for record in records if record is not None]

    def _whole(self, line: bytes) -> dict | None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # the empty end, or half a line, or damage
            return None
        if not isinstance(record, dict):
            return None
        if self.sealed and record.pop("seal", None) != sha256_of_values(record)[: self.SEAL]:
            return None
        return record

    def append(self, *records: Mapping) -> None:
        """Add lines and flush them to the disk; raises UnwritableError when it is full."""
        text = "".join(self._line(record) for record in records)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab+") as file:
                text = text if self._ends_a_line(file) else "\n" + text
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            said = f"cannot write {str(self.path)!r}: {error.strerror or error}"
            raise UnwritableError(said, remedy="free space or choose another folder") from None

    def _line(self, record: Mapping) -> str:
        if not self.sealed:
            return json.dumps(record) + "\n"
        plain = json.loads(json.dumps(record))
        return json.dumps({**plain, "seal": sha256_of_values(plain)[: self.SEAL]}) + "\n"

    @staticmethod
    def _ends_a_line(file: BinaryIO) -> bool:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

    def mark(self) -> list:
        """Return the size in bytes and the sha256 of the whole file, for `cut_back`."""
        return [self.path.stat().st_size, sha256_of_file(self.path)] if self.path.is_file() else [0, ""]

    def cut_back(self, size: int, sha256: str) -> bool:
        """Drop what was appended since `mark` returned `size` and `sha256`, atomically.

        A file that begins otherwise than it did is renamed `NAME.damaged`, and False is returned.
        """
        data = self.path.read_bytes() if self.path.is_file() else b""
        if size and hashlib.sha256(data[:size]).hexdigest() != sha256:
            if data:
                os.replace(self.path, self.path.with_name(f"{self.path.name}.damaged"))
            return False
        if len(data) > size:
            atomic_write(self.path, lambda temporary: temporary.write_bytes(data[:size]))
        return True


def listed(numbers: Sequence[int], most: int = 5) -> str:
    """Return "3 lines (2, 5, 7)", with at most `most` numbers."""
    shown = ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")
    return f"{len(numbers)} line{'' if len(numbers) == 1 else 's'} ({shown})"


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", facts: Mapping[str, str], remedy: str = "") -> None:
    """Write tensors and what they belong to as safetensors, with the sha256 of both, atomically: a file of a cache."""
    from safetensors.torch import save

    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    sealed = {**facts, "sha256": sha256_of_values(dict(facts), sha256_of_tensors(whole))}
    # as one entry: safetensors writes several in random order
    data = save(whole, {"facts": json.dumps(sealed, sort_keys=True)})
    given = {"remedy": remedy} if remedy else {}
    atomic_write(path, lambda temporary: temporary.write_bytes(data), **given)


def read_tensors(path: Path, facts: Mapping[str, str]) -> "dict[str, Tensor] | None":
    """Return what `write_tensors` wrote; None where it is absent, damaged (a line says so) or of something else."""
    from safetensors import SafetensorError, safe_open
    from tqdm import tqdm

    if not Path(path).exists():
        return None
    written, own = None, {"sha256": ""}
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            written = json.loads(file.metadata()["facts"])
        own = {name: value for name, value in written.items() if name != "sha256"}
        own["sha256"] = sha256_of_values(dict(own), sha256_of_tensors(tensors))
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        pass
    if written != own:
        tqdm.write(f"warning: {str(path)!r} is damaged; what it held is computed again", file=sys.stderr)
        return None
    return tensors if own == {**facts, "sha256": own["sha256"]} else None


def sha256_of_file(path: str | Path, on_bytes: Callable[[int], object] = lambda count: None) -> str:
    """Return the hex sha256 of a file; `on_bytes` is called with the size of each part that was read."""
    known = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            known.update(data)
            on_bytes(len(data))
    return known.hexdigest()


def sha256_of_values(*values: object) -> str:
    """Return the hex sha256 of plain values, as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode("utf-8")).hexdigest()


def sha256_of_tensors(tensors: "Mapping[str, Tensor]") -> str:
    """Return the hex sha256 of named tensors: their names, types, shapes and values."""
    import torch

    known = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        known.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        known.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return known.hexdigest()
