"""Each exercise's skeleton is in one notebook, letter by letter, and filled in its solution; differences are found."""

import functools
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

from luce_edu import exercises
from luce_edu.exercises.base import Exercise, WrongAnswer, call

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def all_exercises() -> dict[str, Exercise]:
    """Every exercise of the package, by "module.name"."""
    return {
        f"{module}.{name}": value
        for _, module, _ in pkgutil.iter_modules(exercises.__path__)
        for name, value in vars(import_module(f"{exercises.__name__}.{module}")).items()
        if isinstance(value, Exercise)
    }


EXERCISES = all_exercises()


def code_cells(path: Path) -> list[tuple[str, str]]:
    """Text and stored stdout of each code cell."""
    return _code_cells(path.read_text(encoding="utf-8"))


@functools.cache
def _code_cells(text: str) -> list[tuple[str, str]]:
    return [
        (cell.source, "".join(output.text for output in cell.outputs if output.output_type == "stream"))
        for cell in nbformat.reads(text, as_version=4).cells
        if cell.cell_type == "code"
    ]


def answer_in(source: str, full_name: str) -> str | None:
    """The text before the exercise's check in a cell; None where the cell checks another exercise, or none.

    In a cell of `%%kernel ... --exercise module.name` the answer is everything below the first line.
    """
    magic, _, below = source.partition("\n")
    if re.match(rf"%%kernel\b.*--exercise[ =]{re.escape(full_name)}(\s|$)", magic):
        return below
    name = full_name.rpartition(".")[2]
    check = re.search(rf"^(\w+\.)*{re.escape(name)}\.check\(", source, re.MULTILINE)
    return source[: check.start()] if check else None


def is_untouched(source: str, full_name: str, exercise: Exercise) -> bool:
    """Whether a cell holds the unchanged skeleton and then checks it."""
    answer = answer_in(source, full_name)
    if answer is None:
        return False
    if source.startswith("%%kernel"):  # the skeleton and nothing else
        return answer.rstrip("\n") == exercise.skeleton.rstrip("\n")
    return exercise.skeleton in answer


def notebooks_with(full_name: str, exercise: Exercise, folder: Path) -> list[Path]:
    """The notebook of each cell that holds the exercise; a notebook with two such cells is listed twice."""
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    return [path for path in paths for source, _ in code_cells(path) if is_untouched(source, full_name, exercise)]


def check_course(full_name: str, exercise: Exercise, folder: Path) -> None:
    """AssertionError unless one notebook of the folder holds the exercise untouched, and its solution filled."""
    found = notebooks_with(full_name, exercise, folder)
    assert len(found) == 1, (
        f"{full_name}: its unchanged skeleton, with its check below, should be in one notebook, "
        f"and is in {', '.join(path.name for path in found) or 'none'}"
    )
    [path] = found
    [printed] = [printed for source, printed in code_cells(path) if is_untouched(source, full_name, exercise)]
    assert f"{exercise.name}: not tried yet" in printed, f"{full_name}: {path.name} stores {printed!r}"

    solution = folder / "solutions" / f"{path.stem}_solution.ipynb"
    assert solution.exists(), f"{full_name}: no solutions/{solution.name}"
    answers = [(answer_in(source, full_name), printed) for source, printed in code_cells(solution)]
    filled = [printed for answer, printed in answers if answer is not None and exercise.is_filled(answer)]
    assert filled, f"{full_name}: no cell of {solution.name} checks the skeleton with its hole filled"
    for printed in filled:
        assert f"{exercise.name}: right. " in printed, f"{full_name}: {solution.name} stores {printed!r}"


@pytest.mark.parametrize("full_name", EXERCISES)
def test_an_exercise_stands_untouched_in_its_notebook_and_filled_in_the_solution(full_name, record_property):
    record_property("exercise", full_name)  # conftest.py counts them
    exercise = EXERCISES[full_name]
    assert exercise.name == full_name.rpartition(".")[2]
    check_course(full_name, exercise, NOTEBOOKS)


def untouched(exercise: Exercise) -> object:
    """The argument of `check` in the cell of a skeleton: the last name that it defines, or the text of CUDA C++."""
    try:
        code = compile(exercise.skeleton, exercise.name, "exec")
    except SyntaxError:
        return exercise.skeleton
    names = {}
    exec(code, names)
    return list(names.values())[-1]


@pytest.mark.parametrize("full_name", EXERCISES)
def test_an_untouched_skeleton_is_not_tried_yet(full_name, capsys):
    EXERCISES[full_name].check(untouched(EXERCISES[full_name]))
    assert capsys.readouterr().out == f"{EXERCISES[full_name].name}: not tried yet\n"


CASES = {"15_find_the_bug": 5}  # its five cases are five exercises


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_has_two_or_three_exercises_under_numbered_headings(path):
    names = [name for name, exercise in EXERCISES.items() if path in notebooks_with(name, exercise, NOTEBOOKS)]
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert len(names) in ((CASES[path.stem],) if path.stem in CASES else (2, 3)), names
    assert re.findall(r"^## Exercise (\d+): \S", text, re.MULTILINE) == [str(i + 1) for i in range(len(names))], names


# ---- A course of one exercise, in which faults are planted ----


def judge(answer) -> str:
    if call(answer, 21) != 42:
        raise WrongAnswer("not twice 21")
    return "Twice."


TOY = Exercise(
    name="double", judge=judge, spec="Twice x.", skeleton="def double(x):\n    return ...\n", hole="return ...",
    budget="1 minute, one line",
)  # fmt: skip
CELL = "from luce_edu.exercises import toy\n\n\ndef double(x):\n    return ...\n\n\ntoy.double.check(double)"
FILLED = CELL.replace("return ...", "return 2 * x")
KERNEL_TOY = Exercise(
    name="double", judge=judge, spec="Twice x.", budget="1 minute, one line",
    skeleton="__device__ int twice(int x) {\n    return x;  // ???\n}\n", hole="return x;  // ???",
)  # fmt: skip
KERNEL_CELL = "%%kernel twice.cu --exercise toy.double\n" + KERNEL_TOY.skeleton.rstrip("\n")
KERNEL_FILLED = KERNEL_CELL.replace(KERNEL_TOY.hole, "return 2 * x;")
NOT_TRIED, RIGHT = "double: not tried yet\n", "double: right. Twice.\n"
COURSE = {"00_toy": [(CELL, NOT_TRIED)], "solutions/00_toy_solution": [(FILLED, RIGHT)]}
KERNEL_COURSE = {"00_toy": [(KERNEL_CELL, NOT_TRIED)], "solutions/00_toy_solution": [(KERNEL_FILLED, RIGHT)]}


def write_course(folder: Path, notebooks: dict[str, list[tuple[str, str]]]) -> Path:
    """Write notebooks; each code cell is given as its text and its stored stdout."""
    (folder / "solutions").mkdir()
    for name, cells in notebooks.items():
        notebook = nbformat.v4.new_notebook()
        for source, printed in cells:
            outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)] if printed else []
            notebook.cells.append(nbformat.v4.new_code_cell(source, outputs=outputs))
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder


@pytest.mark.parametrize("exercise, course", [(TOY, COURSE), (KERNEL_TOY, KERNEL_COURSE)], ids=["checked", "kernel"])
def test_a_course_in_order_passes(exercise, course, tmp_path):
    check_course("toy.double", exercise, write_course(tmp_path, course))


def notebook(cell, printed=NOT_TRIED):
    return {"00_toy": [(cell, printed)]}


def solution(cell, printed=RIGHT):
    return {"solutions/00_toy_solution": [(cell, printed)]}


PLANTED = {
    "a skeleton that drifted": (TOY, COURSE | notebook(CELL.replace("double(x)", "double(y)")), "is in none"),
    "a skeleton without its check": (TOY, COURSE | notebook(CELL.replace("toy.double.check", "print")), "in none"),
    "a skeleton below its check": (TOY, COURSE | notebook("toy.double.check(double)\n" + CELL), "in none"),
    "the check of another exercise": (TOY, COURSE | notebook(CELL.replace("toy.double", "toy.redouble")), "in none"),
    "in a second notebook too": (TOY, COURSE | {"01_toy": [(CELL, NOT_TRIED)]}, "in 00_toy.ipynb, 01_toy.ipynb"),
    "twice in its notebook": (TOY, COURSE | {"00_toy": 2 * [(CELL, NOT_TRIED)]}, "in 00_toy.ipynb, 00_toy.ipynb"),
    "already tried in the notebook": (TOY, COURSE | notebook(FILLED, RIGHT), "is in none"),
    "an output that is not of this text": (TOY, COURSE | notebook(CELL, RIGHT), "00_toy.ipynb stores 'double: right"),
    "a notebook that was never run": (TOY, COURSE | notebook(CELL, ""), "00_toy.ipynb stores ''"),
    "no solution": (TOY, notebook(CELL), "no solutions/00_toy_solution.ipynb"),
    "a solution with the hole still in it": (TOY, COURSE | solution(CELL), "its hole filled"),
    "a line, and then the hole": (
        TOY, COURSE | solution(CELL.replace("return ...", "y = 2 * x\n    return ...")), "its hole filled"),
    "a solution with nothing in the hole": (TOY, COURSE | solution(CELL.replace("return ...", "")), "its hole filled"),
    "a solution of another text": (TOY, COURSE | solution(FILLED.replace("double(x)", "double( x )")), "hole filled"),
    "a solution that checks nothing": (TOY, COURSE | solution(FILLED.rpartition("\n")[0]), "its hole filled"),
    "a solution that is refused": (TOY, COURSE | solution(FILLED, "double: not tried yet\n"), "stores 'double: not"),
    "a kernel with a line more": (KERNEL_TOY, KERNEL_COURSE | notebook(KERNEL_CELL + "\n// more"), "is in none"),
    "a kernel checked as another": (
        KERNEL_TOY, KERNEL_COURSE | notebook(KERNEL_CELL.replace("toy.double", "toy.double_2")), "is in none"),
    "a kernel with the hole still in it": (KERNEL_TOY, KERNEL_COURSE | solution(KERNEL_CELL), "its hole filled"),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("exercise, course, reason", PLANTED.values(), ids=PLANTED)
def test_a_course_that_drifted_is_caught(exercise, course, reason, tmp_path):
    with pytest.raises(AssertionError, match=reason):
        check_course("toy.double", exercise, write_course(tmp_path, course))


# ---- The class Exercise ----


@pytest.mark.parametrize("answer", [..., lambda x: ..., TOY.skeleton], ids=["value", "function", "text"])
def test_untouched_is_not_tried_yet(answer, capsys):
    TOY.check(answer)
    assert capsys.readouterr().out == NOT_TRIED


def test_a_right_answer_says_why(capsys):
    TOY.check(lambda x: x + x)
    assert capsys.readouterr().out == RIGHT


@pytest.mark.planted
@pytest.mark.parametrize("answer, reason", [(lambda x: x, "not twice"), (42, "expected a function")])
def test_a_wrong_answer_raises(answer, reason):
    with pytest.raises(WrongAnswer, match=reason):
        TOY.check(answer)


@pytest.mark.planted
@pytest.mark.parametrize("skeleton, times", [("x = ...\ny = ...", 2), ("x = 1", 0)])
def test_a_hole_stands_once_in_its_skeleton(skeleton, times):
    with pytest.raises(ValueError, match=f"twice: the hole is {times} times"):
        Exercise(name="twice", judge=judge, spec="", skeleton=skeleton, hole="...", budget="")


@pytest.mark.parametrize(
    "skeleton, text, filled",
    [
        ("HOLE\n", "x = 1", True), ("HOLE\n", "HOLE", False), ("x = HOLE", "x = 1", True),
        ("x = HOLE", "x = HOLE", False), ("x = HOLE", "x = ", False), ("x = HOLE\n", "x = HOLE\n\ncheck(x)", False),
        ("x = HOLE\n", "before()\nx = 1\n\ncheck(x)", True), ("x = HOLE\n", "", False), ("f(HOLE)\n", "f(1)", True),
        ("f(HOLE)\n", "f(1", False), ("f(HOLE)\n", "f(g(1), HOLE)", False), ("f(HOLE)\n", "f( )", False),
        ("f(HOLE)\ng()\n", "f(1)", False), ("f(HOLE)\ng()\n", "f(1)\ng()", True),
    ],
)  # fmt: skip
def test_filled_is_the_skeleton_with_something_else_in_the_hole(skeleton, text, filled):
    exercise = Exercise(name="x", judge=judge, spec="", skeleton=skeleton, hole="HOLE", budget="")
    assert exercise.is_filled(text) == filled
