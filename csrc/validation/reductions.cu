// reductions.cu: two ladders of sums over an array, each step as others published and timed it
// Computes  for i in [0, n): *out += in[i];  count_tree, count_last_warp: out[b] = the sum of block b
// Shapes    in [n] fp32 (sum_*) or int32 (count_*), n a multiple of a block's share; out is 0 before the launch
// Work      sum_*: blockDim.x floats of dynamic shared memory. count_*: 512 threads, 512 words of static shared memory.
// Slow by choice: each step keeps the weakness that the next one removes. The last-warp steps read shared memory as
//           volatile. sum_last_warp, as published, assumes that the lanes of a warp run in lockstep. All GPUs do so as
//           long as a warp has not diverged, but CUDA does not guarantee it since Volta.
// Checked   tests/measure/records/test_validation.py
// Source    sum_*: MasterSkepticista/parallel_reductions_cuda; count_*: simveit/effective_reduction; both after Mark
//           Harris, "Optimizing Parallel Reduction in CUDA"
#include "primitives.cuh"

// ---- fp32: each block, or each thread, ends with one atomic addition to the same word ----

extern "C" __global__ void sum_every_thread(float* out, const float* in, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(out, in[i]);
}

extern "C" __global__ void sum_every_four(float* out, const float* in, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n / 4) {
        const float4 v = reinterpret_cast<const float4*>(in)[i];
        atomicAdd(out, v.x + v.y + v.z + v.w);
    }
}

// The threads that add are 2s apart, so every warp stays busy to the end.
extern "C" __global__ void sum_divergent(float* out, const float* in, int n) {
    DYNAMIC_SHARED(float, buffer);
    const int t = threadIdx.x;
    buffer[t] = in[blockIdx.x * blockDim.x + t];
    __syncthreads();
    for (int s = 1; s < blockDim.x; s *= 2) {
        if (t % (2 * s) == 0) buffer[t] += buffer[t + s];
        __syncthreads();
    }
    if (t == 0) atomicAdd(out, buffer[0]);
}

// Neighbouring threads add, but their words are 2s apart: bank conflicts.
extern "C" __global__ void sum_conflicting(float* out, const float* in, int n) {
    DYNAMIC_SHARED(float, buffer);
    const int t = threadIdx.x;
    buffer[t] = in[blockIdx.x * blockDim.x + t];
    __syncthreads();
    for (int s = 1; s < blockDim.x; s *= 2) {
        const int at = 2 * s * t;
        if (at < blockDim.x) buffer[at] += buffer[at + s];
        __syncthreads();
    }
    if (t == 0) atomicAdd(out, buffer[0]);
}

// The distance halves in each step: neighbouring threads access neighbouring words.
extern "C" __global__ void sum_sequential(float* out, const float* in, int n) {
    DYNAMIC_SHARED(float, buffer);
    const int t = threadIdx.x;
    buffer[t] = in[blockIdx.x * blockDim.x + t];
    __syncthreads();
    for (int s = blockDim.x / 2; s > 0; s /= 2) {
        if (t < s) buffer[t] += buffer[t + s];
        __syncthreads();
    }
    if (t == 0) atomicAdd(out, buffer[0]);
}

// As above, but each thread starts with the sum of two elements, so half the blocks are enough.
extern "C" __global__ void sum_two_each(float* out, const float* in, int n) {
    DYNAMIC_SHARED(float, buffer);
    const int t = threadIdx.x, i = blockIdx.x * blockDim.x * 2 + t;
    buffer[t] = in[i] + in[i + blockDim.x];
    __syncthreads();
    for (int s = blockDim.x / 2; s > 0; s /= 2) {
        if (t < s) buffer[t] += buffer[t + s];
        __syncthreads();
    }
    if (t == 0) atomicAdd(out, buffer[0]);
}

// One warp adds the last 64 words without a barrier of the block. All its lanes add, though fewer are needed each step.
__device__ __forceinline__ void last_warp(volatile float* buffer, int t) {
#pragma unroll
    for (int s = 32; s > 0; s /= 2) buffer[t] = buffer[t] + buffer[t + s];
}

extern "C" __global__ void sum_last_warp(float* out, const float* in, int n) {
    DYNAMIC_SHARED(float, buffer);
    const int t = threadIdx.x, i = blockIdx.x * blockDim.x * 2 + t;
    buffer[t] = in[i] + in[i + blockDim.x];
    __syncthreads();
    for (int s = blockDim.x / 2; s > 32; s /= 2) {
        if (t < s) buffer[t] += buffer[t + s];
        __syncthreads();
    }
    if (t < 32) last_warp(buffer, t);
    if (t == 0) atomicAdd(out, buffer[0]);
}

// ---- int32: blocks of 512 ----

constexpr int count_threads = 512;

// Thread 0 gets the sum over the block. With `unroll` the last 64 words take no barrier of the block: the first warp
// adds them, half as many lanes in each step, with __syncwarp between the steps.
template <bool unroll>
__device__ __forceinline__ int block_total(int value, int* buffer) {
    const int t = threadIdx.x;
    buffer[t] = value;
    __syncthreads();
#pragma unroll
    for (int s = count_threads / 2; s > (unroll ? 32 : 0); s /= 2) {
        if (t < s) buffer[t] += buffer[t + s];
        __syncthreads();
    }
    volatile int* words = buffer;
    if (unroll) {
#pragma unroll
        for (int s = 32; s > 0; s /= 2) {
            if (t < s) words[t] = words[t] + words[t + s];
            __syncwarp();
        }
    }
    return words[t];
}

// The sum over a thread's elements, for the first three kernels. With one thread per element the loop runs once. In the
// second launch, which has one block, it runs several times.
__device__ __forceinline__ int grid_stride_sum(const int* in, int n) {
    int sum = 0;
    for (int i = blockIdx.x * count_threads + threadIdx.x; i < n; i += count_threads * gridDim.x) sum += in[i];
    return sum;
}

#define COUNT(name) extern "C" __global__ void __launch_bounds__(count_threads) name(int* out, const int* in, int n)

// One partial sum per block. A second launch with ONE block then adds the partial sums.
COUNT(count_tree) {
    __shared__ int buffer[count_threads];
    const int total = block_total<false>(grid_stride_sum(in, n), buffer);
    if (threadIdx.x == 0) out[blockIdx.x] = total;
}

COUNT(count_last_warp) {
    __shared__ int buffer[count_threads];
    const int total = block_total<true>(grid_stride_sum(in, n), buffer);
    if (threadIdx.x == 0) out[blockIdx.x] = total;
}

COUNT(count_atomic) {
    __shared__ int buffer[count_threads];
    const int total = block_total<true>(grid_stride_sum(in, n), buffer);
    if (threadIdx.x == 0) atomicAdd(out, total);
}

// Twelve neighbouring elements per thread, one by one: the addresses of a warp's load are 48 bytes apart.
COUNT(count_twelve) {
    __shared__ int buffer[count_threads];
    const int first = (blockIdx.x * count_threads + threadIdx.x) * 12;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 12; ++i)
        if (first + i < n) sum += in[first + i];
    const int total = block_total<true>(sum, buffer);
    if (threadIdx.x == 0) atomicAdd(out, total);
}

// The same twelve as three loads of 16 bytes.
COUNT(count_vectors) {
    __shared__ int buffer[count_threads];
    const int first = (blockIdx.x * count_threads + threadIdx.x) * 3;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 3; ++i)
        if (first + i < n / 4) {
            const int4 v = reinterpret_cast<const int4*>(in)[first + i];
            sum += v.x + v.y + v.z + v.w;
        }
    const int total = block_total<true>(sum, buffer);
    if (threadIdx.x == 0) atomicAdd(out, total);
}
