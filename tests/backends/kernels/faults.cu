// faults.cu: kernels that are wrong, each in one way; the emulator must name it
// A test finds the line that a report must name by the marker in its comment.
#include "primitives.cuh"

extern "C" __global__ void two_barriers(int* out) {
    if (threadIdx.x < 16) __syncthreads();  // first barrier
    else __syncthreads();                   // second barrier
    out[threadIdx.x] = 1;
}

extern "C" __global__ void barrier_after_exit(int* out) {
    if (threadIdx.x == 5) return;
    __syncthreads();  // barrier that 5 misses
    out[threadIdx.x] = 1;
}

extern "C" __global__ void exit_during_barrier(int* out) {
    if (threadIdx.x >= 64) return;
    __syncthreads();  // barrier that the last warps miss
    out[threadIdx.x] = 1;
}

extern "C" __global__ void two_warp_operations(int* out) {
    int x = threadIdx.x;
    if (threadIdx.x < 16) x = __shfl_xor_sync(~0u, x, 1);  // shuffle of the lower half
    else x = __ballot_sync(~0u, x);                        // vote of the upper half
    out[threadIdx.x] = x;
}

extern "C" __global__ void two_masks(int* out) {
    const unsigned mask = threadIdx.x == 7 ? 0x0000ffffu : ~0u;
    out[threadIdx.x] = __shfl_xor_sync(mask, threadIdx.x, 1);  // masks differ
}

extern "C" __global__ void lane_has_left(int* out) {
    if (threadIdx.x == 3) return;
    out[threadIdx.x] = __shfl_xor_sync(~0u, threadIdx.x, 1);  // lane 3 has left
}

extern "C" __global__ void source_outside_mask(int* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, threadIdx.x, 20);  // reads lane 20
}

extern "C" __global__ void not_in_own_mask(int* out) {
    out[threadIdx.x] = __shfl_sync(0x0000ffffu, threadIdx.x, 0);  // mask of the lower half
}

extern "C" __global__ void barrier_against_shuffle(int* out) {
    if (threadIdx.x == 0) __syncthreads();  // barrier of one lane
    else out[threadIdx.x] = __shfl_xor_sync(~0u, threadIdx.x, 1);  // shuffle of the others
}

extern "C" __global__ void traps(int* out) {
    if (threadIdx.x == 2) __trap();  // trap
    out[threadIdx.x] = 1;
}

__device__ void grid_barrier(unsigned* barrier) {
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned generation = load_acquire(&barrier[1]);
        if (add_acq_rel(&barrier[0], 1) == gridDim.x - 1) {
            barrier[0] = 0;
            store_release(&barrier[1], generation + 1);
        } else {
            wait_while_equal(&barrier[1], generation);  // wait in the grid barrier
        }
    }
    __syncthreads();  // end of the grid barrier
}

extern "C" __global__ void meet(unsigned* barrier) { grid_barrier(barrier); }

extern "C" __global__ void block_leaves(unsigned* barrier, int leaver) {
    if (static_cast<int>(blockIdx.x) == leaver) return;
    grid_barrier(barrier);
}

extern "C" __global__ void spin_on_load(unsigned* flag) {
    if (threadIdx.x == 0) {
        while (load_acquire(flag) == 0) {  // spin on a load
        }
    }
    __syncthreads();
}

extern "C" __global__ void spin_on_lock(unsigned* lock) {
    while (atomicCAS(lock, 0u, 1u) != 0) {  // spin on a lock
    }
}

extern "C" __global__ void spin_on_two(unsigned* flags) {
    while (load_acquire(&flags[0]) == 0 && load_acquire(&flags[1]) == 0) {  // spin on two flags
    }
}

extern "C" __global__ void spin_asleep(unsigned* flag) {
    while (atomicAdd(flag, 0) == 0) __nanosleep(100);  // spin asleep
}

// Each block reverses its part of x; without a barrier a thread reads what its partner may not have written yet.
extern "C" __global__ void reverse(const float* x, float* out, int with_barrier) {
    __shared__ float shared[256];
    const int i = threadIdx.x, offset = blockIdx.x * blockDim.x;
    shared[i] = x[offset + i];
    if (with_barrier) __syncthreads();
    out[offset + i] = shared[blockDim.x - 1 - i];
}

// Block b passes on what block b + 1 wrote; without a barrier it may read before that.
extern "C" __global__ void pass_on(unsigned* barrier, float* first, float* second, int with_barrier) {
    if (threadIdx.x == 0) first[blockIdx.x] = static_cast<float>(blockIdx.x);
    if (with_barrier) grid_barrier(barrier);
    if (threadIdx.x == 0) second[blockIdx.x] = first[(blockIdx.x + 1) % gridDim.x];
}

// What shared memory holds before anything is written to it; each block leaves zeros behind.
extern "C" __global__ void unwritten(float* out) {
    __shared__ float fixed[32];
    DYNAMIC_SHARED(float, dynamic);
    const int i = threadIdx.x;
    out[(2 * blockIdx.x + 0) * 32 + i] = fixed[i];
    out[(2 * blockIdx.x + 1) * 32 + i] = dynamic[i];
    fixed[i] = dynamic[i] = 0;
}

__device__ __noinline__ int deep(volatile int* depth) {
    volatile char page[1024];
    page[0] = static_cast<char>(*depth);
    *depth = *depth + 1;
    return deep(depth) + page[0];
}

extern "C" __global__ void endless_recursion(int* out) { out[0] = deep(out); }
