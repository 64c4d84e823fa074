// primitives.cuh: bf16 conversions, and the instructions that CUDA C++ has no function for
#pragma once

#define INFINITY __int_as_float(0x7f800000)  // NVRTC has no math.h

// A bf16 number is the upper half of a float. So a shift converts it, and no bf16 hardware is needed.
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

// Rounds to nearest, ties to even, as PyTorch does. NaN needs its own line: rounding could turn it into infinity.
__device__ __forceinline__ bf16 to_bf16(float x) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<unsigned short>((bits >> 16) | 0x40u)};
    return bf16{static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Eight bf16 numbers in 16 bytes, the widest load of a thread.
struct alignas(16) bf16x8 {
    unsigned pair[4];  // little endian: the even element is the lower half
};

__device__ __forceinline__ float even(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float odd(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// One thread reads each weight once per token. So the load takes the read-only path and keeps no line in L1.
__device__ __forceinline__ bf16x8 load_weights(const bf16* p) {
    bf16x8 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.pair[0]), "=r"(v.pair[1]), "=r"(v.pair[2]), "=r"(v.pair[3])
                 : "l"(p));
    return v;
}

// The place of *p in shared memory, as instructions for shared memory want it.
__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// Starts to copy 16 bytes to shared memory. On Turing the copy ends here.
__device__ __forceinline__ void copy_16_bytes(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
#else
    *static_cast<float4*>(to) = *static_cast<const float4*>(from);
#endif
}

// Waits for all copies that this thread has started.
__device__ __forceinline__ void wait_for_own_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Writes four floats with one 16-byte store. Where the four values come from separate registers, NVRTC would split
// *reinterpret_cast<float4*>(p) = v into four stores, and a warp would write each sector four times.
__device__ __forceinline__ void store4(float* p, float4 v) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// Prefetches the 128-byte line at p into L2. No register waits for the data.
__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Programmatic dependent launch (Hopper and newer, -DDEPENDENT_LAUNCH): a kernel may start while its predecessor still
// runs. Before wait_for_predecessor() it must not access memory that another kernel writes. After it, the kernel sees
// everything that its predecessor and all earlier kernels wrote, because each of them waited too. A kernel lets its
// successor start only after its own wait, so at most two kernels run at a time.
#ifdef DEPENDENT_LAUNCH
__device__ __forceinline__ void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_successor_start() { asm volatile("griddepcontrol.launch_dependents;"); }
__device__ __forceinline__ void prefetch(const void* p) { prefetch_l2(p); }
#else
__device__ __forceinline__ void wait_for_predecessor() {}
__device__ __forceinline__ void let_successor_start() {}
__device__ __forceinline__ void prefetch(const void*) {}
#endif

// Synchronisation between blocks. A release publishes what this thread wrote before it, and what the threads wrote with
// which this thread had synchronised. An acquire that reads the released value sees all of these writes. So does an
// acquire that reads what later atomics made of that value.
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
    unsigned v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ void store_release(unsigned* p, unsigned v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// The same with the host, which shares the memory.
__device__ __forceinline__ int load_system(const int* p) {
    int v;
    asm volatile("ld.relaxed.sys.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ void store_system(int* p, int v) {
    asm volatile("st.relaxed.sys.global.s32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
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

// Spins until *p differs from `old` in a bit of `mask`. The load that sees the difference is an acquire.
__device__ __forceinline__ void wait_while_equal(const unsigned* p, unsigned old, unsigned mask = 0xffffffffu) {
    while (((load_acquire(p) ^ old) & mask) == 0u) {
    }
}

// Dynamic shared memory, 16-byte aligned. The launch gives its size.
#define DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(16) unsigned char dynamic_shared_memory[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared_memory)
