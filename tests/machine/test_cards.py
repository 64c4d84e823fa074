"""Card profiles: figures agree with each other, occupancy with NVIDIA's calculator; too large launches are refused."""

import random
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from rich.console import Console

from luce_edu import cli
from luce_edu.errors import LaunchError
from luce_edu.machine.cards import (
    CARDS,
    DATASHEET_GB_PER_S,
    KIB,
    LIMITS,
    CardTable,
    check_launch,
    find_card,
    resident_blocks,
)

REAL = [card for card in CARDS if card.name != "laptop"]
T4, RTX_3090, H100, LAPTOP = (find_card(name) for name in ("T4", "RTX 3090", "H100", "laptop"))


def test_every_card_has_its_figures_and_their_source():
    assert [card.name for card in REAL] == [
        "T4", "RTX 3090", "RTX 4090", "RTX 5090", "A100", "H100", "H200", "RTX A6000", "A40", "L40",
    ]  # fmt: skip
    assert {card.product for card in REAL} == set(DATASHEET_GB_PER_S), "one home for a bandwidth"
    for card in CARDS:
        assert card.source and card.memory_gb_per_s > 0 and card.sm_count > 0
        assert card.capability == divmod(int("".join(filter(str.isdigit, card.arch))), 10)
    assert "fictional" in LAPTOP.source


def test_what_fits_a_gpu_fits_the_laptop():
    for card in REAL:
        assert LAPTOP.shared_per_block >= card.shared_per_block and LAPTOP.max_cluster >= card.max_cluster
        assert LAPTOP.threads_per_block >= card.threads_per_block
    assert resident_blocks(LAPTOP, threads=1024, registers=255, shared_bytes=227 * KIB) == 1


@pytest.mark.parametrize(
    "name", ["RTX 3090", "rtx3090", "NVIDIA GeForce RTX 3090", "h100", "H100 SXM", "NVIDIA H200", "a100 80GB SXM"]
)
def test_a_card_is_found_by_the_names_it_has(name):
    assert find_card(name).name.replace(" ", "").lower() in name.replace(" ", "").lower()


def test_the_environment_names_the_default_card(monkeypatch):
    monkeypatch.delenv("LUCE_CARD", raising=False)
    assert find_card() is LAPTOP
    monkeypatch.setenv("LUCE_CARD", "t4")
    assert find_card() is T4 and find_card("H100") is H100
    monkeypatch.setenv("LUCE_CARD", "GTX 1080")
    with pytest.raises(ValueError, match=r"^LUCE_CARD: .*'GTX 1080'.*laptop, T4, RTX 3090, "):
        find_card()


# ---- Occupancy ----

CALCULATOR = r"""
#include <stddef.h>
#include <stdio.h>
#include "cuda_occupancy.h"
int main() {
    int major, minor, threads_per_sm, sms, registers, block;
    size_t shared_sm, shared_block, reserved, shared;
    while (scanf("%d %d %d %d %zu %zu %zu %d %zu %d", &major, &minor, &threads_per_sm, &sms, &shared_sm,
                 &shared_block, &reserved, &registers, &shared, &block) == 10) {
        cudaOccDeviceProp device;
        device.computeMajor = major, device.computeMinor = minor, device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = threads_per_sm, device.warpSize = 32, device.numSms = sms;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.sharedMemPerBlock = 48 * 1024, device.sharedMemPerMultiprocessor = shared_sm;
        device.sharedMemPerBlockOptin = shared_block, device.reservedSharedMemPerBlock = reserved;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers, kernel.sharedSizeBytes = 0;
        kernel.maxDynamicSharedSizeBytes = shared_block, kernel.numBlockBarriers = 1;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN, kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
        cudaOccDeviceState state;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult result;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, block, shared)) return 1;
        printf("%d\n", result.activeBlocksPerMultiprocessor);
    }
}
"""


@pytest.fixture(scope="module")
def calculator(tmp_path_factory):
    """NVIDIA's occupancy calculator, from the header of nvidia-cuda-runtime: lines of numbers in, blocks per SM out."""
    include = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "include"
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not (include / "cuda_occupancy.h").is_file():
        pytest.skip("needs a C++ compiler and cuda_occupancy.h of nvidia-cuda-runtime")
    folder = tmp_path_factory.mktemp("calculator")
    (folder / "calculator.cpp").write_text(CALCULATOR)
    program = folder / "calculator"
    subprocess.run([compiler, f"-I{include}", folder / "calculator.cpp", "-o", program], check=True)
    return lambda lines: [
        int(blocks)
        for blocks in subprocess.run(
            program, input="\n".join(lines), capture_output=True, text=True, check=True
        ).stdout.split()
    ]


@pytest.mark.parametrize("card", REAL, ids=lambda card: card.name)
def test_resident_blocks_are_those_of_nvidias_calculator(card, calculator):
    draw = random.Random(card.name)
    cases = []
    for _ in range(3000):
        share = card.shared_per_sm // draw.randint(1, 16) - card.shared_reserved  # where one block more would not fit
        shared = draw.choice([0, draw.randint(0, card.shared_per_block), share - draw.randint(-260, 260)])
        cases.append({
            "threads": draw.choice([32, 32 * draw.randint(1, 32), draw.randint(1, 1024)]),
            "registers": draw.choice([16, draw.randint(1, 255)]),
            "shared_bytes": min(max(shared, 0), card.shared_per_block),
        })  # fmt: skip
    have = (*card.capability, card.threads_per_sm, card.sm_count, card.shared_per_sm, card.shared_per_block)
    lines = [
        " ".join(map(str, (*have, card.shared_reserved, case["registers"], case["shared_bytes"], case["threads"])))
        for case in cases
    ]
    ours = [resident_blocks(card, **case) for case in cases]
    assert ours == calculator(lines)
    assert min(ours) == 0 and max(ours) == card.blocks_per_sm


def test_a_block_that_cannot_be_launched_is_resident_nowhere():
    assert resident_blocks(LIMITS["sm_80"], threads=1025) == 0
    assert resident_blocks(T4, threads=32, shared_bytes=64 * KIB + 1) == 0


# ---- Launches ----

# The largest launch that a card takes, one that it refuses, and what the message must name.
EDGES = {
    "grid x": (T4, {"grid": 2**31 - 1}, {"grid": 2**31}, ["grid", "2147483648", "in x", "2147483647"]),
    "grid y": (T4, {"grid": (1, 65535)}, {"grid": (1, 65536)}, ["grid", "65536", "in y", "65535"]),
    "grid z": (T4, {"grid": (1, 1, 65535)}, {"grid": (1, 1, 65536)}, ["grid", "in z"]),
    "block x": (T4, {"block": 1024}, {"block": 1025}, ["block", "1025", "in x", "1024"]),
    "block z": (T4, {"block": (1, 1, 64)}, {"block": (1, 1, 65)}, ["block", "65", "in z", "64"]),
    "threads": (T4, {"block": (32, 32)}, {"block": (33, 32)}, ["1056 threads", "T4", "1024"]),
    "shared": (T4, {"smem": 64 * KIB}, {"smem": 64 * KIB + 1}, ["65537", "65536", "T4"]),
    "static shared": (
        RTX_3090, {"smem": 99 * KIB - 512, "static_shared": 512}, {"smem": 99 * KIB, "static_shared": 512},
        ["101888", "512 static", "101376", "RTX 3090"],
    ),
    "registers": (
        RTX_3090, {"block": 512, "registers": 128}, {"block": 512, "registers": 129},
        ["too many resources requested", "512 threads", "129 registers", "66048", "RTX 3090", "65536"],
    ),
    "cluster": (H100, {"grid": 16, "cluster": 8}, {"grid": 16, "cluster": (2, 8)}, ["cluster of 16", "H100", "8"]),
    "whole clusters": (H100, {"grid": (4, 6), "cluster": (2, 2)}, {"grid": (4, 5), "cluster": (2, 2)}, ["(4, 5, 1)"]),
    "no clusters": (RTX_3090, {"grid": 2, "cluster": 1}, {"grid": 2, "cluster": 2}, ["RTX 3090", "8.6", "9.0"]),
    "cooperative": (
        RTX_3090, {"grid": 246, "block": 512, "registers": 40, "cooperative": True},
        {"grid": 247, "block": 512, "registers": 40, "cooperative": True}, ["247", "RTX 3090", "246"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("card, most, more, named", EDGES.values(), ids=EDGES)
def test_a_launch_beyond_a_limit_is_refused_by_name(card, most, more, named):
    usual = {"grid": 1, "block": 32}
    check_launch(card, **usual | most)
    with pytest.raises(LaunchError) as refused:
        check_launch(card, **usual | more, kernel="f")
    message = str(refused.value)
    assert message.startswith("f: ") and [word for word in named if word not in message] == []


@pytest.mark.parametrize("wrong", [
    {"grid": 0}, {"grid": (1, -1)}, {"grid": (1, 1, 1, 1)}, {"grid": ()}, {"grid": 1.0}, {"grid": True},
    {"block": "32"}, {"smem": -1}, {"smem": 1.5}, {"cluster": 0},
])  # fmt: skip
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(LaunchError):
        check_launch(LAPTOP, **{"grid": 1, "block": 32} | wrong)


def test_registers_do_not_count_on_the_laptop():
    check_launch(LAPTOP, 2, 1024, registers=255, cooperative=True)


# ---- luce-edu cards ----


def test_the_command_shows_every_card_with_its_source(capsys, monkeypatch):
    monkeypatch.setenv("LUCE_CARD", "T4")
    assert cli.main(["cards"]) == 0
    said = capsys.readouterr().out
    assert "default: T4" in said
    for card in CARDS:
        assert f"\n{card.name} " in said and f"\n{card.name}: {card.source[:40]}" in said


def test_the_command_refuses_an_unknown_default(capsys, monkeypatch):
    monkeypatch.setenv("LUCE_CARD", "GTX 1080")
    assert cli.main(["cards"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("luce-edu: ") and "GTX 1080" in err


def test_the_table_fits_a_terminal_of_80():
    table = CardTable(LAPTOP)
    with (console := Console(width=80)).capture() as shown:
        console.print(table)
    assert "…" not in shown.get() and all(name in shown.get() for name in table.header)
    assert max(map(len, str(table).splitlines())) <= 80
