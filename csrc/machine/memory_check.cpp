// memory_check.cpp: finds the memory of a warp's accesses, checks that they are allowed, and counts them
#include "memory.h"

namespace machine {

namespace {

inline Eight eight(const Addresses& at, int i) { return reinterpret_cast<const Eight*>(&at)[i]; }
inline Eight& eight(Addresses& at, int i) { return reinterpret_cast<Eight*>(&at)[i]; }

// All ones in the lanes of the mask, for lanes 8 i to 8 i + 7.
inline Eight lanes_on(uint32_t m, int i) {
    const Eight bit = {1, 2, 4, 8, 16, 32, 64, 128};
    return reinterpret_cast<Eight>((bit & (static_cast<uint64_t>(m) >> 8 * i)) != 0);
}

inline Eight select(Eight on, Eight a, Eight b) { return (a & on) | (b & ~on); }

inline uint64_t or_of(Eight x) {
#if MACHINE_AVX512
    return _mm512_reduce_or_epi64(reinterpret_cast<__m512i>(x));
#else
    return x[0] | x[1] | x[2] | x[3] | x[4] | x[5] | x[6] | x[7];
#endif
}

// True if each active lane holds the first active lane's value plus `step` for each lane between them.
bool is_row_of(const Addresses& at, uint32_t m, uint64_t step) {
    const uint32_t first = first_lane(m);
    const Eight index = {0, 1, 2, 3, 4, 5, 6, 7};
    Eight expected = index * step + (at[first] - first * step);
    Eight wrong = {};
    for (int i = 0; i < 4; ++i) {
        wrong |= (eight(at, i) ^ expected) & lanes_on(m, i);
        expected += 8 * step;
    }
    return !any(wrong);
}

// A summary of a warp's addresses. Inactive lanes must hold copies of the first active lane's address.
struct Outline {
    uint64_t low, high, bits;   // the minimum, the maximum, and the bitwise or
    uint32_t leaders;           // lanes whose address differs from that of the lane before
    uint32_t sector_leaders;    // the same for sectors of 32 bytes
    bool rising;                // true if no address is below the one before
};

void fill_inactive(Addresses& at, uint32_t m) {
    if (m == all_lanes) return;
    const Eight first = Eight{} + at[first_lane(m)];
    for (int i = 0; i < 4; ++i) eight(at, i) = select(lanes_on(m, i), eight(at, i), first);
}

Outline outline_of(const Addresses& at) {
    Outline o;
    Eight low = eight(at, 0), high = low, bits = low;
    for (int i = 1; i < 4; ++i) {
        const Eight x = eight(at, i);
        low = select(reinterpret_cast<Eight>(x < low), x, low);
        high = select(reinterpret_cast<Eight>(x > high), x, high);
        bits |= x;
    }
    o.low = low[0];
    o.high = high[0];
    o.bits = bits[0];
    for (int i = 1; i < 8; ++i) {
        o.low = low[i] < o.low ? low[i] : o.low;
        o.high = high[i] > o.high ? high[i] : o.high;
        o.bits |= bits[i];
    }
    uint32_t falling = 0;
    o.leaders = 1;
    o.sector_leaders = 1;
#if MACHINE_AVX512
    __m512i before = reinterpret_cast<__m512i>(Eight{} + at[0]);
    for (int i = 0; i < 4; ++i) {
        const __m512i now = reinterpret_cast<__m512i>(eight(at, i));
        const __m512i last = _mm512_alignr_epi64(now, before, 7);
        o.leaders |= static_cast<uint32_t>(_mm512_cmpneq_epu64_mask(now, last)) << 8 * i;
        falling |= static_cast<uint32_t>(_mm512_cmplt_epu64_mask(now, last)) << 8 * i;
        const __m512i change = _mm512_srli_epi64(_mm512_xor_si512(now, last), 5);
        o.sector_leaders |= static_cast<uint32_t>(_mm512_test_epi64_mask(change, change)) << 8 * i;
        before = now;
    }
#else
    for (int lane = 1; lane < warp_lanes; ++lane) {
        const uint64_t now = at[lane], last = at[lane - 1];
        o.leaders |= static_cast<uint32_t>(now != last) << lane;
        falling |= static_cast<uint32_t>(now < last) << lane;
        o.sector_leaders |= static_cast<uint32_t>((now ^ last) >> 5 != 0) << lane;
    }
#endif
    o.rising = falling == 0;
    return o;
}

// A set of up to 32 numbers.
struct Numbers {
    uint64_t key[64];
    uint64_t used = 0;
    bool add(uint64_t value) {  // false if it was in the set
        uint32_t at = static_cast<uint32_t>(value * 0x9e3779b97f4a7c15ull >> 58);
        for (; used >> at & 1; at = (at + 1) & 63)
            if (key[at] == value) return false;
        key[at] = value;
        used |= 1ull << at;
        return true;
    }
};

uint32_t distinct_sectors(const Addresses& at, const Outline& o) {
    if (o.rising) return std::popcount(o.sector_leaders);
    Numbers sectors;
    uint32_t count = 0;
    for (uint32_t left = o.sector_leaders; left; left &= left - 1) count += sectors.add(at[first_lane(left)] >> 5);
    return count;
}

}  // namespace

uint32_t wavefronts(const Addresses& at, uint32_t m, uint32_t size) {
    const uint32_t width = size < 4 ? 4 : size;
    const uint32_t shift = std::countr_zero(width);
    const uint32_t slots = 128 >> shift;  // elements over all banks; as many lanes go together
    uint64_t taken[4];                    // per eight lanes: one bit per slot that they access
    for (int i = 0; i < 4; ++i) {
        const Eight slot = eight(at, i) >> shift & (slots - 1);
        taken[i] = or_of(((Eight{} + 1) << slot) & lanes_on(m, i));
    }
    uint32_t passes = 0;
    for (uint32_t from = 0; from < warp_lanes; from += slots) {
        const uint32_t group = m >> from & static_cast<uint32_t>((1ull << slots) - 1);
        if (!group) continue;
        uint64_t here = 0;
        for (uint32_t i = from / 8; i * 8 < from + slots; ++i) here |= taken[i];
        uint32_t most = 1;
        if (slots < 8 || std::popcount(here) != std::popcount(group)) {
            uint8_t depth[32] = {};
            Numbers places;
            for (uint32_t left = group; left; left &= left - 1) {
                const uint64_t place = at[from + first_lane(left)] >> shift;
                if (!places.add(place)) continue;
                const uint32_t wanted = ++depth[place & (slots - 1)];
                if (wanted > most) most = wanted;
            }
        }
        passes += most;
    }
    return passes;
}

namespace {

void mark_tensor(const Tensor& tensor, uint64_t address, uint64_t size, Use use) {
    if ((use & reads) && tensor.read) mark(tensor.read, address - tensor.begin, size);
    if ((use & writes) && tensor.written) mark(tensor.written, address - tensor.begin, size);
}

// Checks lane by lane. It finds the first fault, and handles accesses to several tensors or blocks.
bool reach_slowly(Warp* w, const Ins* p, uint32_t m, Addresses& at, Space space, uint32_t size, Use use) {
    Place places[warp_lanes];
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        if (!place(w, p, lane, space, at[lane], size, use, size, places[lane])) return false;
    }
    Numbers sectors;
    Addresses offsets = {};
    uint32_t shared_lanes = 0, sectors_count = 0;
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        const Place& here = places[lane];
        if (here.space == local && use & writes) mark_own(local_written(w, lane), here.address, size);
        if (here.space == shared) {
            if (use & writes) mark_own(here.block->shared_written, here.offset, size);
            offsets[lane] = here.offset;
            shared_lanes |= 1u << lane;
        } else if (here.tensor >= 0) {
            const bool fresh = sectors.add(here.address >> 5);
            const Tensor& tensor = w->block->launch->tensors[here.tensor];
            count_traffic(w->worker, here.tensor, size, fresh, use, here.address - tensor.begin, size);
            sectors_count += fresh;
            mark_tensor(tensor, here.address, size, use);
        }
        at[lane] = reinterpret_cast<uint64_t>(here.host);
    }
    count_site(w, p, std::popcount(m), static_cast<uint64_t>(std::popcount(m)) * size, sectors_count,
               shared_lanes ? wavefronts(offsets, shared_lanes, size) : 0);
    return true;
}

bool reach_global(Warp* w, const Ins* p, uint32_t m, Addresses& at, uint32_t size, Use use) {
    Addresses all = at;
    fill_inactive(all, m);
    const Outline o = outline_of(all);
    const Launch* launch = w->block->launch;
    const int index = find_tensor(w, p->c, o.low, o.high - o.low + size);
    if (index < 0 || (o.bits & (size - 1)) ||
        ((use & writes) && launch->tensors[index].read_only))
        return reach_slowly(w, p, m, at, global, size, use);
    const uint32_t lanes = std::popcount(m);
    const uint32_t sectors = distinct_sectors(all, o);
    const Tensor& tensor = launch->tensors[index];
    count_traffic(w->worker, index, static_cast<uint64_t>(lanes) * size, sectors, use, o.low - tensor.begin,
                  o.high - o.low + size);
    for (int way = 0; way < 2; ++way) {
        uint64_t* bits = way ? (use & writes ? tensor.written : nullptr) : (use & reads ? tensor.read : nullptr);
        if (!bits) continue;
        for (uint32_t left = o.leaders; left; left &= left - 1)
            mark_element(bits, all[first_lane(left)] - tensor.begin, size);
    }
    count_site(w, p, lanes, static_cast<uint64_t>(lanes) * size, sectors, 0);
    return true;
}

bool reach_shared(Warp* w, const Ins* p, uint32_t m, Addresses& at, uint32_t size, Use use) {
    Block* block = w->block;
    Addresses all = at;
    fill_inactive(all, m);
    const Outline o = outline_of(all);
    if (o.high >= block->shared_bytes || o.high + size > block->shared_bytes || (o.bits & (size - 1)))
        return reach_slowly(w, p, m, at, shared, size, use);
    const uint64_t element = (1ull << size) - 1;  // an element is aligned, so its bits are in one word
    uint64_t* written = block->shared_written;
    if (use & reads) {
        uint64_t missing = 0;
        if (o.leaders == all_lanes) {
            for (int lane = 0; lane < warp_lanes; ++lane) missing |= ~(written[all[lane] >> 6] >> (all[lane] & 63));
        } else {
            for (uint32_t left = o.leaders; left; left &= left - 1) {
                const uint64_t offset = all[first_lane(left)];
                missing |= ~(written[offset >> 6] >> (offset & 63));
            }
        }
        if (missing & element) return reach_slowly(w, p, m, at, shared, size, use);
    }
    if (use & writes)
        for (uint32_t left = o.leaders; left; left &= left - 1) {
            const uint64_t offset = all[first_lane(left)];
            written[offset >> 6] |= element << (offset & 63);
        }
    // In a full warp only the first lane of each group counts, and lanes whose address differs from the lane before.
    const uint32_t firsts = size <= 4 ? 1 : size == 8 ? 0x00010001 : size == 16 ? 0x01010101 : 0x11111111;
    count_site(w, p, std::popcount(m), static_cast<uint64_t>(std::popcount(m)) * size, 0,
               wavefronts(at, m == all_lanes ? o.leaders | firsts : m, size));
    at += reinterpret_cast<uint64_t>(block->shared);
    return true;
}

bool reach_local(Warp* w, const Ins* p, uint32_t m, Addresses& at, uint32_t size, Use use) {
    const uint64_t bytes = w->block->launch->program->local_bytes;
    Addresses all = at;
    fill_inactive(all, m);
    const Outline o = outline_of(all);
    if (o.high >= bytes || o.high + size > bytes || (o.bits & (size - 1)))
        return reach_slowly(w, p, m, at, local, size, use);
    const uint64_t element = (1ull << size) - 1;  // an element is aligned, so its bits are in one word
    uint64_t missing = 0;
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left), shift = at[lane] & 63;
        uint64_t& written = local_written(w, lane)[at[lane] >> 6];
        if (use & reads) missing |= ~(written >> shift) & element;
        else written |= element << shift;
    }
    if (missing || use == reads_and_writes) return reach_slowly(w, p, m, at, local, size, use);
    count_site(w, p, std::popcount(m), static_cast<uint64_t>(std::popcount(m)) * size, 0, 0);
    const Eight index = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int i = 0; i < 4; ++i)
        eight(at, i) += (index + 8 * i) * bytes + reinterpret_cast<uint64_t>(w->local);
    return true;
}

// The block whose shared memory holds an address of the shared space or of its window, and the offset in it. Null if no
// block does.
Block* shared_block(Warp* w, uint64_t address, uint64_t& offset) {
    Block* block = w->block;
    offset = address;
    const uint64_t rank = address >> rank_shift;
    if (rank == 0) return block;
    offset = address & ((1u << rank_shift) - 1);
    if (!block->cluster) return rank == 1 ? block : nullptr;
    const uint32_t* cluster = block->launch->cluster;
    return rank <= static_cast<uint64_t>(cluster[0]) * cluster[1] * cluster[2] ? block->cluster[rank - 1] : nullptr;
}

Space space_of_window(uint64_t address) {
    switch (address & window_mask) {
        case shared_window: return shared;
        case local_window: return local;
        case param_window: return param;
        default: return global;
    }
}

}  // namespace

Touch touch_of(Warp* w, const Ins* p, uint32_t lane, Space space, uint64_t address, uint64_t host, uint32_t size) {
    if (space == generic) {
        space = space_of_window(address);
        if (space != global) address &= ~window_mask;
    }
    return {w, p, lane, space, address, reinterpret_cast<uint8_t*>(host), size, p[1].c};
}

void addresses_of(Addresses& at, const uint8_t* r, int32_t reg, int64_t imm, Form form) {
    if (form == Form::wide) {
        for (int i = 0; i < 4; ++i)
            eight(at, i) = reinterpret_cast<const Eight*>(r + reg)[i] + static_cast<uint64_t>(imm);
    } else if (form == Form::narrow) {
        const uint32_t add = static_cast<uint32_t>(imm);
        const Lanes<uint32_t> low = *reinterpret_cast<const Lanes<uint32_t>*>(r + reg) + add;
        at = __builtin_convertvector(low, Addresses);
    } else {
        at = Addresses{} + static_cast<uint64_t>(imm);
    }
}

Pattern pattern_of(const Addresses& at, uint32_t m, uint32_t size) {
    if (is_row_of(at, m, 0)) return Pattern::same;
    const uint32_t run = m >> first_lane(m);
    if (!(run & (run + 1)) && is_row_of(at, m, size)) return Pattern::row;
    return Pattern::scattered;
}

int find_tensor(Warp* w, int32_t site, uint64_t address, uint64_t size) {
    const Launch* launch = w->block->launch;
    const Tensor* tensors = launch->tensors;
    uint32_t* last = site >= 0 ? &w->worker->last_tensor[site] : nullptr;
    if (last && *last < launch->tensors_count && holds(tensors[*last], address, size)) return *last;
    uint32_t from = 0, to = launch->tensors_count;
    while (from < to) {
        const uint32_t middle = (from + to) / 2;
        if (tensors[middle].end <= address)
            from = middle + 1;
        else
            to = middle;
    }
    if (from == launch->tensors_count || !holds(tensors[from], address, size)) return -1;
    if (last) *last = from;
    return from;
}

bool place(Warp* w, const Ins* p, uint32_t lane, Space space, uint64_t address, uint64_t size, Use use,
           uint32_t alignment, Place& found) {
    if (space == generic) {
        space = space_of_window(address);
        if (space != global) address &= ~window_mask;
    } else if (space == constant) {
        space = global;
    } else if (space == shared && (address & window_mask) == shared_window) {
        address &= ~window_mask;  // some instructions accept generic addresses too
    }
    found.space = space;
    found.address = address;
    const auto refuse = [&](Fault fault) {
        const bool is_write = (use & writes) && fault != Fault::uninitialised;
        fail(w, p, fault, lane, address, size, space, is_write);
        return false;
    };
    const Program* program = w->block->launch->program;
    if (space == global) {
        found.tensor = find_tensor(w, -1, address, size);
        if (found.tensor < 0) return refuse(Fault::out_of_bounds);
        found.host = reinterpret_cast<uint8_t*>(address);
    } else if (space == shared) {
        found.block = shared_block(w, address, found.offset);
        if (!found.block || found.offset > found.block->shared_bytes || size > found.block->shared_bytes - found.offset)
            return refuse(Fault::out_of_bounds);
        found.host = found.block->shared + found.offset;
    } else {
        const uint64_t bytes = space == local ? program->local_bytes : program->parameter_bytes;
        if (address > bytes || size > bytes - address) return refuse(Fault::out_of_bounds);
        found.host = space == local ? w->local + lane * bytes + address
                                    : const_cast<uint8_t*>(w->block->launch->parameters) + address;
    }
    if (alignment && address & (alignment - 1)) return refuse(Fault::misaligned);
    if ((use & writes) && (space == param || (space == global && w->block->launch->tensors[found.tensor].read_only)))
        return refuse(Fault::read_only);
    if ((use & reads) && space == shared && !all_marked(found.block->shared_written, found.offset, size)) {
        Watcher* watcher = w->worker->watcher;
        const Touch touch = {w, p, lane, space, address, found.host, static_cast<uint32_t>(size), weak};
        if (!watcher || !watcher->takes_unwritten(touch)) return refuse(Fault::uninitialised);
    }
    if ((use & reads) && space == local && !all_marked(local_written(w, lane), address, size))
        return refuse(Fault::uninitialised);
    return true;
}

void count_place(Warp* w, const Place& found, uint64_t size, Use use) {
    if (found.space == shared) {
        if (use & writes) mark_own(found.block->shared_written, found.offset, size);
    } else if (found.tensor >= 0 && size) {
        const Tensor& tensor = w->block->launch->tensors[found.tensor];
        count_traffic(w->worker, found.tensor, size, sectors_of(found.address, size), use,
                      found.address - tensor.begin, size);
        mark_tensor(tensor, found.address, size, use);
    }
}

uint8_t* resolve(Warp* w, const Ins* p, uint32_t lane, Space space, uint64_t address, uint32_t size, bool is_write) {
    Place found;
    const Use use = is_write ? writes : reads;
    const bool power = size && !(size & (size - 1));
    if (!place(w, p, lane, space, address, size, use, power ? size : 1, found)) return nullptr;
    count_place(w, found, size, use);
    return found.host;
}

bool reach_few(Warp* w, const Ins* p, const uint8_t* r, uint32_t m, Space space, Form form, uint32_t size, Use use,
               Few& few) {
    if (form == Form::fixed || space == local || space == param) return false;
    uint64_t at[Few::most], low = ~0ull, high = 0, bits = 0;
    uint32_t count = 0;
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = first_lane(left);
        uint64_t address;
        if (form == Form::narrow)
            address = static_cast<uint32_t>(reinterpret_cast<const uint32_t*>(r + p->a)[lane] + p->imm);
        else
            address = reinterpret_cast<const uint64_t*>(r + p->a)[lane] + static_cast<uint64_t>(p->imm);
        at[count++] = address;
        low = address < low ? address : low;
        high = address > high ? address : high;
        bits |= address;
    }
    uint64_t window = 0;
    if (space == generic && (low & window_mask) == shared_window) {
        window = shared_window;
        space = shared;
    }
    low -= window;
    high -= window;
    if (bits & (size - 1)) return false;
    if (space == shared) {
        Block* block = w->block;
        if (high >= block->shared_bytes || high + size > block->shared_bytes) return false;
        uint64_t* written = block->shared_written;
        const uint64_t element = (1ull << size) - 1;
        uint32_t apart = 0;  // number of lanes whose bank no earlier lane uses
        uint64_t banks = 0;
        for (uint32_t i = 0; i < count; ++i) {
            const uint64_t offset = at[i] - window;
            if ((use & reads) && (~(written[offset >> 6] >> (offset & 63)) & element)) return false;
            const uint64_t bank = 1ull << (offset >> 2 & 31);
            apart += !(banks & bank);
            banks |= bank;
        }
        // Accesses of up to 4 bytes in different banks take one pass. wavefronts() counts all other cases.
        if (size > 4 || apart != count) return false;
        for (uint32_t i = 0; i < count; ++i) {
            const uint64_t offset = at[i] - window;
            if (use & writes) written[offset >> 6] |= element << (offset & 63);
            few.host[i] = block->shared + offset;
        }
        count_site(w, p, count, static_cast<uint64_t>(count) * size, 0, 1);
        return true;
    }
    const int index = find_tensor(w, p->c, low, high - low + size);
    if (index < 0) return false;
    const Tensor& tensor = w->block->launch->tensors[index];
    if ((use & writes) && tensor.read_only) return false;
    uint32_t sectors = 0;
    for (uint32_t i = 0; i < count; ++i) {
        bool fresh = true;
        for (uint32_t k = 0; k < i; ++k) fresh = fresh && (at[k] ^ at[i]) >> 5 != 0;
        sectors += fresh;
        if ((use & reads) && tensor.read) mark_element(tensor.read, at[i] - tensor.begin, size);
        if ((use & writes) && tensor.written) mark_element(tensor.written, at[i] - tensor.begin, size);
        few.host[i] = reinterpret_cast<uint8_t*>(at[i]);
    }
    const uint64_t asked = static_cast<uint64_t>(count) * size;
    count_traffic(w->worker, index, asked, sectors, use, low - tensor.begin, high - low + size);
    count_site(w, p, count, asked, sectors, 0);
    return true;
}

bool reach(Warp* w, const Ins* p, uint32_t m, Addresses& at, Pattern pattern, Space space, uint32_t size, Use use) {
    const uint32_t first = first_lane(m);
    if (space == constant) space = global;
    if (space == generic) {
        const uint64_t window = at[first] & window_mask;
        Eight other = {};
        for (int i = 0; i < 4; ++i) other |= ((eight(at, i) ^ window) & window_mask) & lanes_on(m, i);
        const Space one = space_of_window(at[first]);
        // Host addresses are below 2^56, so global addresses have one window too. Lanes with different windows are rare
        // or wrong.
        if (any(other)) return reach_slowly(w, p, m, at, generic, size, use);
        space = one;
        if (space != global) at -= window;
    }
    if (pattern != Pattern::scattered && (space == global || space == shared)) {
        const uint32_t lanes = std::popcount(m);
        const uint64_t base = at[first], span = pattern == Pattern::same ? size : static_cast<uint64_t>(lanes) * size;
        if (space == global) {
            if (reach_row_global(w, p, base, lanes, size, span, use)) return true;
        } else {
            const uint32_t passes = pattern == Pattern::same ? 1 : passes_of(m, size);
            if (reach_row_shared(w, p, base, lanes, size, span, use, passes)) {
                at += reinterpret_cast<uint64_t>(w->block->shared);
                return true;
            }
        }
    }
    switch (space) {
        case global: return reach_global(w, p, m, at, size, use);
        case shared: return reach_shared(w, p, m, at, size, use);
        case local: return reach_local(w, p, m, at, size, use);
        default: return reach_slowly(w, p, m, at, space, size, use);
    }
}

}  // namespace machine
