// lab.cu: kernels that break those rules of luce_edu/lab.py that no other file of this folder breaks, and their twins
// A kernel that ends in _sound is the sound twin of the one before it. A report must name the lines with comments.
#include "words.cuh"

// ---- Memory that was never written ----

extern "C" __global__ void adds_to_output(const unsigned* x, unsigned* y) {
    y[threadIdx.x] += x[threadIdx.x];  // adds to unwritten memory
}
extern "C" __global__ void adds_to_output_sound(const unsigned* x, unsigned* y) {
    y[threadIdx.x] = 0;
    y[threadIdx.x] += x[threadIdx.x];
}

// The counter is an output that an earlier launch should have cleared.
extern "C" __global__ void counts_from_nothing(unsigned* count) {
    if (threadIdx.x == 0) atomicAdd(&count[3], 1u);  // counts from nothing
}
extern "C" __global__ void counts_from_nothing_sound(unsigned* count) {
    if (threadIdx.x == 0) count[3 + blockIdx.x] = 0;
    if (threadIdx.x == 0) atomicAdd(&count[3 + blockIdx.x], 1u);
}

// Element 37 of a buffer between two phases is never written; thread 26 reads it.
template <int left_out>
WORD void through_memory(unsigned* buffer, unsigned* out) {
    const int i = threadIdx.x;
    if (i != left_out) buffer[i] = i;
    __syncthreads();
    out[i] = buffer[63 - i];  // reads the buffer
}
extern "C" __global__ void buffer_with_a_hole(unsigned* buffer, unsigned* out) { through_memory<37>(buffer, out); }
extern "C" __global__ void buffer_with_a_hole_sound(unsigned* buffer, unsigned* out) { through_memory<-1>(buffer, out); }

template <bool first>
WORD void by_copy(unsigned* buffer, unsigned* out) {
    __shared__ __align__(16) unsigned s[256];
    const int i = threadIdx.x;
    if (first) for (int k = 0; k < 4; ++k) buffer[4 * i + k] = i;
    copy_16(&s[4 * i], &buffer[4 * i]);  // copies the buffer
    commit();
    wait_for_all_but<0>();
    out[i] = s[4 * i];
}
extern "C" __global__ void copies_nothing(unsigned* buffer, unsigned* out) { by_copy<false>(buffer, out); }
extern "C" __global__ void copies_nothing_sound(unsigned* buffer, unsigned* out) { by_copy<true>(buffer, out); }

template <int left_out>
WORD void through_shared(unsigned* out) {
    __shared__ unsigned s[64];
    if (threadIdx.x != left_out) s[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x];  // reads shared memory
}
extern "C" __global__ void shared_with_a_hole(unsigned* out) { through_shared<37>(out); }
extern "C" __global__ void shared_with_a_hole_sound(unsigned* out) { through_shared<64>(out); }

// ---- Waits ----

// A barrier in the loop over tokens, whose number differs from block to block.
extern "C" __global__ void token_loop(unsigned* word, const unsigned* tokens) {
    for (unsigned token = 0; token < tokens[blockIdx.x]; ++token) grid_barrier(word);
}
extern "C" __global__ void token_loop_sound(unsigned* word, const unsigned* tokens) {
    for (unsigned token = 0; token < tokens[0]; ++token) grid_barrier(word);
}

extern "C" __global__ void barrier_in_a_branch(unsigned* out) {
    if (threadIdx.x < 32) __syncthreads();  // barrier of one warp
    else out[threadIdx.x] = 1;
}
extern "C" __global__ void barrier_in_a_branch_sound(unsigned* out) {
    if (threadIdx.x >= 32) out[threadIdx.x] = 1;
    __syncthreads();
}

extern "C" __global__ void shuffle_in_a_branch(unsigned* out) {
    if (threadIdx.x != 3) out[threadIdx.x] = __shfl_xor_sync(~0u, threadIdx.x, 1);  // without lane 3
}
extern "C" __global__ void shuffle_in_a_branch_sound(unsigned* out) {
    const unsigned other = __shfl_xor_sync(~0u, threadIdx.x, 1);
    if (threadIdx.x != 3) out[threadIdx.x] = other;
}

// Both blocks take two locks, in different orders: each can hold one lock and wait for the other.
template <bool same>
WORD void two_locks(unsigned* locks, unsigned* out) {  // one thread a block
    const unsigned first = same ? 0 : 32 * blockIdx.x, second = 32 - first;
    while (take(&locks[first]) != 0) {}
#pragma unroll 1
    for (unsigned k = 0; k < 100; ++k) load_relaxed(&out[0]);  // some work, so that both blocks can come here
    while (take(&locks[second]) != 0) {}  // waits for the second lock
    fence();
    out[0] = out[0] + 1;
    fence();
    store_relaxed(&locks[second], 0);
    store_relaxed(&locks[first], 0);
}
extern "C" __global__ void locks_crossed(unsigned* locks, unsigned* out) { two_locks<false>(locks, out); }
extern "C" __global__ void locks_crossed_sound(unsigned* locks, unsigned* out) { two_locks<true>(locks, out); }

extern "C" __global__ void named_barrier_waits_for_two(unsigned* out) {
    if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;" ::: "memory");  // waits for a second warp
    out[threadIdx.x] = 1;
}
extern "C" __global__ void named_barrier_waits_for_two_sound(unsigned* out) {
    asm volatile("bar.sync 1, 64;" ::: "memory");
    out[threadIdx.x] = 1;
}

#if __CUDA_ARCH__ >= 900
template <unsigned arrivals>
WORD void arrive(unsigned* out) {
    __shared__ unsigned long long barrier;
    if (threadIdx.x == 0) mbarrier_init(&barrier, arrivals);
    __syncthreads();
    if (threadIdx.x == 0) mbarrier_expect(&barrier, 0);
    mbarrier_wait(&barrier, 0);  // waits for the mbarrier
    out[threadIdx.x] = 1;
}
extern "C" __global__ void mbarrier_counts_two(unsigned* out) { arrive<2>(out); }
extern "C" __global__ void mbarrier_counts_two_sound(unsigned* out) { arrive<1>(out); }
#endif

// ---- Order ----

// A sum of floats in the order in which blocks arrive.
extern "C" __global__ void sum_in_any_order(const float* x, float* sum) {
    if (threadIdx.x == 0) atomicAdd(sum, x[blockIdx.x]);  // adds when it comes
}
extern "C" __global__ void sum_in_any_order_sound(const float* x, float* sum) {
    if (threadIdx.x + blockIdx.x > 0) return;
    float total = 0.0f;
    for (unsigned b = 0; b < gridDim.x; ++b) total += x[b];
    sum[0] = total;
}

// Each block takes the next free row.
extern "C" __global__ void rows_as_they_come(unsigned* next, unsigned* out) {  // one thread a block
    out[atomicAdd(next, 1u)] = blockIdx.x;  // takes a row
}
extern "C" __global__ void rows_as_they_come_sound(unsigned* next, unsigned* out) {
    atomicAdd(next, 1u);
    out[blockIdx.x] = blockIdx.x;
}
