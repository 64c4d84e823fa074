"""Times are of the cells that the reader ran, checked at the size at which they are timed. Only timing needs a GPU."""

import pytest
import torch
import torch.nn.functional as F
from IPython.core.interactiveshell import InteractiveShell

from luce_edu.inline import timing
from luce_edu.inline.trial import Attempt
from luce_edu.verification import relative_error

BODY = """\
const int row = blockIdx.x * block_warps + warp_id();
if (row >= rows) return;
float sum = 0.0f;
for (int c = lane_id(); c < cols; c += 32) sum += to_float(W[row * cols + c]) * x[c];
sum = warp_sum(sum);
if (lane_id() == 0) y[row] = sum;
"""
SHAPE = {"rows": 37, "cols": 264}


@pytest.fixture
def notebook(monkeypatch):
    """A shell with a history of cells; nothing is run."""
    shell = InteractiveShell.instance()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)

    def write(*cells):
        monkeypatch.setattr(shell.history_manager, "input_hist_raw", ["", *cells])

    yield write
    InteractiveShell.clear_instance()


def test_the_newest_cell_of_a_kernel_is_the_one_that_counts(notebook):
    magic = "%%kernel warps --against F.linear --grid rows/4 --block 128 --smem 4*cols --as warps\n"
    notebook("x = 1", magic + "older", magic + BODY, "%%kernel warps2 --against F.linear\nother", "warps")
    assert timing.newest_attempt("warps") == Attempt("warps", "F.linear", BODY, "rows/4", 128, "4*cols")


def test_a_kernel_that_no_cell_holds_is_named(notebook):
    notebook("%%kernel warps --against F.linear\n" + BODY)
    with pytest.raises(ValueError, match="%%kernel warp$"):
        timing.newest_attempt("warp")


def test_a_prepared_launch_computes_what_the_cell_says():
    tensors = {"W": torch.randn(37, 264).bfloat16(), "x": torch.randn(264), "y": torch.full((37,), torch.nan)}
    timing.prepare(Attempt("warps", "F.linear", BODY, "rows/8"), SHAPE, tensors, "host")()
    assert relative_error(tensors["y"], F.linear(tensors["x"], tensors["W"].float())) <= 1e-5


def test_a_table_of_times_gives_quartiles_and_the_bandwidth_they_mean():
    table = timing.KernelTimes("GPU", SHAPE, 2_000_000, [timing.KernelTime("warps", 10.0, 9.0, 12.0)])
    assert table.body == [["warps", "10", "9 to 12", "200"]]
    assert "GPU, rows 37, cols 264: measured now" in str(table)


@pytest.mark.gpu
def test_kernels_of_a_notebook_are_timed(notebook, monkeypatch):
    monkeypatch.setattr(timing, "SHAPE", {"rows": 4096, "cols": 1024})
    notebook("%%kernel warps --against F.linear --grid rows/8\n" + BODY)
    table = timing.time_matvecs(["warps"], rounds=4)
    assert [t.kernel for t in table.times] == ["warps", "torch.mv, x in bf16"]
    assert all(0 < t.lower <= t.us <= t.upper for t in table.times)


@pytest.mark.gpu
@pytest.mark.planted
def test_a_wrong_kernel_is_not_timed(notebook, monkeypatch):
    monkeypatch.setattr(timing, "SHAPE", {"rows": 4096, "cols": 1024})
    notebook("%%kernel warps --against F.linear --grid rows/8\n" + BODY.replace("row >= rows", "row >= rows - 1"))
    with pytest.raises(AssertionError, match="warps is wrong"):
        timing.time_matvecs(["warps"])
