// probes.cu: three small kernels from which notebook 05 draws its pictures (luce_edu/measure/probes.py)
// Work      one warp; a lane loads 16 bytes at a time
// Checked   tests/measure/test_probes.py
#include "block.cuh"

#define KERNEL extern "C" __global__ void __launch_bounds__(warp_threads)

constexpr int loads = LOADS;

// Adds up bits, so that no load can be left out.
__device__ __forceinline__ unsigned mixed(bf16x8 v) { return v.pair[0] ^ v.pair[1] ^ v.pair[2] ^ v.pair[3]; }

// Each address depends on the value before it, so that a load must wait for the one before. `zeros` is all zero.
KERNEL one_at_a_time(const bf16* zeros, unsigned* sum) {
    unsigned value = 0;
#pragma unroll
    for (int i = 0; i < loads; ++i) value = mixed(load_weights(zeros + value + (i * warp_threads + lane_id()) * 8));
    sum[lane_id()] = value;
}

// No address depends on a value, so that all loads can be issued before the first value is there.
KERNEL all_at_once(const bf16* zeros, unsigned* sum) {
    unsigned value = 0;
#pragma unroll
    for (int i = 0; i < loads; ++i) value += mixed(load_weights(zeros + (i * warp_threads + lane_id()) * 8));
    sum[lane_id()] = value;
}

// Lane l reads the four words of shared memory from first[l] on, a multiple of 4 below 256, in one 16-byte load.
KERNEL read_shared(const int* first, float* sum) {
    __shared__ alignas(16) float words[256];
    for (int w = lane_id(); w < 256; w += warp_threads) words[w] = w;  // side by side: no conflict
    __syncthreads();  // every word is there
    const float4 v = *reinterpret_cast<const float4*>(words + first[lane_id()]);
    sum[lane_id()] = v.x + v.y + v.z + v.w;
}
