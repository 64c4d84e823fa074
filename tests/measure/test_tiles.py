"""Tiles are checked before they are timed; registers, spills and refusals agree with the compiler's report."""

from functools import cache

import pytest

from luce_edu.errors import LaunchError
from luce_edu.faults import Fault
from luce_edu.measure import tiles
from luce_edu.measure.tiles import ROWS, Tile

tile = cache(Tile)  # compiles each tile once


@pytest.mark.parametrize("rows", ROWS)
def test_a_tile_is_right_and_holds_its_rows_in_registers(rows):
    one = tile(rows)
    assert one.columns * one.tiles == 16 * 128 and one.columns == rows * 4
    assert one.launch() < 1e-6
    assert one.resources.registers > 4 * rows and one.resources.stack_bytes == 0
    assert one.memory_instructions["STG"] == rows + 1, "one store of 16 bytes per row, and one of o"


def test_a_cap_on_registers_keeps_blocks_and_spills_where_the_state_does_not_fit():
    assert [tile(rows, "RTX 3090", 8).resident >= 8 for rows in ROWS] == [True] * 4
    spilled = [tile(rows, "RTX 3090", 8).resources.spill_store_bytes for rows in ROWS]
    assert spilled[:2] == [0, 0] and min(spilled[2:]) > 4 * ROWS[2]
    assert not any(tile(rows).resources.spill_store_bytes for rows in ROWS)
    assert tile(16, "RTX 3090", 8).launch() < 1e-6, "a spill changes no result"


def test_local_memory_is_a_variable_index_and_shows_in_the_modelled_time():
    local = Tile(16, local_memory=True)
    assert local.resources.stack_bytes == 16 * 16 and local.resources.spill_store_bytes == 0
    assert local.memory_instructions["LDL"] > 0 and local.resources.registers < 64
    assert local.time_us() > 2 * tile(16).time_us() > 2


def test_a_cooperative_launch_is_refused_one_block_beyond_what_is_resident():
    one = tile(16)
    most = 82 * one.resident
    assert one.resident < 8 and one.launch(most, cooperative=True) < 1e-6
    with pytest.raises(LaunchError, match=str(most + 1)):
        one.launch(most + 1, cooperative=True)


@pytest.mark.planted
def test_a_wrong_tile_fails_its_launch_and_is_not_timed(monkeypatch):
    wrong = Fault("a wrong decay", "delta_rule.cuh", "decay * k_sum)", "k_sum)")
    monkeypatch.setattr(tiles, "_ROLLED", (wrong,))
    for ask in (Tile.launch, Tile.time_us):
        with pytest.raises(AssertionError, match="8 rows"):
            ask(Tile(8, local_memory=True))


@pytest.mark.parametrize("given", [{"rows": 12}, {"rows": 8, "at_least": 0}, {"rows": 8, "card": "abacus"}])
def test_an_impossible_tile_is_refused(given):
    with pytest.raises(ValueError, match="12|0|abacus"):
        Tile(**given)
