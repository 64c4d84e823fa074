"""With the clock on, whoever waits for asynchronous copies waits until they have landed, and not longer."""

import dataclasses

import pytest
import torch

from luce_edu.machine import load
from luce_edu.machine.cards import find_card
from luce_edu.machine.clock import find_clock
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.machine.timed import Device, run_timed

SOURCE = """
typedef unsigned u32;
__device__ u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
__device__ void copy16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int groups> __device__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory"); }

// A warp copies 512 bytes, waits for them and reads them.
extern "C" __global__ void copy_and_wait(const int4* x, int* y, int n) {
    __shared__ int4 tile[32];
    int sum = 0;
    for (int i = 0; i < n; ++i) {
        copy16(tile + threadIdx.x, x + i * 32 + threadIdx.x);
        commit();
        wait<0>();
        sum += tile[threadIdx.x].x;
    }
    y[threadIdx.x] = sum;
}
// Between the copy and the wait for it stand `work` multiplications, one waiting for the other.
extern "C" __global__ void copy_and_work(const int4* x, float* y, int n, int work) {
    __shared__ int4 tile[32];
    float a = threadIdx.x;
    for (int i = 0; i < n; ++i) {
        copy16(tile + threadIdx.x, x + i * 32 + threadIdx.x);
        commit();
#pragma unroll 1
        for (int j = 0; j < work; ++j) asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(a));
        wait<0>();
        a += tile[threadIdx.x].x;
    }
    y[threadIdx.x] = a;
}
// Each block reads its part of x by a ring of `depth` stages, a line of 512 bytes a warp and stage.
template <int depth> __device__ void ring_of(const int4* x, int* y, int n) {
    __shared__ int4 tile[depth][128];
    x += static_cast<size_t>(blockIdx.x) * n * 128 + threadIdx.x;
    for (int i = 0; i < depth - 1; ++i) { copy16(&tile[i][threadIdx.x], x + i * 128); commit(); }
    int sum = 0;
    for (int i = 0; i < n; ++i) {
        if (i + depth - 1 < n) copy16(&tile[(i + depth - 1) % depth][threadIdx.x], x + (i + depth - 1) * 128);
        commit();
        wait<depth - 1>();
        sum += tile[i % depth][threadIdx.x].x;
    }
    y[blockIdx.x * 128 + threadIdx.x] = sum;
}
extern "C" __global__ void ring1(const int4* x, int* y, int n) { ring_of<1>(x, y, n); }
extern "C" __global__ void ring8(const int4* x, int* y, int n) { ring_of<8>(x, y, n); }
"""
NAMES = ("copy_and_wait", "copy_and_work", "ring1", "ring8")


@pytest.fixture(scope="module")
def ga102():
    card = find_card("RTX 3090")
    return load(compile_ptx("copies.cu", SOURCE, NAMES, {}, card.arch), card=card), find_clock(card)


def cycles(launch, clock, threads=None):
    return run_timed([launch], Device(clock), threads=threads)[0][0].us * clock.clock_mhz


def each(kernel, clock, *more, rounds=(100, 300)):
    """Cycles of a round of a loop: of one warp, on lines that nobody has read."""
    x, y = torch.ones(rounds[1] * 128, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    short, long = (cycles(kernel.prepare(1, 32, [x, y, n, *more]), clock) for n in rounds)
    return (long - short) / (rounds[1] - rounds[0])


def test_a_copy_that_is_waited_for_takes_as_long_as_a_load_and_its_own_share(ga102):
    kernels, clock = ga102
    far = dataclasses.replace(clock, dram_latency_ns=clock.dram_latency_ns + 1000)
    slow = dataclasses.replace(clock, async_copy_extra=clock.async_copy_extra + 100)
    copy = each(kernels["copy_and_wait"], clock)
    assert copy == pytest.approx(clock.dram_cycles + clock.async_copy_extra + clock.shared_latency, abs=25)
    assert each(kernels["copy_and_wait"], far) - copy == pytest.approx(1000 * clock.clock_mhz / 1000, rel=0.02)
    assert each(kernels["copy_and_wait"], slow) - copy == pytest.approx(100, rel=0.02)


def test_work_between_a_copy_and_the_wait_for_it_hides_it(ga102):
    kernels, clock = ga102
    kernel = kernels["copy_and_work"]
    alone, far = each(kernel, clock, 0), dataclasses.replace(clock, dram_latency_ns=clock.dram_latency_ns + 100)
    hidden = each(kernel, clock, 300)
    assert each(kernel, clock, 10) == pytest.approx(alone, rel=0.05)
    assert each(kernel, far, 300) == pytest.approx(hidden, rel=0.001) and hidden > 2 * alone


def test_a_ring_of_copies_keeps_more_under_way_and_gets_what_dram_has_at_most(ga102):
    kernels, clock = ga102
    n, blocks = 48, clock.sm_count
    x, y = torch.ones(blocks * n * 512, dtype=torch.int32), torch.zeros(blocks * 128, dtype=torch.int32)
    shallow, deep = (cycles(kernels[name].prepare(blocks, 128, [x, y, n]), clock) for name in ("ring1", "ring8"))
    assert (y == n).all()
    assert x.nbytes / clock.dram_bytes_per_cycle < deep < 0.7 * shallow


def test_copies_take_the_same_time_on_any_threads(ga102):
    kernels, clock = ga102
    x, y = torch.ones(64 * 8 * 512, dtype=torch.int32), torch.zeros(64 * 128, dtype=torch.int32)
    launch = kernels["ring8"].prepare(64, 128, [x, y, 8])
    assert len({cycles(launch, clock, threads) for threads in (1, 2, 3)}) == 1
