"""Timing of cells that the reader ran: each is checked at the size at which it is timed. Only timing needs a GPU."""

import pytest
import torch
import torch.nn.functional as F
from cells import A_WARP_A_ROW

from luce_edu.backends import make_backend
from luce_edu.inline import timing
from luce_edu.inline.trial import Attempt, Verdict, prepare
from luce_edu.measure.latency import Quartiles
from luce_edu.verification import relative_error

SHAPE = {"rows": 37, "cols": 264}


def test_a_prepared_launch_computes_what_the_cell_says():
    tensors = {"W": torch.randn(37, 264).bfloat16(), "x": torch.randn(264), "y": torch.full((37,), torch.nan)}
    prepare(Attempt("warps", "F.linear", A_WARP_A_ROW, "rows/8"), SHAPE, tensors, make_backend("host"))()
    assert relative_error(tensors["y"], F.linear(tensors["x"], tensors["W"].float())) <= 1e-5


def test_a_table_of_times_gives_quartiles_and_the_bandwidth_they_mean():
    table = timing.KernelTimes("GPU", SHAPE, 2_000_000, {"warps": Quartiles(10.0, 9.0, 12.0, 15)})
    assert table.body == [["warps", "10", "9 to 12", "200"]]
    assert "GPU, rows 37, cols 264: measured now" in str(table)


@pytest.mark.gpu
def test_kernels_of_a_notebook_are_timed(monkeypatch):
    monkeypatch.setattr(timing, "SHAPE", {"rows": 4096, "cols": 1024})
    table = timing.time_matvecs([Verdict(Attempt("warps", "F.linear", A_WARP_A_ROW, "rows/8"))], rounds=4)
    assert list(table.times) == ["warps", "torch.mv, x in bf16"]
    assert all(0 < t.q1 <= t.median <= t.q3 for t in table.times.values())


@pytest.mark.gpu
@pytest.mark.planted
def test_a_wrong_kernel_is_not_timed(monkeypatch):
    monkeypatch.setattr(timing, "SHAPE", {"rows": 4096, "cols": 1024})
    wrong = Attempt("warps", "F.linear", A_WARP_A_ROW.replace("row >= rows", "row >= rows - 1"), "rows/8")
    with pytest.raises(AssertionError, match="warps is wrong"):
        timing.time_matvecs([Verdict(wrong)])
