"""What an evaluation has done so far, one JSON object per line, so that a stopped run can resume."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lafr.storage import JsonLines, listed


@dataclass(frozen=True)
class Processes:
    """This process among those of a run: batch b belongs to process b mod `count`.

    `wait` is a barrier: it returns when all of them have called it.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], object] = lambda: None

    @property
    def is_main(self) -> bool:
        """Whether this process merges the others' work, writes the results and prints."""
        return self.index == 0


class ProgressLog:
    """Append-only logs `folder/process_N.jsonl`: a process writes its own and reads those of all.

    A line that a kill has cut off, or that is damaged, is ignored, and its work is done again. Each line carries the
    number of its run: with another number of processes a batch moves to another file, and the line of the last run is
    the valid one.
    """

    def __init__(self, folder: Path, process: int = 0):
        self.folder, self.path = folder, folder / f"process_{process}.jsonl"
        self.damaged: list[str] = []  # what `lines` has ignored
        self.run = 1 + max((line["run"] for line in self.lines()), default=0)

    def lines(self) -> list[dict]:
        """Return every complete line of every process, the last run's last."""
        found = []
        self.damaged = []
        for path in sorted(self.folder.glob("process_*.jsonl")):
            log = JsonLines(path, sealed=True)
            found += log.read()
            if log.damaged:
                numbers = listed(log.damaged)
                self.damaged.append(f"{str(path)!r} is damaged in {numbers}; what they recorded is done again")
        return sorted(found, key=lambda line: line["run"])

    def append(self, *records: dict) -> None:
        """Write lines at once."""
        JsonLines(self.path, sealed=True).append(*({"run": self.run, **record} for record in records))
