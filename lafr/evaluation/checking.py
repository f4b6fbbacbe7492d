"""Check that a folder is the set it claims to be: names and hashes of a prepared set, and how degraded its LQ is."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lafr.data.benchmarks import Benchmark, PairedBenchmark, prepared_index
from lafr.data.severity import BOUNDARY, MARGIN, SETS, is_clear, psnr, severity_of, sharpness
from lafr.errors import InputError, setting
from lafr.images import to_uint8
from lafr.storage import sha256_of_file

SAMPLE = 32  # files that are hashed, evenly spaced


def check_set(
    benchmark: Benchmark, severity: str | None = None, warn: Callable[[InputError], object] | None = None
) -> list[str]:
    """Return what was checked of a set, one line each; raises InputError when it is clearly not the set of its name.

    Args:
        benchmark: only a `PairedBenchmark`, a folder that somebody made, can be another set.
        severity: "severe" or "mild", which its pairs must be.
        warn: gets the doubt where a set is near the boundary between the two.
    """
    if not isinstance(benchmark, PairedBenchmark):
        return []
    said = index_check(benchmark, severity)
    if severity and benchmark.hq:
        said.append(severity_check(benchmark, severity, warn))
    return said


def index_check(benchmark: PairedBenchmark, severity: str | None) -> list[str]:
    """Compare the names of all files, and the sha256 of some, with the index that prepare_data.py wrote."""
    index = prepared_index(benchmark.root)
    if index is None:
        return [f"{len(benchmark):,} images in {benchmark.root}: no index.json, so no file was checked by its hash"]
    made = index.get("dataset")
    if severity and made in SETS.values() and made != SETS[severity]:
        raise InputError(
            f"{str(benchmark.root)!r} is {made}, not {benchmark.name}", remedy=f"run with {setting('benchmark', made)}"
        )
    files = [*benchmark.lq, *(benchmark.hq or [])]
    there = {Path(os.path.relpath(file, benchmark.root)).as_posix(): file for file in files}
    folders = {name.rpartition("/")[0] for name in there}
    listed = {entry["file"]: entry["sha256"] for entry in index["files"]}
    known = {name: sha256 for name, sha256 in listed.items() if name.rpartition("/")[0] in folders}
    missing, extra = sorted(known.keys() - there.keys()), sorted(there.keys() - known.keys())
    if missing or extra:
        raise InputError(
            f"{str(benchmark.root)!r} is not as it was prepared: {len(missing)} files of index.json are missing "
            f"{missing[:3]}, {len(extra)} are not in it {extra[:3]}",
            remedy="delete the folder and prepare it again",
        )
    for name in spread(sorted(known)):
        if sha256_of_file(there[name]) != known[name]:
            raise InputError(
                f"{str(there[name])!r} was altered since it was prepared",
                remedy=f"delete {str(benchmark.root)!r} and prepare it again",
            )
    return [f"{len(known):,} files as index.json names them, sha256 of {len(spread(known))} compared"]


def severity_check(
    benchmark: PairedBenchmark, severity: str, warn: Callable[[InputError], object] | None = None
) -> str:
    """Compare LQ with HQ on all pairs: the two CelebA-Tests have the same ground truth.

    Raises InputError for a set that is clearly the other one; warns of one that is within `MARGIN` of the boundary.
    """
    measured = measured_pairs(benchmark)
    values, sharper = zip(*measured, strict=True)
    if np.mean(sharper) > 0.5 or np.isinf(values).any():
        raise InputError(
            f"in {sum(sharper)} of {len(values)} pairs of {str(benchmark.root)!r} the LQ image is the sharper one, in "
            f"{int(np.isinf(values).sum())} it is the HQ image itself",
            remedy=f"put the degraded images into {benchmark.lq[0].parent.name!r}",
        )
    mean = float(np.mean(values))
    found = severity_of(mean)
    rule = f"under {BOUNDARY} dB severe, else mild"
    override = f"or give {setting('Benchmark.severity', None)} if you know that it is the right set"
    if found != severity and is_clear(mean):
        raise InputError(
            f"{str(benchmark.root)!r} is not {benchmark.name}: the mean PSNR of LQ against HQ is {mean:.2f} dB on "
            f"{len(values)} pairs, as in the {found} set ({rule})",
            remedy=f"run with {setting('benchmark', SETS[found])}, {override}",
        )
    if not is_clear(mean):
        doubt = InputError(
            f"{str(benchmark.root)!r} may not be {benchmark.name}: the mean PSNR of LQ against HQ is {mean:.2f} dB on "
            f"{len(values)} pairs, within {MARGIN:g} dB of the boundary ({rule})",
            remedy=f"compare with published values of {benchmark.name} only if you know that it is that set "
            f"({setting('Benchmark.severity', None)} checks nothing)",
        )
        if warn is not None:
            warn(doubt)
        return f"LQ against HQ has {mean:.2f} dB on {len(values)} pairs: near the boundary of severe and mild"
    return f"LQ against HQ has {mean:.2f} dB on {len(values)} pairs: {found}"


def measured_pairs(benchmark: PairedBenchmark) -> list[tuple[float, bool]]:
    """Return PSNR of LQ against HQ in dB, and whether LQ is the sharper one, of every pair.

    Taken from the index of a set that was prepared; else measured.
    """
    index = prepared_index(benchmark.root) or {"files": []}
    noted = {entry["file"]: entry for entry in index["files"]}
    own = [noted.get(Path(os.path.relpath(file, benchmark.root)).as_posix(), {}) for file in benchmark.lq]
    if all("psnr_rgb" in entry and "sharper" in entry for entry in own):
        return [(entry["psnr_rgb"], entry["sharper"]) for entry in own]

    def measure(index: int) -> tuple[float, bool]:
        pair = benchmark[index]
        assert pair.hq is not None
        lq, hq = (to_uint8(image).permute(1, 2, 0).numpy() for image in (pair.lq, pair.hq))
        return psnr(lq, hq), sharpness(lq) > sharpness(hq)

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        found = pool.map(measure, range(len(benchmark)))
        return list(tqdm(found, "LQ against HQ", len(benchmark), unit="pair", leave=False, delay=2))


def prepared_filter(benchmark: Benchmark) -> str | None:
    """Return the filter with which `lafr prepare` brought a set to its size; None where no index says so."""
    index = prepared_index(benchmark.root) if isinstance(benchmark, PairedBenchmark) else None
    return None if index is None else index["settings"].get("filter")


def spread(items: Iterable[Any]) -> list:
    """Return at most `SAMPLE` items, evenly spaced."""
    items = list(items)
    places = np.linspace(0, len(items) - 1, min(SAMPLE, len(items)))
    return [items[place] for place in np.unique(places.round().astype(int))]
