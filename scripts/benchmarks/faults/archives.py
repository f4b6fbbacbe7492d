"""Hostile, damaged and whole archives through `lafr prepare`: one line and no file, or every image as it was."""

import io
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

import lafr.commands.prepare
from lafr.storage import sha256_of_file
from scripts.benchmarks.faults import Trial
from scripts.benchmarks.faults.runs import composed, run

SIDE = 24
Make = Callable[[Path], object]  # writes an archive
ZEROS = 120_000_000  # bytes that pack into almost nothing
WHOLE, CUT, FLIPPED = "whole", "cut off", "one byte changed"
OUTSIDE, LINK, BOMB, FORM = "a name that leads outside", "a link, a device", "a bomb", "another form"


def png(seed: int) -> bytes:
    """Return a small image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def zipped(files: dict[str, bytes], mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> Make:
    """Return what writes a zip; the last file has the Unix mode and the method."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                info = zipfile.ZipInfo(name)
                info.compress_type = method
                info.external_attr = mode << 16 if name == list(files)[-1] else 0
                archive.writestr(info, data)

    return make


def tarred(files: dict[str, bytes], mode: str = "w", **header: object) -> Make:
    """Return what writes a tar; `header` changes fields of its last member, which then has no content."""

    def make(path: Path) -> None:
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                last = bool(header) and name == list(files)[-1]
                info.size = 0 if last else len(data)
                for key, value in header.items() if last else ():
                    setattr(info, key, value)
                archive.addfile(info, io.BytesIO(data))

    return make


def encrypted(path: Path) -> None:
    """Write a zip that says it is encrypted."""
    zipped(GOOD)(path)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)


def twice(path: Path) -> None:
    """Write a zip with two members of one name."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a.png", png(0))
        archive.writestr("a.png", png(1))


def header_bomb(path: Path) -> None:
    """Write a tar whose header claims 60 MB."""
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 60_000_000
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(info, io.BytesIO(bytes(info.size)))


def lying(path: Path) -> None:
    """Write a zip whose headers state ten bytes too few."""
    image = png(0)
    zipped({"a.png": image})(path)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(signature) + offset, len(image) - 10)
    path.write_bytes(data)


GOOD = {f"faces/{number}.png": png(number) for number in range(6)} | {"faces/licence.txt": b"free"}
PACKINGS: dict[str, Make] = {
    "zip": zipped(GOOD),
    "tar": tarred(GOOD),
    "tar.gz": tarred(GOOD, "w:gz"),
    "tar.bz2": tarred(GOOD, "w:bz2"),
    "tar.xz": tarred(GOOD, "w:xz"),
}
TO_PASSWD = {"linkname": "/etc/passwd"}
HOSTILE: list[tuple[str, str, Make]] = [
    *((OUTSIDE, f"zip {name}", zipped(GOOD | {name: png(9)})) for name in (
        "../../out.png", "a/../../out.png", "/tmp/out.png", "C:/out.png", "..\\out.png", "../.bashrc", "a/../b.png",
    )),
    *((OUTSIDE, f"tar {name}", tarred(GOOD | {name: png(9)})) for name in ("../out.png", "/tmp/out.png")),
    *((LINK, f"zip {mode:o}", zipped(GOOD | {"z.png": b"/etc/passwd"}, mode)) for mode in (0o120777, 0o020666)),
    (LINK, "tar link", tarred(GOOD | {"z.png": b""}, type=tarfile.SYMTYPE, **TO_PASSWD)),
    (LINK, "tar hard link", tarred(GOOD | {"z.png": b""}, type=tarfile.LNKTYPE, **TO_PASSWD)),
    (LINK, "tar device", tarred(GOOD | {"z.png": b""}, type=tarfile.CHRTYPE)),
    (LINK, "tar pipe", tarred(GOOD | {"z.png": b""}, type=tarfile.FIFOTYPE)),
    (BOMB, "zip", lambda path: zipped(GOOD | {"z.png": bytes(ZEROS)})(path)),
    (BOMB, "zip, no image", lambda path: zipped(GOOD | {"z": bytes(ZEROS)})(path)),
    (BOMB, "tar", lambda path: tarred(GOOD | {"z.png": bytes(ZEROS)}, "w:gz")(path)),
    (BOMB, "tar, in a header", header_bomb),
    (FORM, "encrypted zip", encrypted),
    (FORM, "zip by another method", zipped(GOOD, method=zipfile.ZIP_LZMA)),
    (FORM, "a name twice", twice),
    (FORM, "a name twice, spelt apart", zipped(GOOD | {"./faces/0.png": png(9)})),
    (FORM, "a size that lies", lying),
    (FORM, "a page", lambda path: path.write_text("<html>", encoding="utf-8")),
    (FORM, "no image", zipped({"inner.zip": b"PK"})),
    (FORM, "an image that is none", zipped(GOOD | {"z.png": b"no image"})),
    (FORM, "an image too small", zipped(GOOD | {"z.png": b"P6 2 2 255 " + bytes(12)})),
    (FORM, "an image of absurd size", zipped(GOOD | {"z.png": b"P6 60000 60000 255 " + bytes(99)})),
]  # fmt: skip


def damaged(packing: str, number: int, rng: np.random.Generator) -> tuple[str, str, Make]:
    """Return the row, the name and the writer of an archive that is cut off, or has one byte changed."""
    cut, at = number % 2 == 0, rng.uniform(0.05, 0.95)

    def make(path: Path) -> None:
        PACKINGS[packing](path)
        data = bytearray(path.read_bytes())
        where = int(at * len(data))
        if cut:
            del data[where:]
        else:
            data[where] ^= 0x41
        path.write_bytes(data)

    return CUT if cut else FLIPPED, f"{packing} at {at:.0%}", make


def all_cases(seed: int) -> Iterator[tuple[str, str, Make]]:
    """Yield the hostile archives, the whole ones and then damaged ones without an end."""
    rng = np.random.default_rng(seed)
    yield from HOSTILE
    yield from ((WHOLE, packing, make) for packing, make in PACKINGS.items())
    number = 0
    while True:
        for packing in PACKINGS:
            yield damaged(packing, number, rng)
        number += 1


def made(folder: Path) -> dict[str, str]:
    """Return name -> sha256 of the images of a set."""
    return {path.name: sha256_of_file(path) for path in sorted(folder.glob("[!.]*.png"))}


def trials(count: int, seed: int, folder: Path) -> Iterator[Trial]:
    """Prepare a set from each of `count` archives, by the command, in a process each."""
    right: dict[str, str] = {}
    for number, (row, name, make) in enumerate([*islice(all_cases(seed), count)]):
        place = folder / str(number)
        place.mkdir()
        source, target = place / "source", place / "set"
        make(source)
        given = ["dataset=folder", f"source={source}", f"resolution={SIDE}", f"output={target}"]
        ended = run(partial(lafr.commands.prepare.main, composed("prepare_data", *given)), place / "said.txt")
        found = made(target) if target.is_dir() else {}
        if not right:
            right = expected(folder)
        yield Trial(row, f"{number}: {name}", *judged(row, ended.code, ended.said, found, right, place))


def expected(folder: Path) -> dict[str, str]:
    """Return what the sound archive's images are once they are prepared: by name, the sha256."""
    from lafr.images import write_image

    (folder / "right").mkdir()
    for name, data in GOOD.items():
        if name.endswith(".png"):
            write_image(Image.open(io.BytesIO(data)), folder / "right" / Path(name).name)
    return made(folder / "right")


def judged(
    row: str, code: int | None, said: str, found: dict[str, str], right: dict[str, str], place: Path
) -> tuple[str, str]:
    """Return the outcome and what was said."""
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    if row == WHOLE or (code == 0 and row in (CUT, FLIPPED)):  # a changed byte may be one that says nothing
        return ("held" if code == 0 and found == right else "lost" if code else "silent"), f"{len(found)} images"
    left = {path.name for path in place.iterdir()} - {"source", "said.txt"}
    if code == 0 or found:
        return "silent", f"taken: {len(found)} images"
    if code != 1 or len(lines) != 1 or "Traceback" in said or "source" not in lines[0] or left:
        return "lost", f"exit {code}, left {sorted(left)}: {said[-300:]}"
    return "held", lines[0]
