// block.cuh: sums over a warp and over a block
// Computes  total = 0
//           for t in [0, block_threads): total += value of thread t
// Order     always the same (lanes in pairs, then warps in turn), so results repeat bit for bit
#pragma once
#include "primitives.cuh"

constexpr int warp_threads = 32;
constexpr unsigned full_warp = 0xffffffffu;
constexpr int block_threads = BLOCK_THREADS;
constexpr int block_warps = block_threads / warp_threads;
static_assert(block_threads % warp_threads == 0 && block_warps <= warp_threads, "whole warps, at most 32");

__device__ __forceinline__ int lane_id() { return threadIdx.x % warp_threads; }
__device__ __forceinline__ int warp_id() { return threadIdx.x / warp_threads; }

// threadIdx.x, which the compiler takes for a new value at each call. It then computes what follows from it where it is
// used. Otherwise it would compute all phases' offsets before the loop over the layers, and keep them in registers.
__device__ __forceinline__ int fresh_thread_index() {
    int thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    return thread;
}

// This warp's number in the grid, in [0, grid_warps()). Consecutive numbers belong to different blocks, so that a phase
// with fewer rows than warps still uses every SM.
__device__ __forceinline__ int grid_warp() { return warp_id() * gridDim.x + blockIdx.x; }
__device__ __forceinline__ int grid_warps() { return gridDim.x * block_warps; }

// <warp_sum>
// Returns the sum over `lanes` neighbouring lanes (a power of two) to each of them.
template <int lanes = warp_threads>
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(full_warp, value, offset);
    return value;
}
// </warp_sum>

// Returns the sum over the block to every thread. `scratch` is block_warps floats of shared memory. The caller must put
// a barrier between this call and the next use of `scratch`.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    if (lane_id() == 0) scratch[warp_id()] = value;
    __syncthreads();  // every warp's sum is in scratch
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < block_warps; ++w) total += scratch[w];  // all lanes read one address: a broadcast
    return total;
}

// One warp computes
//     for i in [0, n): store(i, x[i] * scale(sum over j of x[j]^2), load(i))
// A lane reads all its elements before it stores any, so `store` may write to x. A lane also calls `load` (for weights)
// before the sum. Between the stores, each load would have to wait for the store before it, because the compiler cannot
// know that they touch different memory. x is anything with x[i], such as a pointer.
template <int n, typename Input, typename Load, typename Scale, typename Store>
__device__ __forceinline__ void warp_normalise(Input x, Load load, Scale scale, Store store) {
    constexpr int per_lane = (n + warp_threads - 1) / warp_threads;
    float value[per_lane];
    decltype(load(0)) other[per_lane];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
        const int c = lane_id() + i * warp_threads;  // in [0, 32 * per_lane), so the last ones may exceed n
        value[i] = c < n ? x[c] : 0.0f;
        if (c < n) other[i] = load(c);
        squares = fmaf(value[i], value[i], squares);
    }
    const float factor = scale(warp_sum(squares));
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
        const int c = lane_id() + i * warp_threads;
        if (c < n) store(c, value[i] * factor, other[i]);
    }
}

// Returns true in every thread of the block that arrives last of `expected` blocks, and false in the other blocks. The
// last block then sees what all of them wrote before they arrived. It also sets the counter back to 0, so no memset is
// needed. `flag` is one int of shared memory.
__device__ __forceinline__ bool last_block_to_arrive(unsigned* counter, unsigned expected, int* flag) {
    __syncthreads();  // the whole block's writes come before thread 0's arrival, which releases them
    if (threadIdx.x == 0) {
        const bool last = add_acq_rel(counter, 1u) == expected - 1u;
        if (last) *counter = 0u;  // the others have arrived; the next launch or grid barrier orders this store
        *flag = last;
    }
    __syncthreads();  // thread 0's acquire comes before the whole block's reads
    return *flag != 0;
}

// Copies structs of pointers into shared memory. Otherwise each phase would begin by loading its pointers from memory.
template <typename T>
__device__ __forceinline__ void copy_to_shared(T* to, const T* from, int count) {
    static_assert(sizeof(T) % sizeof(void*) == 0, "a struct of pointers");
    const int pointers = count * static_cast<int>(sizeof(T) / sizeof(void*));
    for (int i = threadIdx.x; i < pointers; i += block_threads)
        reinterpret_cast<void**>(to)[i] = reinterpret_cast<void* const*>(from)[i];
}
