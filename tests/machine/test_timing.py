"""With the clock on, a launch computes and reports the same as without; times do not depend on the OS threads."""

import dataclasses

import pytest
import torch

import luce_edu
from luce_edu.backends.host import HostBackend
from luce_edu.errors import KernelError, LaunchError
from luce_edu.machine import load
from luce_edu.machine.cards import find_card
from luce_edu.machine.clock import find_clock
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.machine.timed import Device, run_timed

SOURCE = """
extern "C" __global__ void add(const float* x, const float* r, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] + r[i];
}
extern "C" __global__ void chase(const unsigned* next, unsigned* out, int n) {
    unsigned at = 0;
    for (int i = 0; i < n; ++i) at = next[at];
    out[0] = at;
}
extern "C" __global__ void chase_behind(const unsigned* next, unsigned* out, int n) {
    unsigned at = 0, sum = 0, then;
    for (int i = 0; i < n; ++i) {
        asm volatile("ld.global.u32 %0, [%1];" : "=r"(then) : "l"(next + at));
#pragma unroll 1
        for (int j = 0; j < 2; ++j) asm volatile("add.u32 %0, %0, %1;" : "+r"(sum) : "r"(at));
        at = then;  // the load is under way since an earlier basic block
    }
    out[0] = sum;
}
extern "C" __global__ void wait_for(volatile unsigned* word) { while (*word == 0); }
extern "C" __global__ void outside(float* y) { y[threadIdx.x + 1] = 0.0f; }
extern "C" __global__ void says() { if (threadIdx.x == 3) printf("lane %d\\n", threadIdx.x); }
extern "C" __global__ void count(unsigned* word, unsigned* seen) {
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(word, 1u);
        while (*(volatile unsigned*)word < gridDim.x);
        __threadfence();
    }
    __syncthreads();
    seen[blockIdx.x * blockDim.x + threadIdx.x] = *(volatile unsigned*)word;
}
extern "C" __global__ void fill(float* y) { y[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f; }
extern "C" __global__ void releases(unsigned* word, int n) {
    unsigned old;
    for (int i = 0; i < n; ++i) asm volatile("atom.release.gpu.global.add.u32 %0, [%1], 1;" : "=r"(old) : "l"(word));
}
extern "C" __global__ void fences(unsigned* x, int n, int stores, int scope) {
    for (int i = 0; i < n; ++i) {
        if (stores) x[i * 32] = i;
        if (scope) asm volatile("fence.acq_rel.sys;" ::: "memory");
        else asm volatile("fence.acq_rel.gpu;" ::: "memory");
    }
}
extern "C" __global__ void stores_and_releases(unsigned* x, unsigned* word, int n) {
    unsigned old;
    for (int i = 0; i < n; ++i) {
        x[i * 32] = i;
        asm volatile("atom.release.gpu.global.add.u32 %0, [%1], 1;" : "=r"(old) : "l"(word) : "memory");
    }
}
extern "C" __global__ void adds(unsigned* words, int at, int n) {
    for (int i = 0; i < n; ++i) words[at + 1] = atomicAdd(words + at, 1u);
}
extern "C" __global__ void strided(const float* x, float* y, int stride, int n) {
    float sum = 0.0f, value;
    for (int i = 0; i < n; ++i) {
        asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(x + threadIdx.x * stride));
        sum += value;
    }
    y[threadIdx.x] = sum;
}
extern "C" __global__ void reads(const float4* x, float* y, int n, int how) {
    __shared__ float4 there[256];
    unsigned long long first, last;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(last));
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(there + threadIdx.x));
    float sum = 0.0f, value;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        if (how == 0) asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(x + i));
        if (how == 1) asm volatile("ld.global.L2::cache_hint.f32 %0, [%1], %2;" : "=f"(value) : "l"(x + i), "l"(first));
        if (how == 2) asm volatile("ld.global.L2::cache_hint.f32 %0, [%1], %2;" : "=f"(value) : "l"(x + i), "l"(last));
        if (how == 3)
            asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;"
                         ::"r"(to), "l"(x + i), "l"(first));
        if (how == 4) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + i));
        sum += value;
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
extern "C" __global__ void multiply(float* y, int n) {
    float a = threadIdx.x, b = a + 1, c = a + 2, d = a + 3;
    for (int i = 0; i < n; ++i) { a = a * a + b; b = b * b + c; c = c * c + d; d = d * d + a; }
    y[blockIdx.x * blockDim.x + threadIdx.x] = a + b + c + d;
}
"""
NAMES = (
    "add", "chase", "chase_behind", "wait_for", "outside", "says", "count", "fill", "releases", "strided", "multiply",
    "fences", "stores_and_releases", "adds", "reads",
)  # fmt: skip


@pytest.fixture(scope="module", params=["laptop", "RTX 3090", "H100"])
def kernels(request):
    card = find_card(request.param)
    return load(compile_ptx("timing.cu", SOURCE, NAMES, {}, card.arch), card=card)


@pytest.mark.parametrize("stage", ["per_layer", "megakernel"])
@pytest.mark.parametrize("card", ["laptop", "RTX 3090"])
def test_a_token_has_the_same_bits_and_the_same_times_on_any_threads(stage, card):
    model = luce_edu.load_model("tiny")
    plain = luce_edu.decoder(stage, model, max_seq_len=8, backend=HostBackend(card=card))
    expected = [plain.step(token).clone() for token in (65, 66)]
    found = set()
    for threads in (1, 3):
        backend = HostBackend(card=card, threads=threads, clock=Device(find_clock(find_card(card))))
        timed = luce_edu.decoder(stage, model, max_seq_len=8, backend=backend)
        times = []
        for token, logits in zip((65, 66), expected, strict=True):
            assert torch.equal(timed.step(token), logits)
            times += [line.times for line in timed.ledger.entries]
        found.add(tuple((one.kernel, one.us, one.issued, one.l2_bytes) for one in times))
    assert len(found) == 1
    assert all(one[1] > 0 and one[2] > 0 for one in found.pop())


def test_what_is_counted_is_what_is_always_counted(kernels):
    x, r = torch.randn(2, 1000)
    y = torch.empty(1000)
    [one], _ = run_timed([kernels["add"].prepare(4, 256, [x, r, y, 1000])])
    assert torch.equal(y, x + r)
    usual = kernels["add"].launch(4, 256, [x, r, y, 1000])
    assert one.counters.instructions == usual.instructions and one.counters.traffic == usual.traffic


def test_blocks_meet_at_a_barrier_of_the_grid(kernels):
    card = kernels["count"].card
    word = torch.zeros(1, dtype=torch.int32)
    seen = torch.zeros(card.sm_count * 64, dtype=torch.int32)
    [one], timeline = run_timed(
        [kernels["count"].prepare(card.sm_count, 64, [word, seen], cooperative=True)], wait_from_us=0.0
    )
    assert (seen == card.sm_count).all() and one.us > 0
    assert {int(wait["block"]) for wait in timeline.waits} <= set(range(card.sm_count))
    assert (timeline.waits["end"] >= timeline.waits["begin"]).all()


# ---- Each constant changes the times that it should ----


@pytest.fixture(scope="module")
def ga102():
    card = find_card("RTX 3090")
    return load(compile_ptx("timing.cu", SOURCE, NAMES, {}, card.arch), card=card), find_clock(card)


def cycles(launch, clock, threads=None):
    return run_timed([launch], Device(clock), threads=threads)[0][0].us * clock.clock_mhz


def test_a_chain_of_loads_takes_the_latency_of_each(ga102):
    kernels, clock = ga102
    following, out = torch.tensor([32, *range(1, 32), 0], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)

    def per_step(clock):
        long, short = (cycles(kernels["chase"].prepare(1, 1, [following, out, n]), clock) for n in (3000, 1000))
        return (long - short) / 2000

    slower = dataclasses.replace(clock, l1_latency=clock.l1_latency + 100)
    assert per_step(slower) - per_step(clock) == pytest.approx(100, rel=0.02)


def test_a_load_that_is_waited_for_in_the_next_round_of_a_loop_takes_its_latency(ga102):
    kernels, clock = ga102
    following, out = torch.zeros(32 * 3000, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    following[::32] = torch.arange(1, 3001, dtype=torch.int32) * 32  # each load reads a new line

    def per_step(clock):
        long, short = (cycles(kernels["chase_behind"].prepare(1, 1, [following, out, n]), clock) for n in (600, 200))
        return (long - short) / 400

    slower = dataclasses.replace(clock, dram_latency_ns=clock.dram_latency_ns + 1000)
    assert per_step(slower) - per_step(clock) == pytest.approx(clock.clock_mhz, rel=0.02)


def test_each_of_an_sms_blocks_ends_at_its_own_time(ga102):
    """Also where several end within one step of the clock."""
    module, clock = ga102
    blocks = 8 * clock.sm_count
    launch = module["fill"].prepare(blocks, 32, [torch.zeros(32 * blocks)])
    waits = run_timed([launch], Device(clock), wait_from_us=0.0)[1].waits
    lives = waits[waits["row"] == -1]
    assert sorted(lives["block"]) == list(range(blocks)) and (lives["end"] > lives["begin"]).all()
    assert len(set(lives[["sm", "end"]].tolist())) == blocks


def test_writing_takes_as_long_as_dram_needs_once_l2_is_full(ga102):
    kernels, clock = ga102
    small = dataclasses.replace(clock, l2_bytes=2**17)
    y = torch.empty(2**20)
    launch = kernels["fill"].prepare(2**12, 256, [y])
    needed = (y.nbytes - small.l2_bytes) / small.dram_bytes_per_cycle
    assert cycles(launch, small) > needed > 1.5 * cycles(launch, clock) / 2
    half = dataclasses.replace(small, dram_gb_per_s=small.dram_gb_per_s / 2)
    assert cycles(launch, half) == pytest.approx(2 * cycles(launch, small), rel=0.15)


@pytest.mark.parametrize("how, keeps", [(0, False), (1, True), (2, False), (3, True), (4, False)])
def test_l2_evicts_first_what_a_policy_says(ga102, how, keeps):
    """What was read before stays in L2 beside a stream that is evicted first, and leaves it for any other stream."""
    kernels, clock = ga102
    device = Device(dataclasses.replace(clock, l2_bytes=2**18))
    kept, stream, y = torch.rand(2**14), torch.rand(2**18), torch.empty(32 * 256)
    reads = kernels["reads"].prepare

    def dram_bytes(x, how):
        launch = reads(32, 256, [x, y, x.numel() // 4, how])
        return run_timed([launch], device)[0][0].dram_read_bytes

    assert dram_bytes(kept, 0) == kept.nbytes and dram_bytes(stream, how) == stream.nbytes
    again = dram_bytes(kept, 0)
    assert again == 0 if keeps else again > 0.9 * kept.nbytes


def test_a_copy_turns_dram_around_and_a_read_does_not(ga102):
    kernels, clock = ga102
    clock = dataclasses.replace(clock, l2_bytes=2**17)
    never = dataclasses.replace(clock, dram_copy_share=clock.dram_share)
    x, y = torch.empty(2, 2**19)
    copy = kernels["add"].prepare(2**11, 256, [x, x, y, 2**19])
    assert cycles(copy, clock) > 1.03 * cycles(copy, never)
    fill = kernels["fill"].prepare(2**11, 256, [y])
    assert cycles(fill, clock) == cycles(fill, never)


def test_a_release_waits_for_a_fence(ga102):
    kernels, clock = ga102
    slower = dataclasses.replace(clock, sc_fence=clock.sc_fence + 100, fence=clock.fence + 100)
    launch = kernels["releases"].prepare(1, 1, [torch.zeros(1, dtype=torch.int32), 50])
    assert cycles(launch, slower) - cycles(launch, clock) == pytest.approx(50 * 100, rel=0.02)


def test_a_fence_and_a_release_wait_for_the_stores_under_way(ga102):
    kernels, clock = ga102
    further = dataclasses.replace(clock, l2_latency=clock.l2_latency + 50)
    x, word = torch.zeros(2**12, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)

    def longer(name, *args):  # cycles that a round takes longer with L2 50 cycles further away
        times = [cycles(kernels[name].prepare(1, 1, [*args[:-1], n, *args[-1]]), c)
                 for c in (clock, further) for n in (20, 100)]  # fmt: skip
        return (times[3] - times[2] - times[1] + times[0]) / 80

    assert longer("fences", x, (1, 0)) == pytest.approx(50, abs=2)
    assert longer("fences", x, (0, 0)) == pytest.approx(0, abs=1)
    # The atomic's trip to L2 and, before it, the store's, for which its fence waits.
    assert longer("stores_and_releases", x, word, ()) == pytest.approx(100, abs=2)
    assert longer("releases", word, ()) == pytest.approx(50, abs=2)


def test_a_fence_for_everything_takes_longer(ga102):
    kernels, clock = ga102
    x = torch.zeros(32, dtype=torch.int32)
    gpu, everything = (cycles(kernels["fences"].prepare(1, 1, [x, 50, 0, scope]), clock) for scope in (0, 1))
    assert everything - gpu == pytest.approx(50 * (clock.system_fence - clock.fence), rel=0.02)


def test_an_atomic_is_further_away_where_its_word_lies_in_the_other_half_of_l2(ga102):
    kernels, clock = ga102
    halves = dataclasses.replace(clock, l2_far_extra=200)
    words = torch.zeros(64, dtype=torch.int32)

    def longer(at):  # on the first SM; lines alternate between the halves of L2
        launch = kernels["adds"].prepare(1, 1, [words, at, 50])
        return (cycles(launch, halves) - cycles(launch, clock)) / 50

    assert longer(0) == pytest.approx(0, abs=1) and longer(32) == pytest.approx(200, abs=4)
    x, y = torch.zeros(2, 2**14)  # either half has a copy for loads
    copy = kernels["add"].prepare(64, 256, [x, x, y, 2**14])
    assert cycles(copy, halves) == cycles(copy, clock)


def test_a_block_starts_a_while_after_the_one_before_it(ga102):
    kernels, clock = ga102
    slower = dataclasses.replace(clock, block_start=clock.block_start + 1000)
    launch = kernels["multiply"].prepare(3 * 82, 1024, [torch.empty(3 * 82 * 1024), 5])
    assert cycles(launch, slower) - cycles(launch, clock) == pytest.approx(2 * 1000, rel=0.1)


def test_what_l1_carries_is_what_lanes_get_and_not_whole_sectors(ga102):
    kernels, clock = ga102
    x, y = torch.zeros(32 * 8), torch.empty(32)

    def slope(stride, clock):
        long, short = (cycles(kernels["strided"].prepare(1, 32, [x, y, stride, n]), clock) for n in (2000, 1000))
        return long - short

    narrow = dataclasses.replace(clock, l1_bytes_per_cycle=1)
    assert slope(5, narrow) == pytest.approx(slope(1, narrow), rel=0.1)
    assert slope(1, narrow) > 1.5 * slope(1, clock)


def test_twice_the_sms_halve_what_they_compute_and_nothing_else(ga102):
    kernels, clock = ga102
    twice = dataclasses.replace(clock, sm_count=2 * clock.sm_count)
    blocks = 2 * 82
    busy = kernels["multiply"].prepare(blocks, 1024, [torch.empty(blocks * 1024), 200])
    assert cycles(busy, twice) < 0.6 * cycles(busy, clock)
    one = kernels["multiply"].prepare(1, 1024, [torch.empty(1024), 200])
    assert cycles(one, twice) == cycles(one, clock)
    full = dataclasses.replace(clock, l2_bytes=2**17)
    fill = kernels["fill"].prepare(2**12, 256, [torch.empty(2**20)])
    more = dataclasses.replace(full, sm_count=twice.sm_count)
    assert cycles(fill, more) == pytest.approx(cycles(fill, full), rel=0.1)


@pytest.mark.planted
def test_what_goes_wrong_is_reported_and_the_next_launch_works(kernels):
    word, y = torch.zeros(1, dtype=torch.int32), torch.zeros(32)
    with pytest.raises(KernelError) as error:
        run_timed([kernels["wait_for"].prepare(2, 32, [word])])
    assert error.value.fault == "deadlock"
    with pytest.raises(KernelError) as error:
        run_timed([kernels["outside"].prepare(1, 32, [y])])
    assert error.value.fault == "out_of_bounds"
    [one], _ = run_timed([kernels["add"].prepare(1, 32, [y, y, y, 32])])
    assert one.us > 0
    with pytest.raises(LaunchError):
        run_timed([])


def test_what_a_kernel_prints_is_shown(kernels, capsys):
    run_timed([kernels["says"].prepare(1, 32, [])])
    assert capsys.readouterr().out == "lane 3\n"
