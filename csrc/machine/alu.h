// alu.h: how one line makes an arithmetic instruction
// An instruction is a function of vectors and a signature of operand kinds: op<add, Real(Real, Real)>. A kind defines
// the format of a value in its register and the type in which it is computed. Real is an fp32 with the canonical NaN,
// Flushed has no subnormals, Half is computed in fp64 and rounded once.
// Results are the same on every CPU: there is no function of libm, the compiler fuses no products and sums, and every
// NaN is canonical.
// The sources are a, b, c; a fourth is in next.a, where next is the following slot. Each file names its exceptions. The
// register of the result is distinct from those of the operands, or exactly that of an operand of the same width.
#pragma once

#include <cfenv>
#include <utility>

#include "machine.h"

#ifdef __x86_64__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace machine::alu {

#if MACHINE_AVX512
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

#define INLINE __attribute__((always_inline)) inline

template <class T, int n>
struct VecOf {
    typedef T type __attribute__((vector_size(n * sizeof(T))));
    typedef T stored __attribute__((vector_size(n * sizeof(T)), aligned(4), may_alias));
};
template <class T, int n>
using Vec = typename VecOf<T, n>::type;  // n neighbouring lanes

template <class V>
constexpr int width = sizeof(V) / sizeof(Element<V>);

template <int bytes>
using Signed = std::conditional_t<bytes == 4, int32_t, int64_t>;
template <int bytes>
using Unsigned = std::conditional_t<bytes == 4, uint32_t, uint64_t>;

// ---- Functions of vectors ----

// The same bits as another type of the same size.
template <class T, class V>
INLINE Vec<T, width<V>> as(V v) {
    return reinterpret_cast<Vec<T, width<V>>>(v);
}
template <class V>
INLINE auto bits(V v) {
    return as<Unsigned<sizeof(Element<V>)>>(v);
}
template <class T, class V>
INLINE Vec<T, width<V>> convert(V v) {
#if MACHINE_AVX512  // GCC would split these into two instructions
    if constexpr (std::is_same_v<V, Vec<float, 8>> && std::is_same_v<T, double>) return (Vec<T, 8>)_mm512_cvtps_pd((__m256)v);
    if constexpr (std::is_same_v<V, Vec<double, 8>> && std::is_same_v<T, float>) return (Vec<T, 8>)_mm512_cvtpd_ps((__m512d)v);
    if constexpr (std::is_same_v<V, Vec<int32_t, 8>> && std::is_same_v<T, int64_t>) return (Vec<T, 8>)_mm512_cvtepi32_epi64((__m256i)v);
    if constexpr (std::is_same_v<V, Vec<uint32_t, 8>> && std::is_same_v<T, uint64_t>) return (Vec<T, 8>)_mm512_cvtepu32_epi64((__m256i)v);
    if constexpr (sizeof(V) == 64 && width<V> == 8 && std::is_integral_v<Element<V>> && sizeof(T) == 4 && std::is_integral_v<T>)
        return (Vec<T, width<V>>)_mm512_cvtepi64_epi32((__m512i)v);
#endif
    return __builtin_convertvector(v, Vec<T, width<V>>);
}
// A vector of type V with the same constant in every lane.
template <class V>
INLINE V all(Element<V> value) {
    using Bits = Unsigned<sizeof(Element<V>)>;
    return reinterpret_cast<V>(Vec<Bits, width<V>>{} + std::bit_cast<Bits>(value));  // as bits: 0.0 + -0.0 is +0.0
}
template <class V>
INLINE V sign_bit() {
    using Bits = Unsigned<sizeof(Element<V>)>;
    return reinterpret_cast<V>(Vec<Bits, width<V>>{} + (Bits{1} << (8 * sizeof(Bits) - 1)));
}
template <class V>
INLINE V magnitude(V v) {
    return reinterpret_cast<V>(bits(v) & ~bits(sign_bit<V>()));
}
template <class V>
INLINE V with_sign_of(V v, V sign) {
    return reinterpret_cast<V>((bits(v) & ~bits(sign_bit<V>())) | (bits(sign) & bits(sign_bit<V>())));
}
template <class V>
INLINE V minus(V v) {
    return reinterpret_cast<V>(bits(v) ^ bits(sign_bit<V>()));
}

// Replaces every NaN by NVIDIA's canonical NaN, because x86 and ARM produce different ones.
template <class V>
INLINE V canonical(V v) {
    if constexpr (sizeof(Element<V>) == 4)
        return v == v ? v : reinterpret_cast<V>(all<Vec<uint32_t, width<V>>>(0x7fffffff));
    else
        return v == v ? v : reinterpret_cast<V>(all<Vec<uint64_t, width<V>>>(0xfff8'0000'0000'0000));
}
// Subnormal numbers become zero with their sign.
template <class V>
INLINE V flush(V v) {
    using U = Vec<Unsigned<sizeof(Element<V>)>, width<V>>;
    constexpr auto least = sizeof(Element<V>) == 4 ? Element<U>(0x00800000) : Element<U>(0x0010'0000'0000'0000);
    const U unsigned_bits = bits(v) & ~bits(sign_bit<V>());
    return reinterpret_cast<V>(unsigned_bits < least ? bits(v) & bits(sign_bit<V>()) : bits(v));
}
// Clamps to [0, 1]. NaN becomes 0, and -0 becomes +0.
template <class V>
INLINE V saturate(V v) {
    const V above = v > all<V>(0) ? v : all<V>(0);
    return above < all<V>(1) ? above : all<V>(1);
}

// a * b + c, rounded once.
template <class V>
INLINE V fma(V a, V b, V c) {
    [[maybe_unused]] constexpr int bytes = sizeof(V);
    [[maybe_unused]] constexpr bool single = sizeof(Element<V>) == 4;
#if MACHINE_AVX512
    if constexpr (bytes == 64 && single) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    if constexpr (bytes == 64 && !single) return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#endif
#if MACHINE_AVX512 || (defined(__AVX2__) && defined(__FMA__))
    if constexpr (bytes == 32 && single) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    if constexpr (bytes == 32 && !single) return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#endif
#ifdef __aarch64__
    if constexpr (bytes == 16 && single) return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
    if constexpr (bytes == 16 && !single) return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#endif
    V result = c;
    for (int lane = 0; lane < width<V>; ++lane)
        if constexpr (single)
            result[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
        else
            result[lane] = __builtin_fma(a[lane], b[lane], c[lane]);
    return result;
}

template <class V>
INLINE V square_root(V a) {
    [[maybe_unused]] constexpr bool single = sizeof(Element<V>) == 4;
#if MACHINE_AVX512
    if constexpr (sizeof(V) == 64 && single) return (V)_mm512_sqrt_ps((__m512)a);
    if constexpr (sizeof(V) == 64 && !single) return (V)_mm512_sqrt_pd((__m512d)a);
#endif
    V result = a;
    for (int lane = 0; lane < width<V>; ++lane)
        if constexpr (single)
            result[lane] = __builtin_sqrtf(a[lane]);
        else
            result[lane] = __builtin_sqrt(a[lane]);
    return result;
}

// A polynomial in fp64. The constant coefficient comes first.
template <class V>
INLINE V polynomial(V, double last) {
    return all<V>(last);
}
template <class V, class... More>
INLINE V polynomial(V x, double first, More... more) {
    return fma(x, polynomial(x, more...), all<V>(first));
}

// ---- Rounding ----

enum Rounding { nearest, to_zero, down, up };

// Rounds x (fp32 or fp64) to an integer by `mode`. A zero keeps the sign of x. Infinity and NaN stay.
template <Rounding mode, class V>
INLINE V to_integral(V x) {
    using E = Element<V>;
    const V big = all<V>(sizeof(E) == 4 ? E(0x1p23) : E(0x1p52));
    const V shift = with_sign_of(big, x);
    V y = (x + shift) - shift;  // the last bit of the sum stands for 1
    if constexpr (mode == to_zero) y = magnitude(y) > magnitude(x) ? y - with_sign_of(all<V>(1), x) : y;
    if constexpr (mode == down) y = y > x ? y - all<V>(1) : y;
    if constexpr (mode == up) y = y < x ? y + all<V>(1) : y;
    return magnitude(x) < big ? with_sign_of(y, x) : x;
}

// Rounds x (fp64) once to a narrower format and returns it as fp64. The format has `digits` binary digits, or fewer
// below 2^least. A result above `most` becomes infinity, or `most` if the rounding mode requires it.
template <int digits, int least, Rounding mode, class V>
INLINE V rounded(V x, double most) {
    const auto exponent_bits = bits(x) & 0x7ff0'0000'0000'0000u;
    const auto floor = all<Vec<uint64_t, width<V>>>(uint64_t(least + 1023) << 52);
    const auto ceiling = all<Vec<uint64_t, width<V>>>(uint64_t(512 + 1023) << 52);  // above the range of every format
    auto exponent = exponent_bits < floor ? floor : exponent_bits;
    exponent = exponent > ceiling ? ceiling : exponent;
    const V unit = as<double>(exponent - (uint64_t(digits - 1) << 52));  // the value of the last digit
    const V shift = unit * all<V>(0x1.8p52);
    V y = (x + shift) - shift;
    if constexpr (mode == to_zero) y = magnitude(y) > magnitude(x) ? y - with_sign_of(unit, x) : y;
    if constexpr (mode == down) y = y > x ? y - unit : y;
    if constexpr (mode == up) y = y < x ? y + unit : y;
    y = magnitude(x) < all<V>(0x1p400) ? with_sign_of(y, x) : x;  // NaN stays as well
    V beyond = with_sign_of(all<V>(__builtin_inf()), x);
    if constexpr (mode == to_zero) beyond = with_sign_of(all<V>(most), x);
    if constexpr (mode == down) beyond = x > all<V>(0) ? all<V>(most) : beyond;
    if constexpr (mode == up) beyond = x < all<V>(0) ? all<V>(-most) : beyond;
    beyond = magnitude(x) == all<V>(__builtin_inf()) ? x : beyond;
    return magnitude(y) > all<V>(most) ? beyond : y;
}
template <Rounding mode, class V>
INLINE V to_fp32(V x) {
    return rounded<24, -126, mode>(x, 0x1.fffffep127);
}
template <Rounding mode, class V>
INLINE V to_fp16(V x) {
    return rounded<11, -14, mode>(x, 65504);
}
template <Rounding mode, class V>
INLINE V to_bf16(V x) {
    return rounded<8, -126, mode>(x, 0x1.fep127);
}

// Computes f(operands...) with the CPU's own rounding mode set to `mode`. The empty asm statements keep the compiler
// from moving f out of this section.
template <Rounding mode, class F, class V, class... More>
INLINE auto while_rounding(F f, V first, More... more) {
    constexpr int words[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    const int before = fegetround();
    fesetround(words[mode]);
    asm volatile("" : "+m"(first) : : "memory");
    auto result = f(first, more...);
    asm volatile("" : "+m"(result) : : "memory");
    fesetround(before);
    return result;
}

// ---- Kinds. Slot: the type of a lane in the register; decode: from it to the type of computation; encode: back ----

template <class T>
struct Kind {  // T of 4 or 8 bytes, computed as T
    using Slot = T;
    static constexpr bool wide = sizeof(T) == 8, is_long = false;
    template <class V>
    static INLINE V decode(V v) { return v; }
    template <class V>
    static INLINE V encode(V v) { return v; }
};
// Narrow integers: computed with 32 bits, stored with 16 (a signed byte is extended to 16).
template <class T>
struct Narrow {
    using Slot = uint32_t;
    static constexpr bool wide = false, is_long = false;
    template <class V>
    static INLINE auto decode(V v) {
        constexpr int unused = 32 - 8 * sizeof(T);
        if constexpr (std::is_signed_v<T>)
            return (as<int32_t>(v) << unused) >> unused;
        else
            return (v << unused) >> unused;
    }
    template <class V>
    static INLINE auto encode(V v) {
        auto u = as<uint32_t>(v);
        if constexpr (sizeof(T) == 1) return as<uint32_t>(decode(u)) & 0xffff;
        return u & 0xffff;
    }
};
template <> struct Kind<int8_t> : Narrow<int8_t> {};
template <> struct Kind<uint8_t> : Narrow<uint8_t> {};
template <> struct Kind<int16_t> : Narrow<int16_t> {};
template <> struct Kind<uint16_t> : Narrow<uint16_t> {};

// An integer of up to 32 bits, computed with 64.
template <class T>
struct Wide {};
template <class T>
struct Kind<Wide<T>> {
    using Slot = typename Kind<T>::Slot;
    using Computed = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    static constexpr bool wide = true, is_long = false;
    template <class V>
    static INLINE auto decode(V v) { return convert<Computed>(Kind<T>::decode(v)); }
    template <class V>
    static INLINE auto encode(V v) { return as<Slot>(Kind<T>::encode(convert<T32>(v))); }
    using T32 = std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>;
};

// Floats. Real: for arithmetic, with a canonical NaN. ftz, sat: the modifiers of the instruction.
template <class T, bool ftz = false, bool sat = false>
struct Float {};
using Real = Float<float>;
using Real64 = Float<double>;
template <class T, bool ftz, bool sat>
struct Kind<Float<T, ftz, sat>> {
    using Slot = T;
    static constexpr bool wide = sizeof(T) == 8, is_long = false;
    template <class V>
    static INLINE V decode(V v) {
        if constexpr (ftz) return flush(v);
        return v;
    }
    template <class V>
    static INLINE V encode(V v) {
        if constexpr (ftz) v = flush(v);
        if constexpr (sat) return saturate(v);
        return canonical(v);
    }
};
// An fp32, computed as fp64 and rounded once.
template <bool ftz = false, bool sat = false>
struct Doubled {};
template <bool ftz, bool sat>
struct Kind<Doubled<ftz, sat>> {
    using Slot = float;
    static constexpr bool wide = true, is_long = true;
    template <class V>
    static INLINE auto decode(V v) { return convert<double>(Kind<Float<float, ftz, sat>>::decode(v)); }
    template <class V>
    static INLINE auto encode(V v) { return Kind<Float<float, ftz, sat>>::encode(convert<float>(v)); }
};

// fp16 and bf16, computed as fp64. Rounding a sum or product of such short numbers to fp64 and then to their format
// gives the same as rounding once, because the first error is never near half a unit of the format. The same holds for
// the fused multiply-add of fp16. For bf16 see alu_half.cpp.
struct Fp16Bits {
    template <class V>  // uint32 -> fp32
    static INLINE auto decode_single(V v) {
        const auto moved = (v & 0x7fff) << 13;
        const auto finite = bits(as<float>(moved) * 0x1p112f);
        const auto magnitude = moved >= 0x0f800000 ? moved | 0x7f800000 : finite;
        return as<float>(magnitude | (v & 0x8000) << 16);
    }
    template <class V>
    static INLINE auto decode(V v) { return convert<double>(decode_single(v)); }
    template <class V>  // fp64 with an fp16 value -> uint32
    static INLINE auto encode_exact(V x) {
        const auto f = convert<float>(x);
        const auto sign = bits(f) >> 16 & 0x8000;
        const auto u = bits(magnitude(f));
        const auto normal = (u - 0x38000000) >> 13;
        const auto below = u < 0x38800000 ? magnitude(f) : all<decltype(f)>(0);
        const auto small = as<uint32_t>(convert<int32_t>(below * 0x1p24f));
        auto h = u < 0x38800000 ? small : normal;
        h = u >= 0x47800000 ? all<decltype(h)>(0x7c00) : h;
        return u > 0x7f800000 ? all<decltype(h)>(0x7fff) : h | sign;
    }
    template <Rounding mode, class V>
    static INLINE V round(V x) { return to_fp16<mode>(x); }
    static constexpr double least_normal = 0x1p-14;
};
struct Bf16Bits {
    template <class V>
    static INLINE auto decode_single(V v) { return as<float>(v << 16); }
    template <class V>
    static INLINE auto decode(V v) { return convert<double>(decode_single(v)); }
    template <class V>
    static INLINE auto encode_exact(V x) {
        const auto f = convert<float>(x);
        return f == f ? bits(f) >> 16 : all<decltype(bits(f))>(0x7fff);
    }
    template <Rounding mode, class V>
    static INLINE V round(V x) { return to_bf16<mode>(x); }
    static constexpr double least_normal = 0x1p-126;
};
template <class Format, bool ftz = false, bool sat = false, bool relu = false>
struct Short {};
using Half = Short<Fp16Bits>;
using Brain = Short<Bf16Bits>;
template <class Format, bool ftz, bool sat, bool relu>
struct Kind<Short<Format, ftz, sat, relu>> {
    using Slot = uint32_t;
    static constexpr bool wide = true, is_long = true;
    template <class V>
    static INLINE V flushed(V x) {
        return magnitude(x) < all<V>(Format::least_normal) ? with_sign_of(all<V>(0), x) : x;
    }
    template <class V>
    static INLINE auto decode(V v) {
        auto x = Format::decode(v);
        if constexpr (ftz) x = flushed(x);
        return x;
    }
    template <class V>
    static INLINE auto encode(V x) {
        x = Format::template round<nearest>(x);
        if constexpr (ftz) x = flushed(x);
        if constexpr (sat) x = saturate(x);
        if constexpr (relu) x = x < all<V>(0) || bits(x) == bits(sign_bit<V>()) ? all<V>(0) : x;
        return Format::encode_exact(x);
    }
};

// Two of them in one register, each computed by itself.
template <class T>
struct Two {};
template <class V>
struct Both {
    V low, high;
};
template <class T>
struct Kind<Two<T>> {
    using Slot = uint32_t;
    static constexpr bool wide = true, is_long = true;
    template <class V>
    static INLINE auto decode(V v) {
        return Both<decltype(Kind<T>::decode(v))>{Kind<T>::decode(v & 0xffff), Kind<T>::decode(v >> 16)};
    }
    template <class P>
    static INLINE auto encode(P p) { return Kind<T>::encode(p.low) | Kind<T>::encode(p.high) << 16; }
};
template <auto f>
constexpr auto in_both = [](auto... p) {
    return Both<decltype(f(p.low...))>{f(p.low...), f(p.high...)};
};

// A predicate. As a result it is any comparison. As an operand it is all ones or zero, with the width of the other
// lanes.
template <class T>
struct PredicateOf {
    using Lane = T;
};
using Pred = PredicateOf<uint32_t>;
using Pred64 = PredicateOf<uint64_t>;
template <class T>
struct Kind<PredicateOf<T>> {
    static constexpr bool wide = sizeof(T) == 8, is_long = false;
};
template <class T>
constexpr bool is_predicate = false;
template <class T>
constexpr bool is_predicate<PredicateOf<T>> = true;

// ---- Masks and lanes ----

template <class T, int n>
INLINE Vec<Signed<sizeof(T)>, n> spread(uint32_t mask) {
    using V = Vec<Signed<sizeof(T)>, n>;
#if MACHINE_AVX512
    if constexpr (sizeof(V) == 64 && sizeof(T) == 4) return (V)_mm512_movm_epi32(static_cast<__mmask16>(mask));
    if constexpr (sizeof(V) == 64 && sizeof(T) == 8) return (V)_mm512_movm_epi64(static_cast<__mmask8>(mask));
    if constexpr (sizeof(V) == 32 && sizeof(T) == 4) return (V)_mm256_movm_epi32(static_cast<__mmask8>(mask));
#endif
    V bit;
    for (int lane = 0; lane < n; ++lane) bit[lane] = 1 << lane;
    return (all<V>(static_cast<Element<V>>(mask)) & bit) != 0;
}
template <class V>
INLINE uint32_t collect(V comparison) {
    constexpr int n = width<V>;
#if MACHINE_AVX512
    if constexpr (sizeof(V) == 64 && n == 16) return _mm512_movepi32_mask((__m512i)comparison);
    if constexpr (sizeof(V) == 64 && n == 8) return _mm512_movepi64_mask((__m512i)comparison);
    if constexpr (sizeof(V) == 32 && n == 8) return _mm256_movepi32_mask((__m256i)comparison);
#elif defined(__AVX2__)
    if constexpr (sizeof(V) == 32 && n == 8) return _mm256_movemask_ps((__m256)comparison);
    if constexpr (sizeof(V) == 32 && n == 4) return _mm256_movemask_pd((__m256d)comparison);
#endif
    uint32_t mask = 0;
    for (int lane = 0; lane < n; ++lane) mask |= static_cast<uint32_t>(comparison[lane] != 0) << lane;
    return mask;
}

template <class T, int n>
INLINE Vec<T, n> read(const uint8_t* r, int32_t at, int group) {
    return reinterpret_cast<const typename VecOf<T, n>::stored*>(r + at)[group];
}
template <class V>
INLINE void write(uint8_t* to, int group, V v, uint32_t mask) {
    using T = Element<V>;
    constexpr int n = width<V>;
    to += group * n * int(sizeof(T));
    mask >>= group * n;
#if MACHINE_AVX512
    if constexpr (sizeof(V) == 64 && n == 16) return _mm512_mask_storeu_epi32(to, mask, (__m512i)v);
    if constexpr (sizeof(V) == 64 && n == 8) return _mm512_mask_storeu_epi64(to, mask, (__m512i)v);
    if constexpr (sizeof(V) == 32 && n == 8) return _mm256_mask_storeu_epi32(to, mask, (__m256i)v);
#endif
    auto& stored = *reinterpret_cast<typename VecOf<T, n>::stored*>(to);
    stored = spread<T, n>(mask) ? v : Vec<T, n>(stored);
}

// The same, for registers that mostly have all lanes active. A load right after a masked store would have to wait for
// it.
template <class V>
INLINE void store(uint8_t* to, int group, V v, uint32_t mask) {
    if (__builtin_expect(mask == all_lanes, 1))
        reinterpret_cast<typename VecOf<Element<V>, width<V>>::stored*>(to)[group] = v;
    else
        write(to, group, v, mask);
}

template <class... T>
constexpr int lanes_at_once = vector_bytes / ((Kind<T>::wide || ...) ? 8 : 4);

// ---- The instruction ----

constexpr int no_immediate = -1;

// The lanes of a group of source number `source` (a, b, c, next.a).
template <class T, int n, int source, int immediate>
INLINE auto operand(const Ins* p, const uint8_t* r, int group) {
    const int32_t at = source == 0 ? p->a : source == 1 ? p->b : source == 2 ? p->c : p[1].a;
    if constexpr (is_predicate<T>) {
        uint32_t mask;
        memcpy(&mask, r + at, 4);
        return spread<typename T::Lane, n>(mask >> group * n);
    } else if constexpr (source == immediate) {
        using Slot = typename Kind<T>::Slot;
        using Bits = Unsigned<sizeof(Slot)>;
        return Kind<T>::decode(all<Vec<Slot, n>>(std::bit_cast<Slot>(static_cast<Bits>(p->imm))));
    } else {
        return Kind<T>::decode(read<typename Kind<T>::Slot, n>(r, at, group));
    }
}

template <auto f, class Signature, int immediate = no_immediate>
struct Arithmetic;

template <auto f, int immediate, class D, class... S>
struct Arithmetic<f, D(S...), immediate> {
    static constexpr int n = [] {
        if constexpr (is_predicate<D>) return lanes_at_once<S...>;
        else return lanes_at_once<D, S...>;
    }();
    static constexpr int slots_after = sizeof...(S) == 4 ? 1 : 0;

    template <int... source>
    static INLINE auto result(const Ins* p, const uint8_t* r, int group, std::integer_sequence<int, source...>) {
        return f(operand<S, n, source, immediate>(p, r, group)...);
    }

    static constexpr int groups = warp_lanes / n;
    static constexpr auto sources = std::make_integer_sequence<int, sizeof...(S)>{};
    // A function with wider types than its operands is long, so this is a loop, which compiles faster.
    static constexpr bool unrolled = groups <= 4 && !(Kind<D>::is_long || ... || Kind<S>::is_long);

    template <int... group>
    static INLINE void all_groups(const Ins* p, uint8_t* r, uint32_t m, std::integer_sequence<int, group...>) {
        if constexpr (is_predicate<D>) {
            uint32_t holds = 0;
            if constexpr (unrolled)
                holds = ((collect(result(p, r, group, sources)) << group * n) | ...);
            else
#pragma GCC unroll 1
                for (int i = 0; i < groups; ++i) holds |= collect(result(p, r, i, sources)) << i * n;
            put_predicate(r, p->d, holds, m);
        } else {
            using Slot = typename Kind<D>::Slot;
            const auto stored = [&](int i) { return reinterpret_cast<Vec<Slot, n>>(Kind<D>::encode(result(p, r, i, sources))); };
            if constexpr (unrolled) {
                const Vec<Slot, n> v[] = {stored(group)...};
                uint8_t* to = r + p->d;
                if (__builtin_expect(m == all_lanes, 1))
                    ((reinterpret_cast<typename VecOf<Slot, n>::stored*>(to)[group] = v[group]), ...);
                else
                    (write(to, group, v[group], m), ...);
            } else {
#pragma GCC unroll 1
                for (int i = 0; i < groups; ++i) store(r + p->d, i, stored(i), m);
            }
        }
    }
    static void run(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
        all_groups(p, r, m, std::make_integer_sequence<int, groups>{});
        NEXT_AFTER(slots_after);
    }
};
template <auto f, class Signature, int immediate = no_immediate>
constexpr Op op = Arithmetic<f, Signature, immediate>::run;

// The same for a function of single lanes, for operations that vectors do not have.
template <auto f, class Signature, int immediate = no_immediate>
struct OneByOne;
template <auto f, int immediate, class D, class... S>
struct OneByOne<f, D(S...), immediate> {
    template <class T, int source>
    static INLINE T of_lane(const Ins* p, const uint8_t* r, int lane) {
        if constexpr (source == immediate) return static_cast<T>(p->imm);
        const int32_t at = source == 0 ? p->a : source == 1 ? p->b : p->c;
        return reinterpret_cast<const T*>(r + at)[lane];
    }
    template <int... source>
    static INLINE void each(const Ins* p, uint8_t* r, uint32_t m, std::integer_sequence<int, source...>) {
        for (int lane = 0; lane < warp_lanes; ++lane)
            if (m >> lane & 1) reinterpret_cast<D*>(r + p->d)[lane] = f(of_lane<S, source>(p, r, lane)...);
    }
    static void run(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
        each(p, r, m, std::make_integer_sequence<int, sizeof...(S)>{});
        NEXT;
    }
};
template <auto f, class Signature, int immediate = no_immediate>
constexpr Op one_by_one = OneByOne<f, Signature, immediate>::run;

// Entries for an instruction and its forms with a constant. The signature comes last, because it may contain commas.
#define ENTRY(name, f, ...) {name, op<f, __VA_ARGS__>}
#define UNARY(name, f, ...) ENTRY(name, f, __VA_ARGS__), ENTRY(name ".i", f, __VA_ARGS__, 0)
#define BINARY(name, f, ...) ENTRY(name, f, __VA_ARGS__), ENTRY(name ".i", f, __VA_ARGS__, 1)
#define TERNARY(name, f, ...) \
    ENTRY(name, f, __VA_ARGS__), ENTRY(name ".i", f, __VA_ARGS__, 2), ENTRY(name ".ib", f, __VA_ARGS__, 1)

}  // namespace machine::alu
