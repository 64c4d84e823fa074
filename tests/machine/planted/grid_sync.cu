// grid_sync.cu: kernels with the grid's barrier of CUDA's cooperative groups, right and wrong
// Checked   tests/machine/test_grid_sync.py
#include <cooperative_groups.h>

namespace cg = cooperative_groups;

// out[i] = 2 x[n - 1 - i], by way of y: each block reads what another wrote.
template <class Sync>
__device__ void reverse(const float* x, float* y, float* out, Sync sync) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    y[i] = 2 * x[i];
    sync();
    out[i] = y[n - 1 - i];
}

extern "C" __global__ void synced(const float* x, float* y, float* out) {
    reverse(x, y, out, [] { cg::this_grid().sync(); });
}

extern "C" __global__ void synced_apart(const float* x, float* y, float* out) {
    reverse(x, y, out, [] {
        auto grid = cg::this_grid();
        grid.barrier_wait(grid.barrier_arrive());
    });
}

extern "C" __global__ void of_the_block_alone(const float* x, float* y, float* out) {
    reverse(x, y, out, [] { cg::this_thread_block().sync(); });
}

extern "C" __global__ void without_its_last_block(const float* x, float* y, float* out) {
    if (blockIdx.x == gridDim.x - 1) return;  // leaves early
    reverse(x, y, out, [] { cg::this_grid().sync(); });
}

// A kernel without a grid barrier needs no cooperative launch.
extern "C" __global__ void ranks(int* out) {
    const auto grid = cg::this_grid();
    out[grid.thread_rank()] = static_cast<int>(grid.num_threads());
}
