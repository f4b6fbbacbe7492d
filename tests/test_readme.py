"""The README says what the results say, and its example runs."""

import doctest
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


@pytest.mark.parametrize("page", ["README.md", "data/mini/README.md", "results/benchmarks/README.md"])
def test_every_table_is_what_make_tables_writes(make_tables, page):
    text = (ROOT / page).read_text()
    assert make_tables.MARK.search(text)
    assert make_tables.filled(text) == text


def test_the_readmes_python_example_prints_what_it_says():
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert (failed, tried) == (0, 4)
