// memory.cpp: loads and stores of a warp
// The common case comes first and inline: all lanes active, each lane's bytes right behind those of the lane before.
// One range is checked and counted then, and the bytes go between memory and registers by vectors. All else goes
// through reach(), which checks any 32 addresses, and lane by lane.
#include "memory.h"

namespace machine {

namespace {

// ---- Between bytes in lane order and registers ----

template <int bytes>
using Value = std::conditional_t<bytes == 8, uint64_t, uint32_t>;  // what a lane of the register holds

typedef uint32_t Word4 __attribute__((vector_size(16), may_alias));
typedef uint32_t Word16 __attribute__((vector_size(64), may_alias));

inline int32_t register_of(const Ins* p, int i) { return i == 0 ? p->d : i == 1 ? p[1].d : i == 2 ? p[1].a : p[1].b; }

template <class V>
__attribute__((always_inline)) inline V unaligned(const uint8_t* at) {
    V value;
    memcpy(&value, at, sizeof value);
    return value;
}

#if MACHINE_AVX512
// Words 16 apart of x0 and x1 as `order` says: the names of the permute that follows.
inline Word16 permute(Word16 a, Word16 order, Word16 b) {
    return reinterpret_cast<Word16>(_mm512_permutex2var_epi32(
        reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(order), reinterpret_cast<__m512i>(b)));
}
#endif

// x, y, z, w of 32 lanes, lane by lane in memory, as four registers.
__attribute__((always_inline)) inline void spread4(const uint8_t* from, Lanes<uint32_t> (&to)[4]) {
#if MACHINE_AVX512
    const Word16 xy = {0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29}, zw = xy + 2;
    const Word16 low = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}, high = low + 8;
    for (int half = 0; half < 2; ++half) {
        Word16 part[4];
        for (int i = 0; i < 4; ++i) part[i] = unaligned<Word16>(from + 256 * half + 64 * i);
        const Word16 xy0 = permute(part[0], xy, part[1]), xy1 = permute(part[2], xy, part[3]);
        const Word16 zw0 = permute(part[0], zw, part[1]), zw1 = permute(part[2], zw, part[3]);
        reinterpret_cast<Word16*>(&to[0])[half] = permute(xy0, low, xy1);
        reinterpret_cast<Word16*>(&to[1])[half] = permute(xy0, high, xy1);
        reinterpret_cast<Word16*>(&to[2])[half] = permute(zw0, low, zw1);
        reinterpret_cast<Word16*>(&to[3])[half] = permute(zw0, high, zw1);
    }
#else
    for (int four = 0; four < 8; ++four) {
        Word4 a[4];
        for (int i = 0; i < 4; ++i) a[i] = unaligned<Word4>(from + 64 * four + 16 * i);
        const Word4 xy0 = __builtin_shufflevector(a[0], a[1], 0, 4, 1, 5), xy1 = __builtin_shufflevector(a[2], a[3], 0, 4, 1, 5);
        const Word4 zw0 = __builtin_shufflevector(a[0], a[1], 2, 6, 3, 7), zw1 = __builtin_shufflevector(a[2], a[3], 2, 6, 3, 7);
        reinterpret_cast<Word4*>(&to[0])[four] = __builtin_shufflevector(xy0, xy1, 0, 1, 4, 5);
        reinterpret_cast<Word4*>(&to[1])[four] = __builtin_shufflevector(xy0, xy1, 2, 3, 6, 7);
        reinterpret_cast<Word4*>(&to[2])[four] = __builtin_shufflevector(zw0, zw1, 0, 1, 4, 5);
        reinterpret_cast<Word4*>(&to[3])[four] = __builtin_shufflevector(zw0, zw1, 2, 3, 6, 7);
    }
#endif
}

// Bytes of 32 lanes, lane by lane, to the registers of a load.
template <int bytes, int count>
__attribute__((always_inline)) inline void spread(const uint8_t* from, uint8_t* r, const Ins* p, uint32_t m) {
    using T = Value<bytes>;
    if constexpr (count == 1 && bytes >= 4) {
        if (p->d >= 0) put(r, p->d, unaligned<Lanes<T>>(from), m);
    } else if constexpr (count == 1 && bytes == 2) {
        if (p->d >= 0) put(r, p->d, __builtin_convertvector(unaligned<Lanes<uint16_t>>(from), Lanes<uint32_t>), m);
    } else if constexpr (count == 4 && bytes == 4) {
        Lanes<uint32_t> value[4];
        spread4(from, value);
        for (int i = 0; i < 4; ++i)
            if (register_of(p, i) >= 0) put(r, register_of(p, i), value[i], m);
    } else {
        for (int i = 0; i < count; ++i) {
            if (register_of(p, i) < 0) continue;
            Lanes<T> value;
            auto element = reinterpret_cast<T*>(&value);
            for (int lane = 0; lane < warp_lanes; ++lane) {
                element[lane] = 0;
                memcpy(&element[lane], from + (lane * count + i) * bytes, bytes);
            }
            put(r, register_of(p, i), value, m);
        }
    }
}

// One lane's bytes, which all active lanes get.
template <int bytes, int count>
__attribute__((always_inline)) inline void spread_same(const uint8_t* from, uint8_t* r, const Ins* p, uint32_t m) {
    for (int i = 0; i < count; ++i) {
        Value<bytes> value = 0;
        memcpy(&value, from + i * bytes, bytes);
        if (register_of(p, i) >= 0) put(r, register_of(p, i), broadcast(value), m);
    }
}

// The registers of a store as bytes of 32 lanes, lane by lane.
template <int bytes, int count>
__attribute__((always_inline)) inline void collect(uint8_t* to, const uint8_t* r, const Ins* p) {
    using T = Value<bytes>;
    if constexpr (count == 1 && bytes >= 4) {
        memcpy(to, r + p->d, bytes * warp_lanes);
#if MACHINE_AVX512
    } else if constexpr (count == 4 && bytes == 4) {
        const Word16 xy = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
        const Word16 low = {0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23}, high = low + 8;
        for (int half = 0; half < 2; ++half) {
            Word16 part[4];
            for (int i = 0; i < 4; ++i) part[i] = reinterpret_cast<const Word16*>(r + register_of(p, i))[half];
            const Word16 xy0 = permute(part[0], xy, part[1]), xy1 = permute(part[0], xy + 8, part[1]);
            const Word16 zw0 = permute(part[2], xy, part[3]), zw1 = permute(part[2], xy + 8, part[3]);
            const Word16 whole[4] = {permute(xy0, low, zw0), permute(xy0, high, zw0), permute(xy1, low, zw1),
                                     permute(xy1, high, zw1)};
            memcpy(to + 256 * half, whole, 256);
        }
#endif
    } else {
        for (int i = 0; i < count; ++i) {
            auto element = reinterpret_cast<const T*>(r + register_of(p, i));
            for (int lane = 0; lane < warp_lanes; ++lane)
                memcpy(to + (lane * count + i) * bytes, &element[lane], bytes);
        }
    }
}

// ---- Any addresses ----

template <int bytes, int count>
__attribute__((noinline)) bool load_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m, Space space, Form form) {
    constexpr int size = bytes * count;
    Addresses at;
    addresses_of(at, r, p->a, p->imm, form);
    const Pattern pattern = form == Form::fixed && space != local ? Pattern::same : pattern_of(at, m, size);
    Watcher* watcher = w->worker->watcher;
    Addresses said;
    if (watcher) said = at;
    if (!reach(w, p, m, at, pattern, space, size, reads)) return false;
    alignas(64) uint8_t data[warp_lanes * size];
    if (watcher) {
        for (uint32_t left = m; left; left &= left - 1) {
            const uint32_t lane = first_lane(left);
            watcher->load(touch_of(w, p, lane, space, said[lane], at[lane], size), data + lane * size);
        }
    } else if (pattern == Pattern::same && at[first_lane(m)] == at[31 - std::countl_zero(m | 1)]) {  // not local memory
        spread_same<bytes, count>(reinterpret_cast<const uint8_t*>(at[first_lane(m)]), r, p, m);
        return true;
    } else if (m == all_lanes) {
        for (int lane = 0; lane < warp_lanes; ++lane)
            memcpy(data + lane * size, reinterpret_cast<const uint8_t*>(at[lane]), size);
    } else {
        for (uint32_t left = m; left; left &= left - 1) {
            const uint32_t lane = first_lane(left);
            memcpy(data + lane * size, reinterpret_cast<const uint8_t*>(at[lane]), size);
        }
    }
    spread<bytes, count>(data, r, p, m);
    return true;
}

template <int bytes, int count>
__attribute__((noinline)) bool store_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m, Space space, Form form) {
    constexpr int size = bytes * count;
    Addresses at;
    addresses_of(at, r, p->a, p->imm, form);
    Watcher* watcher = w->worker->watcher;
    Addresses said;
    if (watcher) said = at;
    if (!reach(w, p, m, at, pattern_of(at, m, size), space, size, writes)) return false;
    alignas(64) uint8_t data[warp_lanes * size];
    collect<bytes, count>(data, r, p);
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        if (watcher)
            watcher->store(touch_of(w, p, lane, space, said[lane], at[lane], size), data + lane * size);
        else
            memcpy(reinterpret_cast<uint8_t*>(at[lane]), data + lane * size, size);
    }
    return true;
}

// ---- The instructions ----

// Host memory of a full warp's row, checked and counted, or null: not a row, or not all well.
template <Space space, Form form, int size>
__attribute__((always_inline)) inline uint8_t* row(Warp* w, const Ins* p, const uint8_t* r, Use use) {
    constexpr uint64_t span = static_cast<uint64_t>(size) * warp_lanes;
    uint64_t base;
    if constexpr (form == Form::narrow) {
        const uint32_t first = *reinterpret_cast<const uint32_t*>(r + p->a);
        const Word16 index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const Word16 expected = index * static_cast<uint32_t>(size) + first;
        const auto part = reinterpret_cast<const Word16*>(r + p->a);
        if (any(reinterpret_cast<Eight>((part[0] ^ expected) | (part[1] ^ (expected + 16u * size))))) return nullptr;
        base = first + static_cast<uint32_t>(p->imm);
        base &= 0xffffffff;
    } else {
        if (!is_row<size>(r + p->a)) return nullptr;
        base = *reinterpret_cast<const uint64_t*>(r + p->a) + static_cast<uint64_t>(p->imm);
    }
    if constexpr (space == generic) {
        if ((base & window_mask) == shared_window) {
            base -= shared_window;
            return reach_row_shared(w, p, base, warp_lanes, size, span, use) ? w->block->shared + base : nullptr;
        }
    }
    if constexpr (space == shared)
        return reach_row_shared(w, p, base, warp_lanes, size, span, use) ? w->block->shared + base : nullptr;
    return reach_row_global(w, p, base, warp_lanes, size, span, use) ? reinterpret_cast<uint8_t*>(base) : nullptr;
}

constexpr bool has_rows(Space space, Form form) {
    return form != Form::fixed && (space == global || space == shared || space == generic);
}

template <Space space, Form form, int bytes, int count>
void load(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if constexpr (has_rows(space, form)) {
        if (__builtin_expect(m == all_lanes, 1)) {
            if (const uint8_t* from = row<space, form, bytes * count>(w, p, r, reads)) {
                spread<bytes, count>(from, r, p, all_lanes);
                NEXT_AFTER(1);
            }
        }
    }
    if (!load_any<bytes, count>(w, p, r, m, space, form)) return;
    NEXT_AFTER(1);
}

template <Space space, Form form, int bytes, int count>
void store(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if constexpr (has_rows(space, form)) {
        if (__builtin_expect(m == all_lanes, 1)) {
            if (uint8_t* to = row<space, form, bytes * count>(w, p, r, writes)) {
                collect<bytes, count>(to, r, p);
                NEXT_AFTER(1);
            }
        }
    }
    if (!store_any<bytes, count>(w, p, r, m, space, form)) return;
    NEXT_AFTER(1);
}

template <Space space, Form form, int bytes, int count>
void load_watched(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (!load_any<bytes, count>(w, p, r, m, space, form)) return;
    NEXT_AFTER(1);
}

template <Space space, Form form, int bytes, int count>
void store_watched(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (!store_any<bytes, count>(w, p, r, m, space, form)) return;
    NEXT_AFTER(1);
}

// A kernel's parameter: the same for all threads.
template <int bytes, int count>
void load_parameter(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (p->a >= 0) {
        if (!load_any<bytes, count>(w, p, r, m, param, Form::wide)) return;
        NEXT_AFTER(1);
    }
    const Launch* launch = w->block->launch;
    if (__builtin_expect(static_cast<uint64_t>(p->imm) + bytes * count > static_cast<uint64_t>(launch->program->parameter_bytes), 0))
        return fail(w, p, Fault::out_of_bounds, first_lane(m), p->imm, bytes * count, param, false);
    spread_same<bytes, count>(launch->parameters + p->imm, r, p, m);
    NEXT_AFTER(1);
}

// ---- Names ----

#define WIDTHS(M, space, name, form)                                                                             \
    M(space, name, form, 8, 1, ".b8"), M(space, name, form, 8, 2, ".b8.v2"), M(space, name, form, 8, 4, ".b8.v4"), \
    M(space, name, form, 16, 1, ".b16"), M(space, name, form, 16, 2, ".b16.v2"), M(space, name, form, 16, 4, ".b16.v4"), \
    M(space, name, form, 32, 1, ".b32"), M(space, name, form, 32, 2, ".b32.v2"), M(space, name, form, 32, 4, ".b32.v4"), \
    M(space, name, form, 64, 1, ".b64"), M(space, name, form, 64, 2, ".b64.v2"), M(space, name, form, 64, 4, ".b64.v4")
#define LOAD(space, name, form, bits, count, text) \
    {"ld." name text, load<space, form, bits / 8, count>, load_watched<space, form, bits / 8, count>}
#define STORE(space, name, form, bits, count, text) \
    {"st." name text, store<space, form, bits / 8, count>, store_watched<space, form, bits / 8, count>}
#define PARAMETER(space, name, form, bits, count, text) \
    {"ld." name text, load_parameter<bits / 8, count>, load_parameter<bits / 8, count>}

REGISTER(memory_loads,
    WIDTHS(LOAD, global, "global", Form::wide), WIDTHS(LOAD, global, "global.k", Form::fixed),
    WIDTHS(LOAD, shared, "shared", Form::wide), WIDTHS(LOAD, shared, "shared.a32", Form::narrow),
    WIDTHS(LOAD, shared, "shared.k", Form::fixed),
    WIDTHS(LOAD, local, "local", Form::wide), WIDTHS(LOAD, local, "local.a32", Form::narrow),
    WIDTHS(LOAD, local, "local.k", Form::fixed),
    WIDTHS(LOAD, generic, "gen", Form::wide), WIDTHS(LOAD, generic, "gen.k", Form::fixed),
    WIDTHS(LOAD, constant, "const", Form::wide), WIDTHS(LOAD, constant, "const.k", Form::fixed),
    WIDTHS(PARAMETER, param, "param", Form::fixed), WIDTHS(LOAD, param, "param.k", Form::fixed),
    WIDTHS(LOAD, param, "param.a32", Form::narrow));
REGISTER(memory_stores,
    WIDTHS(STORE, global, "global", Form::wide), WIDTHS(STORE, global, "global.k", Form::fixed),
    WIDTHS(STORE, shared, "shared", Form::wide), WIDTHS(STORE, shared, "shared.a32", Form::narrow),
    WIDTHS(STORE, shared, "shared.k", Form::fixed),
    WIDTHS(STORE, local, "local", Form::wide), WIDTHS(STORE, local, "local.a32", Form::narrow),
    WIDTHS(STORE, local, "local.k", Form::fixed),
    WIDTHS(STORE, generic, "gen", Form::wide), WIDTHS(STORE, generic, "gen.k", Form::fixed));

}  // namespace

// ---- The watcher that changes nothing ----

void Watcher::load(const Touch& touch, void* value) { memcpy(value, touch.host, touch.size); }
void Watcher::store(const Touch& touch, const void* value) { memcpy(touch.host, value, touch.size); }

}  // namespace machine
