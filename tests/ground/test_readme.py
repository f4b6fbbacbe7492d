"""The README says what the results say, and its example runs."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pages():
    from scripts.benchmarks import pages

    return pages


def test_any_digit_of_a_table_that_differs_from_the_results_is_noticed_and_mended(pages):
    text = pages.filled((ROOT / "README.md").read_text(encoding="utf-8"))
    table = re.search(r"<!-- scores: .*?<!-- end -->", text, re.DOTALL)
    digits = [match.start() for match in re.finditer(r"\d", table[0]) if match.start() > table[0].index("-->")]
    for at in digits[:: max(1, len(digits) // 20)]:
        changed = table[0][:at] + str((int(table[0][at]) + 1) % 10) + table[0][at + 1 :]
        page = text[: table.start()] + changed + text[table.end() :]
        assert page != text and pages.filled(page) == text


def test_every_block_of_every_page_names_a_file_and_a_kind_that_exist(pages):
    for page in pages.PAGES:
        text = (ROOT / page).read_text()
        assert len(pages.MARK.findall(text)) == text.count("<!-- end -->")
        for match in pages.MARK.finditer(text):
            written = (ROOT / match["path"]).is_file() or "Not measured yet." in match[0]
            assert written and match["kind"] in pages.BLOCKS, match["path"]


def test_the_readmes_python_example_prints_what_it_says():
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert (failed, tried) == (0, 6)
