"""The folder in which a dataset is made: a stopped run can resume, and a wrong input leaves no files."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from lafr.errors import InputError, UnwritableError, setting
from lafr.preparation.indexes import INDEX, require_same, sha256_of
from lafr.storage import JsonLines, locked, read_sealed, remove_temporaries, sync, write_sealed


class Unfinished:
    """`FOLDER.part` next to `folder`: the job (`job.json`), finished images (`done.jsonl`), downloads, the `set`.

    Raises InputError when it holds other files.
    """

    OWN = ("job.json", "done.jsonl", "set", "member", "download", "lock")

    def __init__(self, folder: Path):
        if folder.name in ("", ".."):
            raise InputError("output", str(folder), "a folder of the set's own")
        self.target, self.folder = folder, folder.with_name(f"{folder.name}.part")
        self.set, self.job = self.folder / "set", self.folder / "job.json"
        self.journal = JsonLines(self.folder / "done.jsonl", sealed=True)
        self.done: dict[tuple[str, str], dict] = {}
        self._absent = [parent for parent in self.folder.parents if not parent.exists()]
        names = [path.name.lstrip(".") for path in self.folder.iterdir()] if self.folder.is_dir() else []
        if not all(name.startswith(self.OWN) for name in names):
            raise InputError(f"{str(self.folder)!r} holds other files; choose another {setting('output')}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from making the same set; raises InputError that names the one which does."""
        with locked(self.folder / ".lock"):
            if (self.target / INDEX).is_file():  # made by another while this one looked
                raise InputError(f"{str(self.target)!r} has just been made by another process")
            yield

    @property
    def begun(self) -> bool:
        """Whether a set was begun here."""
        return self.job.is_file()

    def begin(self, job: Mapping) -> None:
        """Record the job, or check that the same was begun and read which images are done.

        An image is done if its file has the sha256 of its line.
        """
        if not self.begun:
            write_sealed(job, self.job)
            return
        require_same(read_sealed(self.job, required=False), job, self.folder)
        remove_temporaries(self.folder)
        again = []
        for record in tqdm(self.journal.read(), desc="verify", unit="image", delay=1):
            path = self.set / record.get("file", "")
            if "file" not in record or (path.is_file() and sha256_of(path) == record["sha256"]):
                self.done[record["part"], record["name"]] = record
            else:
                again.append(str(path))
        again += [f"line {number} of {str(self.journal.path)!r}" for number in self.journal.damaged]
        if again:
            lost = f"warning: {len(again)} not as written and made again, first {again[0]}"
            tqdm.write(lost, file=sys.stderr)

    def note(self, record: Mapping) -> None:
        """Record a finished image."""
        self.journal.append(record)
        self.done[record["part"], record["name"]] = dict(record)

    def finish(self) -> None:
        """Rename the finished set to its own folder."""
        if self.target.is_dir():  # empty
            self.target.rmdir()
        self.set.rename(self.target)
        sync(self.target.parent)  # before what it could be made from again is deleted
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self) -> None:
        """Delete everything, and the parents that were made for it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.sweep()

    def sweep(self) -> None:
        """Delete the folder and the parents made for it where they are empty."""
        for folder in (self.folder, *self._absent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    @contextmanager
    def discarded(self) -> Iterator[None]:
        """Delete everything after an InputError; an interruption, a full disk or a broken connection keep it."""
        try:
            yield
        except (OSError, UnwritableError):
            self.sweep()
            raise
        except InputError:
            self.remove()
            raise
