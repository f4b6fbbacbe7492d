"""The index of a prepared dataset, `index.json`: hashes of every image and of its sources; written last."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lafr.data.benchmarks import INDEX, prepared_index
from lafr.errors import InputError, setting
from lafr.provenance import differences
from lafr.storage import sha256_of_file


def read_index(folder: Path) -> dict | None:
    """Return the index of a prepared dataset, None for an absent or empty folder; InputError for any other folder."""
    index = prepared_index(folder)
    if index is not None:
        return index
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{str(folder)!r} holds other files and no {INDEX}; choose another {setting('output')}")
    return None


def require_same(record: Mapping, job: Mapping, folder: Path) -> None:
    """Raise InputError when `folder` was made, or begun, from another source or with other settings than `job`."""
    if changed := differences(_compared({key: record.get(key) for key in job}), _compared(job)):
        raise InputError(
            f"{str(folder)!r} was made from another source or with other settings ({'; '.join(changed[:3])}); "
            f"give those, choose another {setting('output')}, or delete it"
        )


def _compared(job: Mapping) -> dict:
    """Return a job without the names of its sources: a renamed archive is the same."""
    hashes = {f"sha256 of {part or 'source'}": source["sha256"] for part, source in job.get("sources", {}).items()}
    return {**job, **({"sources": hashes} if hashes else {})}


def verify(folder: Path, record: Mapping) -> None:
    """Raise InputError unless every file of an index exists with its sha256."""
    for file in tqdm(record["files"], desc="verify", unit="image", delay=1):
        path = folder / file["file"]
        if not path.is_file() or sha256_of(path) != file["sha256"]:
            state = "was altered" if path.is_file() else "is missing"
            raise InputError(f"{str(path)!r} {state} since it was prepared; delete {str(folder)!r} and run again")


def sha256_of(path: Path, desc: str | None = None) -> str:
    """Return the hex sha256 of a file; with `desc`, show a progress bar."""
    bar = tqdm(desc=desc, total=path.stat().st_size, unit="B", unit_scale=True, delay=1, disable=desc is None)
    with bar:
        return sha256_of_file(path, bar.update)


def sha256_of_names(sizes: Mapping[str, int]) -> str:
    """Return the hex sha256 of the lines `NAME<tab>BYTES`, sorted: it identifies a folder."""
    lines = "".join(f"{name}\t{size}\n" for name, size in sorted(sizes.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()  # names may hold bytes that are no text


def sha256_of_pixels(image: Image.Image) -> str:
    """Return the hex sha256 of an image's 8-bit RGB values, row by row: it does not depend on the compression."""
    return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest()
