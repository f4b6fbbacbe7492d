"""Damaged files by the hundred: each has one line in the journal, and none ends the run."""

import json
import os
import shutil
from collections import Counter

import pytest
from PIL import Image
from skimage import data

from lafr.commands.cli import main
from scripts.benchmarks.faults.photos import WHOLE, whole_files, written

COUNT = 320


def test_every_damaged_file_has_one_line_and_none_ends_the_run(tmp_path, model_folder, capsys):
    folder = tmp_path / "in"
    done = written(COUNT, 0, folder)
    names = set(done)
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
    whole = {name for name, what in done.items() if what == WHOLE}
    assert len(whole) == len(whole_files()) and not skipped & whole
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
