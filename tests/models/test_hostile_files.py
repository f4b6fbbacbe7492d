"""Forty broken, odd and hostile files in one folder: each has its outcome, the run continues, nothing is lost."""

import json
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lafr.data.packaged import aligned
from lafr.photos.restorer import PhotoRestorer
from lafr.photos.restoring import restore_files

DONE, SKIPPED = "done", "skipped"
GIF_BOMB = b"GIF89a" + b"\xff" * 4 + bytes(3) + b"\x2c" + bytes(4) + b"\xff" * 4 + b"\0\x02\0;"  # 65535 x 65535


class Same(nn.Module):
    resolution = 32

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, lq):
        return lq


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def ramp() -> Image.Image:
    return Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return head + chunk(b"IDAT", zlib.compress(bytes(99)))


def sixteen_bit_rgb() -> bytes:
    rows = b"".join(b"\0" + bytes(range(96)) for _ in range(20))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 20, 16, 2, 0, 0, 0))
    return head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def broken_exif() -> bytes:
    return b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 40


# Name, outcome, a word of what is said (None: nothing is), and what writes it.
FILES = {
    # what isn't a whole picture
    "truncated.jpg": (SKIPPED, "truncated", lambda p: cut(p, noise(64, 80, 3), "JPEG", 0.5)),
    "truncated.png": (SKIPPED, "truncated", lambda p: cut(p, noise(64, 80, 3), "PNG", 0.5)),
    "truncated.webp": (SKIPPED, "truncated", lambda p: cut(p, noise(64, 80, 3), "WEBP", 0.5)),
    "truncated.tif": (SKIPPED, "", lambda p: cut(p, noise(64, 80, 3), "TIFF", 0.5)),
    "truncated.gif": (SKIPPED, "truncated", lambda p: cut(p, noise(64, 80, 3), "GIF", 0.3)),
    "little data.png": (SKIPPED, "truncated", lambda p: p.write_bytes(png_header(100, 90))),
    "header only.jpg": (SKIPPED, "truncated", lambda p: p.write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")),
    "empty.jpg": (SKIPPED, "not an image", lambda p: p.write_bytes(b"")),
    "empty.png": (SKIPPED, "not an image", lambda p: p.write_bytes(b"")),
    "zeros.jpg": (SKIPPED, "not an image", lambda p: p.write_bytes(bytes(5000))),
    "random.png": (SKIPPED, "not an image", lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000))),
    "page.jpg": (SKIPPED, "not an image", lambda p: p.write_text("<!DOCTYPE html><html>404</html>")),
    "vector.png": (SKIPPED, "not an image", lambda p: p.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")),
    "archive.jpg": (SKIPPED, "not an image", lambda p: p.write_bytes(b"PK\x03\x04" + bytes(100))),
    "damaged checksum.png": (SKIPPED, "", lambda p: flip(p, noise(64, 80, 3))),
    # what is too large to be opened
    "20000 x 20000.png": (SKIPPED, "too many pixels", lambda p: p.write_bytes(png_header(20000, 20000))),
    "2 billion.png": (SKIPPED, "too many pixels", lambda p: p.write_bytes(png_header(2**31 - 1, 2**31 - 1))),
    "bomb.gif": (SKIPPED, "too many pixels", lambda p: p.write_bytes(GIF_BOMB)),
    # what cannot be opened
    "pipe.jpg": (SKIPPED, "cannot be opened", os.mkfifo),
    "loop.jpg": (SKIPPED, "cannot be opened", lambda p: p.symlink_to(p)),
    "into nothing.jpg": (SKIPPED, "does not exist", lambda p: p.symlink_to("nowhere.jpg")),
    "n" * 245 + ".png": (SKIPPED, "a name too long", lambda p: noise(8, 9, 3).save(p)),
    "floats.tif": (SKIPPED, "32-bit floats", lambda p: Image.new("F", (20, 30)).save(p)),
    # what is odd, and whole
    "1 x 1.png": (DONE, "no face", lambda p: noise(1, 1, 3).save(p)),
    "1 x 3000.png": (DONE, "no face", lambda p: noise(3000, 1, 3).save(p)),
    "animated.gif": (DONE, "first of its 3", lambda p: animated(p)),
    "two pages.tif": (DONE, "first of its 2", lambda p: pages(p)),
    "cmyk.jpg": (DONE, "no face", lambda p: noise(40, 60, 3).convert("CMYK").save(p)),
    "16 bit gray.png": (DONE, "no face", lambda p: ramp().save(p)),
    "16 bit colour.png": (DONE, "16 bits", lambda p: p.write_bytes(sixteen_bit_rgb())),
    "palette.png": (DONE, "no face", lambda p: noise(20, 30, 3).convert("P").save(p)),
    "one bit.png": (DONE, "no face", lambda p: noise(20, 30).convert("1").save(p)),
    "transparent.png": (DONE, "no face", lambda p: noise(20, 30, 4).save(p)),
    "broken exif.jpg": (DONE, "", lambda p: noise(20, 30, 3).save(p, exif=broken_exif())),
    "a jpeg.png": (DONE, "no face", lambda p: noise(20, 30, 3).save(p, "JPEG")),
    "a png.jpg": (DONE, "no face", lambda p: noise(20, 30, 3).save(p, "PNG")),
    "linked.jpg": (DONE, "no face", lambda p: p.symlink_to("a png.jpg")),
    # names
    " two  spaces .png": (DONE, None, lambda p: aligned("astronaut").save(p)),
    "日本語 fête 🙂.png": (DONE, None, lambda p: aligned("astronaut").save(p)),
    "new\nline.png": (DONE, None, lambda p: aligned("astronaut").save(p)),
    "-o.png": (DONE, None, lambda p: aligned("astronaut").save(p)),
    os.fsdecode(b"not utf-8 \xff.png"): (DONE, None, lambda p: aligned("astronaut").save(p)),
}


def cut(path: Path, image: Image.Image, kind: str, share: float) -> None:
    image.save(path, kind)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip(path: Path, image: Image.Image) -> None:
    image.save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def animated(path: Path) -> None:
    frames = [noise(20, 30, 3).rotate(90 * i) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def pages(path: Path) -> None:
    noise(20, 30, 3).save(path, save_all=True, append_images=[noise(9, 9)])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name, (*_, write) in FILES.items():
        write(tmp_path / "in" / name)
    (tmp_path / "in" / "inner").mkdir()
    (tmp_path / "in" / "inner" / "back").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "notes.txt").write_text("no picture, and not named as one")
    return tmp_path / "in"


def test_each_of_forty_files_has_its_outcome_and_the_run_goes_on(folder, tmp_path, capsys):
    assert len(FILES) >= 40
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    outcome = restore_files(PhotoRestorer(Same()), [folder], tmp_path / "out", side_by_side=False)
    lines = [json.loads(line) for line in (tmp_path / "out" / "restored.jsonl").read_text().splitlines()]
    said = {line["file"]: line for line in lines}
    ignored = {name for name, line in said.items() if line["status"] == "ignored"}
    assert ignored == {"notes.txt", "inner/back"} == {name for name, _ in outcome.ignored}
    assert said.keys() - ignored == FILES.keys() and len(lines) == len(
        said
    )  # a line each, and nothing through the loop
    for name, (status, word, _) in FILES.items():
        line = said[name]
        assert line["status"] == status, line
        words = line["reason"] if status == SKIPPED else "; ".join(line["warnings"])
        assert (words == "") if word is None else (word in words), (name, words)
        if status == SKIPPED:
            assert ("\n" not in words and repr(name)[1:-1] in words) or "32-bit" in words
        else:
            with Image.open(tmp_path / "out" / line["output"]) as picture:
                picture.load()
    assert len(outcome.done) + len(outcome.skipped) == len(FILES)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(written) == len(outcome.done) + 1  # nothing half-written


def test_a_whole_odd_file_keeps_its_pixels_and_its_kind(folder, tmp_path):
    restore_files(PhotoRestorer(Same()), [folder], tmp_path / "out", side_by_side=False)
    for name, output, mode in [
        ("16 bit gray.png", "16 bit gray.png", "I;16"),
        ("cmyk.jpg", "cmyk.tif", "CMYK"),
        ("one bit.png", "one bit.png", "L"),
        ("transparent.png", "transparent.png", "RGBA"),
        ("1 x 3000.png", "1 x 3000.png", "RGB"),
    ]:
        given, made = Image.open(folder / name), Image.open(tmp_path / "out" / output)
        assert made.mode == mode
        assert np.array_equal(np.asarray(given.convert(mode)), np.asarray(made)), name


def test_a_file_that_may_not_be_read_is_skipped():
    photos, user = PhotoRestorer(Same(), lambda image: []), os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        for picture in ("open.png", "locked.png"):
            noise(20, 30, 3).save(folder / picture)
        (folder / "locked.png").chmod(0)
        folder.chmod(0o777)
        try:
            if user == 0:  # root may read everything
                os.seteuid(65534)
            outcome = restore_files(photos, [folder], folder / "out", side_by_side=False)
        finally:
            os.seteuid(user)
    assert [path.name for path in outcome.done] == ["open.png"]
    assert "locked.png' cannot be opened: Permission denied" in outcome.skipped[0]
