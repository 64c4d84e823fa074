// launches.cu: empty phases and small steps, as launches, as a graph, and as one kernel with grid barriers
// Computes  phase: visits += 1 per launch;  phases: visits += count
//           scale: for i in [0, n): A[i] = B[i] / 4;  scale_grid, scale_hand: the same `steps` times
// Shapes    A, B [n] fp64; visits one word; flags [steps] words, all 0 before a launch
// Work      phases, scale_grid and scale_hand have a grid barrier after each step and need a cooperative launch.
//           The source uses grid.sync of cooperative groups where grid_barrier.cuh is used here. Between the two
//           barriers of the block, ptxas compiles both to the same: a fence, an atomic addition, loads until bit 31
//           changes. Ours also counts the barriers, in block 0.
// Why       A phase is empty and the arrays fit in L2, so the time is that of the launch or the barrier.
//           The pointers of scale are __restrict__, as published.
// Checked   tests/measure/records/test_validation.py
// Source    phase: Infatoshi/MegaQwen, experiments. scale: te42kyfo/gpu-benches, gpu-small-kernels
#include "grid_barrier.cuh"

extern "C" __global__ void phase(unsigned* visits) {
    if (blockIdx.x == 0 && threadIdx.x == 0) atomicAdd(visits, 1u);
}

extern "C" __global__ void phases(unsigned* visits, int count, GridBarrier* barrier) {
    for (int i = 0; i < count; ++i) {
        if (blockIdx.x == 0 && threadIdx.x == 0) atomicAdd(visits, 1u);
        grid_barrier(barrier);
    }
}

extern "C" __global__ void scale(double* __restrict__ A, const double* __restrict__ B, int n) {
    const int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i >= n) return;
    A[i] = B[i] * 0.25;
}

extern "C" __global__ void scale_grid(double* A, const double* B, int n, int steps, GridBarrier* barrier) {
    for (int step = 0; step < steps; ++step) {
        for (int i = threadIdx.x + blockIdx.x * blockDim.x; i < n; i += gridDim.x * blockDim.x) A[i] = B[i] * 0.25;
        grid_barrier(barrier);
    }
}

// The authors' own barrier: each step has its own word, which counts the blocks that have arrived. It has a fence in
// every thread, a relaxed addition and volatile loads. That is correct, and slower than necessary.
extern "C" __global__ void scale_hand(double* A, const double* B, int n, int steps, unsigned* flags) {
    for (int step = 0; step < steps; ++step) {
        for (int i = threadIdx.x + blockIdx.x * blockDim.x; i < n; i += gridDim.x * blockDim.x) A[i] = B[i] * 0.25;
        __syncthreads();
        __threadfence();
        if (threadIdx.x == 0) {
            volatile unsigned* flag = flags + step;
            atomicAdd(flags + step, 1u);
            while (*flag < gridDim.x) {
            }
        }
        __syncthreads();
    }
}

// c = a + b, one element per thread. It is used for small launches, each followed by a wait of the host.
extern "C" __global__ void add(const float* a, const float* b, float* c, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}
