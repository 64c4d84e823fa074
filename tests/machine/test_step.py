"""The stepper shows what a warp did: each instruction, its lanes, what it read, wrote and touched."""

import numpy as np
import pytest
import torch

from luce_edu.errors import KernelError, LaunchError
from luce_edu.machine import load, step
from luce_edu.machine.nvrtc import compile_ptx

SOURCE = """
extern "C" __global__ void sum(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = i < n ? x[i] : 0.0f;
    for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(0xffffffffu, v, o);
    if (threadIdx.x == 0) y[blockIdx.x] = v;
}
"""


@pytest.fixture(scope="module")
def kernel():
    return load(compile_ptx("cell.cu", SOURCE, ["sum"], {}, "compute_80"))["sum"]


@pytest.fixture
def steps(kernel):
    x, y = torch.arange(40.0), torch.full((2,), float("nan"))
    return step(kernel, 2, 32, [x, y, 40], at_block=1)


def named(steps, start):
    return [s for s in steps if s.text.startswith(start)]


def test_every_lane_is_followed_through_loads_shuffles_and_sums(steps):
    (load_x,) = named(steps, "ld.global")
    assert load_x.active == 8 and load_x.place == "cell.cu:4"
    assert load_x.touched == [(lane, "argument 0", 32 + lane) for lane in range(8)]
    (loaded,) = load_x.writes.values()
    assert loaded[:8].tolist() == list(range(32, 40))
    value = np.where(np.arange(32) < 8, np.arange(32) + 32, 0).astype(np.float32)
    shuffles, sums = named(steps, "shfl"), named(steps, "add.f32")
    assert len(shuffles) == len(sums) == 5
    for distance, added in zip((16, 8, 4, 2, 1), sums, strict=True):
        value = value + value[np.arange(32) ^ distance]
        (given,) = added.writes.values()
        assert np.array_equal(given, value)
    (store,) = named(steps, "st.global")
    assert store.active == 1 and store.touched == [(0, "argument 1", 1)] and not store.writes


def test_lanes_part_and_meet(steps):
    masks = [s.active for s in steps]
    assert masks[-1] == 32 and min(masks) == 1 and 8 in masks


def test_lines_begin_where_the_source_line_changes(steps):
    places = [steps[n].place for n in steps.lines()]
    assert all(a != b for a, b in zip(places, places[1:], strict=False)) and "cell.cu:5" in places


def test_the_launch_ends_where_there_is_no_room_for_more(kernel):
    x, y = torch.arange(40.0), torch.full((2,), float("nan"))
    few = step(kernel, 2, 32, [x, y, 40], most=5)
    assert 0 < len(few) <= 5
    assert len(step(kernel, 2, 32, [x, y, 40], at_block=1)) > 5 and y[1] == x[32:].sum()


def test_table_and_page_hold_the_instructions_and_the_lanes(steps):
    assert all(s.text in repr(steps) for s in steps)
    assert steps._repr_html_().count("<tr>") == len(steps) + 1
    assert steps.page(0).count("<tr style") == 32


def test_widgets_go_forward_and_back(steps):
    widgets = pytest.importorskip("ipywidgets")
    view = steps.view()
    slider = next(w for w in view.children[1].children if isinstance(w, widgets.IntSlider))
    back, one_back, one_on, on = (w for w in view.children[1].children if isinstance(w, widgets.Button))
    for button, number in ((one_on, 1), (one_on, 2), (one_back, 1), (on, steps.lines()[1]), (back, 0), (one_back, 0)):
        button.click()
        assert slider.value == number and view.children[2].value == steps.page(number)


@pytest.mark.parametrize("wrong", [{"at_block": 2}, {"warp": 1}, {"warp": -1}, {"most": 0}, {"at_block": "0"}])
def test_a_block_or_warp_that_does_not_exist_is_refused(kernel, wrong):
    with pytest.raises(LaunchError):
        step(kernel, 2, 32, [torch.zeros(40), torch.zeros(2), 40], **wrong)


@pytest.mark.planted
def test_a_read_out_of_bounds_is_reported(kernel):
    with pytest.raises(KernelError, match="out of bounds"):
        step(kernel, 2, 32, [torch.zeros(40), torch.zeros(2), 41])
