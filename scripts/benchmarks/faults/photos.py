"""Damaged photos and videos in one folder: `lafr restore` writes a line for each, and none ends the run."""

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.benchmarks.faults import Trial
from scripts.benchmarks.faults.runs import run

KINDS = ("bits flipped", "torn", "zeroed", "filled", "a part removed", "a part repeated", "spliced with another")
OTHER_NAME, WHOLE = "another extension", "whole"
EXTENSIONS = ("png", "jpg", "tif", "webp", "bmp", "gif", "ppm", "jp2", "mp4")


def whole_files() -> list[tuple[str, bytes]]:
    """Return small whole files of every kind that is read: extension and bytes."""
    from skimage import data

    face = Image.fromarray(data.astronaut()[20:220, 125:325]).resize((40, 48))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    exif.get_ifd(0x8769)[40961] = 1
    kinds: list[tuple[str, Image.Image, str, dict]] = [
        ("png", face, "PNG", {"exif": exif, "dpi": (300, 300)}),
        ("png", face.convert("P"), "PNG", {"transparency": 3}),
        ("png", Image.fromarray(np.asarray(face.convert("L")).astype(np.uint16) * 257), "PNG", {}),
        ("jpg", face, "JPEG", {"exif": exif, "progressive": True}),
        ("jpg", face.convert("CMYK"), "JPEG", {"exif": exif}),
        ("tif", face, "TIFF", {"exif": exif}),
        ("tif", face.convert("LAB"), "TIFF", {"compression": "tiff_lzw"}),
        ("webp", face.convert("RGBA"), "WEBP", {"exif": exif}),
        ("bmp", face.resize((45, 20)), "BMP", {}),
        ("gif", face, "GIF", {"save_all": True, "append_images": [face.rotate(90)]}),
        ("ppm", face, "PPM", {}),
        ("jp2", face, "JPEG2000", {}),
    ]
    files = []
    for extension, image, kind, options in kinds:
        stream = BytesIO()
        image.save(stream, kind, **options)
        files.append((extension, stream.getvalue()))
    return files


def damaged(body: bytes, rng: np.random.Generator, other: bytes) -> tuple[str, bytes]:
    """Return what was done to a file, and its bytes."""
    changed = bytearray(body)
    start, end = sorted(rng.integers(0, len(body), 2).tolist())
    end = min(end, start + 40)
    kind = int(rng.integers(7))
    match kind:
        case 0:
            for at in rng.integers(0, len(body), rng.integers(1, 6)):
                changed[at] ^= 1 << int(rng.integers(8))
        case 1:
            del changed[start:]
        case 2:
            changed[start:end] = bytes(end - start)
        case 3:
            changed[start:end] = b"\xff" * (end - start)
        case 4:
            del changed[start:end]
        case 5:
            changed[start:start] = changed[start:end]
        case 6:
            changed[start:] = other[start:]
    return KINDS[kind], bytes(changed)


def written(count: int, seed: int, folder: Path) -> dict[str, str]:
    """Write `count` files, of which the first of each kind is whole; return name -> what was done to it."""
    rng, files, done = np.random.default_rng(seed), whole_files(), {}
    folder.mkdir(parents=True)
    for number in range(count):
        extension, body = files[number % len(files)]
        what = WHOLE
        if number >= len(files):
            what, body = damaged(body, rng, files[rng.integers(len(files))][1])
            if rng.random() < 0.2:
                what, extension = OTHER_NAME, EXTENSIONS[rng.integers(len(EXTENSIONS))]
        name = f"{number:03d}.{extension}"
        (folder / name).write_bytes(body)
        done[name] = what
    return done


def restore(folder: Path) -> None:
    """Run the command with the miniature."""
    from lafr.commands.cli import main

    main(["restore", str(folder / "in"), "-o", str(folder / "out"), "--aligned=false", "--quiet"])


def trials(count: int, seed: int, folder: Path) -> Iterator[Trial]:
    """Restore `count` files at once, and again: a second run meets the same ones."""
    done = written(count, seed, folder / "in")
    ends = [run(partial(restore, folder), folder / "said.txt") for _ in range(2)]
    journal = folder / "out" / "restored.jsonl"
    lines = [json.loads(line) for line in journal.read_text("utf-8").splitlines()] if journal.is_file() else []
    times = Counter(line["file"] for line in lines)
    last = {line["file"]: line for line in lines}
    for name, what in done.items():
        yield Trial(what, name, *judged(name, what, last.get(name, {}), times[name], folder / "out"))
    for number, ended in enumerate(ends, 1):
        fair = ended.code == 1 and "Traceback" not in ended.said
        yield Trial(
            "the run", f"number {number}", "held" if fair else "lost", f"exit {ended.code}: {ended.said[-300:]}"
        )


def judged(name: str, what: str, line: dict, times: int, out: Path) -> tuple[str, str]:
    """Return the outcome of one file, and what its line says."""
    if not line:
        return "silent", "no line in the journal"
    if line["status"] == "skipped":
        fair = what != WHOLE and line["reason"] and "\n" not in line["reason"] and times == 2
        return ("held" if fair else "lost"), f"{times} lines: {line['reason']}"
    if times != 1 or line["status"] != "done" or not (out / line["output"]).is_file():
        return "lost", f"{times} lines: {line}"
    if not name.endswith("mp4"):
        with Image.open(out / line["output"]) as image:
            image.load()
    return "held", "; ".join(line["warnings"])
