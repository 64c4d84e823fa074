// primitives.cuh: the few words that CUDA C++ has no function for; everything else in csrc/ is plain CUDA C++
#pragma once

#define INFINITY __int_as_float(0x7f800000)  // NVRTC has no math.h

// A bf16 number is the upper half of a float, so reading one is a shift: no bf16 hardware is needed.
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

// Round to nearest, ties to even, as PyTorch does. NaN stays NaN: rounding up must not carry it into infinity.
__device__ __forceinline__ bf16 to_bf16(float x) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<unsigned short>((bits >> 16) | 0x40u)};
    return bf16{static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Eight bf16 numbers in one 16-byte load, the widest a thread can make.
struct alignas(16) bf16x8 {
    unsigned pair[4];  // little endian: the even element is the lower half
};

__device__ __forceinline__ float even(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float odd(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// Weights are read once a token and by one thread: the read-only path, without keeping a line in L1.
__device__ __forceinline__ bf16x8 load_weights(const bf16* p) {
    bf16x8 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.pair[0]), "=r"(v.pair[1]), "=r"(v.pair[2]), "=r"(v.pair[3])
                 : "l"(p));
    return v;
}

// Four floats in one 16-byte store. NVRTC takes *reinterpret_cast<float4*>(p) = v apart into four stores where it has the
// four values in registers of their own, and then a warp writes each sector four times.
__device__ __forceinline__ void store4(float* p, float4 v) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// Programmatic dependent launch (Hopper and newer, -DDEPENDENT_LAUNCH): a kernel may start while the one before it still
// runs. Until wait_for_predecessor() it must touch nothing that another kernel writes; after it, all that the
// predecessor wrote is there, and all before that too, as every kernel waits. Each lets its successor start after its own
// wait, so that when a kernel starts all but its predecessor have ended.
#ifdef DEPENDENT_LAUNCH
__device__ __forceinline__ void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_successor_start() { asm volatile("griddepcontrol.launch_dependents;"); }
// Asks L2 for the 128-byte line at p; no register waits for it.
__device__ __forceinline__ void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
#else
__device__ __forceinline__ void wait_for_predecessor() {}
__device__ __forceinline__ void let_successor_start() {}
__device__ __forceinline__ void prefetch(const void*) {}
#endif

// Synchronisation between blocks. A release publishes what this thread, and every thread that it was synchronised with,
// wrote before. An acquire that reads the released value, or what atomics made of it since, sees all of that.
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
    unsigned v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ void store_release(unsigned* p, unsigned v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

__device__ __forceinline__ unsigned add_release(unsigned* p, unsigned v) {
    unsigned old;
    asm volatile("atom.release.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
    return old;
}

__device__ __forceinline__ unsigned add_acq_rel(unsigned* p, unsigned v) {
    unsigned old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
    return old;
}

// Spin until *p differs from `old` in a bit of `mask`, with acquire order.
__device__ __forceinline__ void wait_while_equal(const unsigned* p, unsigned old, unsigned mask = 0xffffffffu) {
    while (((load_acquire(p) ^ old) & mask) == 0u) {
    }
}

// Dynamic shared memory, its size given at the launch; 16-byte aligned.
#define DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(16) unsigned char dynamic_shared_memory[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared_memory)
