"""The numbers on the pages are those of the JSON files."""

from lafr.storage import read_json
from scripts.benchmarks.files import files
from scripts.benchmarks.pages import PAGES, ROOT, filled
from scripts.benchmarks.parts import once


def test_every_block_of_every_page_is_what_its_file_makes_of_it():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "<!-- end -->" in text and filled(text) == text, page


def test_the_files_of_the_full_size_path_are_those_that_its_configurations_name():
    assert read_json(ROOT / "results" / "files.json")["files"] == files()["files"]


def test_a_part_of_a_benchmark_is_measured_once_and_again_where_other_things_are_asked(tmp_path):
    found = []
    for folder, images in ((tmp_path, 3), (tmp_path, 3), (tmp_path, 4), (None, 4)):
        found.append(once(folder, "part", {"images": images}, lambda: {"seconds": len(found)}))
    assert [part["seconds"] for part in found] == [0, 0, 2, 3] and found[1] == {"images": 3, "seconds": 0}
