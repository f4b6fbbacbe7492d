"""The README says what the results say, and its example runs."""

import doctest
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def make_tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import make_tables

    yield make_tables
    sys.modules.pop("make_tables", None)


@pytest.mark.parametrize("page", ["README.md", "data/mini/README.md"])
def test_every_table_is_what_make_tables_writes(make_tables, page):
    assert page in make_tables.PAGES
    text = (ROOT / page).read_text()
    assert make_tables.MARK.search(text)
    assert make_tables.filled(text) == text


def test_any_digit_of_a_table_that_differs_from_the_results_is_noticed_and_mended(make_tables):
    text = make_tables.filled((ROOT / "README.md").read_text())
    table = re.search(r"<!-- table: .*?<!-- end -->", text, re.DOTALL)
    digits = [match.start() for match in re.finditer(r"\d", table[0]) if match.start() > table[0].index("-->")]
    for at in digits[:: max(1, len(digits) // 20)]:
        changed = table[0][:at] + str((int(table[0][at]) + 1) % 10) + table[0][at + 1 :]
        page = text[: table.start()] + changed + text[table.end() :]
        assert page != text and make_tables.filled(page) == text


def test_every_block_of_every_page_names_a_file_and_a_kind_that_exist(make_tables):
    for page in make_tables.PAGES:
        text = (ROOT / page).read_text()
        assert len(make_tables.MARK.findall(text)) == text.count("<!-- end -->")
        for match in make_tables.MARK.finditer(text):
            assert (ROOT / match["path"]).is_file() and match["kind"] in make_tables.BLOCKS, match["path"]


def test_the_readmes_python_example_prints_what_it_says():
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert (failed, tried) == (0, 6)
