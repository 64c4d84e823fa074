// launches.cu: empty phases and small steps, as launches, as a graph, and as one kernel with barriers of the whole grid
// Computes  phase: visits += 1, once a launch.  scale: A[i] = B[i] / 4
// Shapes    A, B [n] fp64; visits one word; flags [steps] words, all 0 before a launch
// Work      phase and scale are what one launch does; phases and scale_* do `count` or `steps` of them with a barrier
//           of the grid after each. They take a cooperative launch.
//           Where the source has grid.sync of cooperative groups, grid_barrier.cuh stands here. ptxas makes the same
//           of both between the two barriers of the block: a fence, an atomic addition, reads until bit 31 changes.
//           Ours counts in block 0.
// Slow by choice: a phase has nothing to do, and the small arrays fit L2, so what is left is launch or barrier.
//           The pointers of scale are __restrict__, as published.
// Checked   tests/measure/test_validation.py
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

// A barrier that its authors wrote by hand: each step has a word of its own, which counts blocks. A fence in every
// thread, a relaxed addition and volatile reads: enough for the counting, and slower than it must be.
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

// c = a + b, one element a thread: small launches with a wait of the host after each.
extern "C" __global__ void add(const float* a, const float* b, float* c, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}
