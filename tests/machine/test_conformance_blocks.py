"""Barriers, their reductions, and the election of a lane on the virtual GPU."""

import pytest
from isa.kernel import UNWRITTEN, entry, launch, patterns, tensor


@pytest.mark.parametrize("bar", ("bar", "barrier"))
@pytest.mark.parametrize("count", ("", ", 96"))
def test_barriers_reduce_a_predicate_over_the_block(bar, count):
    body = f"""
    mad.wide.u32 %x0, %t, 4, %p1;
    ld.global.u32 %r4, [%x0];
    setp.ne.u32 %q0, %r4, 0;
    {bar}.red.popc.u32 %r5, 0{count}, %q0;
    {bar}.red.popc.u32 %r6, 1{count}, !%q0;
    {bar}.red.and.pred %q1, 2{count}, %q0;
    {bar}.red.or.pred %q2, 3{count}, %q0;
    selp.b32 %r7, 1, 0, %q1;
    selp.b32 %r8, 1, 0, %q2;
    mad.wide.u32 %x1, %t, 16, %p0;
    st.global.v4.u32 [%x1], {{%r5, %r6, %r7, %r8}};"""
    flags = [n % 3 == 0 for n in range(96)] + [0] * 96 + [1] * 96
    out = tensor([UNWRITTEN] * 4 * 288, 32)
    launch(entry(["out", "flags"], body), 3, 96, [out, tensor(flags, 32)])
    assert patterns(out) == [32, 64, 0, 1] * 96 + [0, 96, 0, 0] * 96 + [96, 0, 1, 1] * 96


def test_barriers_with_counts_and_numbers_keep_halves_apart():
    """Each half of a block passes words through shared memory behind a barrier of its own, 5 times."""
    body = """
    .shared .align 4 .b32 ring[128];
    shr.u32 %r4, %me, 6;
    add.u32 %r5, %r4, 3;
    and.b32 %r6, %me, 63;
    and.b32 %r7, %me, 64;
    mov.u64 %x1, ring;
    mad.wide.u32 %x2, %me, 4, %x1;
    add.u32 %r8, %r6, 1;
    and.b32 %r8, %r8, 63;
    or.b32 %r8, %r8, %r7;
    mad.wide.u32 %x3, %r8, 4, %x1;
    mov.u32 %r9, %me;
    mov.u32 %r10, 0;
LOOP:
    st.shared.u32 [%x2], %r9;
    bar.sync %r5, 64;
    ld.shared.u32 %r9, [%x3];
    bar.sync %r5, 64;
    add.u32 %r10, %r10, 1;
    setp.lt.u32 %q0, %r10, 5;
    @%q0 bra LOOP;
    mad.wide.u32 %x4, %me, 4, %p0;
    st.global.u32 [%x4], %r9;"""
    out = tensor([UNWRITTEN] * 128, 32)
    launch(entry(["out"], body), 1, 128, [out])
    assert patterns(out) == [(n & 64) + ((n & 63) + 5) % 64 for n in range(128)]


def test_a_producer_arrives_and_does_not_wait():
    """One warp writes and arrives with bar.arrive; the other waits with bar.sync of 64 threads, then reads."""
    body = """
    .shared .align 4 .b32 words[32];
    mov.u64 %x1, words;
    and.b32 %r4, %me, 31;
    mad.wide.u32 %x2, %r4, 4, %x1;
    setp.ge.u32 %q0, %me, 32;
    @%q0 bra CONSUMER;
    mul.lo.u32 %r5, %me, %me;
    st.shared.u32 [%x2], %r5;
    bar.arrive 1, 64;
    bra DONE;
CONSUMER:
    bar.sync 1, 64;
    ld.shared.u32 %r5, [%x2];
    mad.wide.u32 %x3, %r4, 4, %p0;
    st.global.u32 [%x3], %r5;
DONE:"""
    out = tensor([UNWRITTEN] * 32, 32)
    launch(entry(["out"], body), 1, 64, [out])
    assert patterns(out) == [n * n for n in range(32)]


def test_barriers_count_threads_that_have_not_exited():
    """Half of the warps exit; the others still meet at a barrier that states no count."""
    body = """
    .shared .align 4 .b32 words[64];
    setp.ge.u32 %q0, %me, 64;
    @%q0 ret;
    mov.u64 %x1, words;
    mad.wide.u32 %x2, %me, 4, %x1;
    st.shared.u32 [%x2], %me;
    bar.sync 0;
    xor.b32 %r4, %me, 33;
    mad.wide.u32 %x3, %r4, 4, %x1;
    ld.shared.u32 %r5, [%x3];
    mad.wide.u32 %x4, %me, 4, %p0;
    st.global.u32 [%x4], %r5;"""
    out = tensor([UNWRITTEN] * 64, 32)
    launch(entry(["out"], body), 1, 128, [out], strict=False)
    assert patterns(out) == [n ^ 33 for n in range(64)]


def test_one_lane_of_a_warp_is_elected():
    body = """
    and.b32 %r4, %me, 1;
    setp.eq.u32 %q0, %r4, 0;
    mov.u32 %r5, 0;
    mov.u32 %r6, 0;
    setp.ne.u32 %q1, %r4, %r4;
    @!%q0 bra DONE;
    elect.sync %r5|%q1, 0x55555555;
DONE:
    selp.b32 %r6, 1, 0, %q1;
    mad.wide.u32 %x1, %t, 8, %p0;
    st.global.v2.u32 [%x1], {%r5, %r6};"""
    out = tensor([UNWRITTEN] * 128, 32)
    launch(entry(["out"], body), 1, 64, [out])
    rows = list(zip(patterns(out)[::2], patterns(out)[1::2], strict=True))
    for warp in (rows[:32], rows[32:]):
        leaders = [lane for lane, (_, elected) in enumerate(warp) if elected]
        assert len(leaders) == 1 and leaders[0] % 2 == 0
        assert all(leader == leaders[0] for leader, _ in warp[::2])
        assert all(row == (0, 0) for row in warp[1::2])


def test_an_indirect_branch_takes_each_lane_to_its_label():
    body = """
    and.b32 %r4, %me, 3;
    add.u32 %r5, %me, 1000;
targets: .branchtargets A, B, C, D;
    brx.idx %r4, targets;
A:
    mov.u32 %r5, 10;
    bra DONE;
B:
    mov.u32 %r5, 20;
C:
    add.u32 %r5, %r5, 3;
    bra DONE;
D:
    neg.s32 %r5, %r5;
DONE:
    mad.wide.u32 %x1, %t, 4, %p0;
    st.global.u32 [%x1], %r5;"""
    out = tensor([UNWRITTEN] * 32, 32)
    launch(entry(["out"], body), 1, 32, [out])
    expected = [(10, 23, n + 1003, -(n + 1000) & 0xFFFFFFFF)[n % 4] for n in range(32)]
    assert patterns(out) == expected
