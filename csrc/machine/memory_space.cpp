// memory_space.cpp: conversions between the generic address space and the others, and hints, which move no data
#include "memory.h"

namespace machine {

namespace {

inline Lanes<uint64_t>& wide(uint8_t* r, int32_t at) { return lanes<uint64_t>(r, at); }

// d = the generic address of address a in the space of this window.
template <uint64_t window>
void to_generic(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    put(r, p->d, wide(r, p->a) | window, m);
    NEXT;
}
template <uint64_t window>
void from_generic(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    put(r, p->d, window ? wide(r, p->a) & ~window_mask : wide(r, p->a), m);
    NEXT;
}

// d: predicate; a: a generic address.
enum class Asked : uint8_t { global, shared, own_shared, local, param };
template <Asked asked>
void is_space(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    uint32_t yes = 0;
    for (uint32_t lane = 0; lane < warp_lanes; ++lane) {
        const uint64_t address = wide(r, p->a)[lane], window = address & window_mask;
        bool is = false;
        switch (asked) {
            case Asked::global: is = window != shared_window && window != local_window && window != param_window; break;
            case Asked::shared: is = window == shared_window; break;
            case Asked::own_shared: {
                const uint64_t rank = (address & ~window_mask) >> rank_shift;
                is = window == shared_window && (rank == 0 || rank == w->block->rank + 1);
                break;
            }
            case Asked::local: is = window == local_window; break;
            case Asked::param: is = window == param_window; break;
        }
        yes |= static_cast<uint32_t>(is) << lane;
    }
    put_predicate(r, p->d, yes, m);
    NEXT;
}

// Constants are in global memory, so the address does not tell. The space is known from the variable's declaration.
void is_constant(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    put_predicate(r, p->d, 0, m);
    NEXT;
}

// d = the address that corresponds to a in the shared memory of the block of rank b.
constexpr uint64_t offset_mask = (1u << rank_shift) - 1;
void map_narrow(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    const Lanes<uint32_t> rank = lanes<uint32_t>(r, p->b) + 1u;
    put(r, p->d, (lanes<uint32_t>(r, p->a) & static_cast<uint32_t>(offset_mask)) | rank << rank_shift, m);
    NEXT;
}
void map_wide(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    const Lanes<uint64_t> rank = __builtin_convertvector(lanes<uint32_t>(r, p->b), Lanes<uint64_t>) + 1ull;
    put(r, p->d, (wide(r, p->a) & (window_mask | offset_mask)) | rank << rank_shift, m);
    NEXT;
}

// d = the rank of the block whose shared memory a points into.
template <class T>
void rank_of(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    Lanes<uint32_t> rank;
    for (uint32_t lane = 0; lane < warp_lanes; ++lane) {
        const uint64_t high = (lanes<T>(r, p->a)[lane] & ~window_mask) >> rank_shift;
        rank[lane] = high ? static_cast<uint32_t>(high - 1) : w->block->rank;
    }
    put(r, p->d, rank, m);
    NEXT;
}

// A prefetch of any address is allowed in PTX, and it changes no memory.
void prefetch(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    Site& site = w->sites[p->c];
    site.times += 1;
    site.lanes += std::popcount(m);
    NEXT_AFTER(1);
}

void create_policy(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    put(r, p->d, Lanes<uint64_t>{}, m);
    NEXT;
}

REGISTER(memory_spaces,
    {"cvta.global.b64", to_generic<0>}, {"cvta.to.global.b64", from_generic<0>},
    {"cvta.const.b64", to_generic<0>}, {"cvta.to.const.b64", from_generic<0>},
    {"cvta.shared.b64", to_generic<shared_window>}, {"cvta.to.shared.b64", from_generic<shared_window>},
    {"cvta.local.b64", to_generic<local_window>}, {"cvta.to.local.b64", from_generic<local_window>},
    {"cvta.param.b64", to_generic<param_window>}, {"cvta.to.param.b64", from_generic<param_window>},
    {"isspacep.global", is_space<Asked::global>}, {"isspacep.shared", is_space<Asked::own_shared>},
    {"isspacep.shared::cta", is_space<Asked::own_shared>}, {"isspacep.shared::cluster", is_space<Asked::shared>},
    {"isspacep.local", is_space<Asked::local>}, {"isspacep.param", is_space<Asked::param>},
    {"isspacep.const", is_constant},
    {"mapa.b32", map_narrow}, {"mapa.b64", map_wide},
    {"getctarank.b32", rank_of<uint32_t>}, {"getctarank.b64", rank_of<uint64_t>},
    {"prefetch", prefetch}, {"createpolicy", create_policy});

}  // namespace

}  // namespace machine
