"""The public names of the package: imported late, each with an example that runs."""

import doctest
import subprocess
import sys

import pytest

import lafr


@pytest.mark.parametrize("name", lafr.__all__)
def test_the_example_of_a_public_name_runs(name):
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(recurse=False).find(getattr(lafr, name), name):
        runner.run(example)
    assert runner.tries > 0 and runner.failures == 0


def test_importing_the_package_imports_no_library():
    code = """import lafr, sys
print({"torch", "diffusers", "cv2", "numpy"} & set(sys.modules), set(lafr.__all__) <= set(dir(lafr)))"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["set()", "True"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = lafr.nothing
