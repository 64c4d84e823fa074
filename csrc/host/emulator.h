// emulator.h: the words of CUDA C++ for a C++ compiler, so that the .cu files of csrc/ compile for the CPU unchanged
// A thread is a fiber, a block is on one OS thread, `__shared__` is that OS thread's own memory. Scheduling, waiting
// and error reports are in runtime.cpp. Where CUDA leaves a misuse undefined, here it is an error with a name.
// Known limit: a spin on a plain or volatile load has no call in it, so the emulator cannot see it and other threads
// of the block never run. Spin with load_acquire, an atomic or wait_while_equal.
#pragma once

#include <math.h>

#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "host/runtime.h"

// ---- Qualifiers ----

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __restrict__ __restrict

// An atomic access tells what it does; a library built for counting (traffic.h) shall not have it told twice.
#define LUCE_COUNTS_ITSELF __attribute__((no_sanitize("thread"), noinline))

// ---- Where a thread is ----

#define threadIdx (emulator::current.thread->index)
#define blockIdx (emulator::current.block->index)
#define blockDim (emulator::current.block->dim)
#define gridDim (emulator::current.block->grid)
constexpr int warpSize = 32;

#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emulator::current.block->dynamic_shared)

// ---- Vector types ----

// A GPU loads or stores one of these at once, and so it is counted; the compiler would take it apart first.
#ifdef LUCE_COUNT
namespace emulator {

template <class T>
LUCE_COUNTS_ITSELF void copy_wide(T* to, const T* from) {
    accessed(from, sizeof(T), alignof(T), false, __builtin_return_address(0));
    accessed(to, sizeof(T), alignof(T), true, __builtin_return_address(0));
    __builtin_memcpy(static_cast<void*>(to), from, sizeof(T));
}

}  // namespace emulator
// Inline, so that each copy in a kernel is an instruction of its own, at the kernel's own line.
#define WIDE_ACCESS(T)                                                      \
    T() = default;                                                          \
    __forceinline__ T(const T& from) { emulator::copy_wide(this, &from); }  \
    __forceinline__ T& operator=(const T& from) { return emulator::copy_wide(this, &from), *this; }

// Compilers count neither of these where they leave it to the C library.
extern "C" void* __tsan_memcpy(void*, const void*, unsigned long);
extern "C" void* __tsan_memset(void*, int, unsigned long);
#define memcpy __tsan_memcpy
#define memset __tsan_memset
#else
#define WIDE_ACCESS(T) T() = default;
#endif

struct alignas(8) float2 {
    float x, y;
    WIDE_ACCESS(float2)
    float2(float x, float y) : x(x), y(y) {}
};
struct float3 {
    float x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
    WIDE_ACCESS(float4)
    float4(float x, float y, float z, float w) : x(x), y(y), z(z), w(w) {}
};
struct alignas(8) int2 {
    int x, y;
    WIDE_ACCESS(int2)
    int2(int x, int y) : x(x), y(y) {}
};
struct alignas(16) int4 {
    int x, y, z, w;
    WIDE_ACCESS(int4)
    int4(int x, int y, int z, int w) : x(x), y(y), z(z), w(w) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
    WIDE_ACCESS(uint2)
    uint2(unsigned x, unsigned y) : x(x), y(y) {}
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
    WIDE_ACCESS(uint4)
    uint4(unsigned x, unsigned y, unsigned z, unsigned w) : x(x), y(y), z(z), w(w) {}
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- Barriers, shuffles, votes ----

inline void __syncthreads(emulator::Location at = emulator::Location::current()) { emulator::block_barrier(at); }

inline void __syncwarp(unsigned mask = ~0u, emulator::Location at = emulator::Location::current()) {
    emulator::warp_rendezvous(emulator::Operation::syncwarp, mask, 0, 0, at);
}

namespace emulator {

inline unsigned lane() { return current.thread->number % 32; }

// A 4- or 8-byte value as the bits that travel between lanes, and back.
template <class T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle or an atomic takes 4 or 8 bytes");
    if constexpr (sizeof(T) == 4) return std::bit_cast<uint32_t>(value);
    else return std::bit_cast<uint64_t>(value);
}

template <class T>
T from_bits(uint64_t bits) {
    if constexpr (sizeof(T) == 4) return std::bit_cast<T>(static_cast<uint32_t>(bits));
    else return std::bit_cast<T>(bits);
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, Location at) {
    return from_bits<T>(warp_rendezvous(Operation::shuffle, mask, to_bits(value), source, at));
}

inline unsigned ballot(unsigned mask, bool vote, Location at) {
    return static_cast<unsigned>(warp_rendezvous(Operation::vote, mask, vote, 0, at));
}

}  // namespace emulator

// A warp is cut into groups of `width` lanes; a source outside the own group gives the own value back.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              emulator::Location at = emulator::Location::current()) {
    const unsigned first = emulator::lane() & ~(width - 1u);
    return emulator::shuffle(mask, value, first + (static_cast<unsigned>(source) & (width - 1u)), at);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 emulator::Location at = emulator::Location::current()) {
    const unsigned lane = emulator::lane(), place = lane & (width - 1u);
    return emulator::shuffle(mask, value, delta <= place ? lane - delta : lane, at);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   emulator::Location at = emulator::Location::current()) {
    const unsigned lane = emulator::lane(), place = lane & (width - 1u);
    return emulator::shuffle(mask, value, delta < width - place ? lane + delta : lane, at);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  emulator::Location at = emulator::Location::current()) {
    const unsigned lane = emulator::lane(), source = lane ^ static_cast<unsigned>(lanes);
    return emulator::shuffle(mask, value, source <= (lane | (width - 1u)) ? source : lane, at);
}

inline unsigned __ballot_sync(unsigned mask, int vote, emulator::Location at = emulator::Location::current()) {
    return emulator::ballot(mask, vote != 0, at);
}
inline int __any_sync(unsigned mask, int vote, emulator::Location at = emulator::Location::current()) {
    return emulator::ballot(mask, vote != 0, at) != 0;
}
inline int __all_sync(unsigned mask, int vote, emulator::Location at = emulator::Location::current()) {
    return emulator::ballot(mask, vote == 0, at) == 0;
}
// The least that the hardware promises: a thread that asks is active itself.
inline unsigned __activemask() { return 1u << emulator::lane(); }

// ---- Memory that other blocks see ----

namespace emulator {

// Does one read-modify-write in place of an atomic: `change` maps the old value to the new one. Returns the old value.
template <class T, class Change>
LUCE_COUNTS_ITSELF T read_modify_write(T* p, Change change, bool is_poll, Location at) {
    accessed(p, sizeof(T), sizeof(T), true, __builtin_return_address(0));
    T old, changed;
    __atomic_load(p, &old, __ATOMIC_SEQ_CST);
    do changed = change(old);
    while (!__atomic_compare_exchange(p, &old, &changed, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    if (to_bits(change(old)) != to_bits(old)) stored(p);
    else if (is_poll) seen(Operation::atomic, p, sizeof(T), to_bits(old), at);
    return old;
}

}  // namespace emulator

// An atomic that changes nothing is how a spin asks for a lock or a counter, so it lets other threads run; a maximum
// or a minimum that changes nothing is ordinary work.
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value, emulator::Location at = emulator::Location::current()) {
    return emulator::read_modify_write(p, [=](T old) { return static_cast<T>(old + value); }, true, at);
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> value, emulator::Location at = emulator::Location::current()) {
    return emulator::read_modify_write(p, [=](T old) { return static_cast<T>(old - value); }, true, at);
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> value, emulator::Location at = emulator::Location::current()) {
    return emulator::read_modify_write(p, [=](T old) { return old < value ? value : old; }, false, at);
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> value, emulator::Location at = emulator::Location::current()) {
    return emulator::read_modify_write(p, [=](T old) { return value < old ? value : old; }, false, at);
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value, emulator::Location at = emulator::Location::current()) {
    return emulator::read_modify_write(p, [=](T) { return value; }, true, at);
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value,
            emulator::Location at = emulator::Location::current()) {
    return emulator::read_modify_write(p, [=](T old) { return old == expected ? value : old; }, true, at);
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> value, emulator::Location at = emulator::Location::current()) {
    return emulator::read_modify_write(p, [=](T old) { return static_cast<T>(old | value); }, true, at);
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> value, emulator::Location at = emulator::Location::current()) {
    return emulator::read_modify_write(p, [=](T old) { return static_cast<T>(old & value); }, true, at);
}

inline void __threadfence() { emulator::fence(); }
inline void __threadfence_block() { emulator::fence(); }
inline void __threadfence_system() { emulator::fence(); }

inline void __nanosleep(unsigned, emulator::Location at = emulator::Location::current()) {
    emulator::seen(emulator::Operation::nanosleep, nullptr, 0, 0, at);
}

[[noreturn]] inline void __trap(emulator::Location at = emulator::Location::current()) { emulator::trap(at); }

// The primitives of primitives.cuh.
LUCE_COUNTS_ITSELF inline unsigned load_acquire(const unsigned* p,
                                                emulator::Location at = emulator::Location::current()) {
    emulator::accessed(p, sizeof(unsigned), sizeof(unsigned), false, __builtin_return_address(0));
    const unsigned value = __atomic_load_n(p, __ATOMIC_SEQ_CST);
    emulator::seen(emulator::Operation::load_acquire, p, sizeof(unsigned), value, at);
    return value;
}

LUCE_COUNTS_ITSELF inline void store_release(unsigned* p, unsigned value) {
    emulator::accessed(p, sizeof(unsigned), sizeof(unsigned), true, __builtin_return_address(0));
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);
    emulator::stored(p);
}

inline unsigned add_release(unsigned* p, unsigned value, emulator::Location at = emulator::Location::current()) {
    return atomicAdd(p, value, at);
}

inline unsigned add_acq_rel(unsigned* p, unsigned value, emulator::Location at = emulator::Location::current()) {
    return atomicAdd(p, value, at);
}

inline void wait_while_equal(const unsigned* p, unsigned old, unsigned mask = ~0u,
                             emulator::Location at = emulator::Location::current()) {
    emulator::wait_for_change(p, old, mask, at);
}

// ---- Arithmetic that NVRTC has without an include ----

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(unsigned x) { return std::countl_zero(x); }
inline int __ffs(unsigned x) { return x ? std::countr_zero(x) + 1 : 0; }

template <class T>
T __ldg(const T* p) {
    return *p;
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
// The C library keeps these names for itself, so they can only be macros here. They are exact where CUDA's are fast.
#define __expf expf
#define __logf logf
#define __sinf sinf
#define __cosf cosf
#define __powf powf

constexpr int min(int a, int b) { return b < a ? b : a; }
constexpr int max(int a, int b) { return a < b ? b : a; }
constexpr unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
constexpr unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
// CUDA takes an int beside an unsigned, such as n beside blockDim.x, for an unsigned.
constexpr unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
constexpr unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
constexpr unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
constexpr unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
constexpr long long min(long long a, long long b) { return b < a ? b : a; }
constexpr long long max(long long a, long long b) { return a < b ? b : a; }
constexpr unsigned long long min(unsigned long long a, unsigned long long b) { return b < a ? b : a; }
constexpr unsigned long long max(unsigned long long a, unsigned long long b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
