"""Run the notebooks in order, as a reader would: each in its folder, in a new kernel of this Python."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from traitlets import default

CELL_TIMEOUT_S = 600  # a cell takes seconds, even on two slow cores; minutes mean that it hangs
SOURCE_LINES = 8  # that are shown of a failing cell


class NotebookError(Exception):
    """A cell that failed. The message names notebook and cell, and shows the cell's first lines and the error."""


def find_notebooks(only: Sequence[str] = (), folder: Path | None = None) -> list[Path]:
    """List the notebooks NN_*.ipynb in order.

    only    keeps those with these numbers, such as "00" or "9"; empty for all
    folder  None for notebooks/ of the checkout that this package runs from
    Raises ValueError if there is no such folder, or no notebook with such a number.
    """
    folder = Path(__file__).resolve().parent.parent / "notebooks" if folder is None else Path(folder)
    found = {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise ValueError(
            f"walkthrough: no notebooks (00_*.ipynb, ...) in {folder}; run it from a clone of the repository"
        )
    wanted = [number.strip().zfill(2) for number in only] or list(found)
    unknown = [number for number in wanted if number not in found]
    if unknown:
        raise ValueError(f"walkthrough: no notebook {', '.join(unknown)}; expected some of {', '.join(found)}")
    return [path for number, path in found.items() if number in wanted]


def with_solutions(notebooks: Iterable[Path]) -> Iterator[Path]:
    """Yield each notebook, and after it solutions/NAME_solution.ipynb if there is one."""
    for path in notebooks:
        yield path
        solution = path.parent / "solutions" / f"{path.stem}_solution.ipynb"
        if solution.exists():
            yield solution


class _Execution:
    """A notebook that runs in a thread of its own.

    In the main thread, nbclient would handle Ctrl-C itself and print errors of its cleanup.
    """

    def __init__(self, path: Path, on_cell: Callable[[int], None]):
        self._path, self._current = path, 0
        self._notebook = nbformat.read(path, as_version=4)
        self._error: BaseException | None = None

        def start(cell, cell_index):
            self._current = cell_index
            on_cell(cell_index)

        self._client = NotebookClient(
            self._notebook,
            kernel_manager_class=_ThisPython,
            resources={"metadata": {"path": str(path.parent)}},
            timeout=CELL_TIMEOUT_S,
            on_cell_start=start,
            # Outputs that depend on the time, or on how the kernel split its messages, would differ on every run.
            record_timing=False,
            coalesce_streams=True,
            store_widget_state=False,
        )
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            # A reader's progress is the reader's: what runs here, solutions too, leaves no trace in it.
            self._client.execute(env=os.environ | {"LUCE_PROGRESS": ""})
        except BaseException as error:  # raised again in the thread that waits
            self._error = error

    def result(self) -> nbformat.NotebookNode:
        """Wait for the end and return the notebook with its outputs. Raises NotebookError, or what ended the wait."""
        try:
            self._thread.join()
        except BaseException:
            self.kill()
            raise
        try:
            if self._error is not None:
                raise self._error
        except CellExecutionError as error:
            raise self._failed(_plain(error.traceback)) from None
        except CellTimeoutError:
            raise self._failed(f"still running after {CELL_TIMEOUT_S} s, so it was stopped") from None
        except DeadKernelError:
            raise self._failed("the kernel died: it ran out of memory, or crashed in native code") from None
        return self._notebook

    def kill(self) -> None:
        provisioner = self._client.km and self._client.km.provisioner
        if provisioner and provisioner.process:
            provisioner.process.kill()
        self._thread.join(5)

    def _failed(self, error: str) -> NotebookError:
        return NotebookError(_failure(self._path, self._notebook, self._current, error))


def execute(path: Path, on_cell: Callable[[int], None] = lambda index: None) -> nbformat.NotebookNode:
    """Run one notebook and return it with its outputs; the file is not changed.

    on_cell  called with the index of each cell that starts, text cells too
    Raises NotebookError at the first cell that fails, hangs or kills its kernel.
    """
    return _Execution(path, on_cell).result()


def walkthrough(notebooks: Sequence[Path], *, in_place: bool = False, console: Console | None = None) -> None:
    """Run notebooks in order and show progress: a bar in a terminal, else a line per notebook.

    in_place  run each one's solution after it, and store the outputs in the files
    Three notebooks run at the same time, unless they measure on a GPU or their outputs are stored.
    Raises NotebookError at the first failing cell; that notebook's file stays as it was.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TimeElapsedColumn(),
    )
    import torch

    console = console or Console()
    paths = list(with_solutions(notebooks) if in_place else notebooks)
    at_once = 1 if in_place or torch.cuda.is_available() else 3
    running: deque[tuple[Path, int, _Execution]] = deque()

    def finish_first(progress: Progress) -> None:
        path, task, execution = running.popleft()
        notebook = execution.result()
        progress.update(task, completed=len(notebook.cells))
        if in_place:
            store(notebook, path)

    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        try:
            for number, path in enumerate(paths, 1):
                if len(running) == at_once:
                    finish_first(progress)
                cells = len(nbformat.read(path, as_version=4).cells)
                if not console.is_terminal:  # where rich would print only once, at the end
                    said = f"{path.stem}: {cells} cells, notebook {number} of {len(paths)}"
                    console.print(said, highlight=False, soft_wrap=True)
                task = progress.add_task(path.stem, total=cells)
                show = partial(lambda task, index: progress.update(task, completed=index), task)
                running.append((path, task, _Execution(path, show)))
            while running:
                finish_first(progress)
        finally:
            for _, _, execution in running:
                execution.kill()


def store(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write an executed notebook so that running it again changes only what its cells print."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            # A stored widget shows an error without its kernel, so only the text printed beside it is kept.
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, path)


class _ThisPython(AsyncKernelManager):
    """Start kernels with the running interpreter, whatever `python3` kernel the user has registered."""

    kernel_spec = KernelSpec(**get_kernel_dict())

    @default("transport_encryption")
    def _encrypt_where_possible(self) -> str:
        return "auto"  # without encryption a kernel prints a warning into the progress bar


def _failure(path: Path, notebook: nbformat.NotebookNode, cell_index: int, error: str) -> str:
    source = notebook.cells[cell_index].source.splitlines()
    shown = source[:SOURCE_LINES] + ["..."] * (len(source) > SOURCE_LINES)
    quoted = "\n".join(f"    {line}" for line in shown)
    # Cells are counted as in JupyterLab: from 1, text cells too.
    return f"{path.name}, cell {cell_index + 1} of {len(notebook.cells)} failed:\n{quoted}\n{error}"


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
