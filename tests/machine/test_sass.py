"""Counts of memory instructions in machine code agree with the PTX and with the compiler's report, on every GPU."""

import re

import pytest

from luce_edu.machine.cubin import ARCHITECTURES, compile_cubin
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.machine.sass import memory_instructions

# The compiler can neither merge nor remove accesses here, so each one in the source is one instruction.
TEXT = """
extern "C" __global__ void moves(float* x) {
    __shared__ float s[256];
    x += threadIdx.x;
    float v[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) v[i] = x[1024 * i];
    s[threadIdx.x] = v[0];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < LOADS; ++i) x[1024 * i] = v[LOADS - 1 - i] + s[255 - threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(1024) spills(float* x) {
    float v[100];
#pragma unroll
    for (int i = 0; i < 100; ++i) v[i] = x[1024 * i + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 100; ++i) x[1024 * i + threadIdx.x] = v[99 - i];
}
"""


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_counts_are_those_of_the_ptx_and_of_the_report_of_spills(arch):
    kernels, defines = ["moves", "spills"], {"LOADS": 5}
    binary = compile_cubin("moves.cu", kernels, defines, arch, text=TEXT)
    ptx = compile_ptx("moves.cu", TEXT, kernels, defines, arch.replace("sm", "compute"))
    body = ptx[ptx.index(".entry moves") : ptx.index(".entry spills")]
    in_ptx = {
        name: len(re.findall(rf"{word}\.", body))
        for name, word in {"LDG": "ld.global", "STG": "st.global", "LDL": "ld.local", "STL": "st.local",
                           "LDS": "ld.shared", "STS": "st.shared"}.items()
    }  # fmt: skip
    assert memory_instructions(binary, "moves") == in_ptx
    assert list(in_ptx.values()) == [5, 5, 0, 0, 1, 1]
    spilled = memory_instructions(binary, "spills")
    assert binary.resources["spills"].spill_store_bytes > 0 < min(spilled["LDL"], spilled["STL"])
    assert spilled["LDG"] == spilled["STG"] == 100


def test_a_missing_kernel_is_named():
    binary = compile_cubin("moves.cu", ["moves"], {"LOADS": 5}, "sm_86", text=TEXT)
    with pytest.raises(ValueError, match="text.other"):
        memory_instructions(binary, "other")
