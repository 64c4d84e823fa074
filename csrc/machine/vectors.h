// vectors.h: the 32 lanes of a warp as vectors of the CPU
// The code uses the vector types of GCC and clang. The compiler splits a vector into the registers of the CPU: two of
// AVX-512, four of AVX2, eight of NEON. Where the types have no operation for an AVX-512 instruction, the code uses its
// intrinsic, and a loop for all other CPUs.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define MACHINE_AVX512 1
#include <immintrin.h>
#endif

namespace machine {

constexpr int warp_lanes = 32;
constexpr uint32_t all_lanes = 0xffffffffu;

template <class T>
struct LanesOf {
    typedef T type __attribute__((vector_size(warp_lanes * sizeof(T)), may_alias));
};
template <class T>
using Lanes = typename LanesOf<T>::type;  // 32 values of T, one per lane

template <class V>
using Element = std::remove_cvref_t<decltype(std::declval<V>()[0])>;

// ---- Registers. A value of up to 32 bits takes 4 bytes per lane, a wider one 8 ----

template <class T>
inline Lanes<T>& lanes(uint8_t* r, int32_t at) {
    return *reinterpret_cast<Lanes<T>*>(r + at);
}

template <class T>
__attribute__((always_inline)) inline Lanes<T> broadcast(T value) {
    return Lanes<T>{} + value;  // would turn a float -0 into +0, so floats are broadcast as bits
}
template <>
__attribute__((always_inline)) inline Lanes<float> broadcast<float>(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return reinterpret_cast<Lanes<float>>(broadcast<uint32_t>(bits));
}
template <>
__attribute__((always_inline)) inline Lanes<double> broadcast<double>(double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    return reinterpret_cast<Lanes<double>>(broadcast<uint64_t>(bits));
}

// Stores `value` in the lanes of `mask` and keeps the other lanes.
template <class V>
__attribute__((always_inline)) inline void put(uint8_t* r, int32_t at, V value, uint32_t mask) {
    constexpr int bytes = sizeof(V) / warp_lanes;
    static_assert(bytes == 4 || bytes == 8, "a slot has 4 or 8 bytes a lane");
    if (__builtin_expect(mask == all_lanes, 1)) {
        *reinterpret_cast<V __attribute__((may_alias))*>(r + at) = value;
        return;
    }
#if MACHINE_AVX512
    auto to = reinterpret_cast<__m512i*>(r + at);
    auto from = reinterpret_cast<const __m512i*>(&value);
    if constexpr (bytes == 4)
        for (int i = 0; i < 2; ++i) _mm512_mask_storeu_epi32(to + i, static_cast<__mmask16>(mask >> 16 * i), from[i]);
    else
        for (int i = 0; i < 4; ++i) _mm512_mask_storeu_epi64(to + i, static_cast<__mmask8>(mask >> 8 * i), from[i]);
#else
    using Bits = std::conditional_t<bytes == 4, uint32_t, uint64_t>;
    auto to = reinterpret_cast<Bits*>(r + at);
    auto from = reinterpret_cast<Lanes<Bits>>(value);
    for (int lane = 0; lane < warp_lanes; ++lane) to[lane] = mask >> lane & 1 ? from[lane] : to[lane];
#endif
}

inline uint32_t& predicate(uint8_t* r, int32_t at) { return *reinterpret_cast<uint32_t*>(r + at); }

inline void put_predicate(uint8_t* r, int32_t at, uint32_t value, uint32_t mask) {
    uint32_t& p = predicate(r, at);
    p = (p & ~mask) | (value & mask);
}

}  // namespace machine
