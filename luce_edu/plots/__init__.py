"""The pictures of the notebooks and the README, one file per notebook. Each caption says where its numbers come from.

Pictures of records are in luce_edu/plots/records.py; `luce-edu figures` writes them.
"""

from luce_edu.plots.bytes_are_time import bandwidth_by_warps, loads_over_time, roofline, shared_banks, warp_loads
from luce_edu.plots.delta_rule import answers_by_write, chunk_triangles, conv_windows, state_update
from luce_edu.plots.equality import error_by_part, margins_against_slack
from luce_edu.plots.find_the_bug import above_the_floor
from luce_edu.plots.first_kernel import blocks_over_rows, grid_over_array, launches_by_size, memory_levels, tree_sum
from luce_edu.plots.graphs import launch_timeline
from luce_edu.plots.hybrid_model import model_shapes, state_against_kv
from luce_edu.plots.layer_kernels import dataflow, delta_tile, softmax_workers, state_owners
from luce_edu.plots.measuring import energy_windows, mistakes, shown_by_steps, spread
from luce_edu.plots.power import power_band, power_curves, power_errors, stage_powers
from luce_edu.plots.prefill import intensity_by_tokens, prefill_against_ceiling, tensor_core_tile, work_by_length
from luce_edu.plots.start_here import ladder, published_against_floor

__all__ = [
    "above_the_floor", "answers_by_write", "bandwidth_by_warps", "blocks_over_rows", "chunk_triangles", "conv_windows",
    "dataflow", "delta_tile", "energy_windows", "error_by_part", "grid_over_array", "intensity_by_tokens", "ladder",
    "launch_timeline", "launches_by_size", "loads_over_time", "margins_against_slack", "memory_levels", "mistakes",
    "model_shapes", "power_band", "power_curves", "power_errors", "prefill_against_ceiling", "published_against_floor",
    "roofline", "shared_banks", "shown_by_steps", "softmax_workers", "spread", "stage_powers", "state_against_kv",
    "state_owners", "state_update", "tensor_core_tile", "tree_sum", "warp_loads", "work_by_length",
]  # fmt: skip
