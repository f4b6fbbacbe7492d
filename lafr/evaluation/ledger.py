"""What was done, a line of JSON each: a run that was stopped reads it and goes on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lafr.storage import JsonLines


@dataclass(frozen=True)
class Processes:
    """Which of the processes of a run this one is: batch b is done by process b mod `count`.

    `wait` returns when all of them have called it.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], object] = lambda: None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that merges, writes results and prints."""
        return self.index == 0


class Ledger:
    """Lines in `folder/process_N.jsonl`: each process appends to its own file, and reads those of all.

    A line is whole or not there: what a stop tore off is passed over, and what it told of is done again. Each carries
    the number of its run, as another number of processes shares the batches out differently: the last run is right.
    """

    def __init__(self, folder: Path, process: int = 0):
        self.folder, self.path = folder, folder / f"process_{process}.jsonl"
        self.run = 1 + max((line["run"] for line in self.lines()), default=0)

    def lines(self) -> list[dict]:
        """Return every whole line of every process, the last run's last."""
        files = sorted(self.folder.glob("process_*.jsonl"))
        found = [line for path in files for line in JsonLines(path).read()]
        return sorted(found, key=lambda line: line["run"])

    def note(self, *records: dict) -> None:
        """Append lines, at once."""
        JsonLines(self.path).append(*({"run": self.run, **record} for record in records))
