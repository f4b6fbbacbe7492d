"""Atomic writes of files and folders, their hashes, and logs that survive a killed process."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lafr.errors import InputError

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

    Folders are made as needed. Raises InputError, with `remedy`, when it cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # same suffix: writers choose a format by it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}", remedy=remedy) from None


def atomic_folder(
    folder: Path, fill: Callable[[Path], object], remedy: str = "free space and run the same command again"
) -> None:
    """Let `fill(temporary)` make a folder next to `folder`, flush its files to the disk, then rename it.

    An existing folder is replaced. On any error the new one is removed; a full disk is an InputError with `remedy`.
    """
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
            os.replace(temporary, folder)
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # safetensors reports a full disk as an exception of its own
        if isinstance(error, OSError) or "No space left" in str(error) or "Disk quota" in str(error):
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise InputError(f"cannot save {str(folder)!r}: {reason}", remedy=remedy) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, atomically."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(record: Mapping | list, path: Path) -> None:
    """Write a record as UTF-8 JSON, atomically."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Return what a UTF-8 JSON file holds; raises OSError or ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


class JsonLines:
    """A log of one JSON object per line, appended to by one process: what a stopped run has done.

    A killed process can leave half a line at the end. It is ignored when read, so that what it recorded is done again.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[dict]:
        """Return every whole line, in order; an absent file has none."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # the empty end, or half a line, or damage
                continue
            if isinstance(record, dict):
                found.append(record)
        return found

    def append(self, *records: Mapping) -> None:
        """Add lines; raises InputError when the disk is full."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab+") as file:
                text = text if self._ends_a_line(file) else "\n" + text
                file.write(text.encode("utf-8"))
        except OSError as error:
            remedy = "free space or choose another folder"
            raise InputError(f"cannot write {str(self.path)!r}: {error.strerror or error}", remedy=remedy) from None

    @staticmethod
    def _ends_a_line(file: BinaryIO) -> bool:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

    def rewrite(self, keep: Callable[[dict], bool]) -> None:
        """Drop the lines that `keep` refuses, and half a line at the end, atomically."""
        if self.path.is_file():
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.read() if keep(record)))


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
