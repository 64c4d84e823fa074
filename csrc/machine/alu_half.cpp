// alu_half.cpp: fp16 and bf16, alone and two in a register
// setp of two halves: the predicate of the lower half is d, of the upper half c.
#include "functions.h"

namespace machine::alu {
namespace {

using u32 = uint32_t;

constexpr auto add = [](auto a, auto b) { return a + b; };
constexpr auto sub = [](auto a, auto b) { return a - b; };
constexpr auto mul = [](auto a, auto b) { return a * b; };
constexpr auto multiply_add = [](auto a, auto b, auto c) { return fma(a, b, c); };
// For bf16 the product may lie half way between two bf16 numbers, and c may be so small that fp64 loses it. So if the
// fp64 sum has an error, which is computed exactly, its last bit is made odd. Then the sum is not half way, and the
// next rounding is right.
constexpr auto multiply_add_brain = [](auto a, auto b, auto c) {
    using V = decltype(a);
    const V product = a * b;  // exact
    const V sum = product + c, added = sum - product;
    const V error = (product - (sum - added)) + (c - added);
    const auto even_and_inexact = (error != all<V>(0)) & (error == error) & ((bits(sum) & 1) == 0);
    const auto towards = (error > all<V>(0)) == (sum > all<V>(0)) ? bits(sum) + 1 : bits(sum) - 1;
    return even_and_inexact ? as<double>(towards) : sum;
};

constexpr auto minus_of = [](auto a) { return minus(a); };
constexpr auto magnitude_of = [](auto a) { return magnitude(a); };
template <u32 signs>
constexpr auto negate = [](auto a) { return a ^ signs; };
template <u32 signs>
constexpr auto absolute = [](auto a) { return a & ~signs; };

template <class T, auto f>
void compare_both(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    constexpr int n = lanes_at_once<Two<T>>;
    u32 low = 0, high = 0;
    for (int group = 0; group < warp_lanes / n; ++group) {
        const auto a = operand<Two<T>, n, 0, no_immediate>(p, r, group), b = operand<Two<T>, n, 1,
        no_immediate>(p, r, group);
        low |= collect(f(a.low, b.low)) << group * n;
        high |= collect(f(a.high, b.high)) << group * n;
    }
    put_predicate(r, p->d, low, m);
    put_predicate(r, p->c, high, m);
    NEXT;
}

template <bool ftz = false, bool sat = false, bool relu = false>
using F16 = Short<Fp16Bits, ftz, sat, relu>;
using FtzHalf = F16<true>;
using SatHalf = F16<false, true>;
using FtzSatHalf = F16<true, true>;
using ReluHalf = F16<false, false, true>;
using FtzReluHalf = F16<true, false, true>;
using ReluBrain = Short<Bf16Bits, false, false, true>;

#define TWICE(name, type, f, T) ENTRY(name type, f, T(T, T)), ENTRY(name type "x2", in_both<f>, Two<T>(Two<T>, Two<T>))
#define TWICE_OF_THREE(name, type, f, T) \
    ENTRY(name type, f, T(T, T, T)), ENTRY(name type "x2", in_both<f>, Two<T>(Two<T>, Two<T>, Two<T>))
#define SUMS(name, f) \
    TWICE(name, ".f16", f, Half), TWICE(name ".ftz", ".f16", f, FtzHalf), \
        TWICE(name ".sat", ".f16", f, SatHalf), TWICE(name ".ftz.sat", ".f16", f, FtzSatHalf), \
        TWICE(name, ".bf16", f, Brain)
#define EXTREME(name, f) \
    TWICE(name, ".f16", f, Half), TWICE(name ".ftz", ".f16", f, FtzHalf), \
        TWICE(name ".NaN", ".f16", or_nan<f>, Half), TWICE(name ".ftz.NaN", ".f16", or_nan<f>, FtzHalf), \
        TWICE(name ".xorsign.abs", ".f16", of_magnitudes<f>, Half), \
        TWICE(name ".NaN.xorsign.abs", ".f16", of_magnitudes<or_nan<f>>, Half), \
        TWICE(name ".ftz.xorsign.abs", ".f16", of_magnitudes<f>, FtzHalf), \
        TWICE(name ".ftz.NaN.xorsign.abs", ".f16", of_magnitudes<or_nan<f>>, FtzHalf), \
        TWICE(name, ".bf16", f, Brain), TWICE(name ".NaN", ".bf16", or_nan<f>, Brain), \
        TWICE(name ".xorsign.abs", ".bf16", of_magnitudes<f>, Brain), \
        TWICE(name ".NaN.xorsign.abs", ".bf16", of_magnitudes<or_nan<f>>, Brain)
#define COMPARE(name, f) \
    ENTRY("setp." name ".f16", f, Pred(Half, Half)), ENTRY("setp." name ".ftz.f16", f, Pred(FtzHalf, FtzHalf)), \
    ENTRY("setp." name ".bf16", f, Pred(Brain, Brain)), \
        {"setp." name ".f16x2", compare_both<Half, f>}, {"setp." name ".ftz.f16x2", compare_both<FtzHalf, f>}, \
        {"setp." name ".bf16x2", compare_both<Brain, f>}
#define UNARY_TWICE(name, type, f, T) ENTRY(name type, f, T(T)), ENTRY(name type "x2", in_both<f>, Two<T>(Two<T>))
#define SIGNS(type) \
    ENTRY("neg." type, negate<0x8000>, u32(u32)), ENTRY("neg." type "x2", negate<0x80008000>, u32(u32)), \
        ENTRY("abs." type, absolute<0x8000>, u32(u32)), ENTRY("abs." type "x2", absolute<0x80008000>, u32(u32))

REGISTER(alu_half,
    SUMS("add", add), SUMS("sub", sub), SUMS("mul", mul),
    TWICE_OF_THREE("fma", ".f16", multiply_add, Half), TWICE_OF_THREE("fma.ftz", ".f16", multiply_add, FtzHalf),
    TWICE_OF_THREE("fma.sat", ".f16", multiply_add, SatHalf),
    TWICE_OF_THREE("fma.ftz.sat", ".f16", multiply_add, FtzSatHalf),
    TWICE_OF_THREE("fma.relu", ".f16", multiply_add, ReluHalf),
    TWICE_OF_THREE("fma.ftz.relu", ".f16", multiply_add, FtzReluHalf),
    TWICE_OF_THREE("fma", ".bf16", multiply_add_brain, Brain),
    TWICE_OF_THREE("fma.relu", ".bf16", multiply_add_brain, ReluBrain),
    EXTREME("min", least_float), EXTREME("max", greatest_float), SIGNS("f16"), SIGNS("bf16"),
    ENTRY("neg.ftz.f16", minus_of, FtzHalf(FtzHalf)),
    ENTRY("neg.ftz.f16x2", in_both<minus_of>, Two<FtzHalf>(Two<FtzHalf>)),
    ENTRY("abs.ftz.f16", magnitude_of, FtzHalf(FtzHalf)),
    ENTRY("abs.ftz.f16x2", in_both<magnitude_of>, Two<FtzHalf>(Two<FtzHalf>)),
    UNARY_TWICE("ex2.approx", ".f16", exp2_of, Half), UNARY_TWICE("ex2.approx.ftz", ".bf16", exp2_of, Brain),
    UNARY_TWICE("tanh.approx", ".f16", tanh_of, Half), UNARY_TWICE("tanh.approx", ".bf16", tanh_of, Brain),
    ALL_COMPARISONS(COMPARE));

}  // namespace
}  // namespace machine::alu
