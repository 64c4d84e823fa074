// functions.h: functions for fp32, fp64, fp16 and bf16: minimum, comparisons, and the approximate functions
// PTX's approximate functions are computed in fp64 by polynomials, within 1e-13 of the true value, and rounded once. So
// they are more exact than on a GPU and the same on every CPU. The coefficients interpolate at Chebyshev nodes.
#pragma once

#include "alu.h"

namespace machine::alu {

// ---- Minimum and maximum. Of a number and NaN the result is the number; -0 is below +0 ----

constexpr auto least_float = [](auto a, auto b) {
    using V = decltype(a);
    V r = a < b ? a : b;
    r = a == b ? reinterpret_cast<V>(bits(a) | bits(b)) : r;
    return b == b ? r : a;
};
constexpr auto greatest_float = [](auto a, auto b) {
    using V = decltype(a);
    V r = a > b ? a : b;
    r = a == b ? reinterpret_cast<V>(bits(a) & bits(b)) : r;
    return b == b ? r : a;
};
// .NaN: of a number and NaN the result is NaN.
template <auto f>
constexpr auto or_nan = [](auto a, auto b) {
    auto r = f(a, b);
    r = a == a ? r : a;
    return b == b ? r : b;
};
// .xorsign.abs: compares the magnitudes; the sign is that of the product.
template <auto f>
constexpr auto of_magnitudes = [](auto a, auto b) {
    using V = decltype(a);
    const V r = f(magnitude(a), magnitude(b));
    return with_sign_of(r, reinterpret_cast<V>(bits(a) ^ bits(b)));
};

// ---- Comparisons. Those with a u are also true if an operand is NaN ----

constexpr auto f_eq = [](auto a, auto b) { return a == b; };
constexpr auto f_ne = [](auto a, auto b) { return (a < b) | (a > b); };
constexpr auto f_lt = [](auto a, auto b) { return a < b; };
constexpr auto f_le = [](auto a, auto b) { return a <= b; };
constexpr auto f_gt = [](auto a, auto b) { return a > b; };
constexpr auto f_ge = [](auto a, auto b) { return a >= b; };
constexpr auto f_equ = [](auto a, auto b) { return ~((a < b) | (a > b)); };
constexpr auto f_neu = [](auto a, auto b) { return a != b; };
constexpr auto f_ltu = [](auto a, auto b) { return ~(a >= b); };
constexpr auto f_leu = [](auto a, auto b) { return ~(a > b); };
constexpr auto f_gtu = [](auto a, auto b) { return ~(a <= b); };
constexpr auto f_geu = [](auto a, auto b) { return ~(a < b); };
constexpr auto f_num = [](auto a, auto b) { return (a == a) & (b == b); };
constexpr auto f_nan = [](auto a, auto b) { return (a != a) | (b != b); };

// Lists all comparisons as ROW(name, function).
#define ALL_COMPARISONS(ROW)                                                                                       \
    ROW("eq", f_eq), ROW("ne", f_ne), ROW("lt", f_lt), ROW("le", f_le), ROW("gt", f_gt), ROW("ge", f_ge),            \
    ROW("equ", f_equ), ROW("neu", f_neu), ROW("ltu", f_ltu), ROW("leu", f_leu), ROW("gtu", f_gtu), ROW("geu", f_geu), \
    ROW("num", f_num), ROW("nan", f_nan)

// ---- Approximate functions, in fp64 ----

constexpr auto exp2_of = [](auto x) {
    using V = decltype(x);
    x = x < all<V>(-300) ? all<V>(-300) : x;  // the result is 0 in fp32 either way
    x = x > all<V>(300) ? all<V>(300) : x;
    const V shifted = x + all<V>(0x1.8p52);  // its lowest bits are the nearest integer
    const V fraction = x - (shifted - all<V>(0x1.8p52));
    const V power = as<double>((bits(shifted) << 52) + bits(all<V>(1)));
    return power * polynomial(fraction, 1.0, 0x1.62e42fefa39f7p-1, 0x1.ebfbdff8149f2p-3, 0x1.c6b08d7044119p-5,
                              0x1.3b2ab72b175eep-7, 0x1.5d87fe908f88ap-10, 0x1.43088e257f341p-13, 0x1.ffcb76789860fp-17,
                              0x1.63ef969a64d3cp-20, 0x1.b6571de2f2351p-24);
};

constexpr auto log2_of = [](auto x) {  // x = 2^k m with m around 1; log2(m) is odd in (m - 1) / (m + 1)
    using V = decltype(x);
    const auto above = as<int64_t>(bits(x) - bits(all<V>(0x1.6a09e667f3bcdp-1))) >> 52;
    const V m = as<double>(bits(x) - as<uint64_t>(above << 52));
    const V k = as<double>(as<uint64_t>(above) + bits(all<V>(0x1.8p52))) - all<V>(0x1.8p52);
    const V s = (m - all<V>(1)) / (m + all<V>(1));
    V result = fma(s, polynomial(s * s, 0x1.71547652b82fep+1, 0x1.ec709dc3a0482p-1, 0x1.2776c50ee2dbbp-1,
                                 0x1.a61762d7ea432p-2, 0x1.484afaebc2a2cp-2, 0x1.0ca17e9ba95e3p-2, 0x1.c467c5e8e1364p-3,
                                 0x1.b5d497cc183b3p-3), k);
    result = x == all<V>(0) ? all<V>(-__builtin_inf()) : result;
    result = x < all<V>(0) ? all<V>(__builtin_nan("")) : result;
    return x < all<V>(__builtin_inf()) ? result : x;  // infinity and NaN
};

// The sine of x plus `ahead` quarter turns: ahead = 0 is the sine, 1 the cosine. It is accurate for |x| up to 2^40.
template <int ahead>
constexpr auto sine_of = [](auto x) {
    using V = decltype(x);
    const V shifted = fma(x, all<V>(0x1.45f306dc9c883p-1), all<V>(0x1.8p52));
    const V quarters = shifted - all<V>(0x1.8p52);
    const auto quadrant = bits(shifted) + ahead;
    V rest = fma(-quarters, all<V>(0x1.921fb54442d18p+0), x);
    rest = fma(-quarters, all<V>(0x1.1a62633145c07p-54), rest);
    rest = fma(-quarters, all<V>(-0x1.f1976b7ed8fbcp-110), rest);
    const V squared = rest * rest;
    const V sine = rest * polynomial(squared, 1.0, -0x1.5555555555543p-3, 0x1.111111110f3b6p-7, -0x1.a01a019ba4cb5p-13,
                                     0x1.71de352cb836cp-19, -0x1.ae5e34c8634f5p-26, 0x1.5d867df81f8eep-33);
    const V cosine = polynomial(squared, 1.0, -0.5, 0x1.5555555555536p-5, -0x1.6c16c16c139c5p-10, 0x1.a01a019b190aep-16,
                                -0x1.27e4f724a2a6cp-22, 0x1.1ee96ae555769p-29, -0x1.8f7519bce3df1p-37);
    V result = (quadrant & 1) != 0 ? cosine : sine;
    result = (quadrant & 2) != 0 ? minus(result) : result;
    if constexpr (ahead == 0) result = x == all<V>(0) ? x : result;  // keeps the sign of -0
    result = result > all<V>(1) ? all<V>(1) : result;  // beyond 2^40
    return result < all<V>(-1) ? all<V>(-1) : result;
};

constexpr auto tanh_of = [](auto x) {
    using V = decltype(x);
    const V small = x * polynomial(x * x, 1.0, -0x1.5555555555555p-2, 0x1.1111111110d01p-3, -0x1.ba1ba1b7bfc4dp-5,
                                   0x1.664f434b30845p-6, -0x1.226848206661fp-7, 0x1.d023e5c112c51p-9);
    V bounded = x > all<V>(30) ? all<V>(30) : x;
    bounded = bounded < all<V>(-30) ? all<V>(-30) : bounded;
    const V power = exp2_of(bounded * all<V>(0x1.71547652b82fep+1));
    return magnitude(x) < all<V>(0.1) ? small : (power - all<V>(1)) / (power + all<V>(1));
};

constexpr auto reciprocal_root = [](auto x) { return all<decltype(x)>(1) / square_root(x); };

}  // namespace machine::alu
