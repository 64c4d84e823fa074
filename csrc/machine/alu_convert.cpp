// alu_convert.cpp: cvt between all types
// A result of a narrow integer type has 16 bits, and the register's upper half is zero; the assembler widens it
// further. A value out of range becomes the nearest integer of the type. cvt to two halves: a is the upper half, b the
// lower.
#include <limits>

#include "functions.h"

namespace machine::alu {
namespace {

using s8 = int8_t;
using u8 = uint8_t;
using s16 = int16_t;
using u16 = uint16_t;
using s32 = int32_t;
using u32 = uint32_t;
using s64 = int64_t;
using u64 = uint64_t;

template <class T>
using Sixty = std::conditional_t<sizeof(T) == 8, T, Wide<T>>;  // T computed with 64 bits

// ---- Integer to integer ----

template <class D>
constexpr auto cast = [](auto a) { return convert<std::conditional_t<(sizeof(D) < 4), s32, D>>(a); };
template <class D>
constexpr auto cast64 = [](auto a) { return as<std::conditional_t<std::is_signed_v<D>, s64, u64>>(a); };
template <class D>
constexpr auto clamp_to = [](auto a) {
    using V = decltype(a);
    constexpr bool is_signed = std::is_signed_v<Element<V>>;
    if constexpr (is_signed) {
        constexpr s64 bottom = std::is_signed_v<D> ? static_cast<s64>(std::numeric_limits<D>::min()) : 0;
        a = a < bottom ? all<V>(bottom) : a;
    }
    constexpr u64 top = std::numeric_limits<D>::max(), most = is_signed ? std::numeric_limits<s64>::max() : top;
    constexpr Element<V> bound = top < most ? top : most;
    return cast64<D>(a > bound ? all<V>(bound) : a);
};

// ---- Integer to float ----

template <class T, Rounding mode>
constexpr auto float_of = [](auto a) {  // for integers that T may not hold exactly
    if constexpr (mode == nearest)
        return convert<T>(a);
    else
        return while_rounding<mode>([](auto v) { return convert<T>(v); }, a);
};
// An integer of 32 bits is exact in fp64. For 64 bits, one sticky bit replaces the lowest bits, which gives the same
// rounding to fp16 and bf16.
constexpr auto double_of = [](auto a) {
    using V = decltype(a);
    if constexpr (sizeof(a[0]) == 4) {
        return convert<double>(a);
    } else {
        const V gathered = (a & ~0xfffll) | ((a & 0xfff) != 0 ? all<V>(0x1000) : V{});
        const V size = a < 0 ? -a : a;
        return convert<double>(as<u64>(size) < (u64{1} << 53) ? a : gathered);
    }
};
template <class Format, Rounding mode>
constexpr auto short_of = [](auto a) { return Format::template round<mode>(double_of(a)); };

// ---- Float, as fp64, to integer ----

// NaN becomes 0, or only the top bit if either type has 64 bits.
template <class D, Rounding mode, class S>
constexpr auto integer_of = [](auto x) {
    using V = decltype(x);
    using To = std::conditional_t<std::is_signed_v<D>, s64, u64>;
    constexpr D least = std::numeric_limits<D>::min(), most = std::numeric_limits<D>::max();
    // The largest fp64 that is not above the type's maximum.
    constexpr double top = sizeof(D) < 8 ? static_cast<double>(most) : std::is_signed_v<D> ? 0x1.fffffffffffffp62 : 0x1.fffffffffffffp63;
    x = to_integral<mode>(x);
    V inside = x > all<V>(top) ? all<V>(top) : x;
    inside = inside < all<V>(static_cast<double>(least)) ? all<V>(static_cast<double>(least)) : inside;
    inside = x == x ? inside : all<V>(0);
    using Result = Vec<To, width<V>>;
    Result result;
    if constexpr (sizeof(D) < 8) result = as<To>(convert<s64>(inside));
    else result = x > all<V>(top) ? all<Result>(most) : convert<To>(inside);
    if constexpr (sizeof(D) == 8 || std::is_same_v<S, double>) result = x == x ? result : all<Result>(static_cast<To>(u64{1} << (8 * sizeof(D) - 1)));
    return result;
};

// ---- Float to float ----

constexpr auto same = [](auto x) { return x; };
template <Rounding mode>
constexpr auto integral = [](auto x) { return to_integral<mode>(x); };
template <Rounding mode>
constexpr auto as_fp32 = [](auto x) { return to_fp32<mode>(x); };
template <class Format, Rounding mode>
constexpr auto as_short = [](auto x) { return Format::template round<mode>(x); };
constexpr auto widened = [](auto x) { return convert<double>(x); };

// Two results in one register. relu: a negative result becomes zero. satfinite: a value too large becomes the largest
// finite one; NaN stays NaN.
template <class Format, Rounding mode, bool relu, bool satfinite>
INLINE auto short_bits(auto x) {
    using V = decltype(x);
    constexpr double most = std::is_same_v<Format, Fp16Bits> ? 65504 : 0x1.fep127;
    V y = Format::template round<mode>(x);
    if constexpr (relu) y = y < all<V>(0) || bits(y) == bits(sign_bit<V>()) ? all<V>(0) : y;
    if constexpr (satfinite) y = magnitude(y) > all<V>(most) ? with_sign_of(all<V>(most), y) : y;
    return Format::encode_exact(y);
}
template <class Format, Rounding mode, bool relu = false, bool satfinite = false>
constexpr auto one_short = [](auto a) { return short_bits<Format, mode, relu, satfinite>(convert<double>(a)); };
template <class Format, Rounding mode, bool relu = false, bool satfinite = false>
constexpr auto two_shorts = [](auto upper, auto lower) {
    return short_bits<Format, mode, relu, satfinite>(convert<double>(upper)) << 16 | short_bits<Format, mode, relu, satfinite>(convert<double>(lower));
};
// The most frequent conversion: fp32 to bf16 by its bits.
constexpr auto brain_bits = [](auto x) {
    const auto u = bits(x);
    return x == x ? (u + 0x7fff + (u >> 16 & 1)) >> 16 : all<decltype(u)>(0x7fff);
};
constexpr auto two_brains = [](auto upper, auto lower) { return brain_bits(upper) << 16 | brain_bits(lower); };

// tf32 is an fp32 whose lower 13 bits are zero. rna: a tie goes away from zero.
constexpr auto tf32_away = [](auto x) {
    const auto u = bits(x);
    return (u & 0x7f800000) == 0x7f800000 ? bits(canonical(x)) : (u + 0x1000) & 0xffffe000;
};
template <Rounding mode, bool relu>
constexpr auto tf32 = [](auto x) {
    using V = decltype(x);
    const V y = rounded<11, -126, mode>(x, 0x1.ffcp127);
    return relu ? (y < all<V>(0) || bits(y) == bits(sign_bit<V>()) ? all<V>(0) : y) : y;
};

// fp8, two in 16 bits, always satfinite. e4m3 has neither infinity nor more than 448; its NaN is 0x7f, as is e5m2's.
template <int mantissa, int bias, bool relu>
INLINE auto eight_bits(auto x) {  // fp64 -> uint64
    using V = decltype(x);
    constexpr double most = mantissa == 3 ? 448 : 57344;
    V y = rounded<mantissa + 1, 1 - bias, nearest>(x, most);
    if constexpr (relu) y = y < all<V>(0) || bits(y) == bits(sign_bit<V>()) ? all<V>(0) : y;
    y = magnitude(y) > all<V>(most) ? with_sign_of(all<V>(most), y) : y;
    const auto sign = bits(y) >> 56 & 0x80;
    const auto normal = (bits(magnitude(y)) >> (52 - mantissa)) - (u64(1023 - bias) << mantissa);
    const V unit = all<V>(static_cast<double>(1ull << (mantissa + bias - 1)));  // subnormals are multiples of 1 / unit
    const auto small = bits(magnitude(y) * unit + all<V>(0x1p52)) & 0xff;
    const auto size = magnitude(y) < all<V>(2.0 / (1ull << bias)) ? small : normal;
    return y == y ? size | sign : all<decltype(sign)>(0x7f);
}
template <int mantissa, int bias>
INLINE auto from_eight_bits(auto v) {  // uint32 -> fp64
    const auto magnitude_bits = v & 0x7f;
    const auto e = magnitude_bits >> mantissa, m = magnitude_bits & ((1 << mantissa) - 1);
    const auto normal = as<float>((magnitude_bits << (23 - mantissa)) + (u32(127 - bias) << 23));
    const auto small = convert<float>(as<s32>(m)) * (2.0f / (1 << (mantissa + bias)));
    auto x = e == 0 ? small : normal;
    using F = decltype(x);
    if constexpr (mantissa == 3)
        x = magnitude_bits == 0x7f ? all<F>(__builtin_nanf("")) : x;
    else
        x = magnitude_bits > 0x7c ? all<F>(__builtin_nanf("")) : magnitude_bits == 0x7c ? all<F>(__builtin_inff()) : x;
    return convert<double>(as<float>(bits(x) | (v & 0x80) << 24));
}
template <int mantissa, int bias, bool relu>
constexpr auto two_eights = [](auto upper, auto lower) {
    return eight_bits<mantissa, bias, relu>(convert<double>(upper)) << 8 | eight_bits<mantissa, bias, relu>(convert<double>(lower));
};
template <int mantissa, int bias, bool relu>
constexpr auto two_eights_of_pair = [](auto p) { return eight_bits<mantissa, bias, relu>(p.high) << 8 | eight_bits<mantissa, bias, relu>(p.low); };
template <int mantissa, int bias>
constexpr auto pair_of_eights = [](auto v) {
    return Both<decltype(from_eight_bits<mantissa, bias>(v))>{from_eight_bits<mantissa, bias>(v & 0xff), from_eight_bits<mantissa, bias>(v >> 8 & 0xff)};
};
using Pair16 = Two<Half>;
using ReluPair16 = Two<Short<Fp16Bits, false, false, true>>;

// ---- Entries ----

using Ftz = Float<float, true>;
using Sat = Float<float, false, true>;
using Float32 = Doubled<>;
using Ftz32 = Doubled<true>;
using Sat32 = Doubled<false, true>;
using FtzSat32 = Doubled<true, true>;
using Sat64 = Float<double, false, true>;
using SatHalf = Short<Fp16Bits, false, true>;
using SatBrain = Short<Bf16Bits, false, true>;

#define INTEGER(to, D, from, S) \
    ENTRY("cvt." to "." from, (conditional_function<(sizeof(D) == 8 || sizeof(S) == 8), cast64<D>, cast<D>>), choose_kind<D, sizeof(S) == 8>(choose_kind<S, sizeof(D) == 8>)), \
        ENTRY("cvt.sat." to "." from, clamp_to<D>, Sixty<D>(Sixty<S>))
template <bool first, auto f, auto g>
constexpr auto conditional_function = [](auto... a) {
    if constexpr (first) return f(a...);
    else return g(a...);
};
template <class T, bool other_is_wide>
using choose_kind = std::conditional_t<other_is_wide, Sixty<T>, T>;

#define TO_INTEGER(to, D, from, S) \
    ENTRY("cvt.rni." to "." from, (integer_of<D, nearest, S>), Sixty<D>(S)), \
    ENTRY("cvt.rzi." to "." from, (integer_of<D, to_zero, S>), Sixty<D>(S)), \
        ENTRY("cvt.rmi." to "." from, (integer_of<D, down, S>), Sixty<D>(S)), \
        ENTRY("cvt.rpi." to "." from, (integer_of<D, up, S>), Sixty<D>(S)), \
        ENTRY("cvt.rni.sat." to "." from, (integer_of<D, nearest, S>), Sixty<D>(S)), \
        ENTRY("cvt.rzi.sat." to "." from, (integer_of<D, to_zero, S>), Sixty<D>(S)), \
        ENTRY("cvt.rmi.sat." to "." from, (integer_of<D, down, S>), Sixty<D>(S)), \
        ENTRY("cvt.rpi.sat." to "." from, (integer_of<D, up, S>), Sixty<D>(S))
#define TO_INTEGER_FTZ(to, D) \
    ENTRY("cvt.rni.ftz." to ".f32", (integer_of<D, nearest, float>), Sixty<D>(Ftz32)), \
    ENTRY("cvt.rzi.ftz." to ".f32", (integer_of<D, to_zero, float>), Sixty<D>(Ftz32)), \
        ENTRY("cvt.rmi.ftz." to ".f32", (integer_of<D, down, float>), Sixty<D>(Ftz32)), \
        ENTRY("cvt.rpi.ftz." to ".f32", (integer_of<D, up, float>), Sixty<D>(Ftz32)), \
        ENTRY("cvt.rni.ftz.sat." to ".f32", (integer_of<D, nearest, float>), Sixty<D>(Ftz32)), \
        ENTRY("cvt.rzi.ftz.sat." to ".f32", (integer_of<D, to_zero, float>), Sixty<D>(Ftz32)), \
        ENTRY("cvt.rmi.ftz.sat." to ".f32", (integer_of<D, down, float>), Sixty<D>(Ftz32)), \
        ENTRY("cvt.rpi.ftz.sat." to ".f32", (integer_of<D, up, float>), Sixty<D>(Ftz32))
#define FROM_SHORT_INTEGER(from, S) /* 32 bits or fewer */ \
    ENTRY("cvt.rn.f32." from, (float_of<float, nearest>), float(S)), \
    ENTRY("cvt.rz.f32." from, (float_of<float, to_zero>), float(S)), \
        ENTRY("cvt.rm.f32." from, (float_of<float, down>), float(S)), \
        ENTRY("cvt.rp.f32." from, (float_of<float, up>), float(S)), \
        ENTRY("cvt.rn.sat.f32." from, (float_of<float, nearest>), Float<float, false, true>(S)), \
        ENTRY("cvt.rn.f64." from, (float_of<double, nearest>), double(Wide<S>)), \
        ENTRY("cvt.f64." from, (float_of<double, nearest>), double(Wide<S>)), \
        ENTRY("cvt.rz.f64." from, (float_of<double, nearest>), double(Wide<S>)), \
        ENTRY("cvt.rm.f64." from, (float_of<double, nearest>), double(Wide<S>)), \
        ENTRY("cvt.rp.f64." from, (float_of<double, nearest>), double(Wide<S>)), FROM_ANY_INTEGER(from, Wide<S>)
#define FROM_LONG_INTEGER(from, S) \
    ENTRY("cvt.rn.f32." from, (float_of<float, nearest>), float(S)), \
    ENTRY("cvt.rz.f32." from, (float_of<float, to_zero>), float(S)), \
        ENTRY("cvt.rm.f32." from, (float_of<float, down>), float(S)), \
        ENTRY("cvt.rp.f32." from, (float_of<float, up>), float(S)), \
        ENTRY("cvt.rn.f64." from, (float_of<double, nearest>), double(S)), \
        ENTRY("cvt.rz.f64." from, (float_of<double, to_zero>), double(S)), \
        ENTRY("cvt.rm.f64." from, (float_of<double, down>), double(S)), \
        ENTRY("cvt.rp.f64." from, (float_of<double, up>), double(S)), \
        FROM_ANY_INTEGER(from, S)
#define FROM_ANY_INTEGER(from, S) \
    ENTRY("cvt.rn.f16." from, (short_of<Fp16Bits, nearest>), Half(S)), \
    ENTRY("cvt.rz.f16." from, (short_of<Fp16Bits, to_zero>), Half(S)), \
        ENTRY("cvt.rm.f16." from, (short_of<Fp16Bits, down>), Half(S)), \
        ENTRY("cvt.rp.f16." from, (short_of<Fp16Bits, up>), Half(S)), \
        ENTRY("cvt.rn.bf16." from, (short_of<Bf16Bits, nearest>), Brain(S)), \
        ENTRY("cvt.rz.bf16." from, (short_of<Bf16Bits, to_zero>), Brain(S)), \
        ENTRY("cvt.rm.bf16." from, (short_of<Bf16Bits, down>), Brain(S)), \
        ENTRY("cvt.rp.bf16." from, (short_of<Bf16Bits, up>), Brain(S))
#define EACH_INTEGER(macro, ...) \
    macro("s8", s8, __VA_ARGS__), macro("u8", u8, __VA_ARGS__), macro("s16", s16, __VA_ARGS__), \
    macro("u16", u16, __VA_ARGS__), \
        macro("s32", s32, __VA_ARGS__), macro("u32", u32, __VA_ARGS__), macro("s64", s64, __VA_ARGS__), \
        macro("u64", u64, __VA_ARGS__)

REGISTER(convert_integers,
    EACH_INTEGER(INTEGER, "s8", s8), EACH_INTEGER(INTEGER, "u8", u8), EACH_INTEGER(INTEGER, "s16", s16),
    EACH_INTEGER(INTEGER, "u16", u16),
    EACH_INTEGER(INTEGER, "s32", s32), EACH_INTEGER(INTEGER, "u32", u32), EACH_INTEGER(INTEGER, "s64", s64),
    EACH_INTEGER(INTEGER, "u64", u64));

REGISTER(convert_to_integers,
    EACH_INTEGER(TO_INTEGER, "f32", Float32), EACH_INTEGER(TO_INTEGER, "f64", double),
    EACH_INTEGER(TO_INTEGER, "f16", Half), EACH_INTEGER(TO_INTEGER, "bf16", Brain),
    TO_INTEGER_FTZ("s8", s8), TO_INTEGER_FTZ("u8", u8), TO_INTEGER_FTZ("s16", s16), TO_INTEGER_FTZ("u16", u16),
    TO_INTEGER_FTZ("s32", s32), TO_INTEGER_FTZ("u32", u32), TO_INTEGER_FTZ("s64", s64), TO_INTEGER_FTZ("u64", u64));

REGISTER(convert_from_integers,
    FROM_SHORT_INTEGER("s8", s8), FROM_SHORT_INTEGER("u8", u8), FROM_SHORT_INTEGER("s16", s16),
    FROM_SHORT_INTEGER("u16", u16),
    FROM_SHORT_INTEGER("s32", s32), FROM_SHORT_INTEGER("u32", u32), FROM_LONG_INTEGER("s64", s64),
    FROM_LONG_INTEGER("u64", u64));

#define INTEGRAL(type, modifier, D, S) \
    ENTRY("cvt.rni" modifier "." type "." type, integral<nearest>, D(S)), \
    ENTRY("cvt.rzi" modifier "." type "." type, integral<to_zero>, D(S)), \
        ENTRY("cvt.rmi" modifier "." type "." type, integral<down>, D(S)), \
        ENTRY("cvt.rpi" modifier "." type "." type, integral<up>, D(S))
#define TO_FP32(modifier, from, D, S) \
    ENTRY("cvt.rn" modifier ".f32." from, same, D(S)), ENTRY("cvt.rz" modifier ".f32." from, as_fp32<to_zero>, D(S)), \
        ENTRY("cvt.rm" modifier ".f32." from, as_fp32<down>, D(S)), \
        ENTRY("cvt.rp" modifier ".f32." from, as_fp32<up>, D(S))
#define TO_SHORT(to, Format, modifier, from, D, S) \
    ENTRY("cvt.rn" modifier "." to "." from, (as_short<Format, nearest>), D(S)), \
    ENTRY("cvt.rz" modifier "." to "." from, (as_short<Format, to_zero>), D(S)), \
        ENTRY("cvt.rm" modifier "." to "." from, (as_short<Format, down>), D(S)), \
        ENTRY("cvt.rp" modifier "." to "." from, (as_short<Format, up>), D(S))
#define EXACT(modifier, to, from, D, S) ENTRY("cvt" modifier "." to "." from, same, D(S))
#define PACKED(to, Format, rule, mode) \
    ENTRY("cvt." rule ".relu." to ".f32", (one_short<Format, mode, true, false>), u32(Float32)), \
        ENTRY("cvt." rule ".satfinite." to ".f32", (one_short<Format, mode, false, true>), u32(Float32)), \
        ENTRY("cvt." rule ".relu.satfinite." to ".f32", (one_short<Format, mode, true, true>), u32(Float32)), \
        ENTRY("cvt." rule "." to "x2.f32", (two_shorts<Format, mode, false, false>), u32(Float32, Float32)), \
        ENTRY("cvt." rule ".relu." to "x2.f32", (two_shorts<Format, mode, true, false>), u32(Float32, Float32)), \
        ENTRY("cvt." rule ".satfinite." to "x2.f32", (two_shorts<Format, mode, false, true>), u32(Float32, Float32)), \
        ENTRY("cvt." rule ".relu.satfinite." to "x2.f32", (two_shorts<Format, mode, true, true>), u32(Float32, Float32))
#define EIGHT(type, mantissa, bias) \
    ENTRY("cvt.rn.satfinite." type "x2.f32", (two_eights<mantissa, bias, false>), Low16(Float32, Float32)), \
        ENTRY("cvt.rn.satfinite.relu." type "x2.f32", (two_eights<mantissa, bias, true>), Low16(Float32, Float32)), \
        ENTRY("cvt.rn.satfinite." type "x2.f16x2", (two_eights_of_pair<mantissa, bias, false>), Low16(Pair16)), \
        ENTRY("cvt.rn.satfinite.relu." type "x2.f16x2", (two_eights_of_pair<mantissa, bias, true>), Low16(Pair16)), \
        ENTRY("cvt.rn.f16x2." type "x2", (pair_of_eights<mantissa, bias>), Pair16(u32)), \
        ENTRY("cvt.rn.relu.f16x2." type "x2", (pair_of_eights<mantissa, bias>), ReluPair16(u32))
using Low16 = Wide<u16>;

REGISTER(convert_floats,
    INTEGRAL("f32", "", Real, Real), INTEGRAL("f32", ".ftz", Ftz, Ftz), INTEGRAL("f32", ".sat", Sat, float),
    INTEGRAL("f64", "", Real64, Real64), INTEGRAL("f64", ".sat", Sat64, double), INTEGRAL("f16", "", Half, Half),
    INTEGRAL("bf16", "", Brain, Brain),
    EXACT("", "f32", "f32", Real, Real), ENTRY("cvt.ftz.f32.f32", same, Float<float, true>(Float<float, true>)),
    ENTRY("cvt.sat.f32.f32", same, Float<float, false, true>(float)),
    ENTRY("cvt.ftz.sat.f32.f32", same, Float<float, true, true>(Float<float, true>)),
    EXACT("", "f64", "f64", Real64, Real64), EXACT(".sat", "f64", "f64", Sat64, double),
    EXACT("", "f16", "f16", Half, Half), EXACT(".sat", "f16", "f16", SatHalf, Half),
    EXACT("", "bf16", "bf16", Brain, Brain),
    EXACT("", "f64", "f32", Real64, Float32), EXACT(".ftz", "f64", "f32", Real64, Ftz32),
    EXACT(".sat", "f64", "f32", Sat64, Float32), EXACT(".ftz.sat", "f64", "f32", Sat64, Ftz32),
    TO_FP32("", "f64", Float32, double), TO_FP32(".ftz", "f64", Ftz32, double), TO_FP32(".sat", "f64", Sat32, double),
    TO_FP32(".ftz.sat", "f64", FtzSat32, double),
    EXACT("", "f32", "f16", Float32, Half), EXACT(".ftz", "f32", "f16", Ftz32, Half),
    EXACT(".sat", "f32", "f16", Sat32, Half), EXACT(".ftz.sat", "f32", "f16", FtzSat32, Half),
    EXACT("", "f64", "f16", Real64, Half), EXACT(".sat", "f64", "f16", Sat64, Half),
    EXACT("", "f32", "bf16", Float32, Brain), EXACT(".ftz", "f32", "bf16", Ftz32, Brain),
    EXACT(".sat", "f32", "bf16", Sat32, Brain), EXACT("", "f64", "bf16", Real64, Brain),
    TO_SHORT("f16", Fp16Bits, "", "f32", Half, Float32), TO_SHORT("f16", Fp16Bits, ".ftz", "f32", Half, Ftz32),
    TO_SHORT("f16", Fp16Bits, ".sat", "f32", SatHalf, Float32),
    TO_SHORT("f16", Fp16Bits, ".ftz.sat", "f32", SatHalf, Ftz32), TO_SHORT("f16", Fp16Bits, "", "f64", Half, double),
    TO_SHORT("f16", Fp16Bits, ".sat", "f64", SatHalf, double),
    TO_SHORT("f16", Fp16Bits, "", "bf16", Half, Brain), TO_SHORT("bf16", Bf16Bits, "", "f16", Brain, Half),
    TO_SHORT("bf16", Bf16Bits, "", "f64", Brain, double),
    ENTRY("cvt.rn.bf16.f32", brain_bits, u32(float)),
    ENTRY("cvt.rz.bf16.f32", (as_short<Bf16Bits, to_zero>), Brain(Float32)),
    ENTRY("cvt.rm.bf16.f32", (as_short<Bf16Bits, down>), Brain(Float32)),
    ENTRY("cvt.rp.bf16.f32", (as_short<Bf16Bits, up>), Brain(Float32)),
    ENTRY("cvt.rn.sat.bf16.f32", (as_short<Bf16Bits, nearest>), SatBrain(Float32)),
    PACKED("f16", Fp16Bits, "rn", nearest), PACKED("f16", Fp16Bits, "rz", to_zero),
    PACKED("bf16", Bf16Bits, "rz", to_zero),
    ENTRY("cvt.rn.relu.bf16.f32", (one_short<Bf16Bits, nearest, true, false>), u32(Float32)),
    ENTRY("cvt.rn.satfinite.bf16.f32", (one_short<Bf16Bits, nearest, false, true>), u32(Float32)),
    ENTRY("cvt.rn.relu.satfinite.bf16.f32", (one_short<Bf16Bits, nearest, true, true>), u32(Float32)),
    ENTRY("cvt.rn.bf16x2.f32", two_brains, u32(float, float)),
    ENTRY("cvt.rn.relu.bf16x2.f32", (two_shorts<Bf16Bits, nearest, true, false>), u32(Float32, Float32)),
    ENTRY("cvt.rn.satfinite.bf16x2.f32", (two_shorts<Bf16Bits, nearest, false, true>), u32(Float32, Float32)),
    ENTRY("cvt.rn.relu.satfinite.bf16x2.f32", (two_shorts<Bf16Bits, nearest, true, true>), u32(Float32, Float32)),
    ENTRY("cvt.rna.tf32.f32", tf32_away, u32(float)),
    ENTRY("cvt.rn.tf32.f32", (tf32<nearest, false>), Float32(Float32)),
    ENTRY("cvt.rz.tf32.f32", (tf32<to_zero, false>), Float32(Float32)),
    ENTRY("cvt.rn.relu.tf32.f32", (tf32<nearest, true>), Float32(Float32)),
    ENTRY("cvt.rz.relu.tf32.f32", (tf32<to_zero, true>), Float32(Float32)),
    EIGHT("e4m3", 3, 7), EIGHT("e5m2", 2, 15));

}  // namespace
}  // namespace machine::alu
