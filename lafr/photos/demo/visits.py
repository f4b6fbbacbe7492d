"""A temporary folder for visitors' files, and its cleaning."""

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def kept_for(seconds: float) -> Iterator[Path]:
    """Yield a private temporary folder; files older than `seconds` are removed, and at the end the whole folder."""
    folder = Path(tempfile.mkdtemp(prefix="lafr-demo-"))  # only this user may read it
    over = threading.Event()

    def sweep() -> None:
        while not over.wait(max(0.1, seconds / 10)):
            remove_older(folder, seconds)

    sweeper = threading.Thread(target=sweep, name="lafr-demo-sweeper", daemon=True)
    sweeper.start()
    try:
        yield folder
    finally:
        over.set()
        sweeper.join()
        shutil.rmtree(folder, ignore_errors=True)


def remove_older(folder: Path, seconds: float) -> None:
    """Remove what was written under `folder` more than `seconds` ago; a folder with newer files is kept.

    By age, not by visitor: Gradio names files by content, so two visitors with the same photo share one.
    """
    before = time.time() - seconds
    inside_first = sorted(folder.rglob("*"), reverse=True)
    for path in [path for path in inside_first if _written(path) < before]:
        with suppress(OSError):  # in use, gone, or not empty: tried again at the next round
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _written(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # gone meanwhile
        return float("inf")
