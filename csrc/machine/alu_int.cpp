// alu_int.cpp: integers, bits, predicates, moves
// Special operands: an instruction with a carry has the place of the carry predicate (of a sub: the borrow) in imm. The
// length of bfi is next.a; in bfi.*.i imm is position | length << 8. The selector of prmt is c or imm. unpack has its
// second result in b, its third in c, its fourth in next.d, each -1 if it is not used.
#include "alu.h"

namespace machine::alu {
namespace {

using i16 = int16_t;
using u16 = uint16_t;
using i32 = int32_t;
using u32 = uint32_t;
using i64 = int64_t;
using u64 = uint64_t;

// ---- Arithmetic. Sums and products wrap around, so they are computed unsigned ----

constexpr auto add = [](auto a, auto b) { return a + b; };
constexpr auto sub = [](auto a, auto b) { return a - b; };
constexpr auto mul = [](auto a, auto b) { return a * b; };
constexpr auto mad = [](auto a, auto b, auto c) { return a * b + c; };
constexpr auto negate = [](auto a) { return -a; };

// The product of two 32-bit numbers held in 64-bit elements.
template <class V>
INLINE V product(V a, V b) {
#if MACHINE_AVX512
    if constexpr (sizeof(V) == 64 && std::is_signed_v<Element<V>>) return (V)_mm512_mul_epi32((__m512i)a, (__m512i)b);
    if constexpr (sizeof(V) == 64 && !std::is_signed_v<Element<V>>) return (V)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#endif
    return a * b;
}
constexpr auto wide_mul = [](auto a, auto b) { return product(a, b); };
constexpr auto wide_mad = [](auto a, auto b, auto c) { return as<Element<decltype(c)>>(product(a, b)) + c; };
constexpr auto high_mul = [](auto a, auto b) { return product(a, b) >> 32; };
constexpr auto high_mad = [](auto a, auto b, auto c) { return (product(a, b) >> 32) + c; };
constexpr auto high_mul16 = [](auto a, auto b) { return (a * b) >> 16; };
constexpr auto high_mad16 = [](auto a, auto b, auto c) { return ((a * b) >> 16) + c; };
template <class T>
T high_of(T a, T b) {
    using Twice = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>(static_cast<Twice>(a) * b >> 64);
}
constexpr auto high_mul64 = [](auto a, auto b) { return high_of(a, b); };
constexpr auto high_mad64 = [](auto a, auto b, auto c) {
    return static_cast<decltype(c)>(static_cast<u64>(high_of(a, b)) + static_cast<u64>(c));
};
// The upper 32 bits of the 48-bit product of two 24-bit factors. Higher bits of a factor are ignored.
constexpr auto high_mul24 = [](auto a, auto b) { return product((a << 40) >> 40, (b << 40) >> 40) >> 16; };
constexpr auto high_mad24 = [](auto a, auto b, auto c) { return (product((a << 40) >> 40, (b << 40) >> 40) >> 16) + c; };
constexpr auto low_mul24 = [](auto a, auto b) { return ((a << 8) >> 8) * ((b << 8) >> 8); };
constexpr auto low_mad24 = [](auto a, auto b, auto c) { return ((a << 8) >> 8) * ((b << 8) >> 8) + c; };

constexpr auto clamped_add = [](auto a, auto b) {
    const auto sum = a + b;
    const auto top = all<decltype(sum)>(0x7fffffff), bottom = all<decltype(sum)>(-int64_t{0x80000000});
    return sum > top ? top : sum < bottom ? bottom : sum;
};
constexpr auto clamped_sub = [](auto a, auto b) { return clamped_add(a, -b); };
constexpr auto clamped_high_mad = [](auto a, auto b, auto c) { return clamped_add(product(a, b) >> 32, c); };

constexpr auto least = [](auto a, auto b) { return a < b ? a : b; };
constexpr auto greatest = [](auto a, auto b) { return a > b ? a : b; };
constexpr auto least_relu = [](auto a, auto b) { return greatest(least(a, b), decltype(a){}); };
constexpr auto greatest_relu = [](auto a, auto b) { return greatest(greatest(a, b), decltype(a){}); };
constexpr auto absolute = [](auto a) {
    using U = std::make_unsigned_t<Element<decltype(a)>>;
    return a < 0 ? -as<U>(a) : as<U>(a);
};
constexpr auto sad = [](auto a, auto b, auto c) {
    using U = std::make_unsigned_t<Element<decltype(a)>>;
    return as<Element<decltype(c)>>(a < b ? as<U>(b) - as<U>(a) : as<U>(a) - as<U>(b)) + c;
};

// Division by zero gives all ones as quotient and the dividend as remainder. For 32-bit numbers, the truncated fp64
// quotient is exact.
constexpr auto quotient = [](auto a, auto b) {
    using T = Element<decltype(a)>;
    const auto safe = b == 0 ? all<decltype(b)>(1) : b;
    const auto q = convert<T>(convert<double>(a) / convert<double>(safe));
    return b == 0 ? all<decltype(q)>(static_cast<T>(-1)) : q;
};
constexpr auto remainder = [](auto a, auto b) { return b == 0 ? a : a - quotient(a, b) * b; };
constexpr auto quotient64 = [](auto a, auto b) {
    using T = decltype(a);
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - static_cast<u64>(a));
    return static_cast<T>(a / b);
};
constexpr auto remainder64 = [](auto a, auto b) {
    using T = decltype(a);
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return T{0};
    return static_cast<T>(a % b);
};

// ---- Bits ----

constexpr auto both = [](auto a, auto b) { return a & b; };
constexpr auto either = [](auto a, auto b) { return a | b; };
constexpr auto differ = [](auto a, auto b) { return a ^ b; };
constexpr auto inverse = [](auto a) { return ~a; };
constexpr auto is_zero = [](auto a) { return a == 0 ? all<decltype(a)>(1) : decltype(a){}; };
constexpr auto same = [](auto a) { return a; };

// A shift by the width or more gives zero, or copies of the sign. The count has 32 bits, also for a 64-bit value.
constexpr auto left = [](auto a, auto count) {
    using V = decltype(a);
    [[maybe_unused]] constexpr int most = 8 * sizeof(Element<V>) - 1;
#if MACHINE_AVX512
    if constexpr (sizeof(V) == 64 && most == 31) return (V)_mm512_sllv_epi32((__m512i)a, (__m512i)count);
    if constexpr (sizeof(V) == 64 && most == 63) return (V)_mm512_sllv_epi64((__m512i)a, (__m512i)count);
#endif
    const auto n = as<Element<V>>(count);
    return n > most ? V{} : a << (n & most);
};
constexpr auto right = [](auto a, auto count) {
    using V = decltype(a);
    [[maybe_unused]] constexpr int most = 8 * sizeof(Element<V>) - 1;
    using E = Element<V>;
#if MACHINE_AVX512
    if constexpr (std::is_signed_v<E>) {
        if constexpr (sizeof(V) == 64 && most == 31) return (V)_mm512_srav_epi32((__m512i)a, (__m512i)count);
        if constexpr (sizeof(V) == 64 && most == 63) return (V)_mm512_srav_epi64((__m512i)a, (__m512i)count);
    } else {
        if constexpr (sizeof(V) == 64 && most == 31) return (V)_mm512_srlv_epi32((__m512i)a, (__m512i)count);
        if constexpr (sizeof(V) == 64 && most == 63) return (V)_mm512_srlv_epi64((__m512i)a, (__m512i)count);
    }
#endif
    if constexpr (std::is_signed_v<E>)
        return a >> as<E>(count > most ? all<decltype(count)>(most) : count);
    else
        return count > most ? V{} : a >> (count & most);
};

// 32 bits of the shifted high:low. The count is clamped to 32 or taken modulo 32.
constexpr auto funnel_left = [](auto low, auto high, auto n) { return ((high << 32 | low) << n) >> 32; };
constexpr auto funnel_right = [](auto low, auto high, auto n) { return ((high << 32 | low) >> n) & 0xffffffff; };
constexpr auto shf_l_clamp = [](auto a, auto b, auto c) { return funnel_left(a, b, c > 32 ? all<decltype(c)>(32) : c); };
constexpr auto shf_r_clamp = [](auto a, auto b, auto c) { return funnel_right(a, b, c > 32 ? all<decltype(c)>(32) : c); };
constexpr auto shf_l_wrap = [](auto a, auto b, auto c) { return funnel_left(a, b, c & 31); };
constexpr auto shf_r_wrap = [](auto a, auto b, auto c) { return funnel_right(a, b, c & 31); };

// The truth table gives each bit: c chooses half of it, then b, then a.
void lop3(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    using V = Lanes<u32>;
    const V a = lanes<u32>(r, p->a), b = lanes<u32>(r, p->b), c = lanes<u32>(r, p->c);
    V by_c[4], by_b[2];
    for (int i = 0; i < 4; ++i) {
        const u32 zero = p->imm >> 2 * i & 1 ? all_lanes : 0, one = p->imm >> (2 * i + 1) & 1 ? all_lanes : 0;
        by_c[i] = (~c & zero) | (c & one);
    }
    for (int i = 0; i < 2; ++i) by_b[i] = (~b & by_c[2 * i]) | (b & by_c[2 * i + 1]);
    put(r, p->d, V((~a & by_b[0]) | (a & by_b[1])), m);
    NEXT;
}

constexpr auto ones = [](auto a) { return static_cast<u32>(std::popcount(a)); };
constexpr auto zeros_above = [](auto a) { return static_cast<u32>(std::countl_zero(a)); };
constexpr auto reversed = [](auto a) {
    decltype(a) result = 0;
    for (unsigned i = 0; i < 8 * sizeof(a); ++i, a >>= 1) result = result << 1 | (a & 1);
    return result;
};
// The position of the highest bit that differs from the sign, or all ones if there is none. With shift_amount: the
// shift that moves this bit to the top.
template <bool shift_amount, class T>
u32 highest(T a) {
    using U = std::make_unsigned_t<T>;
    const U bits = std::is_signed_v<T> && a < 0 ? ~static_cast<U>(a) : static_cast<U>(a);
    if (bits == 0) return ~0u;
    const u32 zeros = std::countl_zero(bits);
    return shift_amount ? zeros : 8 * sizeof(T) - 1 - zeros;
}
constexpr auto bfind = [](auto a) { return highest<false>(a); };
constexpr auto bfind_shift = [](auto a) { return highest<true>(a); };

// Bit fields. Position and length are the lower 8 bits of their operands. Bits beyond the top are the sign, or zero.
template <class T>
T extract(T a, u32 position, u32 length) {
    constexpr u32 top = 8 * sizeof(T) - 1;
    using U = std::make_unsigned_t<T>;
    position &= 255, length &= 255;
    if (length == 0) return 0;
    const u32 last = std::min(position + length - 1, top);
    const U sign = std::is_signed_v<T> && static_cast<U>(a) >> last & 1 ? ~U{0} : U{0};
    if (position > top) return static_cast<T>(sign);
    const U kept = static_cast<U>(a) >> position;
    if (length > top || position + length > top) return static_cast<T>(position ? kept | (sign << (top + 1 - position)) : kept);
    const U field = (U{1} << length) - 1;
    return static_cast<T>((kept & field) | (sign & ~field));
}
constexpr auto bfe = [](auto a, u32 position, u32 length) { return extract(a, position, length); };
template <class T>
T insert(T a, T into, u32 position, u32 length) {
    constexpr u32 top = 8 * sizeof(T) - 1;
    position &= 255, length &= 255;
    if (length == 0 || position > top) return into;
    const T field = (length > top ? ~T{0} : (T{1} << length) - 1) << position;
    return (into & ~field) | (a << position & field);
}
template <class T>
void bfi(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    T* d = reinterpret_cast<T*>(r + p->d);
    const T *a = reinterpret_cast<T*>(r + p->a), *b = reinterpret_cast<T*>(r + p->b);
    const u32 *position = reinterpret_cast<u32*>(r + p->c), *length = reinterpret_cast<u32*>(r + p[1].a);
    for (int lane = 0; lane < warp_lanes; ++lane)
        if (m >> lane & 1) d[lane] = insert(a[lane], b[lane], position[lane], length[lane]);
    NEXT_AFTER(1);
}
template <class T>
void bfi_constant(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    constexpr int n = lanes_at_once<T>;
    const T field = insert<T>(~T{0}, 0, p->imm & 255, p->imm >> 8);
    const int position = field ? std::countr_zero(field) : 0;
#pragma GCC unroll 4
    for (int group = 0; group < warp_lanes / n; ++group) {
        const auto a = read<T, n>(r, p->a, group), b = read<T, n>(r, p->b, group);
        store(r + p->d, group, Vec<T, n>((b & ~field) | (a << position & field)), m);
    }
    NEXT;
}
template <bool wrap>
u32 mask_of(u32 position, u32 length) {
    if (wrap) position &= 31, length &= 31;
    if (position > 31 || length == 0) return 0;
    return (length > 31 ? ~0u : (1u << length) - 1) << position;
}
template <bool wrap, class T>
T extended(T a, u32 length) {
    if (wrap) length &= 31;
    if (length == 0) return 0;
    if (length > 31) return a;
    const u32 moved = static_cast<u32>(a) << (32 - length);
    return static_cast<T>(moved) >> (32 - length);
}
constexpr auto bmsk_clamp = [](u32 a, u32 b) { return mask_of<false>(a, b); };
constexpr auto bmsk_wrap = [](u32 a, u32 b) { return mask_of<true>(a, b); };
constexpr auto szext_clamp = [](auto a, u32 length) { return extended<false>(a, length); };
constexpr auto szext_wrap = [](auto a, u32 length) { return extended<true>(a, length); };
// The n-th set bit from `base` upwards, or downwards if n is negative. For n = 0 it is `base` if that bit is set.
constexpr auto fns = [](u32 mask, u32 base, i32 n) -> u32 {
    if (base > 31) return ~0u;
    if (n == 0) return mask >> base & 1 ? base : ~0u;
    const i32 step = n > 0 ? 1 : -1;
    i32 missing = n > 0 ? n : -n;
    for (i32 at = base; at >= 0 && at < 32; at += step)
        if (mask >> at & 1 && --missing == 0) return at;
    return ~0u;
};

// Each nibble of the selector names one byte of b:a. With the nibble's upper bit, the result is that byte's sign.
constexpr auto permute = [](auto a, auto b, auto selector) {
    decltype(a) result{};
    for (int i = 0; i < 4; ++i) {
        const auto nibble = selector >> 4 * i;
        const auto byte = ((nibble & 4) != 0 ? b : a) >> ((nibble & 3) << 3) & 0xff;
        const auto sign = (byte & 0x80) != 0 ? all<decltype(a)>(0xff) : decltype(a){};
        result |= ((nibble & 8) != 0 ? sign : byte) << 8 * i;
    }
    return result;
};
template <u32 s0, u32 s1, u32 s2, u32 s3>
constexpr auto permute_mode = [](auto a, auto b, auto c) {
    using V = decltype(c);
    const auto which = c & 3;
    return permute(a, b, which == 0 ? all<V>(s0) : which == 1 ? all<V>(s1) : which == 2 ? all<V>(s2) : all<V>(s3));
};

// Sums of products of bytes, or of 16-bit numbers with bytes.
template <class T, class V>
INLINE auto part(V v, int at) {
    constexpr int unused = 32 - 8 * sizeof(T);
    if constexpr (std::is_signed_v<T>)
        return as<u32>(as<i32>(v << (unused - at)) >> unused);
    else
        return v << (unused - at) >> unused;
}
template <class A, class B>
constexpr auto dp4a = [](auto a, auto b, auto c) {
    for (int at = 0; at < 32; at += 8) c += part<A>(a, at) * part<B>(b, at);
    return c;
};
template <class A, class B, int from>
constexpr auto dp2a = [](auto a, auto b, auto c) {
    return c + part<A>(a, 0) * part<B>(b, from) + part<A>(a, 16) * part<B>(b, from + 8);
};

// ---- Sums over several registers. The carry is a predicate at imm ----

// x + y + carry, or x - y - borrow. y may be a product.
template <bool subtract, bool takes, bool leaves, class V>
INLINE void with_carry(const Ins* p, uint8_t* r, uint32_t m, V x, V y) {
    using T = Element<V>;
    const int32_t at = static_cast<int32_t>(p->imm);
    u32 carry = predicate(r, at), carry_out = 0;
    V result;
    for (int lane = 0; lane < warp_lanes; ++lane) {
        const T in = takes ? carry >> lane & 1 : 0;
        const T first = subtract ? x[lane] - y[lane] : x[lane] + y[lane];
        const T second = subtract ? first - in : first + in;
        const bool over = subtract ? x[lane] < y[lane] || first < in : first < x[lane] || second < first;
        result[lane] = second;
        carry_out |= static_cast<u32>(over) << lane;
    }
    put(r, p->d, result, m);
    if (leaves) put_predicate(r, at, carry_out, m);
}
template <class T, bool subtract, bool takes, bool leaves>
void carry_sum(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    with_carry<subtract, takes, leaves>(p, r, m, Lanes<T>(lanes<T>(r, p->a)), Lanes<T>(lanes<T>(r, p->b)));
    NEXT;
}
// T is signed for the upper half of a signed product; sums and carries are unsigned.
template <class T, bool high, bool takes, bool leaves>
void carry_mad(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    using U = std::make_unsigned_t<T>;
    using Twice = std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, i64, u64>,
                                     std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>;
    const T *a = reinterpret_cast<T*>(r + p->a), *b = reinterpret_cast<T*>(r + p->b);
    Lanes<U> x;
    for (int lane = 0; lane < warp_lanes; ++lane)
        x[lane] = static_cast<U>(static_cast<Twice>(a[lane]) * b[lane] >> (high ? 8 * sizeof(T) : 0));
    with_carry<false, takes, leaves>(p, r, m, x, Lanes<U>(lanes<U>(r, p->c)));
    NEXT;
}

// ---- Choice ----

constexpr auto choose = [](auto a, auto b, auto chosen) { return chosen ? a : b; };
constexpr auto choose_by_sign = [](auto a, auto b, auto c) { return c >= 0 ? a : b; };
constexpr auto choose_by_sign64 = [](auto a, auto b, auto c) { return convert<i64>(as<i32>(c)) >= 0 ? a : b; };
template <bool ftz>
constexpr auto choose_by_float = [](auto a, auto b, auto c) {  // NaN gives b, -0 gives a
    return (ftz ? flush(c) : c) >= 0 ? a : b;
};
template <bool ftz>
constexpr auto choose_by_float64 = [](auto a, auto b, auto c) {
    return convert<double>(ftz ? flush(c) : c) >= 0 ? a : b;
};

// ---- Comparisons of integers ----

constexpr auto eq = [](auto a, auto b) { return a == b; };
constexpr auto ne = [](auto a, auto b) { return a != b; };
constexpr auto lt = [](auto a, auto b) { return a < b; };
constexpr auto le = [](auto a, auto b) { return a <= b; };
constexpr auto gt = [](auto a, auto b) { return a > b; };
constexpr auto ge = [](auto a, auto b) { return a >= b; };

// ---- Predicates ----

template <auto f>
void logic(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    put_predicate(r, p->d, f(predicate(r, p->a), predicate(r, p->b)), m);
    NEXT;
}
template <auto f>
void logic_of_one(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    put_predicate(r, p->d, f(predicate(r, p->a)), m);
    NEXT;
}
void mov_pred_i(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    put_predicate(r, p->d, p->imm ? all_lanes : 0, m);
    NEXT;
}
constexpr auto and_not = [](u32 a, u32 b) { return a & ~b; };
constexpr auto or_not = [](u32 a, u32 b) { return a | ~b; };

// ---- Packing and unpacking of registers ----

constexpr auto join16 = [](auto a, auto b) { return a | b << 16; };
constexpr auto join32 = [](auto a, auto b) { return a | b << 32; };
constexpr auto join_four16 = [](auto a, auto b, auto c, auto d) { return a | b << 16 | c << 32 | d << 48; };

template <class T, int bits, int count>
void unpack(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    const Lanes<T> v = lanes<T>(r, p->a);
    const int32_t to[] = {p->d, p->b, count == 4 ? p->c : -1, count == 4 ? p[1].d : -1};
    for (int i = 0; i < count; ++i)
        if (to[i] >= 0) {
            const Lanes<u32> piece = __builtin_convertvector(v >> bits * i, Lanes<u32>);
            put(r, to[i], bits == 32 ? piece : Lanes<u32>(piece & 0xffff), m);
        }
    NEXT_AFTER(count == 4 ? 1 : 0);
}

#define COMPARE(type, T) \
    BINARY("setp.lt." type, lt, Pred(T, T)), BINARY("setp.le." type, le, Pred(T, T)), \
        BINARY("setp.gt." type, gt, Pred(T, T)), BINARY("setp.ge." type, ge, Pred(T, T))
#define EQUAL(type, T) BINARY("setp.eq." type, eq, Pred(T, T)), BINARY("setp.ne." type, ne, Pred(T, T))
#define EXTREMES(type, T) BINARY("min." type, least, T(T, T)), BINARY("max." type, greatest, T(T, T))
#define CARRY_SUM(type, T) \
    {"add.cc." type, carry_sum<T, false, false, true>}, {"addc." type, carry_sum<T, false, true, false>}, \
        {"addc.cc." type, carry_sum<T, false, true, true>}, {"sub.cc." type, carry_sum<T, true, false, true>}, \
        {"subc." type, carry_sum<T, true, true, false>}, {"subc.cc." type, carry_sum<T, true, true, true>}
#define CARRY_MAD(half, type, T, high) \
    {"mad." half ".cc." type, carry_mad<T, high, false, true>}, \
    {"madc." half "." type, carry_mad<T, high, true, false>}, \
        {"madc." half ".cc." type, carry_mad<T, high, true, true>}
#define ONE_BY_ONE(name, f, ...) {name, one_by_one<f, __VA_ARGS__>}
#define ONE_BY_ONE_BINARY(name, f, ...) ONE_BY_ONE(name, f, __VA_ARGS__), ONE_BY_ONE(name ".i", f, __VA_ARGS__, 1)

REGISTER(alu_int,
    // Arithmetic
    BINARY("add.b32", add, u32(u32, u32)), BINARY("sub.b32", sub, u32(u32, u32)),
    BINARY("mul.lo.b32", mul, u32(u32, u32)),
    TERNARY("mad.lo.b32", mad, u32(u32, u32, u32)), ENTRY("neg.b32", negate, u32(u32)),
    BINARY("add.b64", add, u64(u64, u64)), BINARY("sub.b64", sub, u64(u64, u64)),
    BINARY("mul.lo.b64", mul, u64(u64, u64)),
    TERNARY("mad.lo.b64", mad, u64(u64, u64, u64)), ENTRY("neg.b64", negate, u64(u64)),
    BINARY("add.b16", add, u16(u16, u16)), BINARY("sub.b16", sub, u16(u16, u16)),
    BINARY("mul.lo.b16", mul, u16(u16, u16)),
    TERNARY("mad.lo.b16", mad, u16(u16, u16, u16)), ENTRY("neg.b16", negate, u16(u16)),
    ENTRY("add.b16x2", in_both<add>, Two<u16>(Two<u16>, Two<u16>)),
    ENTRY("add.u16x2", in_both<add>, Two<u16>(Two<u16>, Two<u16>)),
    ENTRY("add.s16x2", in_both<add>, Two<u16>(Two<u16>, Two<u16>)),
    BINARY("mul.wide.s32", wide_mul, i64(Wide<i32>, Wide<i32>)),
    BINARY("mul.wide.u32", wide_mul, u64(Wide<u32>, Wide<u32>)),
    BINARY("mul.wide.s16", mul, i32(i16, i16)), BINARY("mul.wide.u16", mul, u32(u16, u16)),
    TERNARY("mad.wide.s32", wide_mad, i64(Wide<i32>, Wide<i32>, i64)),
    TERNARY("mad.wide.u32", wide_mad, u64(Wide<u32>, Wide<u32>, u64)),
    TERNARY("mad.wide.s16", mad, i32(i16, i16, i32)), TERNARY("mad.wide.u16", mad, u32(u16, u16, u32)),
    BINARY("mul.hi.s32", high_mul, Wide<i32>(Wide<i32>, Wide<i32>)),
    BINARY("mul.hi.u32", high_mul, Wide<u32>(Wide<u32>, Wide<u32>)),
    BINARY("mul.hi.s16", high_mul16, i16(i16, i16)), BINARY("mul.hi.u16", high_mul16, u16(u16, u16)),
    ONE_BY_ONE_BINARY("mul.hi.s64", high_mul64, i64(i64, i64)),
    ONE_BY_ONE_BINARY("mul.hi.u64", high_mul64, u64(u64, u64)),
    ENTRY("mad.hi.s32", high_mad, Wide<i32>(Wide<i32>, Wide<i32>, Wide<i32>)),
    ENTRY("mad.hi.u32", high_mad, Wide<u32>(Wide<u32>, Wide<u32>, Wide<u32>)),
    ENTRY("mad.hi.sat.s32", clamped_high_mad, Wide<i32>(Wide<i32>, Wide<i32>, Wide<i32>)),
    ENTRY("mad.hi.s16", high_mad16, i16(i16, i16, i16)), ENTRY("mad.hi.u16", high_mad16, u16(u16, u16, u16)),
    ONE_BY_ONE("mad.hi.s64", high_mad64, i64(i64, i64, i64)), ONE_BY_ONE("mad.hi.u64", high_mad64, u64(u64, u64, u64)),
    ENTRY("mul24.lo.s32", low_mul24, i32(i32, i32)), ENTRY("mul24.lo.u32", low_mul24, u32(u32, u32)),
    ENTRY("mul24.hi.s32", high_mul24, Wide<i32>(Wide<i32>, Wide<i32>)),
    ENTRY("mul24.hi.u32", high_mul24, Wide<u32>(Wide<u32>, Wide<u32>)),
    ENTRY("mad24.lo.s32", low_mad24, i32(i32, i32, i32)), ENTRY("mad24.lo.u32", low_mad24, u32(u32, u32, u32)),
    ENTRY("mad24.hi.s32", high_mad24, Wide<i32>(Wide<i32>, Wide<i32>, Wide<i32>)),
    ENTRY("mad24.hi.u32", high_mad24, Wide<u32>(Wide<u32>, Wide<u32>, Wide<u32>)),
    BINARY("add.sat.s32", clamped_add, Wide<i32>(Wide<i32>, Wide<i32>)),
    BINARY("sub.sat.s32", clamped_sub, Wide<i32>(Wide<i32>, Wide<i32>)),
    EXTREMES("s16", i16), EXTREMES("u16", u16), EXTREMES("s32", i32), EXTREMES("u32", u32), EXTREMES("s64", i64),
    EXTREMES("u64", u64),
    ENTRY("min.relu.s32", least_relu, i32(i32, i32)), ENTRY("max.relu.s32", greatest_relu, i32(i32, i32)),
    ENTRY("min.s16x2", in_both<least>, Two<i16>(Two<i16>, Two<i16>)),
    ENTRY("max.s16x2", in_both<greatest>, Two<i16>(Two<i16>, Two<i16>)),
    ENTRY("min.u16x2", in_both<least>, Two<u16>(Two<u16>, Two<u16>)),
    ENTRY("max.u16x2", in_both<greatest>, Two<u16>(Two<u16>, Two<u16>)),
    ENTRY("abs.s16", absolute, i16(i16)), ENTRY("abs.s32", absolute, i32(i32)), ENTRY("abs.s64", absolute, i64(i64)),
    ENTRY("sad.s16", sad, i16(i16, i16, i16)), ENTRY("sad.u16", sad, u16(u16, u16, u16)),
    ENTRY("sad.s32", sad, i32(i32, i32, i32)),
    ENTRY("sad.u32", sad, u32(u32, u32, u32)), ENTRY("sad.s64", sad, i64(i64, i64, i64)),
    ENTRY("sad.u64", sad, u64(u64, u64, u64)),
    BINARY("div.s32", quotient, Wide<i32>(Wide<i32>, Wide<i32>)),
    BINARY("div.u32", quotient, Wide<u32>(Wide<u32>, Wide<u32>)),
    BINARY("rem.s32", remainder, Wide<i32>(Wide<i32>, Wide<i32>)),
    BINARY("rem.u32", remainder, Wide<u32>(Wide<u32>, Wide<u32>)),
    BINARY("div.s16", quotient, Wide<i16>(Wide<i16>, Wide<i16>)),
    BINARY("div.u16", quotient, Wide<u16>(Wide<u16>, Wide<u16>)),
    BINARY("rem.s16", remainder, Wide<i16>(Wide<i16>, Wide<i16>)),
    BINARY("rem.u16", remainder, Wide<u16>(Wide<u16>, Wide<u16>)),
    ONE_BY_ONE_BINARY("div.s64", quotient64, i64(i64, i64)), ONE_BY_ONE_BINARY("div.u64", quotient64, u64(u64, u64)),
    ONE_BY_ONE_BINARY("rem.s64", remainder64, i64(i64, i64)), ONE_BY_ONE_BINARY("rem.u64", remainder64, u64(u64, u64)),
    CARRY_SUM("b32", u32), CARRY_SUM("b64", u64), CARRY_MAD("lo", "b32", u32, false),
    CARRY_MAD("lo", "b64", u64, false),
    CARRY_MAD("hi", "u32", u32, true), CARRY_MAD("hi", "s32", i32, true), CARRY_MAD("hi", "u64", u64, true),
    CARRY_MAD("hi", "s64", i64, true),

    // Bits
    BINARY("and.b16", both, u32(u32, u32)), BINARY("or.b16", either, u32(u32, u32)),
    BINARY("xor.b16", differ, u16(u16, u16)),
    BINARY("and.b32", both, u32(u32, u32)), BINARY("or.b32", either, u32(u32, u32)),
    BINARY("xor.b32", differ, u32(u32, u32)),
    BINARY("and.b64", both, u64(u64, u64)), BINARY("or.b64", either, u64(u64, u64)),
    BINARY("xor.b64", differ, u64(u64, u64)),
    ENTRY("not.b16", inverse, u16(u16)), ENTRY("not.b32", inverse, u32(u32)), ENTRY("not.b64", inverse, u64(u64)),
    ENTRY("cnot.b16", is_zero, u16(u16)), ENTRY("cnot.b32", is_zero, u32(u32)), ENTRY("cnot.b64", is_zero, u64(u64)),
    BINARY("shl.b16", left, u16(u16, u32)), BINARY("shl.b32", left, u32(u32, u32)),
    BINARY("shl.b64", left, u64(u64, Wide<u32>)),
    BINARY("shr.u16", right, u16(u16, u32)), BINARY("shr.u32", right, u32(u32, u32)),
    BINARY("shr.u64", right, u64(u64, Wide<u32>)),
    BINARY("shr.s16", right, i16(i16, u32)), BINARY("shr.s32", right, i32(i32, u32)),
    BINARY("shr.s64", right, i64(i64, Wide<u32>)),
    ENTRY("shf.l.clamp.b32", shf_l_clamp, Wide<u32>(Wide<u32>, Wide<u32>, Wide<u32>)),
    ENTRY("shf.l.clamp.b32.i", shf_l_clamp, Wide<u32>(Wide<u32>, Wide<u32>, Wide<u32>), 2),
    ENTRY("shf.r.clamp.b32", shf_r_clamp, Wide<u32>(Wide<u32>, Wide<u32>, Wide<u32>)),
    ENTRY("shf.r.clamp.b32.i", shf_r_clamp, Wide<u32>(Wide<u32>, Wide<u32>, Wide<u32>), 2),
    ENTRY("shf.l.wrap.b32", shf_l_wrap, Wide<u32>(Wide<u32>, Wide<u32>, Wide<u32>)),
    ENTRY("shf.l.wrap.b32.i", shf_l_wrap, Wide<u32>(Wide<u32>, Wide<u32>, Wide<u32>), 2),
    ENTRY("shf.r.wrap.b32", shf_r_wrap, Wide<u32>(Wide<u32>, Wide<u32>, Wide<u32>)),
    ENTRY("shf.r.wrap.b32.i", shf_r_wrap, Wide<u32>(Wide<u32>, Wide<u32>, Wide<u32>), 2),
    {"lop3.b32", lop3},
    ONE_BY_ONE("popc.b32", ones, u32(u32)), ONE_BY_ONE("popc.b64", ones, u32(u64)),
    ONE_BY_ONE("clz.b32", zeros_above, u32(u32)),
    ONE_BY_ONE("clz.b64", zeros_above, u32(u64)), ONE_BY_ONE("brev.b32", reversed, u32(u32)),
    ONE_BY_ONE("brev.b64", reversed, u64(u64)),
    ONE_BY_ONE("bfind.u32", bfind, u32(u32)), ONE_BY_ONE("bfind.s32", bfind, u32(i32)),
    ONE_BY_ONE("bfind.u64", bfind, u32(u64)), ONE_BY_ONE("bfind.s64", bfind, u32(i64)),
    ONE_BY_ONE("bfind.shiftamt.u32", bfind_shift, u32(u32)), ONE_BY_ONE("bfind.shiftamt.s32", bfind_shift, u32(i32)),
    ONE_BY_ONE("bfind.shiftamt.u64", bfind_shift, u32(u64)), ONE_BY_ONE("bfind.shiftamt.s64", bfind_shift, u32(i64)),
    ONE_BY_ONE("bfe.u32", bfe, u32(u32, u32, u32)), ONE_BY_ONE("bfe.s32", bfe, i32(i32, u32, u32)),
    ONE_BY_ONE("bfe.u64", bfe, u64(u64, u32, u32)), ONE_BY_ONE("bfe.s64", bfe, i64(i64, u32, u32)),
    {"bfi.b32", bfi<u32>}, {"bfi.b32.i", bfi_constant<u32>}, {"bfi.b64", bfi<u64>}, {"bfi.b64.i", bfi_constant<u64>},
    ONE_BY_ONE("bmsk.clamp.b32", bmsk_clamp, u32(u32, u32)), ONE_BY_ONE("bmsk.wrap.b32", bmsk_wrap, u32(u32, u32)),
    ONE_BY_ONE("szext.clamp.u32", szext_clamp, u32(u32, u32)),
    ONE_BY_ONE("szext.clamp.s32", szext_clamp, i32(i32, u32)),
    ONE_BY_ONE("szext.wrap.u32", szext_wrap, u32(u32, u32)), ONE_BY_ONE("szext.wrap.s32", szext_wrap, i32(i32, u32)),
    ONE_BY_ONE("fns.b32", fns, u32(u32, u32, i32)),
    ENTRY("prmt.b32", permute, u32(u32, u32, u32)), ENTRY("prmt.b32.i", permute, u32(u32, u32, u32), 2),
    ENTRY("prmt.b32.f4e", (permute_mode<0x3210, 0x4321, 0x5432, 0x6543>), u32(u32, u32, u32)),
    ENTRY("prmt.b32.b4e", (permute_mode<0x5670, 0x6701, 0x7012, 0x0123>), u32(u32, u32, u32)),
    ENTRY("prmt.b32.rc8", (permute_mode<0x0000, 0x1111, 0x2222, 0x3333>), u32(u32, u32, u32)),
    ENTRY("prmt.b32.ecl", (permute_mode<0x3210, 0x3211, 0x3222, 0x3333>), u32(u32, u32, u32)),
    ENTRY("prmt.b32.ecr", (permute_mode<0x0000, 0x1110, 0x2210, 0x3210>), u32(u32, u32, u32)),
    ENTRY("prmt.b32.rc16", (permute_mode<0x1010, 0x3232, 0x1010, 0x3232>), u32(u32, u32, u32)),
    ENTRY("dp4a.u32.u32", (dp4a<uint8_t, uint8_t>), u32(u32, u32, u32)),
    ENTRY("dp4a.s32.s32", (dp4a<int8_t, int8_t>), u32(u32, u32, u32)),
    ENTRY("dp4a.u32.s32", (dp4a<uint8_t, int8_t>), u32(u32, u32, u32)),
    ENTRY("dp4a.s32.u32", (dp4a<int8_t, uint8_t>), u32(u32, u32, u32)),
    ENTRY("dp2a.lo.u32.u32", (dp2a<u16, uint8_t, 0>), u32(u32, u32, u32)),
    ENTRY("dp2a.lo.s32.s32", (dp2a<i16, int8_t, 0>), u32(u32, u32, u32)),
    ENTRY("dp2a.lo.u32.s32", (dp2a<u16, int8_t, 0>), u32(u32, u32, u32)),
    ENTRY("dp2a.lo.s32.u32", (dp2a<i16, uint8_t, 0>), u32(u32, u32, u32)),
    ENTRY("dp2a.hi.u32.u32", (dp2a<u16, uint8_t, 16>), u32(u32, u32, u32)),
    ENTRY("dp2a.hi.s32.s32", (dp2a<i16, int8_t, 16>), u32(u32, u32, u32)),
    ENTRY("dp2a.hi.u32.s32", (dp2a<u16, int8_t, 16>), u32(u32, u32, u32)),
    ENTRY("dp2a.hi.s32.u32", (dp2a<i16, uint8_t, 16>), u32(u32, u32, u32)),

    // Choice and comparison
    ENTRY("selp.b16", choose, u32(u32, u32, Pred)), ENTRY("selp.b32", choose, u32(u32, u32, Pred)),
    ENTRY("selp.b64", choose, u64(u64, u64, Pred64)),
    ENTRY("slct.b32.s32", choose_by_sign, u32(u32, u32, i32)),
    ENTRY("slct.b64.s32", choose_by_sign64, u64(u64, u64, i32)),
    ENTRY("slct.b32.f32", choose_by_float<false>, u32(u32, u32, float)),
    ENTRY("slct.b64.f32", choose_by_float64<false>, u64(u64, u64, float)),
    ENTRY("slct.ftz.b32.f32", choose_by_float<true>, u32(u32, u32, float)),
    ENTRY("slct.ftz.b64.f32", choose_by_float64<true>, u64(u64, u64, float)),
    ENTRY("slct.b16.s32", choose_by_sign, u32(u32, u32, i32)),
    ENTRY("slct.b16.f32", choose_by_float<false>, u32(u32, u32, float)),
    ENTRY("slct.ftz.b16.f32", choose_by_float<true>, u32(u32, u32, float)),
    COMPARE("s16", i16), COMPARE("u16", u16), COMPARE("s32", i32), COMPARE("u32", u32), COMPARE("s64", i64),
    COMPARE("u64", u64),
    EQUAL("b16", u16), EQUAL("b32", u32), EQUAL("b64", u64),
    {"and.pred", logic<both>}, {"or.pred", logic<either>}, {"xor.pred", logic<differ>},
    {"andn.pred", logic<and_not>}, {"orn.pred", logic<or_not>}, {"not.pred", logic_of_one<inverse>},
    {"mov.pred", logic_of_one<same>}, {"mov.pred.i", mov_pred_i},

    // Moves
    UNARY("mov.b16", same, u32(u32)), UNARY("mov.b32", same, u32(u32)), UNARY("mov.b64", same, u64(u64)),
    ENTRY("pack.b32", join16, u32(u32, u32)), ENTRY("pack.b64.v2", join32, u64(Wide<u32>, Wide<u32>)),
    ENTRY("pack.b64.v4", join_four16, u64(Wide<u32>, Wide<u32>, Wide<u32>, Wide<u32>)),
    {"unpack.b32", unpack<u32, 16, 2>}, {"unpack.b64.v2", unpack<u64, 32, 2>}, {"unpack.b64.v4", unpack<u64, 16, 4>});

}  // namespace
}  // namespace machine::alu
