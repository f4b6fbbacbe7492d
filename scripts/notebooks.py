"""Execute the notebooks again, in place, with outputs that do not change from run to run: `make notebooks`."""

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from lafr.storage import write_text

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SECONDS = 900  # of a cell


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Return a notebook with its outputs, executed in `folder`; raises CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    # times of the cells would differ each time
    NotebookClient(notebook, timeout=SECONDS, record_timing=False, resources=resources).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # not this interpreter's version
    for cell in notebook.cells:
        # progress bars and warnings of libraries, which name files of this machine
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Execute the named notebooks, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path)
    for path in parser.parse_args().notebooks or sorted(FOLDER.glob("*.ipynb")):
        started = time.monotonic()
        notebook = executed(path, path.parent)
        write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")  # atomic: a stop leaves the old one
        print(f"{path.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
