// memory_atomic.cpp: atomics, fences, and loads and stores with a memory order
// They run lane by lane, so a sum of floats always has the same order. Another OS thread may access the same address at
// the same time.
#include "memory_change.h"

namespace machine {

namespace {

enum class Then : uint8_t { stop, go_on, give_way };

#define FINISH(then, slots)                               \
    switch (then) {                                       \
        case Then::stop: return;                          \
        case Then::go_on: NEXT_AFTER((slots) - 1);        \
        case Then::give_way: return give_way(w, p + (slots), m); \
    }

inline uint64_t mix(uint64_t seen, uint64_t value) { return (seen ^ value) * 0x9e3779b97f4a7c15ull; }

// To be called after an access to memory that other threads may change. See looked_in_vain().
Then looked(Warp* w, const Ins* p, uint32_t m, bool something_changed, uint64_t seen) {
    if (something_changed)
        changed(w);
    else if (looked_in_vain(w, p, m, seen))
        return Then::give_way;
    return Then::go_on;
}

// ---- Atomics ----

struct Atomic {
    uint32_t size;
    Change change, in_global;
    Use use;
};

inline uint64_t source(const uint8_t* r, int32_t at, uint32_t lane, uint32_t size) {
    if (size == 8) return reinterpret_cast<const uint64_t*>(r + at)[lane];
    const uint32_t low = reinterpret_cast<const uint32_t*>(r + at)[lane];
    return size == 2 ? low & 0xffff : low;
}

Then atomic_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m, Space space, Form form, const Atomic& how) {
    Addresses at;
    addresses_of(at, r, p->a, p->imm, form);
    const Addresses said = at;
    if (!reach(w, p, m, at, pattern_of(at, m, how.size), space, how.size, how.use)) return Then::stop;
    Watcher* watcher = w->worker->watcher;
    w->worker->atomics += std::popcount(m);
    bool something_changed = false;
    uint64_t seen = 0;
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        const uint64_t b = source(r, p->b, lane, how.size);
        const uint64_t c = how.change == change::compare ? source(r, p[1].d, lane, how.size) : 0;
        const Touch touch = touch_of(w, p, lane, space, said[lane], at[lane], how.size);
        const Change change = touch.space == global ? how.in_global : how.change;
        const uint64_t old = watcher ? watcher->atomic(touch, change, b, c)
                                     : change::apply(touch.host, how.size, change, b, c);
        something_changed |= change(old, b, c) != old;
        seen = mix(seen, old);
        if (p->d < 0) continue;
        if (how.size == 8)
            reinterpret_cast<uint64_t*>(r + p->d)[lane] = old;
        else
            reinterpret_cast<uint32_t*>(r + p->d)[lane] = static_cast<uint32_t>(old);
    }
    return looked(w, p, m, something_changed, seen);
}

template <Space space, Form form, int size, Change change, Change in_global = change>
void atomic(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    static const Atomic how = {size, change, in_global, change == change::exchange ? writes : reads_and_writes};
    const Then then = atomic_any(w, p, r, m, space, form, how);
    FINISH(then, 2)
}

// ---- Loads and stores with an order ----

// Elements that a CPU reads and writes as a whole.
inline uint64_t load_element(const uint8_t* at, int bytes, bool acquires) {
    const int order = acquires ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED;
    switch (bytes) {
        case 1: return __atomic_load_n(at, order);
        case 2: return __atomic_load_n(reinterpret_cast<const uint16_t*>(at), order);
        case 4: return __atomic_load_n(reinterpret_cast<const uint32_t*>(at), order);
        default: return __atomic_load_n(reinterpret_cast<const uint64_t*>(at), order);
    }
}
inline void store_element(uint8_t* at, int bytes, uint64_t value, bool releases) {
    const int order = releases ? __ATOMIC_RELEASE : __ATOMIC_RELAXED;
    switch (bytes) {
        case 1: return __atomic_store_n(at, static_cast<uint8_t>(value), order);
        case 2: return __atomic_store_n(reinterpret_cast<uint16_t*>(at), static_cast<uint16_t>(value), order);
        case 4: return __atomic_store_n(reinterpret_cast<uint32_t*>(at), static_cast<uint32_t>(value), order);
        default: return __atomic_store_n(reinterpret_cast<uint64_t*>(at), value, order);
    }
}

struct Shape {
    Space space;
    Form form;
    int bytes, count;
};

Then load_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m, const Shape& shape) {
    const uint32_t size = shape.bytes * shape.count;
    Addresses at;
    addresses_of(at, r, p->a, p->imm, shape.form);
    const Addresses said = at;
    if (!reach(w, p, m, at, pattern_of(at, m, size), shape.space, size, reads)) return Then::stop;
    const bool acquires = p[1].c & (acquire | seq_cst);
    Watcher* watcher = w->worker->watcher;
    uint64_t seen = 0;
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        const Touch touch = touch_of(w, p, lane, shape.space, said[lane], at[lane], size);
        uint8_t data[32];
        if (watcher) watcher->load(touch, data);
        for (int i = 0; i < shape.count; ++i) {
            uint64_t value = 0;
            if (watcher)
                memcpy(&value, data + i * shape.bytes, shape.bytes);
            else
                value = load_element(touch.host + i * shape.bytes, shape.bytes, acquires);
            seen = mix(seen, value);
            const int32_t to = register_of(p, i);
            if (to < 0) continue;
            if (shape.bytes == 8)
                reinterpret_cast<uint64_t*>(r + to)[lane] = value;
            else
                reinterpret_cast<uint32_t*>(r + to)[lane] = static_cast<uint32_t>(value);
        }
    }
    return looked(w, p, m, false, seen);
}

bool store_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m, const Shape& shape) {
    const uint32_t size = shape.bytes * shape.count;
    Addresses at;
    addresses_of(at, r, p->a, p->imm, shape.form);
    const Addresses said = at;
    if (!reach(w, p, m, at, pattern_of(at, m, size), shape.space, size, writes)) return false;
    const bool releases = p[1].c & (release | seq_cst);
    Watcher* watcher = w->worker->watcher;
    bool something_changed = false;
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        const Touch touch = touch_of(w, p, lane, shape.space, said[lane], at[lane], size);
        uint8_t data[32];
        for (int i = 0; i < shape.count; ++i) {
            const uint64_t value = source(r, register_of(p, i), lane, shape.bytes);
            memcpy(data + i * shape.bytes, &value, shape.bytes);
        }
        something_changed |= memcmp(touch.host, data, size) != 0;
        if (watcher) {
            watcher->store(touch, data);
            continue;
        }
        for (int i = 0; i < shape.count; ++i)
            store_element(touch.host + i * shape.bytes, shape.bytes,
                          source(r, register_of(p, i), lane, shape.bytes), releases);
    }
    if (something_changed) changed(w);
    return true;
}

template <Space space, Form form, int bytes, int count>
void load(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    static constexpr Shape shape = {space, form, bytes, count};
    const Then then = load_any(w, p, r, m, shape);
    FINISH(then, 2)
}

template <Space space, Form form, int bytes, int count>
void store(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    static constexpr Shape shape = {space, form, bytes, count};
    if (!store_any(w, p, r, m, shape)) return;
    NEXT_AFTER(1);
}

// ---- Fences ----

void order_memory(int64_t access) {
    if (access & seq_cst)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    else
        __atomic_thread_fence(__ATOMIC_ACQ_REL);
}

void fence(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    order_memory(p->imm);
    NEXT;
}

void fence_watched(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    w->worker->watcher->fence(w, p, m, static_cast<int32_t>(p->imm));
    NEXT;
}

// Asynchronous copies use the same memory here, so the order between proxies always holds.
void fence_proxy(Warp* w, const Ins* p, uint8_t* r, uint32_t m) { NEXT; }

// ---- Names ----

#define ATOMIC(name, ...)                                                    \
    {"atom.global." name, atomic<global, Form::wide, __VA_ARGS__>}, \
    {"atom.shared." name, atomic<shared, Form::wide, __VA_ARGS__>}, \
    {"atom.shared.a32." name, atomic<shared, Form::narrow, __VA_ARGS__>}, \
    {"atom.gen." name, atomic<generic, Form::wide, __VA_ARGS__>}, \
    {"atom.global.k." name, atomic<global, Form::fixed, __VA_ARGS__>}, \
    {"atom.shared.k." name, atomic<shared, Form::fixed, __VA_ARGS__>}, \
    {"atom.gen.k." name, atomic<generic, Form::fixed, __VA_ARGS__>}

REGISTER(memory_atomics,
    ATOMIC("add.u32", 4, change::add<uint32_t>), ATOMIC("add.s32", 4, change::add<uint32_t>),
    ATOMIC("add.b32", 4, change::add<uint32_t>), ATOMIC("add.b64", 8, change::add<uint64_t>),
    ATOMIC("add.u64", 8, change::add<uint64_t>), ATOMIC("add.s64", 8, change::add<uint64_t>),
    ATOMIC("add.f32", 4, change::add_f32, change::add_f32_flushed), ATOMIC("add.f64", 8, change::add_f64),
    ATOMIC("add.f16", 2, change::add_f16), ATOMIC("add.f16x2", 4, change::pair<change::add_f16>),
    ATOMIC("add.bf16", 2, change::add_bf16), ATOMIC("add.bf16x2", 4, change::pair<change::add_bf16>),
    ATOMIC("min.s32", 4, change::minimum<int32_t>), ATOMIC("min.u32", 4, change::minimum<uint32_t>),
    ATOMIC("min.s64", 8, change::minimum<int64_t>), ATOMIC("min.u64", 8, change::minimum<uint64_t>),
    ATOMIC("max.s32", 4, change::maximum<int32_t>), ATOMIC("max.u32", 4, change::maximum<uint32_t>),
    ATOMIC("max.s64", 8, change::maximum<int64_t>), ATOMIC("max.u64", 8, change::maximum<uint64_t>),
    ATOMIC("inc.u32", 4, change::increment), ATOMIC("dec.u32", 4, change::decrement),
    ATOMIC("exch.b32", 4, change::exchange), ATOMIC("exch.b64", 8, change::exchange),
    ATOMIC("cas.b16", 2, change::compare), ATOMIC("cas.b32", 4, change::compare),
    ATOMIC("cas.b64", 8, change::compare),
    ATOMIC("and.b32", 4, change::both), ATOMIC("and.b64", 8, change::both),
    ATOMIC("or.b32", 4, change::either), ATOMIC("or.b64", 8, change::either),
    ATOMIC("xor.b32", 4, change::one_of), ATOMIC("xor.b64", 8, change::one_of));

#define BOTH(space, name, form, bits, count, text)                                                          \
    {"ld.sync." name text, load<space, form, bits / 8, count>},         \
    {"st.sync." name text, store<space, form, bits / 8, count>}

REGISTER(memory_ordered,
    WIDTHS(BOTH, global, "global", Form::wide), WIDTHS(BOTH, global, "global.k", Form::fixed),
    WIDTHS(BOTH, shared, "shared", Form::wide), WIDTHS(BOTH, shared, "shared.a32", Form::narrow),
    WIDTHS(BOTH, shared, "shared.k", Form::fixed), WIDTHS(BOTH, local, "local", Form::wide),
    WIDTHS(BOTH, local, "local.a32", Form::narrow), WIDTHS(BOTH, local, "local.k", Form::fixed),
    WIDTHS(BOTH, generic, "gen", Form::wide), WIDTHS(BOTH, generic, "gen.k", Form::fixed));

REGISTER(memory_fences, {"fence", fence, fence_watched}, {"fence.proxy", fence_proxy});

}  // namespace

// ---- The watcher that changes nothing ----

uint64_t Watcher::atomic(const Touch& touch, Change change, uint64_t b, uint64_t c) {
    return change::apply(touch.host, touch.size, change, b, c);
}
void Watcher::fence(Warp*, const Ins*, uint32_t, int32_t access) { order_memory(access); }

}  // namespace machine
