"""The notebooks run as they are, and are stored with what they print and show."""

import re
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is missing: pip install nbclient ipykernel")
FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_each_is_stored_with_the_outputs_of_one_run_from_the_top():
    sizes = [path.stat().st_size for path in NOTEBOOKS]
    assert len(sizes) == 3 and sum(sizes) < 1.5e6
    for path in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        outputs = [output for cell in cells for output in cell.outputs]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), path.name
        assert {output.output_type for output in outputs} <= {"stream", "display_data"}, path.name
        assert any("image/jpeg" in output.get("data", {}) for output in outputs), path.name
        said = "".join(output.get("text", "") for output in outputs)
        assert not re.search(r"/(root|home|tmp|usr)/|Traceback|Warning", said), path.name


@pytest.mark.slow  # minutes
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_it_runs_in_a_folder_of_its_own(path, tmp_path):
    pytest.importorskip("ipykernel", reason="ipykernel is missing: pip install ipykernel")
    from scripts.notebooks import executed

    stored = nbformat.read(path, as_version=4)
    made = executed(shutil.copy(path, tmp_path), tmp_path)
    for old, new in zip(stored.cells, made.cells, strict=True):
        assert [output.output_type for output in new.get("outputs", ())] == [
            output.output_type for output in old.get("outputs", ())
        ]
