"""With the clock on, a wait for asynchronous copies lasts until they have landed, and no longer."""

import dataclasses

import pytest
import torch
from test_timing import cycles

from luce_edu.errors import KernelError
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
// With `ask` a line is prefetched; then comes work, then a load of the line.
extern "C" __global__ void prefetches(const int* x, int* y, int n, int ask) {
    int sum = 0;
    float a = 1;
    for (int i = 0; i < n; ++i) {
        if (ask) asm volatile("prefetch.global.L2 [%0];" ::"l"(x + i * 32));
#pragma unroll 1
        for (int j = 0; j < 100; ++j) asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(a));
        int value;
        asm volatile("ld.global.s32 %0, [%1];" : "=r"(value) : "l"(x + i * 32));
        asm volatile("add.s32 %0, %0, %1;" : "+r"(sum) : "r"(value));
    }
    y[0] = sum + (a > 0);
}
"""
NAMES = ("copy_and_wait", "copy_and_work", "ring1", "ring8", "prefetches")
HOPPER = r"""
typedef unsigned u32;
typedef unsigned long long u64;
#define CLUSTER extern "C" __global__ void __cluster_dims__
__device__ u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
__device__ void init(u64* barrier, u32 count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ void arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ void wait(u64* barrier, u32 parity) {
    u32 over = 0;
    while (!over)
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(over) : "r"(shared_address(barrier)), "r"(parity) : "memory");
}
__device__ void read(void* to, const void* from, u32 bytes, u64* barrier) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;"
                 ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
__device__ void multiply(float& a, int times) {
#pragma unroll 1
    for (int i = 0; i < times; ++i) asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(a));
}
// Thread 0 reads `bytes` bytes into shared memory; warp `waiter` waits for them.
extern "C" __global__ void bulk_read(const int* x, int* y, u32 bytes, int waiter) {
    extern __shared__ __align__(128) int tile[];
    __shared__ u64 barrier;
    if (threadIdx.x == 0) init(&barrier, 1);
    __syncthreads();
    if (threadIdx.x == 0) read(tile, x, bytes, &barrier);
    if (threadIdx.x / 32 == waiter) {
        wait(&barrier, 0);
        if (threadIdx.x % 32 == 0) y[0] = tile[bytes / 4 - 1];
    }
}
// Each block reads n tiles of 4 KiB through a ring.
template <int depth> __device__ void bulk_ring(const int* x, int* y, int n) {
    __shared__ __align__(128) int tile[depth][1024];
    __shared__ u64 full[depth];
    x += static_cast<size_t>(blockIdx.x) * n * 1024;
    if (threadIdx.x == 0)
        for (int i = 0; i < depth; ++i) init(full + i, 1);
    __syncthreads();
    if (threadIdx.x == 0)
        for (int i = 0; i < depth; ++i) read(tile[i], x + i * 1024, 4096, full + i);
    int sum = 0;
    for (int i = 0; i < n; ++i) {
        wait(full + i % depth, i / depth & 1);
        sum += tile[i % depth][threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0 && i + depth < n) read(tile[i % depth], x + (i + depth) * 1024, 4096, full + i % depth);
    }
    y[blockIdx.x * 32 + threadIdx.x] = sum;
}
extern "C" __global__ void bulk_ring1(const int* x, int* y, int n) { bulk_ring<1>(x, y, n); }
extern "C" __global__ void bulk_ring6(const int* x, int* y, int n) { bulk_ring<6>(x, y, n); }
// A warp copies tiles of 4 KiB for two others, which arrive at `empty` when they are done with a tile.
template <int depth> __device__ void pipeline(const int* x, int* y, int n) {
    __shared__ __align__(128) int tile[depth][1024];
    __shared__ u64 full[depth], empty[depth];
    x += static_cast<size_t>(blockIdx.x) * n * 1024;
    if (threadIdx.x == 0)
        for (int i = 0; i < depth; ++i) init(full + i, 1), init(empty + i, 2);
    __syncthreads();
    if (threadIdx.x == 0)
        for (int i = 0; i < n; ++i) {
            if (i >= depth) wait(empty + i % depth, i / depth - 1 & 1);
            read(tile[i % depth], x + i * 1024, 4096, full + i % depth);
        }
    if (threadIdx.x < 32) return;
    int sum = 0;
    for (int i = 0; i < n; ++i) {
        wait(full + i % depth, i / depth & 1);
        sum += tile[i % depth][threadIdx.x];
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(empty + i % depth);
    }
    y[blockIdx.x * 64 + threadIdx.x - 32] = sum;
}
extern "C" __global__ void pipeline1(const int* x, int* y, int n) { pipeline<1>(x, y, n); }
extern "C" __global__ void pipeline6(const int* x, int* y, int n) { pipeline<6>(x, y, n); }
// The first of two blocks reads 4 KiB for both.
CLUSTER(2) for_both(const int* x, int* y) {
    __shared__ __align__(128) int tile[1024];
    __shared__ u64 barrier;
    if (threadIdx.x == 0) {
        init(&barrier, 1);
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], 4096;" ::"r"(shared_address(&barrier)) : "memory");
    }
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    if (blockIdx.x == 0 && threadIdx.x == 0)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                     " [%0], [%1], 4096, [%2], %3;" ::"r"(shared_address(tile)), "l"(x), "r"(shared_address(&barrier)),
                     "h"(static_cast<unsigned short>(3)) : "memory");
    wait(&barrier, 0);
    y[blockIdx.x * 32 + threadIdx.x] = tile[threadIdx.x];
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
extern "C" __global__ void bulk_write(int* y, u32 bytes, int wait) {
    extern __shared__ __align__(128) int tile[];
    for (int i = threadIdx.x; i < bytes / 4; i += 32) tile[i] = i;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (threadIdx.x) return;
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                 ::"l"(y), "r"(shared_address(tile)), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    if (wait) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    else asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    float a = 1;
    multiply(a, 3000);
    y[bytes / 4] = a > 0;
}
extern "C" __global__ void bulk_prefetch(const int* x, u32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(x), "r"(bytes) : "memory");
}
// Two warps meet at an mbarrier, one of them late; the other has work to do behind it.
extern "C" __global__ void meet(float* y, int late, int behind) {
    __shared__ u64 barrier;
    if (threadIdx.x == 0) init(&barrier, 2);
    __syncthreads();
    float a = 1;
    if (threadIdx.x == 32) multiply(a, late);
    if (threadIdx.x % 32 == 0) arrive(&barrier);
    wait(&barrier, 0);
    if (threadIdx.x < 32) multiply(a, behind);
    y[threadIdx.x] = a;
}
// cp.async of 32 lanes that an mbarrier counts.
extern "C" __global__ void copies_arrive(const int* x, int* y, int n) {
    __shared__ int tile[32];
    __shared__ u64 barrier;
    if (threadIdx.x == 0) init(&barrier, 32);
    __syncwarp();
    int sum = 0;
    for (int i = 0; i < n; ++i) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"
                     ::"r"(shared_address(tile + threadIdx.x)), "l"(x + i * 32 + threadIdx.x) : "memory");
        asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
        wait(&barrier, i & 1);
        sum += tile[threadIdx.x];
    }
    y[threadIdx.x] = sum;
}
// Blocks of a cluster meet n times; block 1 comes late.
template <bool relaxed> __device__ void meet_in_cluster(float* y, int late, int n) {
    float a = 1;
    for (int i = 0; i < n; ++i) {
        if (blockIdx.x % 4 == 1) multiply(a, late);
        if (relaxed) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
        else asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    }
    y[blockIdx.x * blockDim.x + threadIdx.x] = a;
}
CLUSTER(4) clusters(float* y, int late, int n) { meet_in_cluster<false>(y, late, n); }
CLUSTER(4) relaxed(float* y, int late, int n) { meet_in_cluster<true>(y, late, n); }
// A chain of loads through the shared memory of the own block (away = 0) or of the other one (away = 1).
CLUSTER(2) chase(u32* y, int n, u32 away) {
    __shared__ u32 word;
    u32 rank, at;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(&word)), "r"(rank));
    word = at;
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(&word)), "r"(rank ^ away));
    for (int i = 0; i < n; ++i) asm volatile("ld.shared::cluster.u32 %0, [%0];" : "+r"(at));
    y[blockIdx.x] = at;
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// Some lanes, or all, wait for an arrival that never comes.
extern "C" __global__ void forgotten(int lanes) {
    __shared__ u64 barrier;
    if (threadIdx.x == 0) init(&barrier, 2);
    __syncwarp();
    if (threadIdx.x < lanes) wait(&barrier, 0);
    __syncwarp();
}
"""
HOPPER_NAMES = (
    "bulk_read", "bulk_ring1", "bulk_ring6", "pipeline1", "pipeline6", "for_both", "bulk_write", "bulk_prefetch",
    "meet", "copies_arrive", "clusters", "relaxed", "chase", "forgotten",
)  # fmt: skip


@pytest.fixture(scope="module")
def ga102():
    card = find_card("RTX 3090")
    return load(compile_ptx("copies.cu", SOURCE, NAMES, {}, card.arch), card=card), find_clock(card)


def each(kernel, clock, *more, rounds=(100, 300)):
    """Cycles per round of a loop of one warp, whose loads read new lines."""
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


def test_a_prefetch_brings_a_line_to_l2_while_there_is_work(ga102):
    kernels, clock = ga102
    far = dataclasses.replace(clock, dram_latency_ns=clock.dram_latency_ns + 100)
    without, asked = ([each(kernels["prefetches"], c, ask) for c in (clock, far)] for ask in (0, 1))
    assert without[1] - without[0] == pytest.approx(100 * clock.clock_mhz / 1000, rel=0.02)
    assert asked[1] - asked[0] == pytest.approx(0, abs=1)
    assert without[0] - asked[0] == pytest.approx(clock.dram_cycles - clock.l2_latency, abs=30)


def test_a_prefetch_sends_nothing_from_l2_to_the_sm(ga102):
    kernels, clock = ga102
    x, y = torch.ones(64 * 32, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    without, asked = (
        run_timed([kernels["prefetches"].prepare(1, 1, [x, y, 64, ask])], Device(clock))[0][0] for ask in (0, 1)
    )
    assert asked.l2_bytes == without.l2_bytes > 0
    assert asked.dram_read_bytes == 128 * 64 > without.dram_read_bytes  # a prefetch takes a whole line


def test_copies_take_the_same_time_on_any_threads(ga102):
    kernels, clock = ga102
    x, y = torch.ones(64 * 8 * 512, dtype=torch.int32), torch.zeros(64 * 128, dtype=torch.int32)
    launch = kernels["ring8"].prepare(64, 128, [x, y, 8])
    assert len({cycles(launch, clock, threads) for threads in (1, 2, 3)}) == 1


# ---- Bulk copies, mbarriers and clusters ----


@pytest.fixture(scope="module")
def h100():
    card = find_card("H100")
    return load(compile_ptx("hopper.cu", HOPPER, HOPPER_NAMES, {}, card.arch), card=card), find_clock(card)


def timed(kernels, clock, name, grid, block, args, **more):
    return cycles(kernels[name].prepare(grid, block, args, **more), clock)


def test_a_bulk_copy_takes_its_latency_and_its_bytes(h100):
    kernels, clock = h100
    x, y = torch.arange(2**14, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)

    def of(size, clock, waiter=0):
        found = timed(kernels, clock, "bulk_read", 1, 64, [x, y, size, waiter], smem=size)
        assert y[0] == size // 4 - 1
        return found

    small, large = of(128, clock), of(2**15, clock)
    assert large - small == pytest.approx((2**15 - 128) / clock.sm_bytes_per_cycle, rel=0.05)
    far = dataclasses.replace(clock, dram_latency_ns=clock.dram_latency_ns + 1000)
    slow = dataclasses.replace(clock, bulk_copy_extra=clock.bulk_copy_extra + 500)
    for waiter in (0, 1):  # the copying warp waits at the mbarrier, or another one
        assert of(128, far, waiter) - of(128, clock, waiter) == pytest.approx(clock.clock_mhz, rel=0.02)
        assert of(2**15, slow, waiter) - of(2**15, clock, waiter) == pytest.approx(500, abs=1)


def test_a_ring_of_bulk_copies_gets_what_dram_has_at_most(h100):
    kernels, clock = h100
    n, blocks = 12, clock.sm_count
    x, y = torch.ones(blocks * n * 1024, dtype=torch.int32), torch.zeros(blocks * 32, dtype=torch.int32)
    shallow, deep = (timed(kernels, clock, name, blocks, 32, [x, y, n]) for name in ("bulk_ring1", "bulk_ring6"))
    assert (y == n).all()
    assert x.nbytes / clock.dram_bytes_per_cycle < deep < 0.6 * shallow


def test_a_warp_that_copies_for_others_keeps_them_busy_and_does_not_overtake_them(h100):
    kernels, clock = h100
    n, blocks = 12, 16
    x, y = torch.ones(blocks * n * 1024, dtype=torch.int32), torch.zeros(blocks * 64, dtype=torch.int32)
    shallow, deep = (timed(kernels, clock, name, blocks, 96, [x, y, n]) for name in ("pipeline1", "pipeline6"))
    assert (y == n).all() and deep < 0.5 * shallow
    slow = dataclasses.replace(clock, bulk_copy_extra=clock.bulk_copy_extra + 500)
    for name, rounds in (("pipeline1", n), ("pipeline6", n // 6)):  # each tile waits for the one before it in its slot
        longer = timed(kernels, slow, name, blocks, 96, [x, y, n]) - timed(kernels, clock, name, blocks, 96, [x, y, n])
        assert longer == pytest.approx(500 * rounds, rel=0.05)


def test_a_copy_for_a_whole_cluster_reads_once_and_every_block_waits_for_it(h100):
    kernels, clock = h100
    x, y = torch.arange(1024, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    [one], _ = run_timed([kernels["for_both"].prepare(2, 32, [x, y])], Device(clock))
    assert (y.view(2, 32) == x[:32]).all() and one.dram_read_bytes == 4096
    slow = dataclasses.replace(clock, bulk_copy_extra=clock.bulk_copy_extra + 500)
    [later], _ = run_timed([kernels["for_both"].prepare(2, 32, [x, y])], Device(slow))
    assert (later.us - one.us) * clock.clock_mhz == pytest.approx(500, abs=1)


def test_a_bulk_write_is_waited_for_until_it_has_read_or_until_it_has_landed(h100):
    kernels, clock = h100
    y = torch.zeros(2049, dtype=torch.int32)
    slow = dataclasses.replace(clock, bulk_copy_extra=clock.bulk_copy_extra + 500)
    for wait in (0, 1):
        write = [timed(kernels, one, "bulk_write", 1, 32, [y, 8192, wait], smem=8192) for one in (clock, slow)]
        assert (y[:2048] == torch.arange(2048)).all()
        assert write[1] - write[0] == pytest.approx(500 * wait, abs=1)


def test_a_bulk_prefetch_reads_its_bytes_without_a_wait(h100):
    kernels, clock = h100
    x = torch.zeros(2**14, dtype=torch.int32)
    runs = [run_timed([kernels["bulk_prefetch"].prepare(1, 1, [x, size])], Device(clock))[0][0] for size in (16, 2**16)]
    assert [one.dram_read_bytes for one in runs] == [32, 2**16]
    assert runs[1].us == runs[0].us


def test_an_mbarrier_opens_when_the_last_has_come(h100):
    kernels, clock = h100
    y = torch.zeros(64)
    none, before, behind, both = (
        timed(kernels, clock, "meet", 1, 64, [y, *work]) for work in ((1, 1), (500, 1), (1, 500), (500, 500))
    )
    assert both - none == pytest.approx(before - none + behind - none, rel=0.01)
    assert before - none > 499 * clock.fma_latency < behind - none


def test_an_mbarrier_counts_cp_async_when_they_have_landed(h100):
    kernels, clock = h100
    x, y = torch.ones(32 * 96, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)

    def each(clock):
        short, long = (timed(kernels, clock, "copies_arrive", 1, 32, [x, y, n]) for n in (32, 96))
        assert (y == 96).all()
        return (long - short) / 64

    far = dataclasses.replace(clock, dram_latency_ns=clock.dram_latency_ns + 1000)
    assert each(far) - each(clock) == pytest.approx(clock.clock_mhz, rel=0.02)


def test_a_barrier_of_a_cluster_takes_the_last_arrival_and_its_own_time(h100):
    kernels, clock = h100
    y = torch.zeros(4 * 32)

    def each(name, late, clock):
        short, long = (timed(kernels, clock, name, 4, 32, [y, late, n]) for n in (10, 30))
        return (long - short) / 20

    late = [each("clusters", work, clock) for work in (100, 600)]
    per_round = each("relaxed", 600, clock) - each("relaxed", 100, clock)
    assert late[1] - late[0] == pytest.approx(per_round, abs=1) and per_round > 500 * clock.fma_latency
    assert late[0] - each("relaxed", 100, clock) == pytest.approx(
        clock.cluster_barrier - clock.cluster_barrier_relaxed, abs=1
    )
    slow = dataclasses.replace(clock, cluster_barrier=clock.cluster_barrier + 100)
    assert each("clusters", 100, slow) - late[0] == pytest.approx(100, abs=1)
    assert each("relaxed", 100, slow) == each("relaxed", 100, clock)


def test_blocks_of_a_cluster_are_on_sms_of_their_own(h100):
    kernels, clock = h100
    y = torch.zeros(8 * 1024)
    [one], timeline = run_timed([kernels["relaxed"].prepare(8, 1024, [y, 10, 1])], Device(clock), wait_from_us=0.0)
    on_sm = timeline.waits[timeline.waits["row"] < 0]
    assert sorted(on_sm["sm"].tolist()) == list(range(8)) and sorted(on_sm["block"].tolist()) == list(range(8))


def test_shared_memory_of_another_block_is_further_away(h100):
    kernels, clock = h100
    y = torch.zeros(2, dtype=torch.int32)

    def each(away):
        short, long = (timed(kernels, clock, "chase", 2, 1, [y, n, away]) for n in (20, 120))
        return (long - short) / 100

    assert each(1) - each(0) == pytest.approx(clock.cluster_latency - clock.shared_latency, abs=1)


def test_hopper_takes_the_same_time_on_any_threads(h100):
    kernels, clock = h100
    x, y = torch.ones(64 * 6 * 1024, dtype=torch.int32), torch.zeros(64 * 1024)
    for launch in (
        kernels["bulk_ring6"].prepare(64, 32, [x, y.view(torch.int32), 6]),
        kernels["clusters"].prepare(64, 1024, [y, 10, 3]),
    ):
        assert len({cycles(launch, clock, threads) for threads in (1, 2, 3)}) == 1


@pytest.mark.planted
@pytest.mark.parametrize("lanes", [1, 32])
def test_an_mbarrier_that_is_never_completed_is_a_deadlock(h100, lanes):
    with pytest.raises(KernelError) as error:
        timed(*h100, "forgotten", 1, 32, [lanes])
    assert error.value.fault == "deadlock"
