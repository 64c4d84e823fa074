"""The last line of a run counts its tests and cells, also those of notebooks outside this folder."""

import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from starting import PYTEST

CONFTEST = Path(__file__).with_name("conftest.py")
TESTS = """
import pytest

@pytest.mark.planted
@pytest.mark.parametrize("caught", [True, True, CAUGHT])
def test_planted(caught, record_property):
    record_property("counted", "small faults")
    assert caught

@pytest.mark.planted
@pytest.mark.full
def test_in_a_long_run_only(): ...

@pytest.mark.parametrize("name", ["toy.one", "toy.two"])
def test_exercise(name, record_property):
    record_property("exercise", name)
    assert CAUGHT or name == "toy.one"

def test_planted_in_name_only(): ...
"""


def last_lines(folder: Path, tests: str, last_cell: str) -> list[str]:
    """The last lines of `pytest tests notebooks`, for two notebooks of two cells and one solution."""
    (folder / "tests").mkdir()
    shutil.copy(CONFTEST, folder / "tests")
    (folder / "tests" / "test_toy.py").write_text(tests)
    (folder / "notebooks" / "solutions").mkdir(parents=True)
    names = {"00_a": last_cell, "01_b": "y = 2", "solutions/00_a_solution": "y = 2"}
    for name, last in names.items():
        cells = [nbformat.v4.new_code_cell(source) for source in ("x = 1", last)]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("text"), *cells])
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    command = [*PYTEST, "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    markers = ["-o", "markers=planted\nfull", "tests", "notebooks"]
    done = subprocess.run([*command, *markers], cwd=folder, capture_output=True, text=True)
    return done.stdout.splitlines()[-2:]


@pytest.fixture
def what_ran(request):
    return request.config.pluginmanager.get_plugin(str(CONFTEST))._what_ran


def report(test, *properties, planted=False):
    keywords = {"planted": 1} if planted else {}
    return pytest.TestReport(test, ("", 0, ""), keywords, "passed", None, "call", user_properties=properties)


def test_a_run_without_a_failure_is_counted(what_ran):
    passed = [report(f"toy.py::{i}", ("counted", "small faults"), planted=True) for i in range(3)]
    passed += [report(f"toy.py::{name}", ("exercise", name)) for name in ("one", "two")]
    skipped = [report("toy.py::long", planted=True)]
    line = what_ran({"passed": passed, "skipped": skipped})
    assert line == "exercises 2 · planted wrong answers and faults refused: 3 of 3 (1 more skipped) · small faults: 3"


def test_a_run_of_nothing_that_counts_has_no_line(what_ran):
    assert what_ran({"passed": [report("toy.py::it")]}) == ""


@pytest.mark.planted
def test_what_failed_is_not_counted_as_passed(tmp_path, monkeypatch):
    monkeypatch.delenv("LUCE_FULL", raising=False)
    line, verdict = last_lines(tmp_path, TESTS.replace("CAUGHT", "False"), "1 / 0")
    assert line == (
        "notebooks 1 of 2, cells 3 of 4 · solutions 1 · exercises 1 of 2 · "
        "planted wrong answers and faults refused: 2 of 3 (1 more skipped) · small faults: 2"
    )
    assert "3 failed, 9 passed, 1 skipped" in verdict
