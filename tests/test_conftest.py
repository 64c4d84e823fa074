"""The line that ends a run counts what the run did, notebooks outside this folder too."""

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


def last_lines(folder: Path, tests: str, last_cell: str | None) -> list[str]:
    """What `pytest tests notebooks` ends with for two notebooks of two cells and one solution; None: for none."""
    (folder / "tests").mkdir()
    shutil.copy(CONFTEST, folder / "tests")
    (folder / "tests" / "test_toy.py").write_text(tests)
    (folder / "notebooks" / "solutions").mkdir(parents=True)
    names = {"00_a": last_cell, "01_b": "y = 2", "solutions/00_a_solution": "y = 2"}
    for name, last in names.items() if last_cell else ():
        cells = [nbformat.v4.new_code_cell(source) for source in ("x = 1", last)]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("text"), *cells])
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    command = [*PYTEST, "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    markers = ["-o", "markers=planted\nfull", "tests", "notebooks"]
    done = subprocess.run([*command, *markers], cwd=folder, capture_output=True, text=True)
    return done.stdout.splitlines()[-2:]


@pytest.fixture(autouse=True)
def short_run(monkeypatch):
    monkeypatch.delenv("LUCE_FULL", raising=False)


def test_a_run_without_a_failure_is_counted(tmp_path):
    line, verdict = last_lines(tmp_path, TESTS.replace("CAUGHT", "True"), None)
    assert line == "exercises 2 · planted wrong answers and faults refused: 3 of 3 (1 more skipped) · small faults: 3"
    assert "6 passed, 1 skipped" in verdict


@pytest.mark.planted
def test_what_failed_is_not_counted_as_passed(tmp_path):
    line, verdict = last_lines(tmp_path, TESTS.replace("CAUGHT", "False"), "1 / 0")
    assert line == (
        "notebooks 1 of 2, cells 3 of 4 · solutions 1 · exercises 1 of 2 · "
        "planted wrong answers and faults refused: 2 of 3 (1 more skipped) · small faults: 2"
    )
    assert "3 failed, 9 passed, 1 skipped" in verdict


def test_a_run_of_nothing_that_counts_ends_as_usual(tmp_path):
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_toy.py").write_text("def test_it(): ...")
    done = subprocess.run(PYTEST, cwd=tmp_path, capture_output=True, text=True)
    assert "1 passed" in done.stdout and "notebooks" not in done.stdout and "planted" not in done.stdout
