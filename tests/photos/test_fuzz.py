"""Damaged files by the hundred: each has one line in the journal, and none ends the run."""

import json
import os
import shutil
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from skimage import data

from lafr.commands.cli import main

COUNT = 320
EXTENSIONS = ("png", "jpg", "tif", "webp", "bmp", "gif", "ppm", "jp2", "mp4")


def whole_files() -> list[tuple[str, bytes]]:
    """Return small whole files of every kind that is read: extension and bytes."""
    face = Image.fromarray(data.astronaut()[20:220, 125:325]).resize((40, 48))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    exif.get_ifd(0x8769)[40961] = 1
    kinds = [
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


def damaged(body: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Return a file with flipped bits, torn, spliced with another, or with a part repeated, removed or zeroed."""
    changed = bytearray(body)
    start, end = sorted(rng.integers(0, len(body), 2).tolist())
    end = min(end, start + 40)
    match rng.integers(7):
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
    return bytes(changed)


def test_every_damaged_file_has_one_line_and_none_ends_the_run(tmp_path, model_folder, capsys):
    rng, files, folder = np.random.default_rng(0), whole_files(), tmp_path / "in"
    folder.mkdir()
    for number in range(COUNT):
        extension, body = files[number % len(files)]
        if number >= len(files):  # the first of each kind is whole
            body = damaged(body, rng, files[rng.integers(len(files))][1])
            extension = EXTENSIONS[rng.integers(len(EXTENSIONS))] if rng.random() < 0.2 else extension
        (folder / f"{number:03d}.{extension}").write_bytes(body)
    names = {path.name for path in folder.iterdir()}
    for _ in range(2):  # run again, it resumes and meets the same files
        with pytest.raises(SystemExit) as stopped:
            main(["restore", str(folder), "-o", str(tmp_path / "out"), "--model", str(model_folder), "--aligned=false"])
        assert stopped.value.code == 1
        assert "Traceback" not in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "out" / "restored.jsonl").read_text("utf-8").splitlines()]
    times = Counter(line["file"] for line in lines)
    skipped = {line["file"] for line in lines if line["status"] == "skipped"}
    assert set(times) == names and len(names) == COUNT
    assert all(times[name] == (2 if name in skipped else 1) for name in names)
    assert all(line["reason"] for line in lines if line["status"] == "skipped")
    assert not skipped & {f"{number:03d}.{files[number][0]}" for number in range(len(files))}
    assert 60 < len(skipped) < COUNT - 60


def test_every_entry_of_a_folder_is_restored_or_named_with_its_reason(tmp_path, model_folder, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    face = Image.fromarray(data.astronaut()[20:220, 125:325])
    face.save(folder / "deep" / "a.png")
    face.save(folder / "b.jfif", "JPEG")
    face.resize((60, 50)).save(folder / "large.png")
    (folder / "notes.txt").write_text("no photo", encoding="utf-8")
    (folder / ".hidden").touch()
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "c.heic").write_bytes(b"no photo")
    at = os.open(folder, os.O_RDONLY)
    for _ in range(20):  # beyond the 4,096 bytes that a path may have
        os.mkdir("d" * 250, dir_fd=at)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    code = 0
    try:
        main(["restore", str(folder), "-o", str(out), "--model", str(model_folder), "--max-megapixels", "0.02"])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 1
    shutil.rmtree(folder)
    lines = [json.loads(line) for line in (out / "restored.jsonl").read_text("utf-8").splitlines()]
    said = {line["file"]: (line["status"], line.get("reason", "")) for line in lines}
    too_deep = [name for name in said if name.startswith("dddd")]
    assert len(too_deep) == 1 and said.pop(too_deep[0])[0] == "ignored"
    assert {name: status for name, (status, _) in said.items()} == {
        "deep/a.png": "skipped",
        "b.jfif": "skipped",
        "large.png": "done",
        "notes.txt": "ignored",
        ".hidden": "ignored",
        "pipe.jpg": "skipped",
        "pipe": "ignored",
        "loop": "ignored",
        "c.heic": "skipped",
    }
    assert "max_megapixels" in said["b.jfif"][1] and "regular" in said["pipe.jpg"][1]
    printed = capsys.readouterr()
    assert "--max-megapixels" in printed.err and "notes.txt" in printed.err
    assert "1 photo: " in printed.out
