// memory.h: types and functions of the memory instructions, and the interface of a watcher of memory
//   memory.cpp        loads and stores           memory_atomic.cpp  atomics, fences, synchronising loads and stores
//   memory_async.cpp  cp.async, bulk, mbarrier   memory_check.cpp   checks and counts every access
//   memory_space.cpp  cvta, isspacep, mapa       memory_change.h    the arithmetic of atomics
#pragma once

#include "events.h"
#include "machine.h"

namespace machine {

// The window of a kernel's parameters in the generic address space: cvta.param.
constexpr uint64_t param_window = 0x7d00'0000'0000'0000;
constexpr int rank_shift = 24;  // (rank + 1) << 24 | offset: an address in another block's shared memory

// The form of an instruction's address: a 64-bit register, a 32-bit register (.a32), or a constant (.k).
enum class Form : uint8_t { wide, narrow, fixed };

using Addresses = Lanes<uint64_t>;

// The register of element i of a vector, i in [0, 4).
inline int32_t register_of(const Ins* p, int i) { return i == 0 ? p->d : i == 1 ? p[1].d : i == 2 ? p[1].a : p[1].b; }

// Calls M for each width of loads and stores, with the bits of an element and the number of elements.
#define WIDTHS(M, space, name, form)                                                  \
    M(space, name, form, 8, 1, ".b8"), M(space, name, form, 8, 2, ".b8.v2"),          \
        M(space, name, form, 8, 4, ".b8.v4"), M(space, name, form, 16, 1, ".b16"),    \
        M(space, name, form, 16, 2, ".b16.v2"), M(space, name, form, 16, 4, ".b16.v4"), \
        M(space, name, form, 32, 1, ".b32"), M(space, name, form, 32, 2, ".b32.v2"),  \
        M(space, name, form, 32, 4, ".b32.v4"), M(space, name, form, 64, 1, ".b64"),  \
        M(space, name, form, 64, 2, ".b64.v2"), M(space, name, form, 64, 4, ".b64.v4")

// ---- Watchers: hostile memory, the race detector and the stepper ----

// One lane's access. `address` is the program's address; `host` points at the bytes.
struct Touch {
    Warp* w;
    const Ins* p;
    uint32_t lane;
    Space space;  // the actual space of the address, never generic
    uint64_t address;
    uint8_t* host;
    uint32_t size;
    int32_t access;  // Access flags
};

// An asynchronous copy or reduction of one lane, or an arrival at an mbarrier that follows earlier copies.
struct Copy {
    enum Kind : uint8_t { cp_async, bulk, bulk_group, arrival };  // an mbarrier counts bulk, a group counts bulk_group
    Kind kind;
    Touch from, to;           // from.size bytes are copied, zeros fill the rest of to.size
    uint64_t* barrier;        // bulk, arrival: the mbarrier
    uint64_t* written;        // shared_written of the destination's block, or null
    uint64_t written_at;      // the first byte of the destination in it
    void (*reduce)(uint8_t* to, const uint8_t* from, uint32_t bytes);  // null: a plain copy
};
// Performs the copy. Returns true if it completed a phase of its mbarrier.
bool finish(const Copy& copy);

enum class BarrierUse : uint8_t { init, inval, arrive, expect, complete, wait };

// Computes the new value, of 2, 4 or 8 bytes, from the old one and an atomic's sources.
using Change = uint64_t (*)(uint64_t old, uint64_t b, uint64_t c);

// The base class does the same as the fast path. Every call comes after the checks, and lanes come in order.
struct Watcher : Events {
    virtual void load(const Touch& touch, void* value);
    virtual void store(const Touch& touch, const void* value);
    // Atomically replaces old by change(old, b, c) and returns old. touch.size is 2, 4 or 8.
    virtual uint64_t atomic(const Touch& touch, Change change, uint64_t b, uint64_t c);
    virtual void fence(Warp* w, const Ins* p, uint32_t mask, int32_t access);
    // One lane has used an mbarrier. `completed`: this use ended the phase, or the wait has succeeded.
    virtual void barrier(const Touch& touch, BarrierUse use, bool completed);
    // A thread reads bytes of shared memory that no thread has written. Returns true if the watcher will report it.
    virtual bool takes_unwritten(const Touch& touch) { return (void)touch, false; }
    virtual void copy(const Copy& copy);
    // commit closes a group of cp.async copies (bulk: of cp.async.bulk). wait returns when all but the last `groups`
    // groups are complete.
    virtual void commit(Warp* w, const Ins* p, uint32_t mask, bool bulk);
    virtual void wait(Warp* w, const Ins* p, uint32_t mask, bool bulk, int64_t groups, bool only_read);
};

struct Quarter {
    typedef uint64_t type __attribute__((vector_size(64), may_alias));
};
using Eight = Quarter::type;  // eight addresses

inline bool any(Eight x) {
#if MACHINE_AVX512
    return _mm512_test_epi64_mask(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(x)) != 0;
#else
    return (x[0] | x[1] | x[2] | x[3] | x[4] | x[5] | x[6] | x[7]) != 0;
#endif
}

template <class V>
__attribute__((always_inline)) inline V unaligned(const void* at) {
    V value;
    memcpy(&value, at, sizeof value);
    return value;
}

// The lane of the lowest bit. m must not be 0.
inline uint32_t first_lane(uint32_t m) { return std::countr_zero(m) & 31; }

// ---- Bitmaps with one bit per byte ----

// Sets bits [from, from + count). Several OS threads may do so at once, so a plain store is used only for a full word.
inline void mark(uint64_t* bits, uint64_t from, uint64_t count) {
    uint64_t* word = bits + (from >> 6);
    uint32_t shift = from & 63;
    while (count) {
        const uint64_t here = count < 64 - shift ? count : 64 - shift;
        const uint64_t mask = (here == 64 ? ~0ull : (1ull << here) - 1) << shift;
        const uint64_t old = __atomic_load_n(word, __ATOMIC_RELAXED);
        if ((old & mask) != mask) {
            if (mask == ~0ull)
                __atomic_store_n(word, mask, __ATOMIC_RELAXED);
            else
                __atomic_fetch_or(word, mask, __ATOMIC_RELAXED);
        }
        count -= here;
        shift = 0;
        ++word;
    }
}

// The same for a bitmap that only one OS thread uses.
inline void mark_own(uint64_t* bits, uint64_t from, uint64_t count) {
    uint64_t* word = bits + (from >> 6);
    uint32_t shift = from & 63;
    while (count) {
        const uint64_t here = count < 64 - shift ? count : 64 - shift;
        *word++ |= (here == 64 ? ~0ull : (1ull << here) - 1) << shift;
        count -= here;
        shift = 0;
    }
}

// The following functions are faster, for ranges that fill whole words of the bitmap or lie inside one word.
template <uint32_t span>
constexpr bool fits_words(uint64_t from) {
    return span < 64 ? (from & 63) + span <= 64 : (from & 63) == 0;
}
template <uint32_t span>
__attribute__((always_inline)) inline bool row_marked(const uint64_t* bits, uint64_t from) {
    const uint64_t* word = bits + (from >> 6);
    if constexpr (span < 64) {
        constexpr uint64_t mask = (1ull << span) - 1;
        return (*word >> (from & 63) & mask) == mask;
    } else if constexpr (span < 512) {
        uint64_t marked = word[0];
        if constexpr (span >= 128) marked &= word[1];
        if constexpr (span >= 256) marked &= word[2] & word[3];
        return marked == ~0ull;
    } else {
        Eight marked = unaligned<Eight>(word);
        if constexpr (span > 512) marked &= unaligned<Eight>(word + 8);
        return !any(~marked);
    }
}
template <uint32_t span>
__attribute__((always_inline)) inline void mark_row(uint64_t* bits, uint64_t from) {
    if (row_marked<span>(bits, from)) return;
    uint64_t* word = bits + (from >> 6);
    if constexpr (span < 64)
        __atomic_fetch_or(word, ((1ull << span) - 1) << (from & 63), __ATOMIC_RELAXED);
    else
        memset(word, 0xff, span / 8);
}

// The same for a span that is known only at run time.
inline bool fits_words(uint64_t from, uint64_t span) {
    return (from & 63) + span <= 64 || ((from | span) & 63) == 0;
}
__attribute__((always_inline)) inline bool part_marked(const uint64_t* bits, uint64_t from, uint64_t span) {
    const uint64_t* word = bits + (from >> 6);
    if (span <= 64) return (~*word << (64 - span - (from & 63)) >> (64 - span)) == 0;
    uint64_t marked = ~0ull;
    for (uint64_t i = 0; i < span / 64; ++i) marked &= word[i];
    return marked == ~0ull;
}
__attribute__((always_inline)) inline void mark_part(uint64_t* bits, uint64_t from, uint64_t span) {
    if (part_marked(bits, from, span)) return;
    uint64_t* word = bits + (from >> 6);
    if (span < 64)
        __atomic_fetch_or(word, ((1ull << span) - 1) << (from & 63), __ATOMIC_RELAXED);
    else
        for (uint64_t i = 0; i < span / 64; ++i) __atomic_store_n(word + i, ~0ull, __ATOMIC_RELAXED);
}

// Sets the bits of one aligned element of at most 32 bytes, which mostly lies in one word.
inline void mark_element(uint64_t* bits, uint64_t from, uint32_t size) {
    const uint64_t mask = ((1ull << size) - 1) << (from & 63);
    const uint64_t old = __atomic_load_n(bits + (from >> 6), __ATOMIC_RELAXED);
    if ((from & 63) + size > 64)
        mark(bits, from, size);
    else if ((old & mask) != mask)
        __atomic_fetch_or(bits + (from >> 6), mask, __ATOMIC_RELAXED);
}

inline bool all_marked(const uint64_t* bits, uint64_t from, uint64_t count) {
    const uint64_t* word = bits + (from >> 6);
    uint32_t shift = from & 63;
    uint64_t missing = 0;
    while (count) {
        const uint64_t here = count < 64 - shift ? count : 64 - shift;
        missing |= ~*word++ & (here == 64 ? ~0ull : (1ull << here) - 1) << shift;
        count -= here;
        shift = 0;
    }
    return missing == 0;
}

// The number of words of the bitmap for one thread's local memory, and the place of a lane's bitmap.
inline size_t local_written_words(const Program& program) { return (program.local_bytes + 63) / 64; }
inline uint64_t* local_written(Warp* w, uint32_t lane) {
    return w->local_written + lane * local_written_words(*w->block->launch->program);
}

// ---- Addresses of a warp ----

// The pattern of the active lanes' addresses: all equal, consecutive, or any other.
enum class Pattern : uint8_t { same, row, scattered };

// True if each of the 32 addresses in a 64-bit register lies `step` bytes after the one before.
template <int step>
__attribute__((always_inline)) inline bool is_row(const uint8_t* at) {
    auto part = reinterpret_cast<const Eight*>(at);
    constexpr uint64_t s = step;
    const Eight steps = {0, s, 2 * s, 3 * s, 4 * s, 5 * s, 6 * s, 7 * s};
    const Eight first = steps + *reinterpret_cast<const uint64_t*>(at);
    return !any((part[0] ^ first) | (part[1] ^ (first + 8 * s)) | (part[2] ^ (first + 16 * s)) |
                (part[3] ^ (first + 24 * s)));
}

Touch touch_of(Warp* w, const Ins* p, uint32_t lane, Space space, uint64_t address, uint64_t host, uint32_t size);
Pattern pattern_of(const Addresses& at, uint32_t m, uint32_t size);
void addresses_of(Addresses& at, const uint8_t* r, int32_t reg, int64_t imm, Form form);

// ---- Checks and counters. They return true, or false after fail() ----

enum Use : uint8_t { reads = 1, writes = 2, reads_and_writes = 3 };

// The number of passes over the 32 banks of 4 bytes. Accesses of 8 bytes go half a warp at a time, of 16 bytes a
// quarter. Lanes with the same word share a pass; lanes with different words of one bank need one pass each. m: the
// lanes. It may omit a lane that has the address of the lane before it in the same group.
uint32_t wavefronts(const Addresses& at, uint32_t m, uint32_t size);

// Checks and counts the access, and turns the addresses of the active lanes into host addresses. m must not be 0.
bool reach(Warp* w, const Ins* p, uint32_t m, Addresses& at, Pattern pattern, Space space, uint32_t size, Use use);

// The same as wavefronts() for neighbouring lanes with consecutive addresses.
inline uint32_t passes_of(uint32_t m, uint32_t size) {
    const uint32_t together = size <= 4 ? 32 : 128 / size, last = 31 - std::countl_zero(m | 1);
    return last / together - first_lane(m) / together + 1;
}

// A faster form of reach() for at most `most` lanes. It returns false without any effect if the case is not simple;
// then the caller must use reach().
struct Few {
    static constexpr int most = 4;
    uint8_t* host[most];  // the host addresses of the active lanes
};
bool reach_few(Warp* w, const Ins* p, const uint8_t* r, uint32_t m, Space space, Form form, uint32_t size, Use use,
               Few& few);

// The place of one lane's bytes.
struct Place {
    uint8_t* host = nullptr;
    Space space = global;    // the actual space of the address
    uint64_t address = 0;    // the address inside that space
    int tensor = -1;         // global: the tensor's index
    Block* block = nullptr;  // shared: the block whose memory it is
    uint64_t offset = 0;     // shared: the offset in that memory
};

// Checks one lane's access and does not count it. False after fail().
bool place(Warp* w, const Ins* p, uint32_t lane, Space space, uint64_t address, uint64_t size, Use use,
           uint32_t alignment, Place& found);
// Counts one lane's access in the bitmaps and the traffic.
void count_place(Warp* w, const Place& found, uint64_t size, Use use);

inline bool holds(const Tensor& tensor, uint64_t address, uint64_t size) {
    const uint64_t offset = address - tensor.begin, bytes = tensor.end - tensor.begin;
    return offset < bytes && size <= bytes - offset;
}

__attribute__((always_inline)) inline void count_site(Warp* w, const Ins* p, uint64_t lanes, uint64_t bytes,
                                                      uint64_t sectors, uint64_t passes) {
    typedef uint64_t Four __attribute__((vector_size(32), aligned(8), may_alias));
    Site& site = w->sites[p->c];
    *reinterpret_cast<Four*>(&site) += Four{1, lanes, bytes, sectors};
    if (passes) site.wavefronts += passes;
}

__attribute__((always_inline)) inline void count_traffic(Worker* worker, uint32_t tensor, uint64_t asked,
                                                         uint64_t sectors, Use use, uint64_t from, uint64_t span) {
    Traffic& traffic = worker->traffic[tensor];
    traffic.extend(from, span);
    if (use & reads) {
        traffic.asked_read += asked;
        traffic.moved_read += sectors * 32;
    }
    if (use & writes) {
        traffic.asked_write += asked;
        traffic.moved_write += sectors * 32;
    }
}

inline uint64_t sectors_of(uint64_t base, uint64_t span) { return ((base + span - 1) >> 5) - (base >> 5) + 1; }

// Checks and counts an access of `lanes` to `span` bytes of global memory, consecutive or all equal. It returns false
// without any effect if the access may be wrong or is not simple: a different tensor than last time, or bits that begin
// inside a word. The caller must then use a slower function. known_span: span if the compiler knows it, else 0.
template <uint32_t size, uint32_t known_span, Use use>
__attribute__((always_inline)) inline bool quick_global(Warp* w, const Ins* p, uint64_t base, uint32_t lanes,
                                                        uint64_t span) {
    const Launch* launch = w->block->launch;
    Worker* worker = w->worker;
    const uint32_t index = worker->last_tensor[p->c];
    if (index >= launch->tensors_count) return false;
    const Tensor& tensor = launch->tensors[index];
    const uint64_t offset = base - tensor.begin;
    uint64_t* bits = use == reads ? tensor.read : tensor.written;
    if (!holds(tensor, base, span) || (base & (size - 1))) return false;
    if (use == writes && tensor.read_only) return false;
    if constexpr (known_span != 0) {
        if (!fits_words<known_span>(offset)) return false;
        if (bits) mark_row<known_span>(bits, offset);
    } else {
        if (!fits_words(offset, span)) return false;
        if (bits) mark_part(bits, offset, span);
    }
    const uint64_t asked = static_cast<uint64_t>(lanes) * size, sectors = sectors_of(base, span);
    count_traffic(worker, index, asked, sectors, use, offset, span);
    count_site(w, p, lanes, asked, sectors, 0);
    return true;
}

// The same for the block's own shared memory. passes: see wavefronts().
template <uint32_t size, uint32_t known_span, Use use>
__attribute__((always_inline)) inline bool quick_shared(Warp* w, const Ins* p, uint64_t base, uint32_t lanes,
                                                        uint64_t span, uint32_t passes) {
    Block* block = w->block;
    uint64_t* written = block->shared_written;
    if (base > block->shared_bytes || base + span > block->shared_bytes || (base & (size - 1))) return false;
    if constexpr (known_span != 0) {
        if (!fits_words<known_span>(base)) return false;
        if (!row_marked<known_span>(written, base)) {
            if (use == reads) return false;
            mark_row<known_span>(written, base);
        }
    } else {
        if (!fits_words(base, span)) return false;
        if (!part_marked(written, base, span)) {
            if (use == reads) return false;
            mark_part(written, base, span);
        }
    }
    count_site(w, p, lanes, static_cast<uint64_t>(lanes) * size, 0, passes);
    return true;
}

// Slower than quick_global(): also for another tensor than last time, and for any bits.
inline bool reach_row_global(Warp* w, const Ins* p, uint64_t base, uint32_t lanes, uint32_t size, uint64_t span,
                             Use use) {
    const Launch* launch = w->block->launch;
    const int index = find_tensor(w, p->c, base, span);
    if (index < 0 || (base & (size - 1))) return false;
    const Tensor& tensor = launch->tensors[index];
    if ((use & writes) && tensor.read_only) return false;
    if ((use & reads) && tensor.read) mark(tensor.read, base - tensor.begin, span);
    if ((use & writes) && tensor.written) mark(tensor.written, base - tensor.begin, span);
    const uint64_t sectors = sectors_of(base, span);
    count_traffic(w->worker, index, static_cast<uint64_t>(lanes) * size, sectors, use, base - tensor.begin, span);
    count_site(w, p, lanes, static_cast<uint64_t>(lanes) * size, sectors, 0);
    return true;
}

// The same for the block's own shared memory.
inline bool reach_row_shared(Warp* w, const Ins* p, uint64_t base, uint32_t lanes, uint32_t size, uint64_t span,
                             Use use, uint64_t passes) {
    Block* block = w->block;
    if (base > block->shared_bytes || base + span > block->shared_bytes || (base & (size - 1))) return false;
    if ((use & reads) && !all_marked(block->shared_written, base, span)) return false;
    if (use & writes) mark_own(block->shared_written, base, span);
    count_site(w, p, lanes, static_cast<uint64_t>(lanes) * size, 0, passes);
    return true;
}

}  // namespace machine
