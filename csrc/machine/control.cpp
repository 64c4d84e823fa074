// control.cpp: branches, calls, exits, barriers, votes and shuffles
//
// Lanes that diverge form groups. The group at the lowest address runs. Basic blocks are in reverse postorder, so this
// is the group that is furthest behind, and groups converge at the first block that both reach. A group that polls in
// vain (a spin) yields to another one, as with independent thread scheduling since Volta.
#include "control.h"

#include <algorithm>

#include "memory.h"

namespace machine {

namespace {

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

void remove_group(Warp* w, int i) { w->others[i] = w->others[--w->others_count]; }

void add_group(Warp* w, Group group) { w->others[w->others_count++] = group; }

// The index of the ready group that is furthest behind, or -1.
int lowest_ready(const Warp* w) {
    int lowest = -1;
    for (int i = 0; i < w->others_count; ++i)
        if (w->others[i].state == GroupState::ready && (lowest < 0 || w->others[i].pc < w->others[lowest].pc)) lowest = i;
    return lowest;
}

void run_group(Warp* w, int i) {
    w->pc = w->others[i].pc;
    w->mask = w->others[i].mask;
    remove_group(w, i);
}

// Called when the running group has ended or waits. Runs another group, or ends the warp's turn.
void next_group(Warp* w) {
    if (int i = lowest_ready(w); i >= 0) return run_group(w, i);
    w->mask = 0;
    w->running = false;
}

void wait_here(Warp* w, const Ins* p, uint32_t m, GroupState state, uint8_t barrier = 0, uint32_t meets = 0) {
    add_group(w, {p, m, state, barrier, meets});
    next_group(w);
}

}  // namespace

bool converge(Warp* w, const Ins* p, uint32_t m) {
    for (int i = 0; i < w->others_count;) {
        const Group& group = w->others[i];
        if (group.pc == p && (group.state == GroupState::ready || group.state == GroupState::polling)) {
            m |= group.mask;
            remove_group(w, i);
        } else ++i;
    }
    w->mask = m;
    if (w->free_run > 0) return --w->free_run, true;
    const int lowest = lowest_ready(w);
    if (lowest < 0 || w->others[lowest].pc >= p) return true;
    const Group behind = w->others[lowest];
    w->others[lowest] = {p, m, GroupState::ready, 0, 0};
    w->pc = behind.pc;
    w->mask = behind.mask;
    return false;
}

namespace {

void enter(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (UNLIKELY(w->others_count)) {
        if (!converge(w, p, m)) return;
        m = w->mask;
    }
    if (UNLIKELY(--w->budget < 0)) {
        w->pc = p;
        w->mask = m;
        w->running = false;
        return;
    }
    BlockCount& count = w->counts[p->imm];
    ++count.times;
    count.lanes += std::popcount(m);
    NEXT;
}

void nop(Warp* w, const Ins* p, uint8_t* r, uint32_t m) { NEXT; }

void bra(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    p += p->imm;
    return p->run(w, p, r, m);
}

// The lanes of `taken` go to `target`, the other lanes of m to `next`. The group with the lower address runs first.
void part(Warp* w, const Ins* next, const Ins* target, uint32_t taken, uint32_t m) {
    const bool target_first = target < next;
    w->pc = target_first ? target : next;
    w->mask = target_first ? taken : m & ~taken;
    add_group(w, {target_first ? next : target, target_first ? m & ~taken : taken, GroupState::ready, 0, 0});
}

template <bool wanted>
void bra_if(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    const uint32_t taken = m & (wanted ? predicate(r, p->a) : ~predicate(r, p->a));
    if (taken == 0) NEXT;
    const Ins* target = p + p->imm;
    if (LIKELY(taken == m)) return target->run(w, target, r, m);
    part(w, p + 1, target, taken, m);
}

void brx(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    const auto& index = lanes<uint32_t>(r, p->a);
    // Each round takes one target and the lanes that go there.
    uint32_t left = m;
    bool first = true;
    while (left) {
        const uint32_t which = index[std::countr_zero(left)];
        uint32_t same = 0;
        for (int lane = 0; lane < warp_lanes; ++lane)
            if (left >> lane & 1 && index[lane] == which) same |= 1u << lane;
        left &= ~same;
        if (which >= static_cast<uint64_t>(p->imm)) return fail(w, p, Fault::trap, std::countr_zero(same));
        const Ins* target = p + p[1 + which].imm;
        if (first) w->pc = target, w->mask = same;
        else add_group(w, {target, same, GroupState::ready, 0, 0});
        first = false;
    }
}

template <bool wanted>
void if_predicate(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    w->saved = m;
    const uint32_t on = m & (wanted ? predicate(r, p->a) : ~predicate(r, p->a));
    if (on == 0) {
        p += p->imm;
        return p->run(w, p, r, m);
    }
    return p[1].run(w, p + 1, r, on);
}

void end_if(Warp* w, const Ins* p, uint8_t* r, uint32_t) { return p[1].run(w, p + 1, r, w->saved); }

void call(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    put(r, p->d, broadcast<uint32_t>(w->at(p) + 1), m);
    p += p->imm;
    return p->run(w, p, r, m);
}

void ret(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    const auto& to = lanes<uint32_t>(r, p->a);
    const uint32_t first = to[std::countr_zero(m)];
    uint32_t same = 0;
    for (int lane = 0; lane < warp_lanes; ++lane) same |= static_cast<uint32_t>(to[lane] == first) << lane;
    same &= m;
    if (same != m) add_group(w, {p, m & ~same, GroupState::ready, 0, 0});
    w->pc = w->code + first;
    w->mask = same;
}

// ---- Block barriers ----

// The result that bar.red computes from the votes. A waiting group keeps it in `meets`.
enum Votes : uint32_t { no_votes, popc, all_of, any_of };

// Writes the result of the votes to the lanes that wait at a barrier.
void finish_barrier(Warp* w, const Ins* p, uint32_t m, uint32_t kind, uint32_t votes, uint32_t all) {
    switch (kind) {
        case popc: return put(w->r, p->d, broadcast<uint32_t>(votes), m);
        case all_of: return put_predicate(w->r, p->d, votes == all ? all_lanes : 0, m);
        case any_of: return put_predicate(w->r, p->d, votes ? all_lanes : 0, m);
    }
}

void release(Block* block, unsigned id) {
    Block::Barrier& barrier = block->barriers[id];
    const uint32_t all = block->live_threads;
    if (Watcher* watcher = block->launch->watcher) watcher->barrier_opens(block, id);
    for (Warp& w : block->warps) {
        bool woke = false;
        for (int i = 0; i < w.others_count; ++i) {
            Group& group = w.others[i];
            if (group.state != GroupState::at_barrier || group.barrier != id) continue;
            finish_barrier(&w, group.pc, group.mask, group.meets, barrier.votes, barrier.expected ? barrier.expected : all);
            group.pc += 2;
            group.state = GroupState::ready;
            woke = true;
        }
        if (woke) block->ready |= 1u << w.index;
    }
    barrier = {};
    ++block->worker->barriers;
}

// The number of threads that a barrier waits for. A barrier of all threads waits for those that have not exited.
uint32_t expected(const Block* block, const Block::Barrier& barrier) {
    return barrier.expected ? barrier.expected : block->live_threads;
}

// bar.sync and bar.red, which wait, and bar.arrive.
template <bool waits, Votes kind = no_votes>
void bar(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    Block* block = w->block;
    const uint32_t lane = std::countr_zero(m);
    const uint64_t id = p->a < 0 ? p->imm : lanes<uint32_t>(r, p->a)[lane];
    const uint32_t count = p->b < 0 ? static_cast<uint32_t>(p[1].imm) : lanes<uint32_t>(r, p->b)[lane];
    if (id >= 16 || count % 32 != 0) return fail(w, p, Fault::bad_barrier, lane);
    Block::Barrier& barrier = block->barriers[id];
    const int32_t* lines = block->launch->program->lines;
    if (barrier.arrived == 0) {
        barrier.expected = count;
        barrier.first_ins = w->at(p);
    } else if (block->launch->strict && count == 0 && lines[barrier.first_ins] != lines[w->at(p)]) {
        return fail_with_other(w, p, Fault::divergent_barrier, lane, barrier.first_ins);
    }
    // A warp must execute bar.sync as a whole. Two branches with a barrier each are undefined, even if the counts
    // match.
    for (int i = 0; i < w->others_count; ++i)
        if (const Group& group = w->others[i]; group.state == GroupState::at_barrier && group.barrier == id && group.pc != p)
            return fail_with_other(w, p, Fault::divergent_barrier, lane, w->at(group.pc));
    // Hardware counts whole warps. Here a group counts its lanes. But if the barrier names a number of threads, a warp
    // with exited lanes counts in full.
    barrier.arrived += count == 0 || std::popcount(w->live) == warp_lanes ? std::popcount(m)
                       : m == w->live                                     ? warp_lanes
                                                                          : std::popcount(m);
    if constexpr (kind != no_votes) barrier.votes += std::popcount(m & predicate(r, p->c));
    if (Watcher* watcher = block->launch->watcher) watcher->arrive(w, m, id, waits);
    if (barrier.arrived < expected(block, barrier)) {
        if constexpr (!waits) NEXT_AFTER(1);
        return wait_here(w, p, m, GroupState::at_barrier, static_cast<uint8_t>(id), kind);
    }
    if (block->launch->strict && count == 0 && block->live_threads < block->threads)
        return fail(w, p, Fault::divergent_barrier, lane);
    finish_barrier(w, p, m, kind, barrier.votes, count ? count : block->live_threads);
    release(block, id);
    // Other groups of this warp are ready now too and may be behind. The start of the next basic block handles that.
    NEXT_AFTER(1);
}

// ---- Warp operations ----

// Returns true if all lanes in `named` are here, and adds the waiting ones to *m. Otherwise the group waits, and lanes
// that arrive later at the same instruction will add it.
template <bool is_sync = false>
bool gather(Warp* w, const Ins* p, uint32_t named, uint32_t* m) {
    if (LIKELY(((named & w->live) & ~*m) == 0 && (named & *m) == *m)) {
        if (LIKELY((named & ~w->live) == 0)) return true;
        if (!w->block->launch->strict) return true;
    }
    const uint32_t outside = *m & ~named, lane = std::countr_zero(outside ? outside : *m);
    if (outside || (w->block->launch->strict && (named & ~w->live)))
        return fail(w, p, Fault::missing_lanes, lane, named, w->live), false;
    uint32_t together = *m;
    for (int i = 0; i < w->others_count; ++i) {
        const Group& group = w->others[i];
        const bool meets = group.state == GroupState::at_warp_sync && group.meets == named;
        if (meets && (group.pc == p || (is_sync && group.barrier))) together |= group.mask;
    }
    if ((named & w->live) & ~together) return wait_here(w, p, *m, GroupState::at_warp_sync, is_sync, named), false;
    for (int i = 0; i < w->others_count;) {
        Group& group = w->others[i];
        const bool meets = group.state == GroupState::at_warp_sync && group.meets == named;
        if (meets && group.pc == p) {
            *m |= group.mask;
            remove_group(w, i);
        } else {
            if (meets && is_sync && group.barrier) ++group.pc, group.state = GroupState::ready;
            ++i;
        }
    }
    return true;
}

// The member mask of the first lane. Lanes with another mask, such as those of the other half of a warp, run after it.
uint32_t named_lanes(Warp* w, const Ins* p, uint8_t* r, int32_t at, int64_t constant, uint32_t* m) {
    if (LIKELY(at < 0)) return static_cast<uint32_t>(constant);
    const auto& masks = lanes<uint32_t>(r, at);
    const uint32_t named = masks[std::countr_zero(*m)];
    uint32_t same = 0;
    for (int lane = 0; lane < warp_lanes; ++lane) same |= static_cast<uint32_t>(masks[lane] == named) << lane;
    if (UNLIKELY(*m & ~same)) add_group(w, {p, *m & ~same, GroupState::ready, 0, 0});
    *m &= same;
    return named;
}

#define GATHER(at, constant)                                       \
    const uint32_t named = named_lanes(w, p, r, at, constant, &m); \
    if (!gather(w, p, named, &m)) return

// Lanes may meet at two different __syncwarp in two branches. For other operations they must be at one instruction.
void bar_warp_sync(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    const uint32_t named = named_lanes(w, p, r, p->a, p->imm, &m);
    if (!gather<true>(w, p, named, &m)) return;
    if (Watcher* watcher = w->block->launch->watcher) watcher->warp_sync(w, named);
    NEXT;
}

enum class Shuffle { up, down, bfly, idx };

// Each lane gets the value of its source lane. A lane whose source is outside its segment keeps its own value. A source
// lane that does not take part gives all ones, which is NaN as a float.
template <Shuffle kind, bool by_constant>
void shfl(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    GATHER(p[1].a, p[1].imm);
    const Lanes<uint32_t> value = lanes<uint32_t>(r, p->a);
#if MACHINE_AVX512
    // The most frequent case: a butterfly over the whole warp by a constant, with all lanes active.
    if (kind == Shuffle::bfly && by_constant && p[1].b < 0 && p[1].c == 31 && m == all_lanes) {
        const auto part = reinterpret_cast<const __m512i*>(&value);
        Lanes<uint32_t> result;
        auto to = reinterpret_cast<__m512i*>(&result);
        const __m512i across = _mm512_set1_epi32(static_cast<int>(p->imm & 31));
        const __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        to[0] = _mm512_permutex2var_epi32(part[0], _mm512_xor_si512(number, across), part[1]);
        to[1] = _mm512_permutex2var_epi32(part[0], _mm512_xor_si512(_mm512_add_epi32(number, _mm512_set1_epi32(16)), across), part[1]);
        lanes<uint32_t>(r, p->d) = result;
        if (p[1].d >= 0) predicate(r, p[1].d) = all_lanes;
        NEXT_AFTER(1);
    }
#endif
    Lanes<uint32_t> result;
    uint32_t inside = 0;
    for (uint32_t lane = 0; lane < warp_lanes; ++lane) {
        const uint32_t by = by_constant ? static_cast<uint32_t>(p->imm) : lanes<uint32_t>(r, p->b)[lane];
        const uint32_t clamp = p[1].b < 0 ? static_cast<uint32_t>(p[1].c) : lanes<uint32_t>(r, p[1].b)[lane];
        const uint32_t b = by & 31, c = clamp & 31, segment = clamp >> 8 & 31;
        const uint32_t last = (lane & segment) | (c & ~segment);
        const uint32_t first = lane & segment;
        int32_t source;
        bool in;
        switch (kind) {
            case Shuffle::up: source = static_cast<int32_t>(lane - b), in = source >= static_cast<int32_t>(last); break;
            case Shuffle::down: source = static_cast<int32_t>(lane + b), in = source <= static_cast<int32_t>(last); break;
            case Shuffle::bfly: source = static_cast<int32_t>(lane ^ b), in = source <= static_cast<int32_t>(last); break;
            case Shuffle::idx: source = static_cast<int32_t>(first | (b & ~segment)), in = source <= static_cast<int32_t>(last); break;
        }
        if (!in) source = static_cast<int32_t>(lane);
        if (UNLIKELY(m >> lane & 1 && !(m >> source & 1) && w->block->launch->strict))
            return fail(w, p, Fault::missing_lanes, lane, named, w->live, source + 1);
        inside |= static_cast<uint32_t>(in) << lane;
        result[lane] = m >> source & 1 ? value[source] : all_lanes;
    }
    put(r, p->d, result, m);
    if (p[1].d >= 0) put_predicate(r, p[1].d, inside, m);
    NEXT_AFTER(1);
}

enum class Vote { all, any, uni, ballot };

template <Vote kind>
void vote(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    GATHER(p->b, p->imm);
    const uint32_t votes = m & predicate(r, p->a);
    if constexpr (kind == Vote::ballot) {
        put(r, p->d, broadcast<uint32_t>(votes), m);
    } else {
        const bool yes = kind == Vote::all ? votes == m : kind == Vote::any ? votes != 0 : votes == 0 || votes == m;
        put_predicate(r, p->d, yes ? all_lanes : 0, m);
    }
    NEXT;
}

template <class T, bool all>
void match(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    GATHER(p->b, p->imm);
    const Lanes<T> value = lanes<T>(r, p->a);
    Lanes<uint32_t> result{};
    for (int lane = 0; lane < warp_lanes; ++lane) {
        if (!(m >> lane & 1)) continue;
        uint32_t same = 0;
        for (int other = 0; other < warp_lanes; ++other)
            if (m >> other & 1 && value[other] == value[lane]) same |= 1u << other;
        result[lane] = !all || same == m ? same : 0;
    }
    const bool is_same = result[std::countr_zero(m)] != 0;
    put(r, p->d, result, m);
    if constexpr (!all) NEXT;
    if (p[1].d >= 0) put_predicate(r, p[1].d, is_same ? all_lanes : 0, m);
    NEXT_AFTER(1);
}

struct Add { template <class T> static T of(T a, T b) { return a + b; } };
struct Min { template <class T> static T of(T a, T b) { return b < a ? b : a; } };
struct Max { template <class T> static T of(T a, T b) { return a < b ? b : a; } };
// Minimum or maximum of floats. -0 is less than +0. The result is the number if the other is NaN, or NaN with `nan`.
// `absolute` drops the signs first.
template <bool least, bool absolute, bool nan>
struct Extreme {
    static float of(float a, float b) {
        if (absolute) a = __builtin_fabsf(a), b = __builtin_fabsf(b);
        const bool a_nan = a != a, b_nan = b != b;
        if (a_nan || b_nan) return (a_nan && b_nan) || nan ? __builtin_bit_cast(float, 0x7fffffffu) : a_nan ? b : a;
        if (a == b) return (__builtin_signbit(a) != 0) == least ? a : b;
        return (a < b) == least ? a : b;
    }
};
struct And { template <class T> static T of(T a, T b) { return a & b; } };
struct Or { template <class T> static T of(T a, T b) { return a | b; } };
struct Xor { template <class T> static T of(T a, T b) { return a ^ b; } };

template <class F, class T>
void redux(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    GATHER(p->b, p->imm);
    const auto& value = lanes<T>(r, p->a);
    T total = value[std::countr_zero(m)];
    if constexpr (std::is_same_v<T, float>) total = F::of(total, total);
    for (uint32_t left = m & (m - 1); left; left &= left - 1) total = F::of(total, static_cast<T>(value[std::countr_zero(left)]));
    put(r, p->d, broadcast<T>(total), m);
    NEXT;
}

void activemask(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    put(r, p->d, broadcast<uint32_t>(m), m);
    NEXT;
}

void elect(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    GATHER(p->b, p->imm);
    const uint32_t leader = std::countr_zero(m);
    if (p->d >= 0) put(r, p->d, broadcast<uint32_t>(leader), m);
    put_predicate(r, p->c, 1u << leader, m);
    NEXT;
}

// ---- Exits ----

Block* first_of_cluster(Block* block);
void open_cluster_barrier(Block* first);

void leave(Warp* w, const Ins* p, uint8_t*, uint32_t m) {
    Block* block = w->block;
    w->live &= ~m;
    block->live_threads -= std::popcount(m);
    // A barrier that waited only for these threads is complete now.
    for (unsigned id = 0; id < 16 && block->live_threads; ++id) {
        Block::Barrier& barrier = block->barriers[id];
        if (barrier.arrived == 0 || barrier.arrived < expected(block, barrier)) continue;
        if (block->launch->strict && barrier.expected == 0) return fail_with_other(w, p, Fault::divergent_barrier, std::countr_zero(m), barrier.first_ins);
        release(block, id);
    }
    if (block->cluster) open_cluster_barrier(first_of_cluster(block));
    // So may be a warp operation that waits for these lanes. In a strict launch it will end with a report.
    for (int i = 0; i < w->others_count; ++i)
        if (w->others[i].state == GroupState::at_warp_sync && (w->others[i].meets & m)) w->others[i].state = GroupState::ready;
    next_group(w);
}

void let_go(Block* block) {
    if (!block->let_go) block->let_go = true, block->launch->blocks_let_go.fetch_add(1);
}

// In PTX the next kernel may start once every block has executed this or has ended. The first thread of a block counts
// for the whole block, which is the earliest that PTX allows.
void launch_dependents(Warp* w, const Ins* p, uint8_t*, uint32_t m) {
    let_go(w->block);
    // The turn ends here, so that with a seed the next kernel may run before the rest of this one.
    w->pc = p + 1;
    w->mask = m;
    w->running = false;
}

void wait_for_predecessor(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    const Launch* before = w->block->launch->predecessor;
    if (before && !before->done()) return wait_here(w, p, m, GroupState::waiting);
    if (Watcher* watcher = w->block->launch->watcher) watcher->predecessor_done(w, m);
    NEXT;
}

// ---- Cluster barriers ----

Block* first_of_cluster(Block* block) { return block->cluster ? block->cluster[0] : block; }

uint32_t cluster_size(const Block* block) {
    const uint32_t* size = block->launch->cluster;
    return block->cluster ? size[0] * size[1] * size[2] : 1;
}

// Opens the barrier if every thread that has not exited has arrived.
void open_cluster_barrier(Block* first) {
    const uint32_t size = cluster_size(first);
    auto block = [&](uint32_t i) { return first->cluster ? first->cluster[i] : first; };
    uint32_t living = 0;
    for (uint32_t i = 0; i < size; ++i) living += block(i)->live_threads;
    if (first->cluster_arrived == 0 || first->cluster_arrived < living) return;
    first->cluster_arrived = 0;
    ++first->cluster_phase;
    if (Watcher* watcher = first->launch->watcher) watcher->cluster_opens(first, size);
    for (uint32_t i = 0; i < size; ++i)
        for (Warp& warp : block(i)->warps)
            for (int j = 0; j < warp.others_count; ++j)
                if (warp.others[j].state == GroupState::at_cluster_barrier) {
                    warp.others[j].state = GroupState::ready;
                    block(i)->ready |= 1u << warp.index;
                }
}

void cluster_arrive(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    Block* first = first_of_cluster(w->block);
    w->cluster_phase = first->cluster_phase;
    first->cluster_arrived += std::popcount(m);
    if (Watcher* watcher = w->block->launch->watcher) watcher->cluster_arrive(w, m);
    open_cluster_barrier(first);
    NEXT;
}

void cluster_wait(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (w->cluster_phase == first_of_cluster(w->block)->cluster_phase)
        return wait_here(w, p, m, GroupState::at_cluster_barrier);
    if (Watcher* watcher = w->block->launch->watcher) watcher->cluster_wait(w, m);
    NEXT;
}

void nanosleep(Warp* w, const Ins* p, uint8_t*, uint32_t m) {
    // A sleeping group yields. It counts as a polling load that sees no change.
    looked_in_vain(w, p, m, 0);
    return give_way(w, p + 1, m);
}

void trap(Warp* w, const Ins* p, uint8_t*, uint32_t m) { return fail(w, p, Fault::trap, std::countr_zero(m)); }

// The model of timing.cpp sets the ticks to its time. Without it there is no time, and every read of a clock register
// advances it by one tick.
template <int shift>
void clock32(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    put(r, p->d, broadcast<uint32_t>(static_cast<uint32_t>(++w->worker->ticks >> shift)), m);
    NEXT;
}
void clock64(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    put(r, p->d, broadcast<uint64_t>(++w->worker->ticks), m);
    NEXT;
}

}  // namespace

// ---- Turns ----

bool looked_in_vain(Warp* w, const Ins* p, uint32_t m, uint64_t seen) {
    w->worker->looking = p;
    for (Warp::Look& look : w->looks) {
        if (look.at != p || look.mask != m) continue;
        const bool same = look.seen == seen;
        look.seen = seen;
        w->vain = same ? w->vain + 1 : 0;
        return same;
    }
    w->looks[w->oldest_look++ % std::size(w->looks)] = {p, m, seen};
    return false;
}

void changed(Warp* w) {
    for (Warp::Look& look : w->looks) look.at = nullptr;
    w->vain = 0;
    w->moved = true;
}

void give_way(Warp* w, const Ins* next, uint32_t m) {
    const auto look = static_cast<uint32_t>(w->at(w->worker->looking));
    if (int i = lowest_ready(w); i >= 0) {
        const Group group = w->others[i];
        w->others[i] = {next, m, GroupState::polling, 0, look};
        w->pc = group.pc;
        w->mask = group.mask;
        w->free_run = 64;
        return;
    }
    add_group(w, {next, m, GroupState::polling, 0, look});
    w->mask = 0;
    w->running = false;
}

bool wake(Warp* w) {
    if (w->mask) return true;
    int next = lowest_ready(w);
    for (int i = 0; i < w->others_count && next < 0; ++i)
        if (w->others[i].state == GroupState::polling) next = i;  // the longest-waiting one is first
    if (next < 0) return false;
    w->pc = w->others[next].pc;
    w->mask = w->others[next].mask;
    for (int i = next + 1; i < w->others_count; ++i) w->others[i - 1] = w->others[i];
    --w->others_count;
    return true;
}

void fail_with_other(Warp* w, const Ins* p, Fault fault, uint32_t lane, int32_t other) {
    fail(w, p, fault, lane);
    Report* report = w->block->launch->report;
    if (report->fault == static_cast<int32_t>(fault) && report->ins == w->at(p)) report->other_ins = other;
}

void fail(Warp* w, const Ins* p, Fault fault, uint32_t lane, uint64_t address, uint64_t size, int space, bool is_write) {
    Launch* launch = w->block->launch;
    w->running = false;
    w->pc = p;
    uint32_t none = 0;
    if (!launch->failed->compare_exchange_strong(none, 1)) return;
    Report& report = *launch->report;
    report.fault = static_cast<int32_t>(fault);
    report.ins = w->at(p);
    for (int i = 0; i < 3; ++i) report.block[i] = w->block->index[i];
    report.thread = w->thread(lane);
    report.space = space;
    report.is_write = is_write;
    report.address = address;
    report.size = size;
    report.launch = static_cast<int32_t>(launch->number);
    report.other_ins = -1;
}

REGISTER(control,
    {"enter", enter}, {"nop", nop}, {"bra", bra}, {"bra.p", bra_if<true>}, {"bra.np", bra_if<false>}, {"brx", brx},
    {"if.p", if_predicate<true>}, {"if.np", if_predicate<false>}, {"end.if", end_if},
    {"call", call}, {"ret", ret}, {"exit", leave},
    {"bar.sync", bar<true>}, {"bar.arrive", bar<false>},
    {"bar.red.popc", bar<true, popc>}, {"bar.red.and", bar<true, all_of>}, {"bar.red.or", bar<true, any_of>},
    {"bar.warp.sync", bar_warp_sync},
    {"shfl.up", shfl<Shuffle::up, false>}, {"shfl.up.i", shfl<Shuffle::up, true>},
    {"shfl.down", shfl<Shuffle::down, false>}, {"shfl.down.i", shfl<Shuffle::down, true>},
    {"shfl.bfly", shfl<Shuffle::bfly, false>}, {"shfl.bfly.i", shfl<Shuffle::bfly, true>},
    {"shfl.idx", shfl<Shuffle::idx, false>}, {"shfl.idx.i", shfl<Shuffle::idx, true>},
    {"vote.all", vote<Vote::all>}, {"vote.any", vote<Vote::any>},
    {"vote.uni", vote<Vote::uni>}, {"vote.ballot", vote<Vote::ballot>},
    {"match.any.b32", match<uint32_t, false>}, {"match.any.b64", match<uint64_t, false>},
    {"match.all.b32", match<uint32_t, true>}, {"match.all.b64", match<uint64_t, true>},
    {"redux.add.b32", redux<Add, uint32_t>}, {"redux.min.u32", redux<Min, uint32_t>}, {"redux.max.u32", redux<Max, uint32_t>},
    {"redux.min.s32", redux<Min, int32_t>}, {"redux.max.s32", redux<Max, int32_t>},
    {"redux.min.f32", redux<Extreme<true, false, false>, float>}, {"redux.max.f32", redux<Extreme<false, false, false>, float>},
    {"redux.min.abs.f32", redux<Extreme<true, true, false>, float>}, {"redux.max.abs.f32", redux<Extreme<false, true, false>, float>},
    {"redux.min.NaN.f32", redux<Extreme<true, false, true>, float>}, {"redux.max.NaN.f32", redux<Extreme<false, false, true>, float>},
    {"redux.min.abs.NaN.f32", redux<Extreme<true, true, true>, float>}, {"redux.max.abs.NaN.f32", redux<Extreme<false, true, true>, float>},
    {"redux.add.u32", redux<Add, uint32_t>}, {"redux.add.s32", redux<Add, uint32_t>},
    {"redux.and.b32", redux<And, uint32_t>}, {"redux.or.b32", redux<Or, uint32_t>}, {"redux.xor.b32", redux<Xor, uint32_t>},
    {"activemask", activemask}, {"elect", elect},
    {"barrier.cluster.arrive", cluster_arrive}, {"barrier.cluster.wait", cluster_wait},
    {"griddepcontrol.wait", wait_for_predecessor}, {"griddepcontrol.launch_dependents", launch_dependents},
    {"nanosleep", nanosleep}, {"trap", trap}, {"brkpt", trap},
    {"clock", clock32<0>}, {"clock_hi", clock32<32>}, {"clock64", clock64}, {"globaltimer", clock64},
    {"globaltimer_lo", clock32<0>}, {"globaltimer_hi", clock32<32>});

}  // namespace machine
