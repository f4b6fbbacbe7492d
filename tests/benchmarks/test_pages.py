"""The numbers on the pages are those of the JSON files."""

from lafr.storage import read_json
from scripts.benchmarks.files import files
from scripts.benchmarks.pages import BLOCKED, PAGES, ROOT, filled
from scripts.benchmarks.parts import once
from scripts.benchmarks.prose import SENTENCES, pattern, unsourced


def test_every_block_of_every_page_is_what_its_file_makes_of_it():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert ("<!-- end -->" in text) == (page in BLOCKED) and filled(text) == text, page


def test_every_measurement_in_the_prose_of_the_pages_is_filled_from_what_it_was_measured_in():
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    assert {page: found for page, text in texts.items() if (found := unsourced(text))} == {}
    assert [sentence for sentence in SENTENCES if not any(map(pattern(sentence).search, texts.values()))] == []
    assert filled("refused: 9 M\n  trained values") == "refused: 7.6 M\n  trained values"
    assert unsourced("0.4 dB, `0.5` and 2.9 times, in 3 s: 1.3e-6") == ["0.4 dB", "2.9 times", "3 s", "1.3e-6"]


def test_the_files_of_the_full_size_path_are_those_that_its_configurations_name():
    assert read_json(ROOT / "results" / "files.json")["files"] == files()["files"]


def test_a_part_of_a_benchmark_is_measured_once_and_again_where_other_things_are_asked(tmp_path):
    found = []
    for folder, images in ((tmp_path, 3), (tmp_path, 3), (tmp_path, 4), (None, 4)):
        found.append(once(folder, "part", {"images": images}, lambda: {"seconds": len(found)}))
    assert [part["seconds"] for part in found] == [0, 0, 2, 3] and found[1] == {"images": 3, "seconds": 0}
    for damage in ('{"images": 4', "[4]"):
        (tmp_path / "part.json").write_text(damage, encoding="utf-8")
        assert once(tmp_path, "part", {"images": 4}, lambda: {"seconds": 9}) == {"images": 4, "seconds": 9}
