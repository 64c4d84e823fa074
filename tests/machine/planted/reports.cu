// reports.cu: kernels with one fault each; a report must name the fault and its place
// A test finds the line that a report must name by the comment at its end.
#include "words.cuh"

// ---- A kernel that is right; a test runs it after each of the others ----

extern "C" __global__ void good(const float* x, float* out, int n) {
    __shared__ float s[64];
    const int i = threadIdx.x, at = blockIdx.x * blockDim.x + i;
    s[i] = at < n ? x[at] : 0.0f;
    __syncthreads();
    if (at < n) out[at] = s[i] + s[i ^ 1];
}

// ---- Memory ----

// Thread 37 of block 1 writes past the end of x, or before its start.
extern "C" __global__ void store_outside(float* x, long long where) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    x[blockIdx.x == 1 && threadIdx.x == 37 ? where : i] = 1.0f;  // store outside
}

extern "C" __global__ void load_outside(const float* x, float* out, long long where) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = x[blockIdx.x == 1 && threadIdx.x == 37 ? where : i];  // load outside
}

extern "C" __global__ void shared_outside(float* out, int where) {
    __shared__ float s[64];
    s[threadIdx.x] = 1.0f;
    __syncthreads();
    if (blockIdx.x == 1 && threadIdx.x == 37) s[where] = 2.0f;  // shared outside
    __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x];
}

extern "C" __global__ void dynamic_shared_outside(float* out, int where) {
    extern __shared__ float dynamic[];
    dynamic[threadIdx.x] = 1.0f;
    __syncthreads();
    if (blockIdx.x == 1 && threadIdx.x == 37) out[0] = dynamic[where];  // dynamic shared outside
}

extern "C" __global__ void local_outside(float* out, int where) {
    float local[8];
    for (unsigned k = 0; k < 8; ++k) local[(k + where) % 8u] = k;
    local[threadIdx.x == 37 ? where : 3] = 1.0f;  // local outside
    out[threadIdx.x] = local[threadIdx.x % 8];
}

extern "C" __global__ void misaligned_shared(unsigned* out, int where) {
    __shared__ __align__(16) unsigned char s[256];
    for (int k = 0; k < 4; ++k) s[4 * threadIdx.x + k] = k;
    __syncthreads();
    const int at = threadIdx.x == 37 ? where : 4 * threadIdx.x;
    out[threadIdx.x] = *reinterpret_cast<unsigned*>(s + at);  // misaligned shared
}

// Element 37 is never written; thread 26 reads it.
extern "C" __global__ void uninitialised(float* out) {
    __shared__ float s[64];
    if (threadIdx.x != 37) s[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x];  // uninitialised
}

extern "C" __global__ void uninitialised_dynamic(float* out) {
    extern __shared__ float dynamic[];
    if (threadIdx.x != 37) dynamic[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = dynamic[63 - threadIdx.x];  // uninitialised dynamic
}

// Each thread reads its element `where % 8`, which thread 26 has not written; as a byte if `where` is 8 or more.
extern "C" __global__ void uninitialised_local(float* out, int where) {
    float local[8];
    for (int k = 0; k < 8; ++k)
        if (threadIdx.x != 26 || k != where % 8) local[(k + threadIdx.x) % 8] = k;
    out[threadIdx.x] = where < 8 ? local[(where + threadIdx.x) % 8]  // uninitialised local
        : reinterpret_cast<unsigned char*>(local)[4 * ((where + threadIdx.x) % 8) + 1];
}

// ---- Barriers ----

extern "C" __global__ void two_barriers_of_a_warp(int* out) {
    if (threadIdx.x < 16) __syncthreads();  // first barrier of a warp
    else __syncthreads();                   // second barrier of a warp
    out[threadIdx.x] = 1;
}

// Hardware accepts this, because bar.sync only counts arrivals.
extern "C" __global__ void two_barriers_of_a_block(int* out) {
    if (threadIdx.x < 32) __syncthreads();  // first barrier of a block
    else {
        out[threadIdx.x] = 2;
        __syncthreads();  // second barrier of a block
    }
    if (threadIdx.x < 32) out[threadIdx.x] = 1;
}

extern "C" __global__ void barrier_after_exit(int* out) {
    if (threadIdx.x == 5) return;
    __syncthreads();  // barrier that 5 misses
    out[threadIdx.x] = 1;
}

extern "C" __global__ void barrier_of_some_warps(int* out) {
    if (threadIdx.x >= 32) return;
    __syncthreads();  // barrier that the last warp misses
    out[threadIdx.x] = 1;
}

// Thread 0 waits at a barrier that the others only reach after thread 0 has set the flag behind it.
extern "C" __global__ void barrier_against_flag(unsigned* flag) {
    if (threadIdx.x == 0) {
        __syncthreads();  // barrier of thread 0
        store_release(flag, 1);
    } else {
        while (load_acquire(flag) == 0) {}  // flag behind the barrier
        __syncthreads();
    }
}

// ---- Operations of a warp ----

extern "C" __global__ void two_warp_operations(int* out) {
    int x = threadIdx.x;
    if (threadIdx.x < 16) x = __shfl_xor_sync(~0u, x, 1);  // shuffle of the lower half
    else x = __ballot_sync(~0u, x > 3);                    // vote of the upper half
    out[threadIdx.x] = x;
}

extern "C" __global__ void two_masks(int* out) {
    const unsigned mask = threadIdx.x == 7 ? 0x0000ffffu : ~0u;
    out[threadIdx.x] = __shfl_xor_sync(mask, static_cast<int>(threadIdx.x), 1);  // masks differ
}

extern "C" __global__ void lane_has_left(int* out) {
    if (threadIdx.x == 3) return;
    out[threadIdx.x] = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);  // lane 3 has left
}

extern "C" __global__ void source_outside_mask(int* out) {
    const int x = threadIdx.x;
    if (x < 16) out[x] = __shfl_sync(0x0000ffffu, x, 20);  // reads lane 20
}

extern "C" __global__ void not_in_own_mask(int* out) {
    out[threadIdx.x] = __shfl_sync(0x0000ffffu, static_cast<int>(threadIdx.x), 0);  // mask of the lower half
}

extern "C" __global__ void barrier_against_shuffle(int* out) {
    if (threadIdx.x == 0) __syncthreads();                                           // barrier of one lane
    else out[threadIdx.x] = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);  // shuffle of the others
}

// ---- Waits that never end ----

__device__ __forceinline__ void counting_barrier(unsigned* barrier) {  // [0] arrivals, [1] generation
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned generation = load_acquire(&barrier[1]);
        if (add_acq_rel(&barrier[0], 1) == gridDim.x - 1) {
            barrier[0] = 0;
            store_release(&barrier[1], generation + 1);
        } else {
            while (load_acquire(&barrier[1]) == generation) {}  // wait in the grid barrier
        }
    }
    __syncthreads();  // end of the grid barrier
}

extern "C" __global__ void meet(unsigned* barrier) { counting_barrier(barrier); }

extern "C" __global__ void block_leaves(unsigned* barrier, int leaver) {
    if (static_cast<int>(blockIdx.x) == leaver) return;
    counting_barrier(barrier);
}

extern "C" __global__ void spin_on_load(unsigned* flag) {
    if (threadIdx.x == 0) while (load_acquire(flag) == 0) {}  // spin on a load
    __syncthreads();
}

extern "C" __global__ void spin_on_lock(unsigned* lock) {
    while (take(lock) != 0) {}  // spin on a lock
}

extern "C" __global__ void spin_on_two(unsigned* flags) {
    while (load_acquire(&flags[0]) == 0 && load_acquire(&flags[1]) == 0) {}  // spin on two flags
}

extern "C" __global__ void spin_in_two_groups(unsigned* flags) {
    const unsigned lane = threadIdx.x % 32;
    if (lane >= 8) flags[lane] = 1;
    __syncthreads();
    while (load_acquire(&flags[lane]) == 0 || load_acquire(&flags[32 + lane]) == 0) {}  // spin in two groups
}

extern "C" __global__ void spin_asleep(unsigned* flag) {
    while (atomicAdd(flag, 0u) == 0) __nanosleep(100);  // spin asleep
}

extern "C" __global__ void spin_on_shared(unsigned* out) {
    __shared__ volatile unsigned flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    while (flag == 0) {}  // spin on shared memory
    out[threadIdx.x] = flag;
}

// Each of two blocks waits for the other to begin.
extern "C" __global__ void each_waits_for_the_other(unsigned* flags) {
    if (threadIdx.x == 0) while (load_acquire(&flags[32 * (1 - blockIdx.x)]) == 0) {}  // waits for the other
    __syncthreads();
    if (threadIdx.x == 0) store_release(&flags[32 * blockIdx.x], 1);
}

// The word read differs each time, so this is no wait for a word; only the budget of instructions ends it.
extern "C" __global__ void endless(unsigned* out) {
    unsigned x = threadIdx.x;
    while (load_relaxed(&out[threadIdx.x]) == x) {
        x = x * 1664525u + 1013904223u;
        store_relaxed(&out[threadIdx.x], x);  // endless
    }
}

extern "C" __global__ void endless_in_registers(unsigned* out, unsigned step) {
    unsigned x = threadIdx.x;
    while ((x & 1u) == (threadIdx.x & 1u)) x = x * 5u + 2u * step;  // endless in registers
    out[threadIdx.x] = x;
}

// A long loop that ends: `rounds` steps for each thread.
extern "C" __global__ void long_loop(unsigned* out, unsigned rounds) {
    unsigned x = threadIdx.x;
    for (unsigned round = 0; round < rounds; ++round) x = x * 1664525u + (x >> 7);
    out[blockIdx.x * blockDim.x + threadIdx.x] = x;
}

// ---- Kernels that end themselves ----

extern "C" __global__ void traps(int* out) {
    if (blockIdx.x == 1 && threadIdx.x == 37) __trap();  // trap
    out[threadIdx.x] = 1;
}

extern "C" __global__ void asserts(const int* x, int* out) {
    assert(x[threadIdx.x] != 41);  // assert
    out[threadIdx.x] = 1;
}

// ---- Launches that are refused ----

extern "C" __global__ void __launch_bounds__(64) at_most_64(int* out) { out[threadIdx.x] = 1; }

extern "C" __global__ void arguments(float* x, int n, float factor, unsigned char flag, long long wide) {
    x[threadIdx.x] = factor * n + flag + wide;
}
