"""Write the page of a result: `python scripts/report.py runs/eval/mini/mini [--groups FILE.csv]`.

scripts/eval.py writes it as well; this makes it anew, for instance with the groups of a set's people.
"""

import argparse
import json
import sys
from pathlib import Path

from lafr.errors import InputError


def read_record(folder: Path) -> dict:
    """Return the record in `folder`; raises InputError where there is none."""
    path = folder / "result.json"
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}; give a folder of scripts/eval.py") from None
    except ValueError:
        raise InputError(f"{str(path)!r} is damaged; run scripts/eval.py again") from None
    if not isinstance(record, dict) or not record.get("rows"):
        raise InputError(f"{str(path)!r} is not a result of scripts/eval.py; give its folder")
    return record


def main() -> None:
    """Read a record, write its page."""
    from lafr.report import write_report

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where scripts/eval.py wrote result.json")
    parser.add_argument("--groups", type=Path, help="CSV with a line an image and a column that names it")
    asked = parser.parse_args()
    try:
        record = read_record(asked.folder)
        print(write_report(record | ({"groups": asked.groups} if asked.groups else {}), asked.folder))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
