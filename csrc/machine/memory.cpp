// memory.cpp: loads and stores of a warp
// The common case is inline: all lanes are active, and their bytes are consecutive. Then one range is checked and
// counted, and vector instructions move the bytes between memory and registers. All other cases use reach(), which
// checks any 32 addresses, and move the bytes lane by lane.
#include "memory.h"

namespace machine {

namespace {

// ---- Between memory, where a lane's elements are neighbours, and registers, where the lanes are neighbours ----

template <int bytes>
using Value = std::conditional_t<bytes == 8, uint64_t, uint32_t>;  // the type of a lane in the register

typedef uint32_t Word4 __attribute__((vector_size(16), may_alias));
typedef uint32_t Word16 __attribute__((vector_size(64), may_alias));

#if MACHINE_AVX512
// Element i of the result is element order[i] of a followed by b.
inline Word16 permute(Word16 a, Word16 order, Word16 b) {
    return reinterpret_cast<Word16>(_mm512_permutex2var_epi32(
        reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(order), reinterpret_cast<__m512i>(b)));
}
inline Eight permute(Eight a, Eight order, Eight b) {
    return reinterpret_cast<Eight>(_mm512_permutex2var_epi64(
        reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(order), reinterpret_cast<__m512i>(b)));
}
#endif

// Writes part i of a register: sixteen lanes of 4 bytes, eight of 8 bytes, or four lanes.
template <class Part>
__attribute__((always_inline)) inline void put_part(uint8_t* r, int32_t at, int i, Part value, uint32_t m) {
    if (at < 0) return;  // the program does not use this element of the vector
    auto to = reinterpret_cast<Part*>(r + at) + i;
    constexpr int bytes = sizeof(value[0]), here = sizeof(Part) / bytes;
    if (m == all_lanes) {
        *to = value;
        return;
    }
#if MACHINE_AVX512
    if constexpr (sizeof(Part) == 64) {
        if constexpr (bytes == 4)
            _mm512_mask_storeu_epi32(to, static_cast<__mmask16>(m >> here * i), reinterpret_cast<__m512i>(value));
        else
            _mm512_mask_storeu_epi64(to, static_cast<__mmask8>(m >> here * i), reinterpret_cast<__m512i>(value));
        return;
    }
#endif
    for (int k = 0; k < here; ++k)
        if (m >> (here * i + k) & 1) (*to)[k] = value[k];
}

// The memory of 32 lanes: of all of them, or of some neighbouring lanes. The bytes of the other lanes are not accessed,
// because they may belong to something else.
struct All {
    uint8_t* at;
    template <class Part>
    __attribute__((always_inline)) Part get(int offset) const { return unaligned<Part>(at + offset); }
    template <class Part>
    __attribute__((always_inline)) void set(int offset, Part value) const { memcpy(at + offset, &value, sizeof value); }
};
#if MACHINE_AVX512
struct Some {
    uint8_t* at;     // the place of lane 0, active or not
    int begin, end;  // the bytes that may be accessed, counted from `at`
    __attribute__((always_inline)) __mmask64 mask(int offset) const {
        const int from = begin - offset, to = end - offset;
        if (to <= 0 || from >= 64) return 0;
        return (to >= 64 ? ~0ull : (1ull << to) - 1) & (from <= 0 ? ~0ull : ~0ull << from);
    }
    template <class Part>
    __attribute__((always_inline)) Part get(int offset) const {
        static_assert(sizeof(Part) == 64);
        return reinterpret_cast<Part>(_mm512_maskz_loadu_epi8(mask(offset), at + offset));
    }
    template <class Part>
    __attribute__((always_inline)) void set(int offset, Part value) const {
        _mm512_mask_storeu_epi8(at + offset, mask(offset), reinterpret_cast<__m512i>(value));
    }
};
#endif

// Loads x, y, z, w of some lanes into four registers.
template <class From>
__attribute__((always_inline)) inline void spread4(From from, uint8_t* r, const Ins* p, int i, uint32_t m) {
#if MACHINE_AVX512
    const Word16 xy = {0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29}, zw = xy + 2;
    const Word16 low = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}, high = low + 8;
    const auto part = [&](int k) __attribute__((always_inline)) { return from.template get<Word16>(256 * i + 64 * k); };
    const Word16 a = part(0), b = part(1), c = part(2), d = part(3);
    const Word16 xy0 = permute(a, xy, b), xy1 = permute(c, xy, d), zw0 = permute(a, zw, b), zw1 = permute(c, zw, d);
    put_part(r, p->d, i, permute(xy0, low, xy1), m);
    put_part(r, p[1].d, i, permute(xy0, high, xy1), m);
    put_part(r, p[1].a, i, permute(zw0, low, zw1), m);
    put_part(r, p[1].b, i, permute(zw0, high, zw1), m);
#else
    const auto part = [&](int k) { return from.template get<Word4>(64 * i + 16 * k); };
    const Word4 a = part(0), b = part(1), c = part(2), d = part(3);
    const Word4 xy0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), xy1 = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const Word4 zw0 = __builtin_shufflevector(a, b, 2, 6, 3, 7), zw1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    put_part(r, p->d, i, Word4(__builtin_shufflevector(xy0, xy1, 0, 1, 4, 5)), m);
    put_part(r, p[1].d, i, Word4(__builtin_shufflevector(xy0, xy1, 2, 3, 6, 7)), m);
    put_part(r, p[1].a, i, Word4(__builtin_shufflevector(zw0, zw1, 0, 1, 4, 5)), m);
    put_part(r, p[1].b, i, Word4(__builtin_shufflevector(zw0, zw1, 2, 3, 6, 7)), m);
#endif
}

#if MACHINE_AVX512
// The same for two registers, of 4 or 8 bytes per lane.
template <class Part, class From>
__attribute__((always_inline)) inline void spread2(From from, uint8_t* r, const Ins* p, int i, uint32_t m) {
    const Part order = sizeof(order[0]) == 4 ? Part(Word16{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30})
                                             : Part(Eight{0, 2, 4, 6, 8, 10, 12, 14});
    const Part a = from.template get<Part>(128 * i), b = from.template get<Part>(128 * i + 64);
    put_part(r, p->d, i, permute(a, order, b), m);
    put_part(r, p[1].d, i, permute(a, order + 1, b), m);
}
#endif

// Moves the bytes of 32 lanes to the registers of a load.
template <int bytes, int count, class From>
__attribute__((always_inline)) inline void spread(From from, uint8_t* r, const Ins* p, uint32_t m) {
    using T = Value<bytes>;
    if constexpr (!std::is_same_v<From, All> && count == 1) {
        for (int i = 0; i < bytes / 2; ++i) {
            if constexpr (bytes == 8)
                put_part(r, p->d, i, from.template get<Eight>(64 * i), m);
            else
                put_part(r, p->d, i, from.template get<Word16>(64 * i), m);
        }
    } else if constexpr (count == 1 && bytes >= 4) {
        if (p->d >= 0) put(r, p->d, from.template get<Lanes<T>>(0), m);
    } else if constexpr (count == 1 && bytes == 2) {
        if (p->d >= 0) put(r, p->d, __builtin_convertvector(from.template get<Lanes<uint16_t>>(0), Lanes<uint32_t>), m);
#if MACHINE_AVX512
    } else if constexpr (count == 4 && bytes == 4) {
        spread4(from, r, p, 0, m);
        spread4(from, r, p, 1, m);
    } else if constexpr (count == 2 && bytes == 4) {
        spread2<Word16>(from, r, p, 0, m);
        spread2<Word16>(from, r, p, 1, m);
    } else if constexpr (count == 2 && bytes == 8) {
        for (int i = 0; i < 4; ++i) spread2<Eight>(from, r, p, i, m);
#else
    } else if constexpr (count == 4 && bytes == 4) {
        for (int i = 0; i < 8; ++i) spread4(from, r, p, i, m);
#endif
    } else {
        for (int i = 0; i < count; ++i) {
            if (register_of(p, i) < 0) continue;
            Lanes<T> value;
            auto element = reinterpret_cast<T*>(&value);
            for (int lane = 0; lane < warp_lanes; ++lane) {
                element[lane] = 0;
                memcpy(&element[lane], from.at + (lane * count + i) * bytes, bytes);
            }
            put(r, register_of(p, i), value, m);
        }
    }
}

// Gives the bytes of one lane to all active lanes.
template <int bytes, int count>
__attribute__((always_inline)) inline void spread_same(const uint8_t* from, uint8_t* r, const Ins* p, uint32_t m) {
    for (int i = 0; i < count; ++i) {
        Value<bytes> value = 0;
        memcpy(&value, from + i * bytes, bytes);
        if (register_of(p, i) >= 0) put(r, register_of(p, i), broadcast(value), m);
    }
}

#if MACHINE_AVX512
// Stores sixteen lanes of four registers.
template <class To>
__attribute__((always_inline)) inline void collect4(To to, const uint8_t* r, const Ins* p, int i) {
    const Word16 pairs = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const Word16 low = {0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23}, high = low + 8;
    const auto part = [&](int32_t at) { return reinterpret_cast<const Word16*>(r + at)[i]; };
    const Word16 x = part(p->d), y = part(p[1].d), z = part(p[1].a), w = part(p[1].b);
    const Word16 xy0 = permute(x, pairs, y), xy1 = permute(x, pairs + 8, y);
    const Word16 zw0 = permute(z, pairs, w), zw1 = permute(z, pairs + 8, w);
    const auto out = [&](int k, Word16 value) __attribute__((always_inline)) { to.set(256 * i + 64 * k, value); };
    out(0, permute(xy0, low, zw0));
    out(1, permute(xy0, high, zw0));
    out(2, permute(xy1, low, zw1));
    out(3, permute(xy1, high, zw1));
}
template <class Part, class To>
__attribute__((always_inline)) inline void collect2(To to, const uint8_t* r, const Ins* p, int i) {
    const Part pairs = sizeof(pairs[0]) == 4 ? Part(Word16{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23})
                                             : Part(Eight{0, 8, 1, 9, 2, 10, 3, 11});
    const Part a = reinterpret_cast<const Part*>(r + p->d)[i], b = reinterpret_cast<const Part*>(r + p[1].d)[i];
    const Part first = permute(a, pairs, b), second = permute(a, pairs + sizeof(Part) / sizeof(a[0]) / 2, b);
    to.set(128 * i, first);
    to.set(128 * i + 64, second);
}
#endif

// Moves the registers of a store to the memory of 32 lanes.
template <int bytes, int count, class To>
__attribute__((always_inline)) inline void collect(To to, const uint8_t* r, const Ins* p) {
    using T = Value<bytes>;
    if constexpr (!std::is_same_v<To, All> && count == 1) {
        for (int i = 0; i < bytes / 2; ++i) to.set(64 * i, reinterpret_cast<const Eight*>(r + p->d)[i]);
    } else if constexpr (count == 1 && bytes >= 4) {
        memcpy(to.at, r + p->d, bytes * warp_lanes);
#if MACHINE_AVX512
    } else if constexpr (count == 4 && bytes == 4) {
        collect4(to, r, p, 0);
        collect4(to, r, p, 1);
    } else if constexpr (count == 2 && bytes == 4) {
        collect2<Word16>(to, r, p, 0);
        collect2<Word16>(to, r, p, 1);
    } else if constexpr (count == 2 && bytes == 8) {
        for (int i = 0; i < 4; ++i) collect2<Eight>(to, r, p, i);
#endif
    } else if constexpr (count == 1 && bytes == 2) {
        const auto& wide = *reinterpret_cast<const Lanes<uint32_t>*>(r + p->d);
        const auto value = __builtin_convertvector(wide, Lanes<uint16_t>);
        memcpy(to.at, &value, 64);
    } else {
        for (int i = 0; i < count; ++i) {
            auto element = reinterpret_cast<const T*>(r + register_of(p, i));
            for (int lane = 0; lane < warp_lanes; ++lane)
                memcpy(to.at + (lane * count + i) * bytes, &element[lane], bytes);
        }
    }
}

// ---- Any addresses ----

// The host memory of consecutive addresses, or null if the host memory is not consecutive: each lane has its own local
// memory.
inline uint8_t* whole_row(const Addresses& at, uint32_t m, uint32_t size, Pattern pattern) {
    const uint32_t first = first_lane(m), last = 31 - std::countl_zero(m | 1);
    if (pattern != Pattern::row || at[last] - at[first] != static_cast<uint64_t>(last - first) * size) return nullptr;
    return reinterpret_cast<uint8_t*>(at[first]);
}

template <int bytes, int count>
__attribute__((noinline)) bool load_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m, Space space, Form form) {
    constexpr int size = bytes * count;
    Watcher* watcher = w->worker->watcher;
    if (!watcher && m != all_lanes) {
        Few few;
        if (std::popcount(m) <= Few::most && reach_few(w, p, r, m, space, form, size, reads, few)) {
            uint32_t left = m;
            for (uint32_t k = 0; left; ++k, left &= left - 1)
                for (int i = 0; i < count; ++i)
                    if (register_of(p, i) >= 0) {
                        Value<bytes> value = 0;
                        memcpy(&value, few.host[k] + i * bytes, bytes);
                        reinterpret_cast<Value<bytes>*>(r + register_of(p, i))[first_lane(left)] = value;
                    }
            return true;
        }
    }
    Addresses at;
    addresses_of(at, r, p->a, p->imm, form);
    const Pattern pattern = pattern_of(at, m, size);
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
    } else if (const uint8_t* from = whole_row(at, m, size, pattern)) {
        memcpy(data + first_lane(m) * size, from, std::popcount(m) * size);
    } else if (m == all_lanes) {
        for (int lane = 0; lane < warp_lanes; ++lane)
            memcpy(data + lane * size, reinterpret_cast<const uint8_t*>(at[lane]), size);
    } else {
        for (uint32_t left = m; left; left &= left - 1) {
            const uint32_t lane = first_lane(left);
            memcpy(data + lane * size, reinterpret_cast<const uint8_t*>(at[lane]), size);
        }
    }
    spread<bytes, count>(All{data}, r, p, m);
    return true;
}

template <int bytes, int count>
__attribute__((noinline)) bool store_any(Warp* w, const Ins* p, uint8_t* r, uint32_t m, Space space, Form form) {
    constexpr int size = bytes * count;
    Watcher* watcher = w->worker->watcher;
    if (!watcher && m != all_lanes) {
        Few few;
        if (std::popcount(m) <= Few::most && reach_few(w, p, r, m, space, form, size, writes, few)) {
            uint32_t left = m;
            for (uint32_t k = 0; left; ++k, left &= left - 1)
                for (int i = 0; i < count; ++i)
                    memcpy(few.host[k] + i * bytes,
                           r + register_of(p, i) + first_lane(left) * sizeof(Value<bytes>), bytes);
            return true;
        }
    }
    Addresses at;
    addresses_of(at, r, p->a, p->imm, form);
    Addresses said;
    if (watcher) said = at;
    const Pattern pattern = pattern_of(at, m, size);
    if (!reach(w, p, m, at, pattern, space, size, writes)) return false;
    alignas(64) uint8_t data[warp_lanes * size];
    collect<bytes, count>(All{data}, r, p);
    if (!watcher)
        if (uint8_t* to = whole_row(at, m, size, pattern)) {
            memcpy(to, data + first_lane(m) * size, std::popcount(m) * size);
            return true;
        }
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

template <Space space, uint32_t size, uint32_t known_span, Use use>
__attribute__((always_inline)) inline uint8_t* quick_host(Warp* w, const Ins* p, uint64_t base, uint32_t lanes,
                                                          uint64_t span, uint32_t passes) {
    const auto own = [&](uint64_t offset) __attribute__((always_inline)) {
        const bool good = quick_shared<size, known_span, use>(w, p, offset, lanes, span, passes);
        return good ? w->block->shared + offset : nullptr;
    };
    if constexpr (space == generic)
        if ((base & window_mask) == shared_window) return own(base - shared_window);
    if constexpr (space == shared) return own(base);
    return quick_global<size, known_span, use>(w, p, base, lanes, span) ? reinterpret_cast<uint8_t*>(base) : nullptr;
}

// Checks and counts the consecutive addresses of a full warp. Returns their host memory, or null if they are not
// consecutive or may be wrong.
template <Space space, Form form, int size, Use use>
__attribute__((always_inline)) inline uint8_t* row(Warp* w, const Ins* p, const uint8_t* r) {
    constexpr uint32_t span = size * warp_lanes;
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
    return quick_host<space, size, span, use>(w, p, base, warp_lanes, span, (span + 127) / 128);
}

// True if all active lanes have the same address.
template <Form form>
__attribute__((always_inline)) inline bool same_address(const uint8_t* r, const Ins* p, uint32_t m, uint64_t& address) {
    if constexpr (form == Form::fixed) {
        address = p->imm;
        return true;
    }
    const uint32_t first = first_lane(m);
    const bool one = !(m & (m - 1));
    if constexpr (form == Form::narrow) {
        const uint32_t found = reinterpret_cast<const uint32_t*>(r + p->a)[first];
        address = found + static_cast<uint32_t>(p->imm);
        const auto part = reinterpret_cast<const Word16*>(r + p->a);
        return one || (m == all_lanes && !any(reinterpret_cast<Eight>((part[0] ^ found) | (part[1] ^ found))));
    }
    const uint64_t found = reinterpret_cast<const uint64_t*>(r + p->a)[first];
    address = found + static_cast<uint64_t>(p->imm);
    if (one) return true;
    const auto part = reinterpret_cast<const Eight*>(r + p->a);
    if (m == all_lanes) return !any((part[0] ^ found) | (part[1] ^ found) | (part[2] ^ found) | (part[3] ^ found));
    const Eight bit = {1, 2, 4, 8, 16, 32, 64, 128};
    Eight wrong = {};
    for (int i = 0; i < 4; ++i)
        wrong |= (part[i] ^ found) & reinterpret_cast<Eight>((bit & (static_cast<uint64_t>(m) >> 8 * i)) != 0);
    return !any(wrong);
}

constexpr bool is_quick(Space space) { return space == global || space == shared || space == generic; }

// The quick and slow cases are separate functions. The quick ones call no function, so they need no stack.
template <Space space, Form form, int bytes, int count>
__attribute__((noinline)) void load_slowly(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (!load_any<bytes, count>(w, p, r, m, space, form)) return;
    NEXT_AFTER(1);
}

template <Space space, Form form, int bytes, int count>
__attribute__((noinline)) void store_slowly(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (!store_any<bytes, count>(w, p, r, m, space, form)) return;
    NEXT_AFTER(1);
}

#if MACHINE_AVX512
// True for the sizes that masked vector instructions can move for some neighbouring lanes with consecutive addresses.
template <int bytes, int count>
constexpr bool has_parts = (bytes == 4 || bytes == 8) && !(bytes == 8 && count == 4);

template <Space space, Form form, uint32_t size, Use use>
__attribute__((always_inline)) inline bool some_row(Warp* w, const Ins* p, const uint8_t* r, uint32_t m, Some& found) {
    const uint32_t first = first_lane(m), lanes = std::popcount(m);
    if ((m >> first) + 1 != 1u << lanes) return false;
    uint64_t base;
    if constexpr (form == Form::narrow) {
        const uint32_t start = reinterpret_cast<const uint32_t*>(r + p->a)[first];
        const Word16 index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const Word16 expected = index * size + (start - first * size), bit = (Word16{} + 1u) << index;
        Word16 wrong = {};
        for (uint32_t i = 0; i < 2; ++i) {
            const auto on = reinterpret_cast<Word16>((bit & m >> 16 * i) != 0);
            wrong |= (reinterpret_cast<const Word16*>(r + p->a)[i] ^ (expected + 16 * i * size)) & on;
        }
        if (any(reinterpret_cast<Eight>(wrong))) return false;
        base = start + static_cast<uint32_t>(p->imm);
        base &= 0xffffffff;
    } else {
        const uint64_t start = reinterpret_cast<const uint64_t*>(r + p->a)[first];
        const Eight index = {0, 1, 2, 3, 4, 5, 6, 7}, expected = index * size + (start - first * size);
        const Eight bit = (Eight{} + 1) << index;
        Eight wrong = {};
        for (uint32_t i = 0; i < 4; ++i) {
            const auto on = reinterpret_cast<Eight>((bit & static_cast<uint64_t>(m >> 8 * i)) != 0);
            wrong |= (reinterpret_cast<const Eight*>(r + p->a)[i] ^ (expected + 8 * i * size)) & on;
        }
        if (any(wrong)) return false;
        base = start + static_cast<uint64_t>(p->imm);
    }
    const uint32_t span = lanes * size;
    uint8_t* host = quick_host<space, size, 0, use>(w, p, base, lanes, span, passes_of(m, size));
    if (!host) return false;
    found = {host - first * size, static_cast<int>(first * size),
             static_cast<int>(first * size + span)};
    return true;
}
// Neighbouring lanes with consecutive addresses.
template <Space space, Form form, int bytes, int count>
__attribute__((noinline)) void load_part(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    Some some;
    if (some_row<space, form, bytes * count, reads>(w, p, r, m, some)) {
        spread<bytes, count>(some, r, p, m);
        NEXT_AFTER(1);
    }
    return load_slowly<space, form, bytes, count>(w, p, r, m);
}

template <Space space, Form form, int bytes, int count>
__attribute__((noinline)) void store_part(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    Some some;
    if (some_row<space, form, bytes * count, writes>(w, p, r, m, some)) {
        collect<bytes, count>(some, r, p);
        NEXT_AFTER(1);
    }
    return store_slowly<space, form, bytes, count>(w, p, r, m);
}

#else
template <int bytes, int count>
constexpr bool has_parts = false;
template <Space space, Form form, int bytes, int count>
void load_part(Warp* w, const Ins* p, uint8_t* r, uint32_t m);
template <Space space, Form form, int bytes, int count>
void store_part(Warp* w, const Ins* p, uint8_t* r, uint32_t m);
#endif

// All active lanes at one address. Often only one lane is active.
template <Space space, Form form, int bytes, int count>
__attribute__((noinline)) void load_same(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    uint64_t address;
    if (same_address<form>(r, p, m, address)) {
        constexpr int size = bytes * count;
        if (const uint8_t* from = quick_host<space, size, size, reads>(w, p, address, std::popcount(m), size, 1)) {
            spread_same<bytes, count>(from, r, p, m);
            NEXT_AFTER(1);
        }
    }
    if constexpr (has_parts<bytes, count> && form != Form::fixed)
        if (m != all_lanes) return load_part<space, form, bytes, count>(w, p, r, m);
    return load_slowly<space, form, bytes, count>(w, p, r, m);
}

template <Space space, Form form, int bytes, int count>
__attribute__((noinline)) void store_same(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    uint64_t address;
    if (same_address<form>(r, p, m, address)) {
        constexpr int size = bytes * count;
        if (uint8_t* to = quick_host<space, size, size, writes>(w, p, address, std::popcount(m), size, 1)) {
            const uint32_t last = 31 - std::countl_zero(m | 1);  // if several lanes store, the last one's value stays
            for (int i = 0; i < count; ++i)
                memcpy(to + i * bytes, r + register_of(p, i) + last * sizeof(Value<bytes>), bytes);
            NEXT_AFTER(1);
        }
    }
    if constexpr (has_parts<bytes, count> && form != Form::fixed)
        if (m != all_lanes) return store_part<space, form, bytes, count>(w, p, r, m);
    return store_slowly<space, form, bytes, count>(w, p, r, m);
}

template <Space space, Form form, int bytes, int count>
void load(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if constexpr (is_quick(space) && form != Form::fixed) {
        if (__builtin_expect(m == all_lanes, 1)) {
            if (uint8_t* from = row<space, form, bytes * count, reads>(w, p, r)) {
                spread<bytes, count>(All{from}, r, p, all_lanes);
                NEXT_AFTER(1);
            }
        }
    }
    if constexpr (is_quick(space)) return load_same<space, form, bytes, count>(w, p, r, m);
    return load_slowly<space, form, bytes, count>(w, p, r, m);
}

template <Space space, Form form, int bytes, int count>
void store(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if constexpr (is_quick(space) && form != Form::fixed) {
        if (__builtin_expect(m == all_lanes, 1)) {
            if (uint8_t* to = row<space, form, bytes * count, writes>(w, p, r)) {
                collect<bytes, count>(All{to}, r, p);
                NEXT_AFTER(1);
            }
        }
    }
    if constexpr (is_quick(space)) return store_same<space, form, bytes, count>(w, p, r, m);
    return store_slowly<space, form, bytes, count>(w, p, r, m);
}

// A kernel's parameter, which is the same for all threads.
template <Form form, int bytes, int count>
void load_parameter(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (form != Form::fixed && p->a >= 0) {
        if (!load_any<bytes, count>(w, p, r, m, param, Form::wide)) return;
        NEXT_AFTER(1);
    }
    const Launch* launch = w->block->launch;
    const auto end = static_cast<uint64_t>(launch->program->parameter_bytes);
    if (__builtin_expect(static_cast<uint64_t>(p->imm) + bytes * count > end, 0))
        return fail(w, p, Fault::out_of_bounds, first_lane(m), p->imm, bytes * count, param, false);
    spread_same<bytes, count>(launch->parameters + p->imm, r, p, m);
    NEXT_AFTER(1);
}

// ---- Names ----

#define LOAD(space, name, form, bits, count, text) \
    {"ld." name text, load<space, form, bits / 8, count>, load_slowly<space, form, bits / 8, count>}
#define STORE(space, name, form, bits, count, text) \
    {"st." name text, store<space, form, bits / 8, count>, store_slowly<space, form, bits / 8, count>}
#define PARAMETER(space, name, form, bits, count, text) \
    {"ld." name text, load_parameter<form, bits / 8, count>}

REGISTER(memory_loads,
    WIDTHS(LOAD, global, "global", Form::wide), WIDTHS(LOAD, global, "global.k", Form::fixed),
    WIDTHS(LOAD, shared, "shared", Form::wide), WIDTHS(LOAD, shared, "shared.a32", Form::narrow),
    WIDTHS(LOAD, shared, "shared.k", Form::fixed),
    WIDTHS(LOAD, local, "local", Form::wide), WIDTHS(LOAD, local, "local.a32", Form::narrow),
    WIDTHS(LOAD, local, "local.k", Form::fixed),
    WIDTHS(LOAD, generic, "gen", Form::wide), WIDTHS(LOAD, generic, "gen.k", Form::fixed),
    WIDTHS(LOAD, global, "const", Form::wide), WIDTHS(LOAD, global, "const.k", Form::fixed),  // read-only tensors
    WIDTHS(PARAMETER, param, "param", Form::wide), WIDTHS(PARAMETER, param, "param.k", Form::fixed),
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
