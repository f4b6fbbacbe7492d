"""Archives: every packing gives the same images; hostile and damaged ones give one line and no file."""

import gzip
import io
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lafr.errors import InputError
from lafr.preparation.archives import Limits, each_image, list_source


def png(seed: int, size: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    "faces/b.png": png(1),
    "faces/a.PNG": png(2),
    "c.jpg": png(3),
    "faces/._a.png": b"what a Mac adds",
    "faces/licence.txt": b"free",
    "more.zip": b"PK\x03\x04",
}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w", **header) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = 0 if header else len(data)
            for key, value in header.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


PACKINGS = {
    "folder": write_folder,
    "zip": write_zip,
    "tar": write_tar,
    "tar.gz": lambda path, files: write_tar(path, files, "w:gz"),
    "tar.bz2": lambda path, files: write_tar(path, files, "w:bz2"),
    "tar.xz": lambda path, files: write_tar(path, files, "w:xz"),
}


def read(source: Path, temporary: Path) -> dict[str, bytes]:
    names = list_source(source).images
    return {name: path.read_bytes() for name, path in each_image(source, names, temporary)}


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_packing_gives_the_same_images_and_keeps_no_copy(packing, tmp_path):
    source = PACKINGS[packing](tmp_path / f"x.{packing}", FILES)
    before = sorted(tmp_path.rglob("*"))
    listing = list_source(source)
    assert list(listing.images) == ["c.jpg", "faces/a.PNG", "faces/b.png"]
    assert listing.images == {name: len(FILES[name]) for name in listing.images}
    assert listing.ignored == (0 if packing == "folder" else 3)
    assert read(source, tmp_path / "temporary") == {name: FILES[name] for name in listing.images}
    assert [p for p in sorted(tmp_path.rglob("*")) if p.name != "temporary"] == before


def test_only_the_named_images_are_unpacked_and_a_stop_leaves_no_copy(tmp_path):
    source = write_zip(tmp_path / "x.zip", FILES)
    images = each_image(source, ["c.jpg"], tmp_path / "temporary")
    name, path = next(images)
    assert (name, path.read_bytes()) == ("c.jpg", FILES["c.jpg"])
    images.close()
    assert not path.exists()


def zip_with(path: Path, name: str, data: bytes = b"", mode: int = 0, **fields) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", png(0))
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.compress_type = fields.get("method", zipfile.ZIP_DEFLATED)
        archive.writestr(info, data)
    return path


def encrypted(path: Path) -> Path:
    data = bytearray(write_zip(path, {"a.png": png(0)}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    return path


def pax_bomb(path: Path) -> Path:
    """A header of 60 MB, said by 512 bytes: tarfile would read it whole."""
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 60_000_000
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def twice(path: Path) -> Path:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(0))
        archive.writestr("a.png", png(1))
    return path


ZEROS = bytes(120_000_000)
HOSTILE = {
    "zip: parent": (lambda p: zip_with(p, "../../out.png", png(1)), "leads out of its folder"),
    "zip: parent inside": (lambda p: zip_with(p, "a/../../out.png", png(1)), "leads out of its folder"),
    "zip: absolute": (lambda p: zip_with(p, "/tmp/out.png", png(1)), "leads out of its folder"),
    "zip: drive": (lambda p: zip_with(p, "C:/out.png", png(1)), "leads out of its folder"),
    "zip: backslash": (lambda p: zip_with(p, "..\\out.png", png(1)), "leads out of its folder"),
    "zip: what is no image": (lambda p: zip_with(p, "../.bashrc", b"x"), "leads out of its folder"),
    "zip: link": (lambda p: zip_with(p, "a.png", b"/etc/passwd", 0o120777), "link or a device"),
    "zip: device": (lambda p: zip_with(p, "a.png", b"", 0o020666), "link or a device"),
    "zip: encrypted": (encrypted, "encrypted"),
    "zip: method": (lambda p: zip_with(p, "a.png", png(1), method=zipfile.ZIP_LZMA), "method 14"),
    "zip: twice": (twice, "'a.png' twice"),
    "zip: twice, spelt apart": (lambda p: write_zip(p, {"a.png": b"", "./a.png": b""}), "'a.png' twice"),
    "zip: bomb": (lambda p: write_zip(p, {"a.png": ZEROS}), "unpacks to more than 100,000,000 bytes"),
    "zip: bomb of no image": (lambda p: write_zip(p, {"a.png": png(0), "b": ZEROS}), "unpacks to more than"),
    "zip: only an archive": (lambda p: write_zip(p, {"inner.zip": b"PK"}), "holds no image"),
    "tar: parent": (lambda p: write_tar(p, {"../out.png": png(1)}), "leads out of its folder"),
    "tar: absolute": (lambda p: write_tar(p, {"/tmp/out.png": png(1)}), "leads out of its folder"),
    "tar: link": (lambda p: write_tar(p, {"a.png": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link or"),
    "tar: hard link": (lambda p: write_tar(p, {"a.png": b""}, type=tarfile.LNKTYPE, linkname="b.png"), "link or"),
    "tar: device": (lambda p: write_tar(p, {"a.png": b""}, type=tarfile.CHRTYPE), "link or a device"),
    "tar: pipe": (lambda p: write_tar(p, {"a.png": b""}, type=tarfile.FIFOTYPE), "link or a device"),
    "tar: twice": (lambda p: write_tar(p, {"a.png": png(0), "./a.png": png(1)}), "'a.png' twice"),
    "tar: bomb": (lambda p: write_tar(p, {"a.png": ZEROS}, "w:gz"), "unpacks to more than 100,000,000 bytes"),
    "tar: bomb in a header": (pax_bomb, "a header of 60,000,256 bytes"),
    "text": (lambda p: p.write_text("<html>", encoding="utf-8") and p, "neither a folder nor a zip or tar"),
}


@pytest.mark.parametrize("kind", ["zip", "tar", "text"])
def test_a_hostile_archive_is_one_line_before_anything_is_written(kind, tmp_path):
    cases = {case: made for case, made in HOSTILE.items() if case.startswith(kind)}
    assert cases
    for case, (make, words) in cases.items():
        source = make(tmp_path / "hostile")
        with pytest.raises(InputError, match=re.escape(words)) as error:
            list_source(source)
        assert "hostile" in str(error.value) and "\n" not in str(error.value), case
        assert list(tmp_path.rglob("*")) == [source], case


@pytest.mark.parametrize("packing", ["zip", "tar", "tar.gz"])
def test_limits_hold_for_number_size_and_sum(packing, tmp_path):
    source = PACKINGS[packing](tmp_path / "x", {f"{i}.png": png(i, 12) for i in range(3)})
    list_source(source)
    for limits, words in (
        (Limits(members=2), "more than 2 members"),
        (Limits(member_bytes=100), r"bytes, 100 are the most"),
        (Limits(total_bytes=1000), "unpacks to more than 1,000 bytes"),
    ):
        with pytest.raises(InputError, match=words):
            list_source(source, limits)


def test_zeros_after_the_end_of_a_tar_count_too(tmp_path):
    whole = gzip.decompress(write_tar(tmp_path / "x", {"a.png": png(0)}, "w:gz").read_bytes())
    (tmp_path / "x").write_bytes(gzip.compress(whole + bytes(5_000_000)))
    with pytest.raises(InputError, match="unpacks to more than 3,000,000 bytes"):
        list_source(tmp_path / "x", Limits(total_bytes=3_000_000))


@pytest.mark.parametrize("packing", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_an_archive_cut_anywhere_is_never_taken_for_a_whole_one(packing, tmp_path):
    files = {f"{i}.png": png(i) for i in range(6)}
    whole = PACKINGS[packing](tmp_path / "x", files).read_bytes()
    end = len(whole) if packing != "tar" else 512 * sum(1 + -(-len(data) // 512) for data in files.values())
    for cut in [*range(600, end, end // 19), *range(512, end, 1024), end - 1, *([end] if packing == "tar" else [])]:
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(InputError, match="damaged or truncated"):
            read(tmp_path / "cut", tmp_path / "temporary")
    assert list((tmp_path / "temporary").glob("*")) == []


@pytest.mark.parametrize("packing", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_flipped_byte_in_a_packed_image_is_found(packing, tmp_path):
    whole = PACKINGS[packing](tmp_path / "x", {f"{i}.png": png(i) for i in range(6)}).read_bytes()
    for where in np.linspace(len(whole) * 0.1, len(whole) * 0.7, 12).astype(int):
        altered = bytearray(whole)
        altered[where] ^= 0x41
        (tmp_path / "altered").write_bytes(altered)
        with pytest.raises(InputError, match="altered"):
            read(tmp_path / "altered", tmp_path / "temporary")


def test_a_broken_header_amid_a_tar_is_not_taken_for_its_end(tmp_path):
    data = bytearray(write_tar(tmp_path / "x", {"a.png": png(0), "b.png": png(1)}).read_bytes())
    data[512 * (1 + -(-len(png(0)) // 512))] ^= 1  # the second member's name
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputError, match="damaged or truncated"):
        list_source(tmp_path / "x")


@pytest.mark.parametrize("said", [-10, 10])
def test_a_zip_whose_header_lies_about_a_size_is_refused(said, tmp_path):
    image = png(0)
    data = bytearray(write_zip(tmp_path / "x.zip", {"a.png": image}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(signature) + offset, len(image) + said)
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.zip.* (is not .* bytes long|is damaged)"):
        read(tmp_path / "x.zip", tmp_path / "temporary")


def test_a_full_disk_is_not_said_to_be_a_damaged_archive(tmp_path, monkeypatch):
    source = write_zip(tmp_path / "x.zip", FILES)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lafr.preparation.archives._copy", full)
    with pytest.raises(OSError, match="No space left"):
        read(source, tmp_path / "temporary")
