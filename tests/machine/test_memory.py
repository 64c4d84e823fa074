"""Memory of the virtual GPU beyond loads and stores: asynchronous copies, mbarriers, clusters, counters, faults."""

import pytest
import torch

from luce_edu.errors import KernelError
from luce_edu.machine import load

WARP = 32


def kernel(body: str, *, params: int = 2, shared: int = 4096, target: str = "sm_90"):
    """A kernel `k` of `params` pointers, in %rd1, %rd2, …; %r1 is the thread, `buffer` the shared memory."""
    pointers = ", ".join(f".param .u64 p{i}" for i in range(params))
    loads = "".join(f"ld.param.u64 %rd{i + 1}, [p{i}];\n" for i in range(params))
    text = f"""
.version 8.0
.target {target}
.address_size 64
.visible .entry k({pointers})
{{
    .reg .b16 %h<8>; .reg .b32 %r<32>; .reg .b64 %rd<32>; .reg .f32 %f<16>; .reg .pred %p<8>;
    .shared .align 128 .b8 buffer[{shared}];
    {loads}
    mov.u32 %r1, %tid.x;
    {body}
    ret;
}}
"""
    return load(text, card="H100")["k"]


# %rd10, %rd11: this thread's 16 bytes of the two tensors; %r2: its 16 bytes of shared memory.
SIXTEEN_BYTES = """
    mul.wide.u32 %rd9, %r1, 16;
    add.u64 %rd10, %rd1, %rd9;
    add.u64 %rd11, %rd2, %rd9;
    mov.u32 %r2, buffer;
    shl.b32 %r3, %r1, 4;
    add.u32 %r2, %r2, %r3;
"""
STORE_SIXTEEN = "ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r2];\nst.global.v4.u32 [%rd11], {%r10, %r11, %r12, %r13};"


@pytest.mark.parametrize(
    "copy, want",
    [
        ("cp.async.cg.shared.global [%r2], [%rd10], 16;", lambda x: x),
        (
            "mov.u32 %r4, 8; cp.async.ca.shared.global [%r2], [%rd10], 16, %r4;",
            lambda x: x * torch.tensor([1, 1, 0, 0]),
        ),
        (
            "and.b32 %r4, %r1, 1; setp.eq.u32 %p1, %r4, 1; cp.async.cg.shared.global [%r2], [%rd10], 16, %p1;",
            lambda x: x * (1 - torch.arange(WARP) % 2)[:, None],
        ),
        (
            "cp.async.ca.shared.global [%r2], [%rd10 + 4], 4; cp.async.ca.shared.global [%r2 + 4], [%rd10], 4;"
            "cp.async.ca.shared.global [%r2 + 8], [%rd10 + 8], 8;",
            lambda x: x[:, [1, 0, 2, 3]],
        ),
    ],
)
def test_cp_async_copies_and_fills_with_zeros(copy, want):
    x = torch.arange(1, 4 * WARP + 1, dtype=torch.int32).reshape(WARP, 4)
    y = torch.zeros_like(x)
    run = kernel(SIXTEEN_BYTES + copy + "cp.async.commit_group; cp.async.wait_group 0;" + STORE_SIXTEEN)
    run.launch(1, WARP, [x, y])
    assert torch.equal(y, want(x).int())


def test_an_mbarrier_lets_a_warp_through_once_all_threads_have_arrived():
    # Thread t writes t, all threads arrive, and thread t reads what thread t ^ 32 wrote. The second wait is by parity.
    body = """
    mov.u32 %r2, buffer;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra initialised;
    mbarrier.init.shared.b64 [%r2], 64;
initialised:
    bar.sync 0;
    shl.b32 %r3, %r1, 2;
    add.u32 %r4, %r2, %r3;
    st.shared.u32 [%r4 + 16], %r1;
    mbarrier.arrive.shared.b64 %rd8, [%r2];
first:
    mbarrier.test_wait.shared.b64 %p2, [%r2], %rd8;
    @!%p2 bra first;
    xor.b32 %r5, %r3, 128;
    add.u32 %r5, %r2, %r5;
    ld.shared.u32 %r6, [%r5 + 16];
    mbarrier.arrive.shared.b64 _, [%r2];
    mov.u32 %r7, 1;
second:
    mbarrier.try_wait.parity.shared.b64 %p2, [%r2], %r7;
    @!%p2 bra second;
    st.shared.u32 [%r4 + 16], %r6;
    mul.wide.u32 %rd9, %r1, 4;
    add.u64 %rd10, %rd1, %rd9;
    st.global.u32 [%rd10], %r6;
    mbarrier.pending_count.b64 %r8, %rd8;
    add.u64 %rd10, %rd2, %rd9;
    st.global.u32 [%rd10], %r8;
    """
    y, pending = torch.zeros(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    kernel(body).launch(1, 64, [y, pending])
    assert y.tolist() == [t ^ 32 for t in range(64)]
    assert sorted(pending.tolist()) == list(range(1, 65))  # how many arrivals each thread found pending


BULK = """
    mov.u32 %r2, buffer;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra ready;
    mbarrier.init.shared.b64 [%r2], 1;
    mbarrier.arrive.expect_tx.shared.b64 %rd8, [%r2], BYTES;
    add.u32 %r3, %r2, 128;
    mov.u32 %r4, SIZE;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd1], %r4, [%r2];
ready:
    bar.sync 0;
wait:
    mov.u32 %r5, 0;
    mbarrier.try_wait.parity.shared.b64 %p2, [%r2], %r5;
    @!%p2 bra wait;
    @%p1 bra done;
    cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r3], %r4;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group.read 0;
done:
"""


def test_a_bulk_copy_completes_its_mbarrier_and_a_bulk_group_brings_the_bytes_back():
    x = torch.arange(64, dtype=torch.float32)
    y = torch.zeros_like(x)
    counters = kernel(BULK.replace("BYTES", "256").replace("SIZE", "256")).launch(1, 64, [x, y])
    assert torch.equal(x, y)
    assert counters.traffic["argument 0"].asked_read == counters.traffic["argument 1"].asked_write == 256


def test_bytes_that_never_come_are_a_deadlock():
    x = torch.zeros(64)
    with pytest.raises(KernelError) as error:
        kernel(BULK.replace("BYTES", "512").replace("SIZE", "256")).launch(1, 64, [x, torch.zeros(64)])
    assert error.value.fault == "deadlock"


@pytest.mark.parametrize(
    "fault, use",
    [
        ("bad_barrier", "st.shared.u64 [%r2], 0; mbarrier.arrive.shared.b64 %rd8, [%r2];"),  # never initialised
        (
            "bad_barrier",
            "mbarrier.init.shared.b64 [%r2], 1; mbarrier.inval.shared.b64 [%r2]; mbarrier.arrive.shared.b64 _, [%r2];",
        ),
        ("bad_barrier", "mbarrier.init.shared.b64 [%r2], 4; mbarrier.arrive.noComplete.shared.b64 %rd8, [%r2], 4;"),
        ("bad_barrier", "mbarrier.init.shared.b64 [%r2], 4; mbarrier.arrive.noComplete.shared.b64 %rd8, [%r2], 5;"),
        ("uninitialised", "mbarrier.arrive.shared.b64 %rd8, [%r2];"),
        ("misaligned", "mbarrier.init.shared.b64 [%r2 + 4], 1;"),
    ],
)
def test_misuse_of_an_mbarrier_is_reported(fault, use):
    with pytest.raises(KernelError) as error:
        kernel("mov.u32 %r2, buffer;" + use, params=0).launch(1, 1, [])
    assert error.value.fault == fault


def test_blocks_of_a_cluster_read_write_and_add_in_each_other():
    # Block b of a cluster of 4 stores 100 + b in its own memory and 10 x b in the next block's; all add 1 in block 0's.
    body = """
    mov.u32 %r20, buffer;
    mov.u32 %r2, %cluster_ctarank;
    add.u32 %r3, %r2, 100;
    st.shared.u32 [%r20], %r3;
    mov.u32 %r4, 0;
    st.shared.u32 [%r20 + 8], %r4;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    add.u32 %r5, %r2, 1;
    and.b32 %r5, %r5, 3;
    mapa.shared::cluster.u32 %r6, %r20, %r5;
    mul.lo.u32 %r7, %r2, 10;
    st.shared::cluster.u32 [%r6 + 4], %r7;
    ld.shared::cluster.u32 %r8, [%r6];
    mov.u32 %r9, 0;
    cvt.u64.u32 %rd4, %r20;
    cvta.shared.u64 %rd4, %rd4;
    mapa.u64 %rd5, %rd4, %r9;
    atom.add.u32 %r10, [%rd5 + 8], 1;
    getctarank.u64 %r11, %rd5;
    isspacep.shared::cluster %p1, %rd5;
    isspacep.shared::cta %p2, %rd5;
    selp.u32 %r12, 1, 0, %p1;
    selp.u32 %r13, 1, 0, %p2;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    ld.shared.u32 %r14, [%r20 + 4];
    ld.shared.u32 %r15, [%r20 + 8];
    mov.u32 %r16, %ctaid.x;
    mul.wide.u32 %rd6, %r16, 24;
    add.u64 %rd6, %rd1, %rd6;
    st.global.u32 [%rd6], %r8;
    st.global.u32 [%rd6 + 4], %r14;
    st.global.u32 [%rd6 + 8], %r15;
    st.global.u32 [%rd6 + 12], %r11;
    st.global.u32 [%rd6 + 16], %r12;
    st.global.u32 [%rd6 + 20], %r13;
    """
    out = torch.zeros(8, 6, dtype=torch.int32)
    kernel(body, params=1).launch(8, 1, [out], cluster=4)
    for block, row in enumerate(out.tolist()):
        rank = block % 4
        assert row == [100 + (rank + 1) % 4, 10 * ((rank + 3) % 4), 4 if rank == 0 else 0, 0, 1, int(rank == 0)]


def test_a_rank_beyond_the_cluster_is_reported():
    body = """
    mov.u32 %r2, buffer; mov.u32 %r3, 7; mapa.shared::cluster.u32 %r4, %r2, %r3; st.shared::cluster.u32 [%r4], %r3;
    """
    with pytest.raises(KernelError) as error:
        kernel(body, params=0).launch(4, 1, [], cluster=4)
    assert error.value.fault == "out_of_bounds"


def test_a_multicast_copy_reaches_each_block_of_its_mask():
    body = """
    mov.u32 %r2, buffer;
    mbarrier.init.shared.b64 [%r2], 1;
    mbarrier.arrive.expect_tx.shared.b64 %rd8, [%r2], 16;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    mov.u32 %r3, %cluster_ctarank;
    add.u32 %r6, %r2, 16;
    setp.ne.u32 %p1, %r3, 1;
    @%p1 bra wait;
    mov.u16 %h1, 3;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r6], [%rd1], 16, [%r2], %h1;
wait:
    mbarrier.try_wait.parity.shared.b64 %p2, [%r2], 0;
    @!%p2 bra wait;
    ld.shared.u32 %r4, [%r6 + 12];
    mul.wide.u32 %rd6, %r3, 4;
    add.u64 %rd6, %rd2, %rd6;
    st.global.u32 [%rd6], %r4;
    """
    out = torch.zeros(2, dtype=torch.int32)
    kernel(body).launch(2, 1, [torch.tensor([5, 6, 7, 8], dtype=torch.int32), out], cluster=2)
    assert out.tolist() == [8, 8]


def test_a_bulk_reduction_adds_in_global_memory():
    body = """
    mov.u32 %r2, buffer;
    mov.f32 %f1, 0f3fc00000;
    st.shared.v4.f32 [%r2], {%f1, %f1, %f1, %f1};
    cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd1], [%r2], 16;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
    """
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    kernel(body, params=1).launch(1, 1, [x])
    assert x.tolist() == [2.5, 3.5, 4.5, 5.5, 5.0]


@pytest.mark.parametrize(
    "width, stride, conflicts",
    [("u32", 4, 0), ("u32", 8, 1), ("u32", 128, 31), ("u32", 0, 0), ("u32", 132, 0), ("u64", 16, 2)],
)
def test_bank_conflicts_are_passes_beyond_the_fewest(width, stride, conflicts):
    value = "%rd9" if width == "u64" else "%r1"
    body = f"""
    mov.u32 %r2, buffer; mov.u64 %rd9, 1; mul.lo.u32 %r3, %r1, {stride}; add.u32 %r2, %r2, %r3;
    st.shared.{width} [%r2], {value};
    """
    counters = kernel(body, params=0, shared=8192).launch(1, WARP, [])
    assert counters.bank_conflicts == conflicts


@pytest.mark.parametrize(
    "fault, access",
    [
        ("out_of_bounds", "ld.shared.u32 %r3, [%r2 + 4096];"),
        ("out_of_bounds", "st.shared.u32 [%r2+-4], %r1;"),
        ("uninitialised", "ld.shared.u32 %r3, [%r2];"),
        ("uninitialised", "st.shared.u16 [%r2 + 8], 1; ld.shared.u32 %r3, [%r2 + 8];"),
        ("out_of_bounds", "ld.global.u32 %r3, [%rd1 + 64];"),
        ("out_of_bounds", "ld.global.u32 %r3, [%rd1+-1];"),
        ("misaligned", "ld.global.u32 %r3, [%rd1 + 2];"),
        ("out_of_bounds", "mov.u64 %rd3, 0; ld.u32 %r3, [%rd3];"),
        ("out_of_bounds", "mov.u64 %rd3, -8; st.v2.u32 [%rd3], {%r1, %r1};"),
        ("out_of_bounds", "ld.acquire.gpu.global.u32 %r3, [%rd1 + 64];"),
        ("out_of_bounds", "atom.global.add.u32 %r3, [%rd1 + 64], 1;"),
        ("out_of_bounds", "cp.async.ca.shared.global [%r2], [%rd1 + 64], 4;"),
        ("out_of_bounds", "cp.async.ca.shared.global [%r2 + 4096], [%rd1], 4;"),
        ("misaligned", "cp.async.ca.shared.global [%r2 + 8], [%rd1], 16;"),
    ],
)
def test_a_wrong_access_is_reported_and_does_not_happen(fault, access):
    x = torch.arange(16, dtype=torch.int32)
    before = x.clone()
    with pytest.raises(KernelError) as error:
        kernel("mov.u32 %r2, buffer;" + access, params=1).launch(1, WARP, [x])
    assert error.value.fault == fault and torch.equal(x, before)
