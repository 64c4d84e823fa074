"""Notebook 07's picture draws each span at its time."""

from luce_edu.overlap import timelines
from luce_edu.plots.graphs import launch_timeline

WORK = {"up": 4.0, "rule": 0.5, "down": 1.0}
LANES_OF_KERNELS = timelines(WORK, launch_us=3, gap_us=1.5, prefetch_us={"up": 4, "down": 1})

PICTURES = {"timeline": lambda provenance: launch_timeline(LANES_OF_KERNELS, provenance=provenance)}


def test_a_timeline_draws_every_span_where_it_is_and_names_each_end():
    (axes,) = PICTURES["timeline"]("modelled").axes
    drawn = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert drawn == [(span.start_us, span.us) for spans in LANES_OF_KERNELS.values() for span in spans]
    hatched = [bar.get_x() for bar in axes.patches if bar.get_hatch()]
    assert hatched == [span.start_us for span in LANES_OF_KERNELS["with dependent launch"] if span.prefetched]
    assert [text.get_text() for text in axes.texts] == ["  9.0 µs", "  11.5 µs", "  10.0 µs", "  7.5 µs", "  5.5 µs"]
