"""The numbers on the pages are those of the JSON files."""

from scripts.benchmarks.pages import PAGES, ROOT, filled


def test_every_block_of_every_page_is_what_its_file_makes_of_it():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "<!-- end -->" in text and filled(text) == text, page
