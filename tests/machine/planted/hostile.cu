// hostile.cu: kernels with faults that a GPU shows and x86 mostly hides, each beside its sound twin
// A kernel's name is its family and its fault; with `sound` it is the twin. The families are small patterns of real
// kernels. Flags lie 32 words apart, and start as zeros.
#include "words.cuh"

enum Fault {
    sound,
    release_relaxed,            // the flag is stored with relaxed order
    release_plain,              // the flag is stored by a plain store
    release_block,              // a release whose scope is the block
    release_fence_block,        // a fence whose scope is the block
    fence_missing,              // no fence between the data and the flag
    fence_late,                 // the fence comes after the flag
    flag_before_data,           // the flag is stored before the data
    acquire_relaxed,            // the flag is read with relaxed order
    acquire_volatile,           // the flag is read by a volatile load, which is relaxed too
    acquire_block,              // an acquire whose scope is the block
    acquire_plain,              // the flag is read by a plain load, which may return the old value for ever
    barrier_missing,            // no __syncthreads between the block's accesses and thread 0's access to the flag
    barrier_missing_after,      // no __syncthreads between the flag that thread 0 has read and the block's reads
    data_nc,                    // ld.global.nc on data that this launch writes
    wait_missing,               // an asynchronous copy is read before any wait
    wait_short,                 // a wait that leaves one group too many under way
    wait_parity,                // a wait for the phase that is over already
    slot_reused,                // a copy into a slot that other threads may still read
};

// ---- Two blocks and a buffer: in each round block 0 fills it, block 1 reads it and sets a flag ----

template <Fault fault>
WORD void say(unsigned* flag, unsigned round) {
    if (fault == release_relaxed) store_relaxed(flag, round);
    else if (fault == release_plain) store_plain(flag, round);
    else if (fault == release_block) store_release_block(flag, round);
    else if (fault == release_fence_block) {
        fence_block();
        store_relaxed(flag, round);
    } else store_release(flag, round);
}

template <Fault fault>
WORD unsigned look(const unsigned* flag) {
    if (fault == acquire_relaxed) return load_relaxed(flag);
    if (fault == acquire_volatile) return load_volatile(flag);
    if (fault == acquire_block) return load_acquire_block(flag);
    if (fault == acquire_plain) return load_plain(flag);
    return load_acquire(flag);
}

template <Fault fault>
WORD void channel(unsigned* flags, unsigned* data, unsigned* out, unsigned rounds) {
    unsigned *sent = flags, *seen = flags + 32;
    const unsigned i = threadIdx.x;
    for (unsigned round = 1; round <= rounds; ++round) {
        if (blockIdx.x == 0) {
            if (i == 0) while (load_acquire(seen) != round - 1) {}
            __syncthreads();
            if (fault == flag_before_data && i == 0) store_release(sent, round);
            data[i] = round * 1000 + i;  // hands over
            if (fault != barrier_missing) __syncthreads();
            if (fault != flag_before_data && i == 0) say<fault>(sent, round);
        } else {
            if (i == 0) while (look<fault>(sent) != round) {}
            if (fault != barrier_missing_after) __syncthreads();
            out[(round - 1) * blockDim.x + i] = fault == data_nc ? load_nc(&data[i]) : data[i];  // takes over
            __syncthreads();
            if (i == 0) store_release(seen, round);
        }
    }
}

#define CHANNEL(fault)                                                                                            \
    extern "C" __global__ void channel_##fault(unsigned* flags, unsigned* data, unsigned* out, unsigned rounds) { \
        channel<fault>(flags, data, out, rounds);                                                                 \
    }
CHANNEL(sound)
CHANNEL(release_relaxed)
CHANNEL(release_plain)
CHANNEL(release_block)
CHANNEL(release_fence_block)
CHANNEL(flag_before_data)
CHANNEL(acquire_relaxed)
CHANNEL(acquire_volatile)
CHANNEL(acquire_block)
CHANNEL(acquire_plain)
CHANNEL(barrier_missing)
CHANNEL(barrier_missing_after)
CHANNEL(data_nc)

// ---- One message per thread, from thread i of block 0 to thread i of block 1, each with its own flag ----

template <Fault fault>
WORD void message(unsigned* flags, unsigned* data, unsigned* out) {
    const unsigned i = threadIdx.x;
    if (blockIdx.x == 0) {
        data[i] = 1000 + i;  // writes its message
        if (fault == sound) fence();
        store_relaxed(&flags[i], 1);
        if (fault == fence_late) fence();
    } else {
        while (load_relaxed(&flags[i]) == 0) {}
        fence();
        out[i] = data[i];  // reads its message
    }
}

#define MESSAGE(fault)                                                                           \
    extern "C" __global__ void message_##fault(unsigned* flags, unsigned* data, unsigned* out) { \
        message<fault>(flags, data, out);                                                        \
    }
MESSAGE(sound)
MESSAGE(fence_missing)
MESSAGE(fence_late)

// ---- Store buffering: two blocks each set a flag and read the other's; at least one must see the other's ----

template <Fault fault>
WORD void announce(unsigned* met, unsigned* here, unsigned* out, unsigned rounds) {
    for (unsigned round = 0; round < rounds; ++round) {  // one thread a block
        add_relaxed(met, 1);
        while (load_relaxed(met) < 2 * (round + 1)) {}  // both start the round together
        unsigned *mine = here + 2 * round + blockIdx.x, *other = here + 2 * round + (1 - blockIdx.x);
        store_relaxed(mine, 1);
        if (fault == sound) fence_sc();
        out[2 * round + blockIdx.x] = load_relaxed(other);
    }
}

#define ANNOUNCE(fault)                                                                                          \
    extern "C" __global__ void announce_##fault(unsigned* met, unsigned* here, unsigned* out, unsigned rounds) { \
        announce<fault>(met, here, out, rounds);                                                                 \
    }
ANNOUNCE(sound)
ANNOUNCE(fence_missing)

// ---- A grid barrier, as in csrc/grid_barrier.cuh: block b adds 1 to the last value of block b + 1 ----

template <Fault fault>
WORD void grid_barrier(unsigned* word) {
    if (fault != barrier_missing) __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned top = 1u << 31, share = blockIdx.x == 0 ? top - (gridDim.x - 1) : 1u;
        const unsigned before = fault == release_relaxed ? add_relaxed(word, share) : add_release(word, share);
        while (((look<fault>(word) ^ before) & top) == 0) {}
    }
    __syncthreads();
}

template <Fault fault>
WORD void rounds_of_grid(unsigned* word, unsigned* buffer, unsigned rounds) {  // buffer [2, blocks, threads]
    const unsigned i = threadIdx.x, blocks = gridDim.x, threads = blockDim.x;
    buffer[blockIdx.x * threads + i] = blockIdx.x;  // before the grid barrier
    for (unsigned round = 0; round < rounds; ++round) {
        grid_barrier<fault>(word);
        const unsigned* from = buffer + (round % 2) * blocks * threads + (blockIdx.x + 1) % blocks * threads + i;
        const unsigned value = fault == data_nc ? load_nc(from) : *from;  // after the grid barrier
        buffer[((round + 1) % 2) * blocks * threads + blockIdx.x * threads + i] = value + 1;
    }
}

#define GRID(fault)                                                                              \
    extern "C" __global__ void grid_##fault(unsigned* word, unsigned* buffer, unsigned rounds) { \
        rounds_of_grid<fault>(word, buffer, rounds);                                             \
    }
GRID(sound)
GRID(release_relaxed)
GRID(acquire_relaxed)
GRID(acquire_volatile)
GRID(acquire_block)
GRID(barrier_missing)
GRID(data_nc)

// ---- The last block to arrive adds up the values of all: out[i] is the sum over blocks of x[b, i] ----

template <Fault fault>
WORD void last_block(const unsigned* x, unsigned* partial, unsigned* counter, unsigned* out) {
    __shared__ unsigned last;
    const unsigned i = threadIdx.x, threads = blockDim.x;
    partial[blockIdx.x * threads + i] = x[blockIdx.x * threads + i];  // partial sums
    if (fault != barrier_missing) __syncthreads();
    if (i == 0) {
        if (fault == release_fence_block) fence_block();
        else if (fault != fence_missing) fence();
        last = add_relaxed(counter, 1) == gridDim.x - 1;
        fence();
    }
    __syncthreads();
    if (!last) return;
    unsigned sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += partial[b * threads + i];  // adds up
    out[i] = sum;
}

#define LAST(fault)                                                               \
    extern "C" __global__ void last_##fault(                                      \
        const unsigned* x, unsigned* partial, unsigned* counter, unsigned* out) { \
        last_block<fault>(x, partial, counter, out);                              \
    }
LAST(sound)
LAST(fence_missing)
LAST(release_fence_block)
LAST(barrier_missing)

// ---- A lock of atomics around a plain sum; one thread per block, each `rounds` times ----

template <Fault fault>
WORD void locked(unsigned* lock, unsigned* total, unsigned rounds) {
    for (unsigned round = 0; round < rounds; ++round) {
        while (take(lock) != 0) {}
        if (fault != acquire_relaxed) fence();
        *total = *total + 1;  // under the lock
        if (fault != release_relaxed) fence();
        store_relaxed(lock, 0);
    }
}

#define LOCKED(fault)                                                                             \
    extern "C" __global__ void locked_##fault(unsigned* lock, unsigned* total, unsigned rounds) { \
        locked<fault>(lock, total, rounds);                                                       \
    }
LOCKED(sound)
LOCKED(acquire_relaxed)
LOCKED(release_relaxed)

// ---- A ring of two slots for asynchronous copies, 16 bytes per thread: out[tile, i] = x[tile, words - 1 - i] ----

constexpr unsigned ring_threads = 64, ring_words = 4 * ring_threads;

template <Fault fault>
WORD void ring(const unsigned* x, unsigned* out, unsigned tiles) {
    __shared__ __align__(16) unsigned slots[2][ring_words];
    const unsigned i = threadIdx.x;
    copy_16(&slots[0][4 * i], &x[4 * i]);
    commit();
    for (unsigned tile = 0; tile < tiles; ++tile) {
        const unsigned next = tile + 1;
        if (next < tiles) copy_16(&slots[next % 2][4 * i], &x[next * ring_words + 4 * i]);
        commit();  // empty at the end, so that the count of groups stays the same
        if (fault == wait_short) wait_for_all_but<2>();
        else if (fault != wait_missing) wait_for_all_but<1>();
        if (fault != barrier_missing_after) __syncthreads();  // the copies of the other threads have come as well
        for (unsigned k = 0; k < 4; ++k) {
            const unsigned place = k * ring_threads + i;
            out[tile * ring_words + place] = slots[tile % 2][ring_words - 1 - place];  // reads what was copied
        }
        if (fault != slot_reused) __syncthreads();  // all threads have read this slot
    }
}

#define RING(fault)                                                          \
    extern "C" __global__ void __launch_bounds__(ring_threads) ring_##fault( \
        const unsigned* x, unsigned* out, unsigned tiles) {                  \
        ring<fault>(x, out, tiles);                                          \
    }
RING(sound)
RING(wait_missing)
RING(wait_short)
RING(barrier_missing_after)
RING(slot_reused)

#if __CUDA_ARCH__ >= 900
// ---- The same ring with bulk copies, one per tile; a slot's mbarrier counts the bytes ----

template <Fault fault>
WORD void bulk(const unsigned* x, unsigned* out, unsigned tiles) {
    __shared__ __align__(16) unsigned slots[2][ring_words];
    __shared__ unsigned long long full[2];
    const unsigned i = threadIdx.x, bytes = ring_words * sizeof(unsigned);
    const auto fetch = [&](unsigned tile) {
        mbarrier_expect(&full[tile % 2], bytes);
        copy_bulk(slots[tile % 2], &x[tile * ring_words], bytes, &full[tile % 2]);
    };
    if (i == 0) {
        mbarrier_init(&full[0], 1);
        mbarrier_init(&full[1], 1);
        fence_async();
    }
    __syncthreads();
    if (i == 0) fetch(0);
    for (unsigned tile = 0; tile < tiles; ++tile) {
        if (i == 0 && tile + 1 < tiles) fetch(tile + 1);
        const unsigned parity = tile / 2 % 2;
        if (fault == wait_missing) __syncthreads();
        else mbarrier_wait(&full[tile % 2], fault == wait_parity ? parity ^ 1u : parity);
        for (unsigned k = 0; k < 4; ++k) {
            const unsigned place = k * ring_threads + i;
            out[tile * ring_words + place] = slots[tile % 2][ring_words - 1 - place];  // reads what was copied in bulk
        }
        fence_async();
        if (fault != slot_reused) __syncthreads();
    }
}

#define BULK(fault)                                                          \
    extern "C" __global__ void __launch_bounds__(ring_threads) bulk_##fault( \
        const unsigned* x, unsigned* out, unsigned tiles) {                  \
        bulk<fault>(x, out, tiles);                                          \
    }
BULK(sound)
BULK(wait_missing)
BULK(wait_parity)
BULK(slot_reused)

// ---- Dependent launches: each lets its successor start at once, and touches shared tensors only after its wait ----

extern "C" __global__ void first_kernel(unsigned* data) {
    wait_for_predecessor();
    let_successor_start();
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    data[i] = 1000 + i;
}

template <bool early, bool waits>
WORD void second_kernel(const unsigned* data, unsigned* out) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned value = early ? load_plain(&data[i]) : 0;
    if (waits) wait_for_predecessor();
    let_successor_start();
    if (!early) value = load_plain(&data[i]);
    out[i] = value + 1;
}
#define SECOND_KERNEL(fault, early, waits)                                                        \
    extern "C" __global__ void second_kernel_##fault(const unsigned* data, unsigned* out) {       \
        second_kernel<early, waits>(data, out);                                                   \
    }
SECOND_KERNEL(sound, false, true)
SECOND_KERNEL(reads_early, true, true)
SECOND_KERNEL(never_waits, false, false)

// A kernel between the first and the second that touches neither's tensors. If it does not wait, the wait of its
// successor does not cover the first kernel.
template <bool waits>
WORD void kernel_between(unsigned* other) {
    if (waits) wait_for_predecessor();
    let_successor_start();
    other[blockIdx.x * blockDim.x + threadIdx.x] = 7;
}
extern "C" __global__ void kernel_between_sound(unsigned* other) { kernel_between<true>(other); }
extern "C" __global__ void kernel_between_never_waits(unsigned* other) { kernel_between<false>(other); }

// Copies n words to out; the next kernel clears them, and the copy may still be reading.
extern "C" __global__ void copy_kernel(const unsigned* data, unsigned* out, unsigned n) {
    wait_for_predecessor();
    let_successor_start();
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        out[i] = load_plain(&data[i]);
}

template <bool early>
WORD void clear_kernel(unsigned* data, unsigned n) {
    if (!early) wait_for_predecessor();
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) data[i] = 0;
    if (early) wait_for_predecessor();
}
extern "C" __global__ void clear_kernel_sound(unsigned* data, unsigned n) { clear_kernel<false>(data, n); }
extern "C" __global__ void clear_kernel_writes_early(unsigned* data, unsigned n) { clear_kernel<true>(data, n); }
#endif

// ---- Guarantees that hold under hostile memory too ----

// A thread reads its own plain writes, also over an old value that it has read before.
extern "C" __global__ void own_writes(unsigned* data, unsigned* out, unsigned rounds) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned wrong = 0;
    for (unsigned round = 1; round <= rounds; ++round) {
        store_plain(&data[i], round);
        wrong += load_plain(&data[i]) != round;
    }
    out[i] = wrong;
}

// Threads of a block read what the block wrote before a barrier, in global memory too.
extern "C" __global__ void block_writes(unsigned* data, unsigned* out, unsigned rounds) {
    const unsigned i = threadIdx.x, threads = blockDim.x, base = blockIdx.x * threads;
    unsigned wrong = 0;
    for (unsigned round = 1; round <= rounds; ++round) {
        store_plain(&data[base + i], round * 1000 + i);
        __syncthreads();
        const unsigned other = (i + round * 7) % threads;
        wrong += load_plain(&data[base + other]) != round * 1000 + other;
        __syncthreads();
    }
    out[base + i] = wrong;
}

// Relaxed loads of one word never return an older value than before, and no addition to it is lost.
extern "C" __global__ void one_word(unsigned* word, unsigned* out, unsigned rounds) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned before = 0, wrong = 0;
    for (unsigned round = 0; round < rounds; ++round) {
        const unsigned now = load_relaxed(word);
        wrong += now < before;
        const unsigned old = add_relaxed(word, 1);
        wrong += old < now;
        before = old + 1;
    }
    out[i] = wrong;
}

// Block 0 writes; block b passes the flag on to block b + 1. The last block reads data of block 0, with which it
// has not synchronised directly: releases and acquires work along a chain.
extern "C" __global__ void chain(unsigned* flags, unsigned* data, unsigned* out) {
    const unsigned i = threadIdx.x, b = blockIdx.x;
    if (b == 0) data[i] = 1000 + i;
    else {
        if (i == 0) while (load_acquire(&flags[32 * b]) == 0) {}
        __syncthreads();
        if (b == gridDim.x - 1) out[i] = data[i];
    }
    __syncthreads();
    if (i == 0 && b + 1 < gridDim.x) store_release(&flags[32 * (b + 1)], 1);
}

// Only the first addition is a release; relaxed additions of other blocks come after it. An acquire that reads the
// last of them synchronises with the first.
extern "C" __global__ void release_sequence(unsigned* counter, unsigned* data, unsigned* out) {
    const unsigned i = threadIdx.x, b = blockIdx.x, last = gridDim.x - 1;
    if (b == 0) {
        data[i] = 1000 + i;
        __syncthreads();
        if (i == 0) add_release(counter, 1);
    } else if (b < last) {
        if (i == 0) {
            while (load_relaxed(counter) == 0) {}
            add_relaxed(counter, 1);
        }
    } else {
        if (i == 0) while (load_acquire(counter) < last) {}
        __syncthreads();
        out[i] = data[i];
    }
}

// The next launch reads what a kernel wrote by plain stores, and so does the host.
extern "C" __global__ void plus_one(const unsigned* x, unsigned* y) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = load_nc(&x[i]) + 1;
}
