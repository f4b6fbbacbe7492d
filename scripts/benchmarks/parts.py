"""Parts of a long benchmark, each kept in a file as it ends: a stopped benchmark resumes."""

from collections.abc import Callable, Mapping
from pathlib import Path

from lafr.storage import read_json, write_json


def once(folder: str | Path | None, name: str, asked: Mapping, measure: Callable[[], Mapping]) -> dict:
    """Return `asked` with what `measure` returns; from `folder/NAME.json` where it was measured as asked before.

    Without a folder nothing is kept.
    """
    path = None if folder is None else Path(folder) / f"{name}.json"
    if path is not None and path.is_file() and (found := read_json(path)).items() >= asked.items():
        return found
    found = {**asked, **measure()}
    if path is not None:
        write_json(found, path)
    return found
