"""The walkthrough runs notebooks as a reader does, and changes their files only with in_place."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from rich.console import Console
from starting import PYTEST, default_signals

from luce_edu import walkthrough
from luce_edu.walkthrough import NotebookError, execute, find_notebooks

ROOT = Path(__file__).resolve().parent.parent


def write(path: Path, *cells: str) -> Path:
    """A notebook of one text cell and these code cells, with the metadata of some editor."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A question")])
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    notebook.metadata = {"kernelspec": {"display_name": "mine", "language": "python", "name": "my-old-env"}}
    nbformat.write(notebook, path)
    return path


def stdout(notebook, cell: int) -> str:
    return notebook.cells[cell].outputs[0].text.strip()


def test_notebooks_come_in_order_and_by_number(tmp_path):
    for name in ("10_ten", "00_start", "09_nine", "scratch"):
        write(tmp_path / f"{name}.ipynb")
    assert [path.stem for path in find_notebooks(folder=tmp_path)] == ["00_start", "09_nine", "10_ten"]
    assert [path.stem for path in find_notebooks(["9", "00"], tmp_path)] == ["00_start", "09_nine"]


def test_an_unknown_number_or_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no notebooks"):
        find_notebooks(folder=tmp_path)
    write(tmp_path / "00_start.ipynb")
    with pytest.raises(ValueError, match="no notebook 07; expected some of 00"):
        find_notebooks(["00", "07"], tmp_path)


def test_a_notebook_runs_in_its_folder_with_this_python(tmp_path, monkeypatch):
    # A user may have registered another kernel with the name python3, which must not be used.
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["false"], "display_name": "x", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = write(tmp_path / "00_start.ipynb", "import os, sys\nprint(sys.executable, os.getcwd())")
    seen = []
    notebook = execute(path, on_cell=seen.append)
    assert stdout(notebook, 1) == f"{sys.executable} {tmp_path}"
    assert seen == [0, 1]


@pytest.mark.parametrize("last", ["pass", "1 / 0"])
def test_no_kernel_outlives_its_notebook(tmp_path, last):
    note = tmp_path / "pid"
    cell = f"import os, pathlib\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))"
    path = write(tmp_path / "00_start.ipynb", cell, last)
    with contextlib.suppress(NotebookError):
        execute(path)
    assert not psutil.pid_exists(int(note.read_text()))


@pytest.mark.parametrize(
    "cell, error",
    [
        ("x = 1\n" * 9 + "1 / 0", "ZeroDivisionError: division by zero"),
        ("import os\nos._exit(1)", "the kernel died"),
        ("import time\ntime.sleep(60)", "still running after 2 s"),
    ],
)
def test_a_failing_cell_is_named_and_stops_the_walkthrough(tmp_path, monkeypatch, cell, error):
    monkeypatch.setattr(walkthrough, "CELL_TIMEOUT_S", 2)
    path = write(tmp_path / "00_start.ipynb", "print('fine')", cell, "print('never')")
    before = path.read_bytes()
    with pytest.raises(NotebookError) as caught:
        walkthrough.walkthrough([path], in_place=True)
    message = str(caught.value)
    assert message.startswith("00_start.ipynb, cell 3 of 4 failed:\n    " + cell.splitlines()[0])
    assert error in message and "\x1b" not in message
    assert path.read_bytes() == before


def test_in_place_stores_outputs_the_same_way_twice(tmp_path):
    alternate = "for i in range(6):\n    print(i // 2, file=(sys.stdout, sys.stderr)[i % 2], flush=True)"
    path = write(tmp_path / "00_start.ipynb", f"import sys\n{alternate}", "40 + 2")
    walkthrough.walkthrough([path], in_place=True)
    first = path.read_bytes()
    walkthrough.walkthrough([path], in_place=True)
    assert path.read_bytes() == first
    notebook = nbformat.read(path, as_version=4)
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2]
    assert {output.name: output.text for output in notebook.cells[1].outputs} == {
        "stdout": "0\n1\n2\n",
        "stderr": "0\n1\n2\n",
    }
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(cell.metadata == {} for cell in notebook.cells)


def test_a_walkthrough_leaves_the_sources_alone_unless_asked(tmp_path, capfd):
    path = write(tmp_path / "00_start.ipynb", "40 + 2")
    before = path.read_bytes()
    walkthrough.walkthrough([path])
    assert path.read_bytes() == before
    assert capfd.readouterr().err == ""  # a warning there would break the progress bar
    walkthrough.walkthrough([path], in_place=True)
    assert path.read_bytes() != before


def test_in_place_also_runs_and_stores_each_solution_after_its_notebook(tmp_path):
    (tmp_path / "solutions").mkdir()
    with_one = write(tmp_path / "00_start.ipynb", "open('order', 'a').write('notebook ')")
    solution = write(tmp_path / "solutions" / "00_start_solution.ipynb", "open('../order', 'a').write('solution ')")
    without = write(tmp_path / "01_next.ipynb", "open('order', 'a').write('next')")
    said = io.StringIO()
    walkthrough.walkthrough([with_one, without], in_place=True, console=Console(file=said, width=80))
    assert (tmp_path / "order").read_text() == "notebook solution next"
    for path, written in ((with_one, 9), (solution, 9), (without, 4)):
        [cell] = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert cell.outputs[0].data["text/plain"] == str(written)
    lines = [line.split(":")[0] for line in said.getvalue().splitlines()]
    assert lines == ["00_start", "00_start_solution", "01_next"]


def test_without_a_terminal_each_notebook_has_a_line_as_it_starts(tmp_path):
    log = tmp_path / "log"
    first = write(tmp_path / "00_start.ipynb", "print(open('log').read())")
    second = write(tmp_path / "01_next.ipynb", "print(open('log').read())", "1 / 0")
    started = ["00_start: 2 cells, notebook 1 of 2", "01_next: 3 cells, notebook 2 of 2"]
    with open(log, "w") as file, pytest.raises(NotebookError):
        walkthrough.walkthrough([first, second], in_place=True, console=Console(file=file, width=20))
    assert log.read_text().splitlines() == started
    assert nbformat.read(first, as_version=4).cells[1].outputs[0].text.splitlines() == started[:1] + [""]


def test_two_run_at_the_same_time_and_one_that_fails_ends_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # with a GPU, notebooks run one after another
    # The first notebook fails only once the second one runs.
    wait = "import os, time\nfor _ in range(3000):\n    if os.path.exists('pid'): 1 / 0\n    time.sleep(0.01)"
    first = write(tmp_path / "00_start.ipynb", wait)
    pid = "import os, time\nopen('pid', 'w').write(str(os.getpid()))"
    second = write(tmp_path / "01_next.ipynb", pid, "time.sleep(60)")
    with pytest.raises(NotebookError, match="00_start.ipynb, cell 2 of 2 failed"):
        walkthrough.walkthrough([first, second])
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_in_a_terminal_there_is_a_bar_of_cells(tmp_path):
    path = write(tmp_path / "00_start.ipynb", "pass")
    said = io.StringIO()
    walkthrough.walkthrough([path], console=Console(file=said, width=80, force_terminal=True))
    assert "2/2" in said.getvalue() and "\x1b" in said.getvalue()


def test_without_in_place_solutions_are_left_alone(tmp_path):
    (tmp_path / "solutions").mkdir()
    path = write(tmp_path / "00_start.ipynb", "pass")
    write(tmp_path / "solutions" / "00_start_solution.ipynb", "1 / 0")
    walkthrough.walkthrough([path])


def test_a_solution_that_fails_is_named_and_stays_as_it_was(tmp_path):
    (tmp_path / "solutions").mkdir()
    path = write(tmp_path / "00_start.ipynb", "pass")
    solution = write(tmp_path / "solutions" / "00_start_solution.ipynb", "1 / 0")
    before = solution.read_bytes()
    with pytest.raises(NotebookError, match="00_start_solution.ipynb, cell 2 of 2 failed"):
        walkthrough.walkthrough([path], in_place=True)
    assert solution.read_bytes() == before


def nbval(path: Path) -> tuple[int, str]:
    """Check a notebook against its stored outputs, with the options and the conftest.py of `make test`."""
    shutil.copy(ROOT / "conftest.py", path.parent)
    options = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", "tests/nbval_sanitize.cfg"]
    command = [*PYTEST, "-q", "-p", "no:cacheprovider", *options, str(path)]
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return outcome.returncode, outcome.stdout


def test_nbval_passes_addresses_and_marked_timings_and_catches_a_changed_verdict(tmp_path):
    cells = "print(object())", "import time\ntime.time()", "print('launches', 1)"
    path = write(tmp_path / "00_start.ipynb", *cells)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].metadata["tags"] = ["nbval-ignore-output"]
    nbformat.write(notebook, path)
    walkthrough.walkthrough([path], in_place=True)
    status, said = nbval(path)
    assert status == 0, said
    path.write_text(path.read_text().replace("launches 1", "launches 5"))
    status, said = nbval(path)
    assert status == 1 and "launches 5" in said, said


REFUSED = {
    "unknown cell magic": "%%kernell add --against torch.add\n# {}\ny[0] = 0;",
    "unknown line magic": "# {}\nx = 1\n%kernelss",
    "bad option": "%%kernel add --agains torch.add\n# {}\ny[0] = 0;",
    "bad value": "%%kernel add --against torch.add --arch sm_12\n# {}\ny[0] = 0;",
    "after other words on stderr": "# {}\nimport sys\nprint('so', file=sys.stderr)\n%kernelss",
}


@pytest.mark.planted
def test_cells_that_ipython_refuses_fail_under_nbval_whatever_is_ignored(tmp_path):
    """Also where a comment or tag ignores their output, or no output is stored."""
    cells = [cell.format(note) for cell in REFUSED.values() for note in ("NBVAL_IGNORE_OUTPUT", "tagged", "not run")]
    path = write(tmp_path / "00_start.ipynb", "%load_ext luce_edu", *cells)
    notebook = nbformat.read(path, as_version=4)
    for count, cell in enumerate(notebook.cells[1:], 1):
        cell.execution_count = None if "not run" in cell.source else count  # nbval compares only cells with a count
        cell.metadata["tags"] = ["nbval-ignore-output"] * ("tagged" in cell.source)
    nbformat.write(notebook, path)
    status, said = nbval(path)
    assert status == 1 and f"{len(cells)} failed, 1 passed" in said, said
    assert min(said.count("IPython refused the cell"), said.count("UsageError: ")) >= len(cells), said


@pytest.mark.planted
def test_a_cell_that_ipython_refuses_fails_in_the_walkthrough(tmp_path):
    cell = REFUSED["after other words on stderr"].format("NBVAL_IGNORE_OUTPUT")
    path = write(tmp_path / "00_start.ipynb", "%load_ext luce_edu", cell)
    with pytest.raises(NotebookError, match=r"cell 3 of 3 failed(.*\n)*UsageError: "):
        execute(path)


def test_a_refused_cell_with_the_tag_raises_exception_passes(tmp_path):
    path = write(tmp_path / "00_start.ipynb", "%kernelss")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata["tags"] = ["raises-exception"]
    nbformat.write(notebook, path)
    walkthrough.walkthrough([path], in_place=True)
    status, said = nbval(path)
    assert status == 0, said


def test_ctrl_c_ends_the_kernel_and_nothing_else_is_raised(tmp_path):
    cell = "open('started', 'w').close()\nimport threading\nthreading.Event().wait(60)"
    path = write(tmp_path / "00_long.ipynb", cell)
    code = f"from pathlib import Path\nfrom luce_edu.walkthrough import execute\nexecute(Path({str(path)!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=default_signals,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert said.strip().endswith("KeyboardInterrupt") and "nbclient.exceptions" not in said, said
