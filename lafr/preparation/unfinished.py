"""The folder in which a set grows, so that a stopped run goes on and a wrong input leaves nothing."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from lafr.errors import InputError
from lafr.preparation.indexes import require_same, sha256_of
from lafr.storage import JsonLines, read_json, write_json


class Unfinished:
    """`FOLDER.part` beside `folder`: what is made (`job.json`), what is done (`done.jsonl`), downloads, the `set`.

    Raises InputError when something else lies there.
    """

    OWN = ("job.json", "done.jsonl", "set", "member", "download")

    def __init__(self, folder: Path):
        if folder.name in ("", ".."):
            raise InputError(f"output={str(folder)!r} is no folder of the set's own; give output=FOLDER")
        self.target, self.folder = folder, folder.with_name(f"{folder.name}.part")
        self.set, self.job, self.journal = (self.folder / name for name in ("set", "job.json", "done.jsonl"))
        self.done: dict[tuple[str, str], dict] = {}
        self._absent = [parent for parent in self.folder.parents if not parent.exists()]
        names = [path.name.lstrip(".") for path in self.folder.iterdir()] if self.folder.is_dir() else []
        if not all(name.startswith(self.OWN) for name in names):
            raise InputError(f"{str(self.folder)!r} holds other things; choose output=FOLDER or move them away")

    @property
    def begun(self) -> bool:
        """Was a set begun here?"""
        return self.job.is_file()

    def begin(self, job: Mapping) -> None:
        """Write down what is made here, or check that the same was begun and see how far it came.

        An image counts as done if its file has the sha256 of its line; a line that was cut off doesn't count.
        """
        if not self.begun:
            write_json(dict(job), self.job)
            return
        require_same(read_json(self.job), job, self.folder)
        for cut_off in self.set.rglob(".*"):  # files are written aside under a hidden name
            cut_off.unlink()
        for record in tqdm(JsonLines(self.journal).read(), desc="verify", unit="image", delay=1):
            path = self.set / record.get("file", "")
            if "file" not in record or (path.is_file() and sha256_of(path) == record["sha256"]):
                self.done[record["part"], record["name"]] = record

    def note(self, record: Mapping) -> None:
        """Note an image that is done."""
        JsonLines(self.journal).append(record)
        self.done[record["part"], record["name"]] = dict(record)

    def finish(self) -> None:
        """Give the set its name."""
        if self.target.is_dir():  # empty
            self.target.rmdir()
        self.set.rename(self.target)
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self) -> None:
        """Delete it all, and the parents that were made for it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.sweep()

    def sweep(self) -> None:
        """Delete it and the parents made for it as far as they are empty."""
        for folder in (self.folder, *self._absent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    @contextmanager
    def discarded(self) -> Iterator[None]:
        """Delete it all when the input turns out wrong; a stop, a full disk and a broken line leave it."""
        try:
            yield
        except InputError:
            self.remove()
            raise
        except OSError:
            self.sweep()
            raise
