// memory_change.h: the arithmetic of atomics and reductions on one element
// All operands are the bits of a value, in the lower part of 64 bits. b and c are the sources of the instruction.
#pragma once

#include "memory.h"

namespace machine::change {

template <class T>
inline T value(uint64_t bits) {
    T v;
    memcpy(&v, &bits, sizeof v);
    return v;
}
template <class T>
inline uint64_t bits(T v) {
    uint64_t b = 0;
    memcpy(&b, &v, sizeof v);
    return b;
}

template <class T>
uint64_t add(uint64_t old, uint64_t b, uint64_t) {
    return static_cast<T>(old + b);
}
template <class T>
uint64_t minimum(uint64_t old, uint64_t b, uint64_t) {
    return value<T>(b) < value<T>(old) ? b : old;
}
template <class T>
uint64_t maximum(uint64_t old, uint64_t b, uint64_t) {
    return value<T>(b) > value<T>(old) ? b : old;
}
inline uint64_t increment(uint64_t old, uint64_t b, uint64_t) { return old >= b ? 0 : old + 1; }
inline uint64_t decrement(uint64_t old, uint64_t b, uint64_t) { return old == 0 || old > b ? b : old - 1; }
inline uint64_t exchange(uint64_t, uint64_t b, uint64_t) { return b; }
inline uint64_t compare(uint64_t old, uint64_t b, uint64_t c) { return old == b ? c : old; }
inline uint64_t both(uint64_t old, uint64_t b, uint64_t) { return old & b; }
inline uint64_t either(uint64_t old, uint64_t b, uint64_t) { return old | b; }
inline uint64_t one_of(uint64_t old, uint64_t b, uint64_t) { return old ^ b; }

constexpr uint32_t f32_nan = 0x7fffffff;  // the result of arithmetic with any NaN

inline uint64_t add_f32(uint64_t old, uint64_t b, uint64_t) {
    const float sum = value<float>(old) + value<float>(b);
    return sum != sum ? f32_nan : bits(sum);
}
// In global memory, subnormal inputs and results become zeros with their sign (PTX ISA, atom).
inline uint64_t add_f32_flushed(uint64_t old, uint64_t b, uint64_t) {
    const auto flush = [](uint64_t x) { return x & 0x7f800000 ? x : x & 0x80000000; };
    return flush(add_f32(flush(old), flush(b), 0));
}
inline uint64_t add_f64(uint64_t old, uint64_t b, uint64_t) {
    const double sum = value<double>(old) + value<double>(b);
    return sum != sum ? 0x7fffffffffffffffull : bits(sum);  // the same NaN on every CPU
}
// A float has more than twice the bits of a half, so rounding twice gives the same result as rounding once. The code
// uses integers, because not every compiler has a half type: g++ 12 for aarch64 has none.
inline float from_f16(uint64_t half) {
    const uint64_t moved = (half & 0x7fff) << 13, sign = (half & 0x8000) << 16;
    if (moved >= 0x0f800000) return value<float>(moved | 0x7f800000 | sign);
    return value<float>(bits(value<float>(moved) * 0x1p112f) | sign);
}
inline uint64_t add_f16(uint64_t old, uint64_t b, uint64_t) {
    const float sum = from_f16(old) + from_f16(b);
    if (sum != sum) return 0x7fff;
    const uint64_t sign = bits(sum) >> 16 & 0x8000, wide = bits(sum) & 0x7fffffff;
    if (wide >= 0x47800000) return sign | 0x7c00;
    if (wide < 0x38800000) return sign | static_cast<uint64_t>(value<float>(wide) * 0x1p24f);  // subnormal sums are exact
    return sign | (wide - 0x38000000 + 0xfff + (wide >> 13 & 1)) >> 13;
}
inline uint64_t add_bf16(uint64_t old, uint64_t b, uint64_t) {
    const float sum = value<float>((old & 0xffff) << 16) + value<float>((b & 0xffff) << 16);
    if (sum != sum) return 0x7fff;
    const uint32_t wide = static_cast<uint32_t>(bits(sum));
    return (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
}
template <Change half>
uint64_t pair(uint64_t old, uint64_t b, uint64_t) {
    return half(old & 0xffff, b & 0xffff, 0) | half(old >> 16 & 0xffff, b >> 16 & 0xffff, 0) << 16;
}

// Applies the change atomically, because other OS threads may change the same bytes. Returns the old value.
template <class T>
inline T apply(uint8_t* at, Change change, uint64_t b, uint64_t c) {
    T* word = reinterpret_cast<T*>(at);
    T old = __atomic_load_n(word, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(word, &old, static_cast<T>(change(old, b, c)), false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED)) {
    }
    return old;
}
inline uint64_t apply(uint8_t* at, uint32_t size, Change change, uint64_t b, uint64_t c) {
    return size == 2   ? apply<uint16_t>(at, change, b, c)
           : size == 4 ? apply<uint32_t>(at, change, b, c)
                       : apply<uint64_t>(at, change, b, c);
}

}  // namespace machine::change
