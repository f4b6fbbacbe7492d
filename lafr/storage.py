"""Files that are there whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

from lafr.errors import InputError


def write_aside(
    path: Path, write: Callable[[Path], object], remedy: str = "free space or choose another folder"
) -> None:
    """Let `write(aside)` make a hidden file beside `path` and rename it: a stop or a full disk leaves no half file.

    Folders are made as needed. Raises InputError, with `remedy`, when it cannot be written.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}; {remedy}") from None
