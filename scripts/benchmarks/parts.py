"""Parts of a long benchmark, each kept in a file as it ends: a stopped benchmark resumes."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from lafr.storage import read_json, write_json


def once(folder: str | Path | None, name: str, asked: Mapping, measure: Callable[[], Mapping]) -> dict:
    """Return `asked` with what `measure` returns; from `folder/NAME.json` where it was measured as asked before.

    Without a folder nothing is kept; a damaged file is measured again, and a line says so.
    """
    path = None if folder is None else Path(folder) / f"{name}.json"
    if path is not None and path.is_file():
        try:
            found = read_json(path)
            if found.items() >= asked.items():
                return found
        except (ValueError, AttributeError):
            print(f"warning: {str(path)!r} is damaged and measured again", file=sys.stderr)
    found = {**asked, **measure()}
    if path is not None:
        write_json(found, path)
    return found
