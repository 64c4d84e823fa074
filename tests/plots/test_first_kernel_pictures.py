"""Notebook 04's pictures show the thread of each element, and the bytes of each launch."""

import pytest

from luce_edu.machine.cards import find_card
from luce_edu.measure.launch_cost import LaunchBytes
from luce_edu.plots.first_kernel import blocks_over_rows, grid_over_array, launches_by_size, memory_levels, tree_sum

SIZES = [LaunchBytes("rms_norm", 3, 12_288), LaunchBytes("matvec", 2, 12_611_584)]

PICTURES = {
    "grid": lambda provenance: grid_over_array(n=11, block=4, provenance=provenance),
    "rows": lambda provenance: blocks_over_rows(rows=2, n=10, block=4, provenance=provenance),
    "levels": lambda provenance: memory_levels(find_card("RTX 3090"), provenance=provenance),
    "tree": lambda provenance: tree_sum([3, 1, 4, 1, 5, 9, 2, 6], provenance=provenance),
    "launches": lambda provenance: launches_by_size(SIZES, 1.54, 936, provenance=provenance),
}


def test_every_element_of_an_array_has_one_thread_and_the_spare_thread_has_none():
    (axes,) = PICTURES["grid"]("modelled").axes
    shown = [text.get_text() for text in axes.texts]
    assert [text for text in shown if text.startswith("blockIdx")] == [f"blockIdx.x = {b}" for b in range(3)]
    assert [text for text in shown if text.startswith("no")] == ["no\nx[11]"]
    elements = {text.get_position()[0]: text.get_text() for text in axes.texts if text.get_position()[1] == 0.35}
    assert elements == {i + 0.5: str(i) for i in range(11)}


def test_a_block_goes_over_its_row_in_passes():
    (axes,) = PICTURES["rows"]("modelled").axes
    for row in range(2):
        owners = [text.get_text() for text in axes.texts if text.get_position()[1] == row]
        assert owners == [str(c % 4) for c in range(10)]
    passes = [text.get_text() for text in axes.texts if text.get_text().startswith("pass")]
    assert passes == ["pass 0", "pass 1", "pass 2"]


def test_a_tree_ends_in_the_sum_with_a_barrier_after_every_step():
    (axes,) = PICTURES["tree"]("modelled").axes
    shown = [text.get_text() for text in axes.texts]
    assert shown.count("__syncthreads()") == 4
    last = [text.get_text() for text in axes.texts if text.get_position()[1] == 3]
    assert last[0] == "31"


def test_launches_are_split_where_starting_takes_as_long_as_their_bytes():
    (axes,) = PICTURES["launches"]("modelled").axes
    shown = " ".join(text.get_text() for text in axes.texts)
    assert "3 launches: the overhead" in shown and "2 launches: moving" in shown
    assert "overhead of a launch: 1.54 µs" in shown and "rms_norm: 12,288 bytes" in shown


def test_every_launch_is_a_point_at_the_time_of_its_bytes():
    (axes,) = PICTURES["launches"]("modelled").axes
    small, large = (list(line.get_ydata()) for line in axes.lines if line.get_marker() in "os")
    assert small == [12_288 / 936e3] * 3 and large == [12_611_584 / 936e3] * 2
    assert not axes.patches, "a bar needs a zero, which a logarithmic axis lacks"


@pytest.mark.parametrize("name, facts", [
    ("RTX 3090", ["82 SMs", "1,536 threads (48 warps)", "L2: 6 MiB", "24 GiB, 936 GB/s", ": 128 KiB"]),
    ("H100", ["132 SMs", "2,048 threads (64 warps)", "L2: 50 MiB", "80 GiB, 3,350 GB/s", "y: 256 KiB"]),
])  # fmt: skip
def test_a_cards_memories_have_its_sizes_and_their_loads_take_longer_from_level_to_level(name, facts):
    (axes,) = memory_levels(find_card(name), provenance="published").axes
    shown = [text.get_text() for text in axes.texts]
    assert [fact for fact in [*facts, "registers: 256 KiB"] if not any(fact in text for text in shown)] == []
    cycles = [int(text.split()[3]) for text in shown if text.startswith("a load takes")]
    assert len(cycles) == 3 and cycles == sorted(cycles, reverse=True), "DRAM first, then L2, then L1"


@pytest.mark.planted
def test_a_card_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="laptop does not exist"):
        memory_levels(find_card("laptop"), provenance="published")
