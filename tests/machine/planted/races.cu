// races.cu: kernels with a race, and for each the sound twin that must give no report
// Flags, locks, grid barriers and asynchronous copies are in hostile.cu. A sound twin's name ends in _sound; TWINS
// makes most of them from one function. A report must name the lines that end in a comment. Where it must also name
// threads and an element, exactly two threads race, on one element.
#include "words.cuh"

#define TWINS(name, parameters, arguments)                                     \
    extern "C" __global__ void name parameters { name##_of<false> arguments; } \
    extern "C" __global__ void name##_sound parameters { name##_of<true> arguments; }

// ---- One block, shared memory ----

template <bool sound>
WORD void shared_exchange_of(unsigned* out) {
    __shared__ unsigned s[64];
    s[threadIdx.x] = 99;
    __syncthreads();
    s[threadIdx.x] = threadIdx.x;                      // exchange writes
    if (sound) __syncthreads();
    out[threadIdx.x] = s[threadIdx.x ^ 32];            // exchange reads
}
TWINS(shared_exchange, (unsigned* out), (out))

// Thread 41 writes element 17, which thread 5 reads.
template <bool sound>
WORD void shared_pair_of(unsigned* out) {
    __shared__ unsigned s[64];
    s[threadIdx.x] = 0;
    __syncthreads();
    if (threadIdx.x == 41) s[17] = 7;                  // pair writes
    if (sound) __syncthreads();
    if (threadIdx.x == 5) out[0] = s[17];              // pair reads
}
TWINS(shared_pair, (unsigned* out), (out))

// A read, and a write that should come after it.
template <bool sound>
WORD void shared_write_after_read_of(unsigned* out, unsigned rounds) {
    __shared__ unsigned s[64];
    for (unsigned round = 0; round < rounds; ++round) {
        s[threadIdx.x] = round + threadIdx.x;          // war writes
        __syncthreads();
        out[threadIdx.x] = s[threadIdx.x ^ 32];        // war reads
        if (sound) __syncthreads();
    }
}
TWINS(shared_write_after_read, (unsigned* out, unsigned rounds), (out, rounds))

// The first thread of each warp writes the same element.
template <bool sound>
WORD void shared_two_writers_of(unsigned* out) {
    __shared__ unsigned s[1];
    if (threadIdx.x == 0 || !sound && threadIdx.x == 32) s[0] = threadIdx.x;  // both write
    __syncthreads();
    if (sound && threadIdx.x == 32) s[0] = threadIdx.x;
    if (sound) __syncthreads();
    out[threadIdx.x] = s[0];
}
TWINS(shared_two_writers, (unsigned* out), (out))

// Lanes of one warp; since Volta only __syncwarp orders them.
template <bool sound>
WORD void shared_lanes_of(unsigned* out) {
    __shared__ unsigned s[32];
    s[threadIdx.x] = threadIdx.x;                      // lanes write
    if (sound) __syncwarp();
    out[threadIdx.x] = s[threadIdx.x ^ 1];             // lanes read
}
TWINS(shared_lanes, (unsigned* out), (out))

// A barrier of half a warp does not order the other half.
template <bool sound>
WORD void shared_half_warp_of(unsigned* out) {
    __shared__ unsigned s[32];
    s[threadIdx.x] = threadIdx.x;                      // halves write
    if (threadIdx.x < 16) __syncwarp(0x0000ffffu);
    else __syncwarp(0xffff0000u);
    out[threadIdx.x] = s[threadIdx.x ^ (sound ? 8 : 16)];  // halves read
}
TWINS(shared_half_warp, (unsigned* out), (out))

// Atomic additions, and a plain read that is not ordered after them.
template <bool sound>
WORD void shared_atomics_of(unsigned* out) {
    __shared__ unsigned count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, 1u);                             // counts
    if (sound) __syncthreads();
    out[threadIdx.x] = count;                          // reads the count
}
TWINS(shared_atomics, (unsigned* out), (out))

// A named barrier of the first two warps does not order the third.
template <bool sound>
WORD void shared_named_barrier_of(unsigned* out) {
    __shared__ unsigned s[96];
    s[threadIdx.x] = 99;
    __syncthreads();
    s[threadIdx.x] = threadIdx.x;                      // three warps write
    if (threadIdx.x < 64) {
        asm volatile("bar.sync 1, 64;" ::: "memory");
        out[threadIdx.x] = s[sound ? threadIdx.x ^ 32 : threadIdx.x + 32];  // two warps read
    }
    __syncthreads();
}
TWINS(shared_named_barrier, (unsigned* out), (out))

// Neighbouring bytes are different elements, and reads alone do not race.
extern "C" __global__ void bytes_apart_sound(unsigned* out) {
    __shared__ unsigned char s[64];
    s[threadIdx.x] = static_cast<unsigned char>(threadIdx.x);
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x ^ 33] + s[threadIdx.x ^ 34];
}

// A shuffle moves values through registers and needs no barrier.
extern "C" __global__ void registers_sound(const unsigned* x, unsigned* out) {
    out[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x] + x[threadIdx.x ^ 3], 5);
}

#if __CUDA_ARCH__ >= 900
// Each of the two blocks of a cluster reads the shared memory of the other.
template <bool sound>
WORD void cluster_shared_of(unsigned* out) {
    __shared__ unsigned s[64];
    const unsigned i = threadIdx.x;
    unsigned rank, address, value;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    s[i] = 1000 * rank + i;
    if (sound) asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
    else __syncthreads();
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(&s[i])), "r"(rank ^ 1u));
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    out[64 * blockIdx.x + i] = value;
    asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");  // may read s so far
}
extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_shared(unsigned* out) { cluster_shared_of<false>(out); }
extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_shared_sound(unsigned* out) {
    cluster_shared_of<true>(out);
}
#endif

// ---- Global memory, one block ----

template <bool sound>
WORD void global_exchange_of(unsigned* x, unsigned* out) {
    x[threadIdx.x] = threadIdx.x;                      // block writes
    if (sound) __syncthreads();
    out[threadIdx.x] = x[threadIdx.x ^ 32];            // block reads
}
TWINS(global_exchange, (unsigned* x, unsigned* out), (x, out))

// ---- Global memory, several blocks ----

// Thread 9 of block 1 and thread 33 of block 2 write element 77.
template <bool sound>
WORD void blocks_two_writers_of(unsigned* x) {
    if (blockIdx.x == 1 && threadIdx.x == 9) x[77] = 1;                   // first writer
    if (blockIdx.x == 2 && threadIdx.x == 33) x[sound ? 78 : 77] = 2;     // second writer
}
TWINS(blocks_two_writers, (unsigned* x), (x))

// Every block adds to the same element, without and with an atomic.
template <bool sound>
WORD void blocks_count_of(unsigned* x) {
    if (threadIdx.x > 0) return;
    if (sound) atomicAdd(&x[3], 1u);
    else x[3] = x[3] + 1;                              // plain count
}
TWINS(blocks_count, (unsigned* x), (x))

// An atomic of one block, and a plain read by another.
template <bool sound>
WORD void blocks_atomic_and_plain_of(unsigned* x, unsigned* out) {
    if (blockIdx.x == 0) atomicAdd(&x[threadIdx.x], 1u);          // atomic side
    else if (sound) out[threadIdx.x] = load_relaxed(&x[threadIdx.x]);
    else out[threadIdx.x] = x[threadIdx.x];                       // plain side
}
TWINS(blocks_atomic_and_plain, (unsigned* x, unsigned* out), (x, out))

// Atomics whose scope is the block, on an element that two blocks share.
template <bool sound>
WORD void blocks_scope_of(unsigned* x) {
    if (threadIdx.x == 0) add_relaxed_block(&x[sound ? 3 + blockIdx.x : 3], 1);  // too narrow
}
TWINS(blocks_scope, (unsigned* x), (x))

// The reader answers; only then may the buffer be filled again. The answer must be a release too.
template <bool release>
WORD void answered(unsigned* flags, unsigned* x, unsigned* out, unsigned rounds) {
    for (unsigned round = 1; round <= rounds; ++round) {  // one thread a block
        if (blockIdx.x == 0) {
            while (load_acquire(&flags[32]) != round - 1) {}
            x[0] = round;                              // fills again
            store_release(&flags[0], round);
        } else {
            while (load_acquire(&flags[0]) != round) {}
            out[round - 1] = x[0];                     // reads, then answers
            if (release) store_release(&flags[32], round);
            else store_relaxed(&flags[32], round);
        }
    }
}
extern "C" __global__ void answer_relaxed(unsigned* flags, unsigned* x, unsigned* out, unsigned rounds) {
    answered<false>(flags, x, out, rounds);
}
extern "C" __global__ void answer_sound(unsigned* flags, unsigned* x, unsigned* out, unsigned rounds) {
    answered<true>(flags, x, out, rounds);
}

// A chain of three blocks: the third reads data of the first after a flag of the second.
template <bool acquires>
WORD void chain(unsigned* flags, unsigned* x, unsigned* out) {  // one thread a block
    if (blockIdx.x == 0) {
        x[0] = 7;                                      // chain begins
        store_release(&flags[0], 1);
    } else if (blockIdx.x == 1) {
        while ((acquires ? load_acquire(&flags[0]) : load_relaxed(&flags[0])) == 0) {}
        store_release(&flags[32], 1);
    } else {
        while (load_acquire(&flags[32]) == 0) {}
        out[0] = x[0];                                 // chain ends
    }
}
extern "C" __global__ void chain_broken(unsigned* flags, unsigned* x, unsigned* out) { chain<false>(flags, x, out); }
extern "C" __global__ void chain_sound(unsigned* flags, unsigned* x, unsigned* out) { chain<true>(flags, x, out); }

// A launch comes after the launch before it.
extern "C" __global__ void launch_writes(unsigned* x) { x[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x; }
extern "C" __global__ void launch_reads(const unsigned* x, unsigned* out) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = x[(blockIdx.x + 1) % gridDim.x * blockDim.x + threadIdx.x];
}

#if __CUDA_ARCH__ >= 900
// Dependent launches overlap until the second waits.
extern "C" __global__ void dependent_writes(unsigned* x) {
    wait_for_predecessor();
    let_successor_start();
    x[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x;  // first kernel writes
}
template <bool sound>
WORD void dependent_reads_of(const unsigned* x, unsigned* out) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (sound) wait_for_predecessor();
    out[i] = x[i];                                     // second kernel reads
    if (!sound) wait_for_predecessor();
}
TWINS(dependent_reads, (const unsigned* x, unsigned* out), (x, out))
#endif
