// memory_async.cpp: asynchronous copies, and the barriers in shared memory (mbarriers) that count them
// A copy is performed at once, which is the earliest that hardware allows, so a wait for it returns immediately. In
// watched code, the watcher gets the copy and calls finish() at a time of its choice. The comment above each function
// documents the operands of its instruction.
#include "memory_change.h"

namespace machine {

namespace {

enum class Then : uint8_t { stop, go_on, give_way };

// ---- The 64 bits of an mbarrier ----

constexpr uint32_t count_limit = (1u << 20) - 1;  // the limit for arrivals, and for bytes in flight

struct Phase {
    uint32_t pending, expected;  // arrivals still missing in this phase; arrivals of the next phase
    int32_t bytes;               // bytes expected that have not arrived
    uint32_t parity;             // the parity of the current phase
};

// The upper two bits of a barrier are 10. So neither unwritten memory (all ones) nor zeros look like a barrier.
inline bool is_barrier(uint64_t word) { return word >> 62 == 2; }

inline Phase unpack(uint64_t word) {
    return {static_cast<uint32_t>(word & count_limit), static_cast<uint32_t>(word >> 20 & count_limit),
            static_cast<int32_t>(static_cast<int64_t>(word << 3) >> 43), static_cast<uint32_t>(word >> 61 & 1)};
}

inline uint64_t pack(const Phase& phase) {
    const uint64_t parity = phase.parity, bytes = phase.bytes & 0x1fffff, expected = phase.expected;
    return 2ull << 62 | parity << 61 | bytes << 40 | expected << 20 | phase.pending;
}

// Completes the phase if nothing is missing. Returns whether it did.
inline bool complete(Phase& phase) {
    if (phase.pending || phase.bytes) return false;
    phase.parity ^= 1;
    phase.pending = phase.expected;
    return true;
}

// ---- Operands ----

inline uint64_t address_in(const uint8_t* r, int32_t at, uint32_t lane, bool narrow, int64_t imm) {
    if (at < 0) return imm;
    if (narrow) return reinterpret_cast<const uint32_t*>(r + at)[lane] + static_cast<uint32_t>(imm);
    return reinterpret_cast<const uint64_t*>(r + at)[lane] + static_cast<uint64_t>(imm);
}
inline uint32_t value32(const uint8_t* r, int32_t at, uint32_t lane) {
    return reinterpret_cast<const uint32_t*>(r + at)[lane];
}

Touch touch_at(Warp* w, const Ins* p, uint32_t lane, const Place& place, uint32_t size) {
    return {w, p, lane, place.space, place.address, place.host, size, p[1].c};
}

// ---- cp.async ----

void start(const Copy& copy) {
    if (Watcher* watcher = copy.from.w->worker->watcher)
        watcher->copy(copy);
    else if (finish(copy))
        changed(copy.from.w);
}

// One lane: copies `bytes` from global memory and fills the rest of `size` with zeros.
bool cp_async_lane(Warp* w, const Ins* p, uint32_t lane, uint64_t to_address, uint64_t from_address, uint32_t size,
                   uint32_t bytes) {
    Place to, from;
    if (bytes && !place(w, p, lane, global, from_address, bytes, reads, size, from)) return false;
    if (!place(w, p, lane, shared, to_address, size, writes, size, to)) return false;
    if (bytes) count_place(w, from, bytes, reads);
    start({Copy::cp_async, touch_at(w, p, lane, from, bytes), touch_at(w, p, lane, to, size), nullptr,
           to.block->shared_written, to.offset, nullptr});
    return true;
}

// d, imm: destination in shared memory; a, imm of slot 1: source in global memory; b: bytes to read or -1.
// Slot 1: d = 4, 8 or 16; a = 1 if the destination's register has 32 bits; b: a predicate that is true to read nothing.
Then cp_async_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    const uint32_t size = p[1].d;
    const bool whole = p->b < 0 && (p[1].b < 0 || !(predicate(r, p[1].b) & m));
    if (whole && !w->worker->watcher) {
        Addresses to, from;
        addresses_of(to, r, p->d, p->imm, p[1].a ? Form::narrow : Form::wide);
        addresses_of(from, r, p->a, p[1].imm, Form::wide);
        if (!reach(w, p, m, from, pattern_of(from, m, size), global, size, reads)) return Then::stop;
        if (!reach(w, p, m, to, pattern_of(to, m, size), shared, size, writes)) return Then::stop;
        Site& site = w->sites[p->c];  // reach() has counted the instruction twice, but it is one instruction, with
        site.times -= 1;              // the sectors of its source and the wavefronts of its destination
        site.lanes -= std::popcount(m);
        site.bytes -= static_cast<uint64_t>(std::popcount(m)) * size;
        for (uint32_t left = m; left; left &= left - 1) {
            const uint32_t lane = first_lane(left);
            const auto source = reinterpret_cast<const uint8_t*>(from[lane]);
            const auto target = reinterpret_cast<uint8_t*>(to[lane]);
            if (size == 16)
                memcpy(target, source, 16);
            else if (size == 8)
                memcpy(target, source, 8);
            else
                memcpy(target, source, 4);
        }
        return Then::go_on;
    }
    uint64_t read = 0;
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        uint32_t bytes = size;
        if (p->b >= 0 && value32(r, p->b, lane) < size) bytes = value32(r, p->b, lane);
        if (p[1].b >= 0 && predicate(r, p[1].b) >> lane & 1) bytes = 0;
        read += bytes;
        if (!cp_async_lane(w, p, lane, address_in(r, p->d, lane, p[1].a, p->imm),
                           address_in(r, p->a, lane, false, p[1].imm), size, bytes))
            return Then::stop;
    }
    count_site(w, p, std::popcount(m), read, (read + 31) / 32, 0);
    return Then::go_on;
}

void cp_async(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (cp_async_any(w, p, r, m) == Then::stop) return;
    NEXT_AFTER(1);
}

// Closing a group and waiting for groups have no effect, because no copy is in flight.
void nothing(Warp* w, const Ins* p, uint8_t* r, uint32_t m) { NEXT; }

template <bool is_bulk>
void commit_watched(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    w->worker->watcher->commit(w, p, m, is_bulk);
    NEXT;
}

enum class Until : uint8_t { groups, groups_read, all };
template <bool is_bulk, Until until>
void wait_watched(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (until == Until::all) w->worker->watcher->commit(w, p, m, is_bulk);
    w->worker->watcher->wait(w, p, m, is_bulk, until == Until::all ? 0 : p->imm, until == Until::groups_read);
    NEXT;
}

// ---- mbarrier ----

enum class Act : uint8_t { init, inval, arrive, arrive_drop, arrive_expect, drop_expect, expect, complete };

// a, imm: the barrier; b: count or -1; d: the state before, or -1. Slot 1: a = 1 if a's register has 32 bits.
Then act_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m, Act act, bool may_complete) {
    const bool is_arrival = act != Act::init && act != Act::inval && act != Act::expect && act != Act::complete;
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        const uint64_t address = address_in(r, p->a, lane, p[1].a, p->imm);
        const Use use = act == Act::init ? writes : reads_and_writes;
        Place at;
        if (!place(w, p, lane, shared, address, 8, use, 8, at)) return Then::stop;
        count_place(w, at, 8, use);
        uint64_t word;
        memcpy(&word, at.host, 8);
        const uint32_t count = p->b < 0 ? 1 : value32(r, p->b, lane);
        Phase phase = unpack(word);
        bool good = act == Act::init ? count > 0 && count <= count_limit : is_barrier(word);
        bool completed = false;
        BarrierUse told = BarrierUse::arrive;
        if (p->d >= 0) reinterpret_cast<uint64_t*>(r + p->d)[lane] = word;
        if (act == Act::init) {
            phase = {count, count, 0, 0};
            told = BarrierUse::init;
        } else if (act == Act::inval) {
            told = BarrierUse::inval;
        } else {
            const bool expects = act == Act::expect || act == Act::arrive_expect || act == Act::drop_expect;
            const uint32_t arrivals = !is_arrival ? 0 : expects ? 1 : count;
            if (expects) phase.bytes += count;
            if (act == Act::complete) phase.bytes -= count;
            good = good && arrivals <= phase.pending && std::abs(static_cast<int64_t>(phase.bytes)) <= count_limit;
            phase.pending -= arrivals;
            if (act == Act::arrive_drop || act == Act::drop_expect) phase.expected -= arrivals;
            if (act == Act::expect) told = BarrierUse::expect;
            if (act == Act::complete) told = BarrierUse::complete;
            completed = act != Act::expect && complete(phase);
            good = good && (may_complete || !completed);
        }
        if (!good) {
            fail(w, p, Fault::bad_barrier, lane, at.address, 8, shared, true);
            return Then::stop;
        }
        word = act == Act::inval ? 0 : pack(phase);
        memcpy(at.host, &word, 8);
        if (Watcher* watcher = w->worker->watcher) watcher->barrier(touch_at(w, p, lane, at, 8), told, completed);
    }
    count_site(w, p, std::popcount(m), 8 * std::popcount(m), 0, 0);
    changed(w);
    return Then::go_on;
}

template <Act act, bool may_complete = true>
void mbarrier(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (act_any(w, p, r, m, act, may_complete) == Then::stop) return;
    NEXT_AFTER(1);
}

// a, imm: the barrier. Slot 1: a = 1 if a's register has 32 bits; d: the predicate that is set if the phase is
// over; b: the state that an arrival gave, or with `by_parity` 0 or 1 for a phase whose number is even or odd.
Then wait_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m, bool by_parity) {
    uint32_t over = 0;
    uint64_t seen = 0;
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        Place at;
        if (!place(w, p, lane, shared, address_in(r, p->a, lane, p[1].a, p->imm), 8, reads, 8, at)) return Then::stop;
        uint64_t word;
        memcpy(&word, at.host, 8);
        const uint64_t state = by_parity ? 0 : reinterpret_cast<const uint64_t*>(r + p[1].b)[lane];
        if (!is_barrier(word) || (!by_parity && !is_barrier(state))) {
            fail(w, p, Fault::bad_barrier, lane, at.address, 8, shared, false);
            return Then::stop;
        }
        const uint32_t parity = by_parity ? value32(r, p[1].b, lane) & 1 : unpack(state).parity;
        const bool done = unpack(word).parity != parity;
        over |= static_cast<uint32_t>(done) << lane;
        seen = (seen ^ word) * 0x9e3779b97f4a7c15ull;
        if (Watcher* watcher = w->worker->watcher)
            watcher->barrier(touch_at(w, p, lane, at, 8), BarrierUse::wait, done);
    }
    count_site(w, p, std::popcount(m), 8 * std::popcount(m), 0, 0);
    put_predicate(r, p[1].d, over, m);
    return over != m && looked_in_vain(w, p, m, seen) ? Then::give_way : Then::go_on;
}

template <bool by_parity>
void mbarrier_wait(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    switch (wait_any(w, p, r, m, by_parity)) {
        case Then::stop: return;
        case Then::go_on: NEXT_AFTER(1);
        case Then::give_way: return give_way(w, p + 2, m);
    }
}

// d: the number of arrivals that were missing in the state a.
void pending_count(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        reinterpret_cast<uint32_t*>(r + p->d)[lane] =
            unpack(reinterpret_cast<const uint64_t*>(r + p->a)[lane]).pending;
    }
    NEXT;
}

// An arrival that happens when the lane's earlier cp.async copies are complete. Without `noinc` the barrier expects one
// arrival more in this phase, so that only the time of its completion changes.
Then arrive_behind_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m, bool noinc) {
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        Place at;
        if (!place(w, p, lane, shared, address_in(r, p->a, lane, p[1].a, p->imm), 8, reads_and_writes, 8, at))
            return Then::stop;
        auto word = reinterpret_cast<uint64_t*>(at.host);
        Phase phase = unpack(*word);
        if (!noinc) phase.pending += 1;
        if (!is_barrier(*word) || phase.pending == 0 || phase.pending > count_limit) {
            fail(w, p, Fault::bad_barrier, lane, at.address, 8, shared, true);
            return Then::stop;
        }
        *word = pack(phase);
        const Touch here = touch_at(w, p, lane, at, 8);
        start({Copy::arrival, here, here, word, nullptr, 0, nullptr});
    }
    count_site(w, p, std::popcount(m), 8 * std::popcount(m), 0, 0);
    changed(w);
    return Then::go_on;
}

template <bool noinc>
void arrive_behind(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (arrive_behind_any(w, p, r, m, noinc) == Then::stop) return;
    NEXT_AFTER(1);
}

// ---- cp.async.bulk ----

using Reduce = void (*)(uint8_t* to, const uint8_t* from, uint32_t bytes);

// d, imm: destination; a, imm of slot 1: source; b: bytes, a multiple of 16.
// Slot 1: d, imm of slot 2: mbarrier (-1: the copy belongs to a group); a: 1, 2, 4 if the register of destination,
// source, mbarrier has 32 bits; b: a bit for each block of the cluster that gets a copy, or -1.
Then bulk_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m, Space to_space, Space from_space, Reduce reduce) {
    uint64_t all = 0;
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        const uint32_t bytes = value32(r, p->b, lane);
        const uint64_t from_address = address_in(r, p->a, lane, p[1].a & 2, p[1].imm);
        Place from;
        if (!place(w, p, lane, from_space, from_address, bytes, reads, 16, from)) return Then::stop;
        if (bytes % 16) {
            fail(w, p, Fault::misaligned, lane, from.address, bytes, from.space, false);
            return Then::stop;
        }
        count_place(w, from, bytes, reads);
        all += bytes;
        uint64_t to_address = address_in(r, p->d, lane, p[1].a & 1, p->imm);
        uint64_t barrier_address = p[1].d < 0 ? 0 : address_in(r, p[1].d, lane, p[1].a & 4, p[2].imm);
        uint32_t ranks = 1;
        if (p[1].b >= 0) ranks = value32(r, p[1].b, lane) & 0xffff;
        for (uint32_t rank = 0; ranks >> rank; ++rank) {
            if (!(ranks >> rank & 1)) continue;
            if (p[1].b >= 0) {  // multicast: the same offsets in each block of the mask
                const uint64_t offset_mask = (1u << rank_shift) - 1;
                const uint64_t base = static_cast<uint64_t>(rank + 1) << rank_shift;
                to_address = base | (to_address & offset_mask);
                barrier_address = base | (barrier_address & offset_mask);
            }
            Place to, barrier;
            if (!place(w, p, lane, to_space, to_address, bytes, reduce ? reads_and_writes : writes, 16, to))
                return Then::stop;
            if (p[1].d >= 0) {
                if (!place(w, p, lane, shared, barrier_address, 8, reads_and_writes, 8, barrier)) return Then::stop;
                uint64_t word;
                memcpy(&word, barrier.host, 8);
                if (!is_barrier(word)) {
                    fail(w, p, Fault::bad_barrier, lane, barrier.address, 8, shared, true);
                    return Then::stop;
                }
            }
            if (to.space == global) count_place(w, to, bytes, reduce ? reads_and_writes : writes);
            start({p[1].d >= 0 ? Copy::bulk : Copy::bulk_group, touch_at(w, p, lane, from, bytes),
                   touch_at(w, p, lane, to, bytes), reinterpret_cast<uint64_t*>(barrier.host),
                   to.block ? to.block->shared_written : nullptr, to.offset, reduce});
        }
    }
    count_site(w, p, std::popcount(m), all, (all + 31) / 32, 0);
    return Then::go_on;
}

template <Space to, Space from, Reduce reduce = nullptr>
void bulk(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (bulk_any(w, p, r, m, to, from, reduce) == Then::stop) return;
    NEXT_AFTER(2);
}

template <class T, Change change>
void reduce(uint8_t* to, const uint8_t* from, uint32_t bytes) {
    for (uint32_t at = 0; at < bytes; at += sizeof(T)) {
        T value;
        memcpy(&value, from + at, sizeof value);
        change::apply<T>(to + at, change, value, 0);
    }
}

// ---- Names ----

#define REDUCE(name, T, change)                                                                                     \
    {"cp.reduce.async.bulk.global.shared." name, bulk<global, shared, reduce<T, change>>}, \
    {"cp.reduce.async.bulk.shared.shared." name, bulk<shared, shared, reduce<T, change>>}

REGISTER(memory_async,
    {"cp.async", cp_async},
    {"cp.async.commit_group", nothing, commit_watched<false>},
    {"cp.async.wait_group", nothing, wait_watched<false, Until::groups>},
    {"cp.async.wait_all", nothing, wait_watched<false, Until::all>},
    {"cp.async.bulk.commit_group", nothing, commit_watched<true>},
    {"cp.async.bulk.wait_group", nothing, wait_watched<true, Until::groups>},
    {"cp.async.bulk.wait_group.read", nothing, wait_watched<true, Until::groups_read>},
    {"cp.async.mbarrier.arrive", arrive_behind<false>},
    {"cp.async.mbarrier.arrive.noinc", arrive_behind<true>},
    {"cp.async.bulk.shared.global", bulk<shared, global>},
    {"cp.async.bulk.global.shared", bulk<global, shared>},
    {"cp.async.bulk.shared.shared", bulk<shared, shared>},
    REDUCE("add.u32", uint32_t, change::add<uint32_t>), REDUCE("add.s32", uint32_t, change::add<uint32_t>),
    REDUCE("add.u64", uint64_t, change::add<uint64_t>), REDUCE("add.s64", uint64_t, change::add<uint64_t>),
    REDUCE("add.f16", uint16_t, change::add_f16), REDUCE("add.bf16", uint16_t, change::add_bf16),
    REDUCE("add.f32", uint32_t, change::add_f32), REDUCE("add.f64", uint64_t, change::add_f64),
    REDUCE("min.u32", uint32_t, change::minimum<uint32_t>), REDUCE("min.s32", uint32_t, change::minimum<int32_t>),
    REDUCE("min.u64", uint64_t, change::minimum<uint64_t>), REDUCE("min.s64", uint64_t, change::minimum<int64_t>),
    REDUCE("max.u32", uint32_t, change::maximum<uint32_t>), REDUCE("max.s32", uint32_t, change::maximum<int32_t>),
    REDUCE("max.u64", uint64_t, change::maximum<uint64_t>), REDUCE("max.s64", uint64_t, change::maximum<int64_t>),
    REDUCE("inc.u32", uint32_t, change::increment), REDUCE("dec.u32", uint32_t, change::decrement),
    REDUCE("and.b32", uint32_t, change::both), REDUCE("and.b64", uint64_t, change::both),
    REDUCE("or.b32", uint32_t, change::either), REDUCE("or.b64", uint64_t, change::either),
    REDUCE("xor.b32", uint32_t, change::one_of), REDUCE("xor.b64", uint64_t, change::one_of));

REGISTER(memory_barriers,
    {"mbarrier.init", mbarrier<Act::init>}, {"mbarrier.inval", mbarrier<Act::inval>},
    {"mbarrier.arrive", mbarrier<Act::arrive>}, {"mbarrier.arrive.noComplete", mbarrier<Act::arrive, false>},
    {"mbarrier.arrive_drop", mbarrier<Act::arrive_drop>},
    {"mbarrier.arrive_drop.noComplete", mbarrier<Act::arrive_drop, false>},
    {"mbarrier.arrive.expect_tx", mbarrier<Act::arrive_expect>},
    {"mbarrier.arrive_drop.expect_tx", mbarrier<Act::drop_expect>},
    {"mbarrier.expect_tx", mbarrier<Act::expect>}, {"mbarrier.complete_tx", mbarrier<Act::complete>},
    {"mbarrier.test_wait", mbarrier_wait<false>}, {"mbarrier.test_wait.parity", mbarrier_wait<true>},
    {"mbarrier.try_wait", mbarrier_wait<false>}, {"mbarrier.try_wait.parity", mbarrier_wait<true>},
    {"mbarrier.pending_count", pending_count});

}  // namespace

bool finish(const Copy& copy) {
    const uint32_t bytes = copy.from.size;
    if (copy.kind != Copy::arrival) {
        if (copy.reduce) {
            copy.reduce(copy.to.host, copy.from.host, bytes);
        } else {
            if (bytes) memcpy(copy.to.host, copy.from.host, bytes);
            memset(copy.to.host + bytes, 0, copy.to.size - bytes);
        }
        if (copy.written) mark_own(copy.written, copy.written_at, copy.to.size);
    }
    if (!copy.barrier || !is_barrier(*copy.barrier)) return false;
    Phase phase = unpack(*copy.barrier);
    if (copy.kind == Copy::arrival)
        phase.pending -= 1;
    else
        phase.bytes -= copy.to.size;
    const bool over = complete(phase);
    *copy.barrier = pack(phase);
    return over;
}

// ---- The watcher that changes nothing ----

void Watcher::barrier(const Touch&, BarrierUse, bool) {}
void Watcher::copy(const Copy& copy) {
    if (finish(copy)) changed(copy.from.w);
}
void Watcher::commit(Warp*, const Ins*, uint32_t, bool) {}
void Watcher::wait(Warp*, const Ins*, uint32_t, bool, int64_t, bool) {}

}  // namespace machine
