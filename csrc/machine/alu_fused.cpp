// alu_fused.cpp: several PTX instructions as one, if no other instruction uses the values between them
// A bf16 is the upper half of an fp32, so PTX widens it with a shift or a mask before it multiplies.
//   fused.bf16lo.fma.f32, fused.bf16hi.fma.f32   d = a's lower or upper bf16 times b plus c
//   fused.dot8.f32    d = a (slot 0) plus the products of w0 to w3 (slot 1: d a b c) with x0 to x7 (slots 2 and 3), in order
//   fused.dot8.f32.z  the same, starting from +0
#include "alu.h"

namespace machine::alu {
namespace {

using u32 = uint32_t;

constexpr auto low_fma = [](auto w, auto x, auto sum) { return fma(as<float>(w << 16), x, sum); };
constexpr auto high_fma = [](auto w, auto x, auto sum) { return fma(as<float>(w & 0xffff0000), x, sum); };

using Floats = Vec<float, lanes_at_once<float>>;
constexpr int n = width<Floats>;

// sum + weights . (low, high)
INLINE Floats dot2(const uint8_t* r, int group, int32_t weights, int32_t low, int32_t high, Floats sum) {
    const auto packed = read<u32, n>(r, weights, group);
    return high_fma(packed, read<float, n>(r, high, group), low_fma(packed, read<float, n>(r, low, group), sum));
}
template <bool from_zero>
INLINE Floats sum_of_eight(const Ins* p, const uint8_t* r, int group) {
    Floats sum = {};
    if constexpr (!from_zero) sum = read<float, n>(r, p->a, group);
    sum = dot2(r, group, p[1].d, p[2].d, p[2].a, sum);
    sum = dot2(r, group, p[1].a, p[2].b, p[2].c, sum);
    sum = dot2(r, group, p[1].b, p[3].d, p[3].a, sum);
    return canonical(dot2(r, group, p[1].c, p[3].b, p[3].c, sum));
}
template <bool from_zero>
void dot8(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
#pragma GCC unroll 4
    for (int group = 0; group < warp_lanes / n; ++group) store(r + p->d, group, sum_of_eight<from_zero>(p, r, group), m);
    NEXT_AFTER(3);
}

REGISTER(alu_fused,
    ENTRY("fused.bf16lo.fma.f32", low_fma, Real(u32, Real, Real)),
    ENTRY("fused.bf16hi.fma.f32", high_fma, Real(u32, Real, Real)),
    {"fused.dot8.f32", dot8<false>}, {"fused.dot8.f32.z", dot8<true>});

}  // namespace
}  // namespace machine::alu
