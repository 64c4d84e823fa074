"""A reader's progress: solved exercises are kept in one file, which tests and the walkthrough do not change."""

import json
import os
import sys
import threading
import types
from pathlib import Path

import nbformat
import pytest

import luce_edu
from luce_edu import cli
from luce_edu.exercises import solved
from luce_edu.exercises.base import Exercise, WrongAnswer
from luce_edu.exercises.progress import Progress, notebook_files, progress
from luce_edu.paths import progress_file
from luce_edu.walkthrough import execute

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def judge(answer) -> str:
    if answer != 42:
        raise WrongAnswer("not 42")
    return "It is."


@pytest.fixture
def toy(monkeypatch):
    """An exercise in the module luce_edu.exercises.toy."""
    exercise = Exercise("answer", judge, spec="", skeleton="answer = ...", hole="...", budget="")
    module = types.ModuleType("luce_edu.exercises.toy")
    module.answer = exercise
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(solved, "_here", set())
    return exercise


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "data" / "progress.json"
    monkeypatch.setenv("LUCE_PROGRESS", str(path))
    forget(monkeypatch)  # other tests of this process may have solved exercises
    return path


def forget(monkeypatch) -> None:
    """Forget what this process has solved, as a new process does."""
    monkeypatch.setattr(solved, "_here", set())


def test_a_right_answer_is_kept_and_nothing_else_is(toy, file, monkeypatch):
    toy.check(...)
    with pytest.raises(WrongAnswer):
        toy.check(41)
    assert not file.exists() and solved.solved() == set()
    toy.check(42)
    toy.check(42)
    assert json.loads(file.read_text()) == {"solved": ["toy.answer"]}
    forget(monkeypatch)
    assert solved.solved() == {"toy.answer"}
    with pytest.raises(WrongAnswer):
        toy.check(41)
    assert solved.solved() == {"toy.answer"}, "a later wrong answer changes nothing"
    assert [path.name for path in file.parent.iterdir()] == ["progress.json"]


def test_an_exercise_of_no_notebook_is_not_kept(file):
    Exercise("answer", judge, spec="", skeleton="answer = ...", hole="...", budget="").check(42)
    assert not file.exists()


def test_several_may_write_at_once(file):
    names = [f"toy.number_{i}" for i in range(8)]
    threads = [threading.Thread(target=solved.remember, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(file.read_text())["solved"] == names


DAMAGED = {
    "cut short": b'{"solved": ["toy.ans', "empty": b"", "no text": b"\xff\xfe\x00", "a list": b"[]", "null": b"null",
    "no names": b'{"solved": [1, 2]}', "one name": b'{"solved": "toy.answer"}', "other keys": b'{"passed": []}',
    "deep": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_kept_aside_and_said_in_a_line(case, toy, file, capsys):
    file.parent.mkdir()
    for number in (1, 2):
        file.write_bytes(DAMAGED[case])
        solved._here.clear()
        toy.check(42)
        shown = capsys.readouterr()
        assert shown.out == "answer: right. It is.\n"
        [line] = shown.err.splitlines()
        assert line.startswith("luce-edu: ") and "damaged" in line
        assert file.with_name(f"progress.json.damaged-{number}").read_bytes() == DAMAGED[case]
        assert json.loads(file.read_text()) == {"solved": ["toy.answer"]}


@pytest.mark.planted
def test_a_damaged_file_does_not_stop_the_command(file, capsys):
    file.parent.mkdir()
    file.write_bytes(b"{")
    assert cli.main(["progress"]) == 0
    shown = capsys.readouterr()
    assert "damaged" in shown.err and "Exercises solved: 0 of " in shown.out


@pytest.mark.parametrize("obstacle", ["a folder", "below a file"])
def test_a_file_that_cannot_be_written_is_said_in_a_line_and_the_check_goes_on(obstacle, toy, tmp_path, monkeypatch,
                                                                            capsys):  # fmt: skip
    if obstacle == "a folder":
        monkeypatch.setenv("LUCE_PROGRESS", str(tmp_path))
    else:
        (tmp_path / "data").write_text("")
        monkeypatch.setenv("LUCE_PROGRESS", str(tmp_path / "data" / "progress.json"))
    toy.check(42)
    shown = capsys.readouterr()
    assert shown.out == "answer: right. It is.\n"
    assert shown.err and all("LUCE_PROGRESS" in line for line in shown.err.splitlines())
    assert solved.solved() == {"toy.answer"}


# ---- The table of progress ----


def test_each_notebook_with_exercises_has_one_file_of_them():
    files = notebook_files()
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        file = files[path.name[:2]]
        assert f"from luce_edu.exercises import {file}" in text or f"--exercise {file}." in text


def test_the_table_has_every_exercise_and_a_notebooks_only_its_own(file, monkeypatch):
    forget(monkeypatch)
    every = progress()
    assert isinstance(every, Progress) and list(every.solved) == list(notebook_files())
    assert not any(is_solved for exercises in every.solved.values() for is_solved in exercises.values())
    name = next(iter(every.solved["09"]))
    solved.remember(name)
    nine = luce_edu.progress("09")
    assert list(nine.solved) == ["09"] and nine.solved["09"][name] and sum(nine.solved["09"].values()) == 1
    assert nine.title == f"Exercises solved: 1 of {len(every.solved['09'])}"
    assert name.partition(".")[2] in str(nine) and "solved" in nine._repr_html_()


def test_a_notebook_without_exercises_is_refused():
    with pytest.raises(ValueError, match="'99'; there are those of 00, 01"):
        progress("99")


def test_the_command_names_the_file(file, capsys):
    assert cli.main(["progress"]) == 0
    assert str(file) in capsys.readouterr().out and not file.exists()


# ---- Runs that write the file ----


def test_tests_and_nbval_keep_nothing():
    assert progress_file() is None


def test_without_a_word_it_is_kept_among_the_users_data(monkeypatch, tmp_path):
    monkeypatch.delenv("LUCE_PROGRESS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert progress_file() == tmp_path / "luce_edu" / "progress.json"


def test_what_the_walkthrough_solves_is_shown_and_not_kept(file, tmp_path):
    """The notebook itself sees what it has solved; the reader's file does not change."""
    cells = ["from luce_edu.exercises.solved import remember, solved\nremember('toy.answer')", "print(solved())"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, tmp_path / "00_toy.ipynb")
    done = execute(tmp_path / "00_toy.ipynb")
    assert done.cells[1].outputs[0].text == "{'toy.answer'}\n"
    assert not file.exists() and os.environ["LUCE_PROGRESS"] == str(file)
