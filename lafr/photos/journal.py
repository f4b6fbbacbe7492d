"""A log of what was restored, one JSON line per file, from which the same command resumes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lafr.photos.faces import FaceReport
from lafr.storage import JsonLines, listed

NAME = "restored.jsonl"


class Journal:
    """The lines of `output/restored.jsonl`.

    Args:
        output: the folder that is restored into.
        settings: what the outputs depend on besides the inputs; a line with other settings counts as not done.
    """

    def __init__(self, output: Path, settings: dict):
        self.path, self.settings = output / NAME, json.loads(json.dumps(settings))
        self._done: dict[str, dict] = {}
        log = JsonLines(self.path)
        for record in log.read():
            if isinstance(name := record.get("file"), str):
                self._done[name] = record
        said = f"{str(self.path)!r} is damaged in {listed(log.damaged)}; what they recorded is restored again"
        self.warnings = [said] if log.damaged else []  # lines that say nothing of any file

    def output_of(self, name: str, path: Path) -> Path | None:
        """Return the output of this unchanged input when an earlier run has finished it under the same settings."""
        record = self._done.get(name, {})
        if record.get("status") != "done" or record.get("settings") != self.settings:
            return None
        if record.get("input") != _state(path):
            return None
        try:
            output = self.path.parent / record["output"]
            return output if output.is_file() else None
        except (KeyError, TypeError, ValueError, OSError):  # a damaged line: the file is restored again
            return None

    def write(self, name: str, path: Path, status: str, **facts: Any) -> None:
        """Add the line of one input; `status` is "done" or "skipped"."""
        record = {"file": name, "status": status, **facts, "input": _state(path), "settings": self.settings}
        JsonLines(self.path).append(record)

    def ignore(self, name: str, reason: str) -> None:
        """Add the line of a folder's entry that is no input, unless an earlier run has."""
        record = {"file": name, "status": "ignored", "reason": reason}
        if self._done.get(name) != record:
            JsonLines(self.path).append(record)


def face_facts(face: FaceReport) -> dict:
    """Return a report as JSON, in tenths of a pixel."""
    facts = asdict(face)
    facts["box"], facts["points"] = np.round(face.box, 1).tolist(), np.round(face.points, 1).tolist()
    facts["score"], facts["side"] = round(face.score, 3), round(face.side, 1)
    for name in ("likeness", "held_detail"):
        facts[name] = None if facts[name] is None else round(facts[name], 3)
    return facts


def _state(path: Path) -> dict | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def folder_state(folder: str | Path, place: Path | None = None) -> list:
    """Return what changes when the model in a folder is trained again: its files' names, sizes and times.

    Args:
        folder: as it is named; or a base model's single file.
        place: where it is, when that is not its name.
    """
    place = place or Path(folder)
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    return [str(folder), *([path.name, *(_state(path) or {}).values()] for path in files if path.is_file())]
