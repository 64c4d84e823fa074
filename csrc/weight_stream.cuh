// weight_stream.cuh: a warp's weights as one stream, which runs ahead of the computation
// Layout    The host packs the weights once, in the order in which the warps read them (luce_edu/stages/packing.py).
//           A slot holds 2 KiB, four pieces of 256 neighbouring weights: one piece each of four rows, or two each of two.
//           stream [slots, slot_pieces, chunk]; a warp owns neighbouring slots, those of one token, and reads them again
//           for the next.
// Computes  start():   request the first slots
//           take(w):   wait for the oldest slot; copy it to the registers w; request one more slot in its place
// Ring      Each warp has a ring of ring_slots slots of its own in shared memory, so no warp waits for another one's
//           copies. A slot is requested again as soon as its last copy is in registers. So the ring is full, or being
//           filled, whenever a warp waits for activations: the copies run ahead across phases and layers, into the head
//           and into the next token. No deadlock is possible: take() waits only for a copy that was requested before,
//           and a copy needs nobody.
// Ways      sm_90 and newer: one bulk copy per slot, whose bytes an mbarrier in shared memory counts.
//           sm_80 to sm_89: cp.async. A lane copies the 16 bytes that it will read itself, so it waits for itself only.
//           sm_75, or RING_SLOTS == 0: no ring. take() loads from device memory. Before a warp waits for activations, it
//           prefetches its next PREFETCH_SLOTS slots into L2. Prefetches at every slot would fill L2 with lines that
//           are evicted before they are read.
//           Beside a ring, each request also prefetches the slot BEYOND_RING places further into L2. Attention keeps
//           warps waiting for longer than a ring takes to fill. So each warp then prefetches ATTENTION_SLOTS more.
// Traffic   every weight is read once per token, in pieces of one slot
// Checked   tests/stages/test_streaming.py
#pragma once
#include "matvec.cuh"

constexpr int slot_pieces = 4;
constexpr int slot_weights = slot_pieces * chunk;
constexpr int slot_bytes = slot_weights * static_cast<int>(sizeof(bf16));

#if RING_SLOTS == 0 || __CUDA_ARCH__ < 800
constexpr int ring_slots = 0;
#else
constexpr int ring_slots = RING_SLOTS;
#endif

#if __CUDA_ARCH__ >= 800
// A copy with this policy leaves lines that L2 evicts first. Weights are read once per token, so they shall leave L2
// before the states do, and before weights that are prefetched.
__device__ __forceinline__ unsigned long long read_once() {
    unsigned long long policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void copy_16_bytes_once(void* to, const void* from, unsigned long long policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;"
                 ::"r"(shared_address(to)), "l"(from), "l"(policy) : "memory");
}
#endif

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void barrier_init(unsigned long long* barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

// Requests `bytes` at `from`, and tells the barrier to expect them. One lane calls it.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, int bytes, unsigned long long* barrier) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                 ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(read_once())
                 : "memory");
}

__device__ __forceinline__ void barrier_wait(unsigned long long* barrier, unsigned parity) {
    unsigned done;
    do asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                    : "=r"(done) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    while (!done);
}
#endif

extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];  // SHARED_BYTES, the rings, an int per warp

constexpr int place_bytes = slot_bytes + 16;  // of the ring: a slot, and its mbarrier

struct WeightStream {
    const bf16* next;      // the slot to request next; without a ring, the slot to take next
    int until_wrap;        // slots from there to the end of the warp's part; then it begins again, for the next token
    int left;              // slots still to be requested in this launch
    int place;             // of the oldest slot in the ring: bytes from the start of shared memory
    int wrap;              // places from there to the end of the ring
    unsigned parity;       // of the mbarriers' phase that take() waits for

    // Behind the rings, because it is needed once per token only.
    __device__ __forceinline__ static int* slots_per_token() {
        return reinterpret_cast<int*>(dynamic_shared_memory + SHARED_BYTES + block_warps * ring_slots * place_bytes) +
               warp_id();
    }

    __device__ __forceinline__ static unsigned long long* full(int place) {
        return reinterpret_cast<unsigned long long*>(dynamic_shared_memory + place + slot_bytes);
    }

    // Requests the next slot of the stream, if there is one, into a place of the ring.
    __device__ __forceinline__ void request(int place) {
#if __CUDA_ARCH__ >= 900
        if (left > 0 && lane_id() == 0) bulk_copy(dynamic_shared_memory + place, next, slot_bytes, full(place));
#elif __CUDA_ARCH__ >= 800
        if (left > 0) {
            const unsigned long long policy = read_once();
#pragma unroll
            for (int i = 0; i < slot_pieces; ++i) {
                const int c = i * chunk + lane_id() * lane_weights;
                copy_16_bytes_once(dynamic_shared_memory + place + 2 * c, next + c, policy);
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");  // a group per slot, empty after the stream's end
#endif
        advance();
        // With 2, the last slot of a token prefetches one of the next warp's: one slot of hundreds.
        if (BEYOND_RING > 0 && left >= BEYOND_RING)
            prefetch(next + (BEYOND_RING - 1) * slot_weights);
    }

    __device__ __forceinline__ static void prefetch(const bf16* slot) {
        constexpr int line = 128 / sizeof(bf16);
        if (lane_id() < slot_weights / line) prefetch_l2(slot + lane_id() * line);
    }

    __device__ __forceinline__ void advance() {
        next += slot_weights, --left;
        if (--until_wrap == 0) {
            const int count = *slots_per_token();
            until_wrap = count, next -= static_cast<size_t>(count) * slot_weights;
        }
    }

    // Prefetches the next `count` slots into L2 that no request has prefetched.
    template <int count>
    __device__ __forceinline__ void prefetch_slots() const {
#pragma unroll
        for (int i = BEYOND_RING; i < BEYOND_RING + count; ++i)
            if (i < until_wrap && i < left) prefetch(next + i * slot_weights);
    }

    // A warp calls it when it has finished its part of a product.
    __device__ __forceinline__ void prefetch_next() const {
        if constexpr (ring_slots == 0) prefetch_slots<PREFETCH_SLOTS>();
    }

    // first, count: this warp's slots;  tokens: how often they may be read
    __device__ __forceinline__ void start(const bf16* first, int count, int tokens) {
        next = first, until_wrap = count, left = count * tokens, parity = 0, wrap = ring_slots;
        if (lane_id() == 0) *slots_per_token() = count;
        __syncwarp();
        place = SHARED_BYTES + warp_id() * ring_slots * place_bytes;
        if constexpr (ring_slots == 0) {
            prefetch_next();
        } else {
#if __CUDA_ARCH__ >= 900
            if (lane_id() == 0) {
                for (int i = 0; i < ring_slots; ++i) barrier_init(full(place + i * place_bytes));
                asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // before a copy uses them
            }
            __syncwarp();
#endif
#pragma unroll 1
            for (int i = 0; i < ring_slots; ++i) request(place + i * place_bytes);
        }
    }

    // Waits for the copies that nobody will take, because the launch ends before its last token. Shared memory must not
    // be given to another block while copies into it are under way.
    __device__ __forceinline__ void drain() {
#if __CUDA_ARCH__ >= 900
        if constexpr (ring_slots > 0) {
            const int requested = ring_slots + (left < 0 ? left : 0);  // fewer at the end of the stream; see request()
            for (int i = 0; i < requested; ++i) {
                barrier_wait(full(place), parity);
                step();
            }
        }
#elif __CUDA_ARCH__ >= 800
        wait_for_own_copies();
#endif
    }

    __device__ __forceinline__ void step() {
        place += place_bytes;
        if (--wrap == 0) wrap = ring_slots, place -= ring_slots * place_bytes, parity ^= 1u;
    }

    // w[i]: this lane's 8 weights of piece i
    __device__ __forceinline__ void take(bf16x8 (&w)[slot_pieces]) {
        if constexpr (ring_slots == 0) {
#pragma unroll
            for (int i = 0; i < slot_pieces; ++i) w[i] = load_weights(next + i * chunk + lane_id() * lane_weights);
            advance();
        } else {
#if __CUDA_ARCH__ >= 900
            barrier_wait(full(place), parity);
#elif __CUDA_ARCH__ >= 800
            asm volatile("cp.async.wait_group %0;" ::"n"(ring_slots - 1) : "memory");
#endif
            const bf16x8* from = reinterpret_cast<const bf16x8*>(dynamic_shared_memory + place) + lane_id();
#pragma unroll
            for (int i = 0; i < slot_pieces; ++i) w[i] = from[i * warp_threads];
#if __CUDA_ARCH__ >= 900
            // A bulk copy writes through another path (the async proxy) than these loads read. The fence orders the two.
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
            __syncwarp();  // all lanes have read the slot before a copy overwrites it
            request(place);
            step();
        }
    }
};

// Takes one slot of `rows` rows, and adds the products with x, staged in shared memory, to this lane's sums. Each value
// of x that a lane reads serves all rows.
template <int rows>
__device__ __forceinline__ void add_slot(WeightStream& stream, const float* x, float (&sum)[rows]) {
    constexpr int pieces = slot_pieces / rows;  // of a row
    bf16x8 w[slot_pieces];
    stream.take(w);
#pragma unroll
    for (int j = 0; j < pieces; ++j) {
        const float4 lo = *reinterpret_cast<const float4*>(x + j * chunk + lane_id() * 4);  // see staged()
        const float4 hi = *reinterpret_cast<const float4*>(x + j * chunk + chunk / 2 + lane_id() * 4);
#pragma unroll
        for (int r = 0; r < rows; ++r) sum[r] = dot8(w[r * pieces + j], lo, hi, sum[r]);
    }
}

// Adds each of 2 or 4 sums over the warp, with 5 or 6 shuffles. Lane l returns the total of sum[l * rows / 32]. When two
// lanes exchange values, each goes on with half of the sums, so that no lane computes the same as another.
template <int rows>
__device__ __forceinline__ float warp_sums(const float (&sum)[rows]) {
    static_assert(rows == 2 || rows == 4, "one or two steps of halving");
    const bool upper = lane_id() & 16;
    float half[rows / 2];
#pragma unroll
    for (int i = 0; i < rows / 2; ++i) {
        const float kept = upper ? sum[rows / 2 + i] : sum[i], given = upper ? sum[i] : sum[rows / 2 + i];
        half[i] = kept + __shfl_xor_sync(full_warp, given, 16);
    }
    if constexpr (rows == 2) return warp_sum<16>(half[0]);
    const bool odd_eight = lane_id() & 8;
    const float kept = odd_eight ? half[rows / 2 - 1] : half[0], given = odd_eight ? half[0] : half[rows / 2 - 1];
    return warp_sum<8>(kept + __shfl_xor_sync(full_warp, given, 8));
}
