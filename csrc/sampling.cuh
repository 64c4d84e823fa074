// sampling.cuh: draw a token from softmax(logits / T), with top-k and top-p
// Computes  w[i] = exp((logits[i] - maximum) / T)
//           kept = the top_k largest logits, and all that equal the last of them
//           kept = those of kept whose larger ones have less than top_p of its weight
//           token = argmax over kept of w[i] / -log(u[i])        u[i] uniform in (0, 1), from seed, position and i
// Why       -log(u[i]) / w[i] is exponential with rate w[i], and the smallest of these is i with probability
//           w[i] / sum(w). With the logarithm this is the Gumbel-max trick, so no sum over the kept tokens is needed.
// Equal     Tokens with equal logits are all kept or all dropped. Of equal quotients, the lowest index wins.
// Bits      Weights are added as integers, in units of 2^-40, and integer sums do not depend on their order. Each fp32
//           operation is rounded on its own, as IEEE 754 says. So every card and grid draws the same token.
// Limits    u has 32 bits, so a token with less than 5e-12 of the largest probability is never drawn.
// Search    The lowest kept logit is found in up to four steps, on 10, 10, 10 and 2 bits of its key. Each step counts
//           and weighs the keys by these bits, in shared memory first. The search ends at a bin with one token, mostly
//           after two steps.
// Work      Consecutive threads read consecutive 16 bytes. Any grid gives the same token.
// Checked   tests/csrc/test_sampling.py      Sources  Philox: Salmon et al., SC 2011; Gumbel-max: arXiv 1611.01144
#pragma once
#include "argmax.cuh"

// luce_edu/stages/sampling.py writes it.
struct Sampling {
    unsigned long long top_p;  // in units of 2^-64; 0 keeps all
    unsigned long long seed;
    float scale;  // log2(e) / T
    int top_k;    // 0 keeps all
};

constexpr int key_bits = 32, bin_bits = 10, bins = 1 << bin_bits;
constexpr int search_steps = (key_bits + bin_bits - 1) / bin_bits;
constexpr int bins_per_thread = (bins + block_threads - 1) / block_threads;

struct alignas(16) Bins {
    unsigned long long weight[bins];
    unsigned count[bins];
};

// In device memory. The bins are 0 between draws: the last block of a draw clears those that it used.
struct SamplingMemory {
    Bins steps[2 * search_steps];  // in the order of their use
    int greedy;                    // the index of the largest logit, which the first draw of a token keeps here
};
static_assert(sizeof(SamplingMemory) == 2 * search_steps * bins * 12 + 16, "MEMORY_BYTES of stages/sampling.py");

struct SamplingShared {
    unsigned weight_low[bins], weight_high[bins], count[bins];
    unsigned long long warp_total[block_warps];
    int bin;  // the one that holds the lowest kept key
    unsigned bin_count;
    unsigned long long above;  // the sum over the bins above it
    ArgmaxShared argmax;
};

struct Counter {
    unsigned word[4];
};

// Philox4x32-10: ten rounds turn a counter and a key into four random words.
__device__ __forceinline__ Counter philox(Counter counter, unsigned long long key) {
    unsigned key0 = static_cast<unsigned>(key), key1 = static_cast<unsigned>(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned(&c)[4] = counter.word;
        const unsigned high0 = __umulhi(0xD2511F53u, c[0]), low0 = 0xD2511F53u * c[0];
        const unsigned high1 = __umulhi(0xCD9E8D57u, c[2]), low1 = 0xCD9E8D57u * c[2];
        counter = Counter{{high1 ^ c[1] ^ key0, low1, high0 ^ c[3] ^ key1, low0}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// Larger logits have larger keys, and equal ones have equal keys. NaN has key 0, and all numbers have larger keys.
__device__ __forceinline__ unsigned logit_key(float logit) {
    if (logit != logit) return 0u;
    const unsigned bits = __float_as_uint(__fadd_rn(logit, 0.0f));  // -0 becomes +0
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// c[0] + x * (c[1] + x * (c[2] + ...)). The compiler may not fuse these, because PyTorch could not repeat the rounding.
template <int n>
__device__ __forceinline__ float polynomial(const float (&c)[n], float x) {
    float y = c[n - 1];
#pragma unroll
    for (int i = n - 2; i >= 0; --i) y = __fadd_rn(__fmul_rn(y, x), c[i]);
    return y;
}

// Returns w = exp((logit - maximum) / T), at least 2^-126: exp2 of the nearest integer, times a Taylor series.
__device__ __forceinline__ float token_weight(float logit, float maximum, float scale) {
    float x = logit == maximum ? 0.0f : __fmul_rn(__fsub_rn(logit, maximum), scale);  // 0 if both are infinite, too
    x = x > -126.0f ? x : -126.0f;
    const int n = __float2int_rn(x);  // in [-126, 0]
    const float terms[] = {1.0f, 0.69314718f, 0.24022651f, 0.055504109f, 0.0096181291f, 0.0013333558f, 0.00015403530f,
                           0.000015252734f};  // ln(2)^i / i!
    const float p = polynomial(terms, __fsub_rn(x, static_cast<float>(n)));
    return __fmul_rn(p, __uint_as_float(static_cast<unsigned>(n + 127) << 23));  // p * 2^n
}

// The weight as an integer. A vocabulary of 2^23 such weights still fits into 64 bits.
__device__ __forceinline__ unsigned long long fixed_weight(float weight) {
    return __float2ull_rn(__fmul_rn(weight, 1099511627776.0f));  // 2^40
}

// Returns -log2(u) for u = 1 - (word + 1/2) / 2^32. Small results decide which token wins. They belong to u near 1,
// which fp32 rounds too coarsely. So there the series starts from 1 - u.
__device__ __forceinline__ float exponential(unsigned word) {
    const bool near_one = word < 0x40000000u;  // u > 3/4
    const float half_more = __fadd_rn(__uint2float_rn(near_one ? word : ~word), 0.5f);
    const float x = __fmul_rn(half_more, 2.3283064e-10f);  // 1 - u, or u
    const int exponent = near_one ? 0 : (__float_as_int(x) - 0x3f400000) >> 23;
    const float m = __int_as_float(__float_as_int(x) - (exponent << 23));  // u = m * 2^exponent, m in [0.75, 1.5)
    const float s = near_one ? __fdiv_rn(-x, __fsub_rn(2.0f, x)) : __fdiv_rn(__fsub_rn(m, 1.0f), __fadd_rn(m, 1.0f));
    const float terms[] = {2.8853901f, 0.96179669f, 0.57707802f, 0.41219858f, 0.32059889f};  // 2 / ln(2) / (2 i + 1)
    return -__fadd_rn(static_cast<float>(exponent), __fmul_rn(s, polynomial(terms, __fmul_rn(s, s))));
}

// Calls use(first, float4 of logits[first] to logits[first + 3]) for this thread's share. Beyond the vocabulary is NaN.
template <typename Use>
__device__ __forceinline__ void for_four_logits(const float* logits, Use use) {
    const float nan = __int_as_float(0x7fffffff);
    for (int first = 4 * (blockIdx.x * block_threads + threadIdx.x); first < vocab_size;
         first += 4 * gridDim.x * block_threads) {
        if (first + 3 < vocab_size) {
            use(first, *reinterpret_cast<const float4*>(logits + first));
        } else {
            use(first, float4{logits[first], first + 1 < vocab_size ? logits[first + 1] : nan,
                              first + 2 < vocab_size ? logits[first + 2] : nan, nan});
        }
    }
}

__device__ __forceinline__ float element(float4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Adds every key of [low, low + span] that is at least `cut` to the bin of its bits from `shift` up.
template <typename Weigh>
__device__ __forceinline__ void fill_bins(const float* logits, unsigned low, unsigned span, int shift, unsigned cut,
                                          Weigh weigh, Bins* total, SamplingShared* shared) {
    for (int b = threadIdx.x; b < bins; b += block_threads)
        shared->weight_low[b] = shared->weight_high[b] = shared->count[b] = 0u;
    __syncthreads();  // the bins in shared memory are 0
    for_four_logits(logits, [&](int, float4 four) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned key = logit_key(element(four, i));
            if (key < cut || key - low > span) continue;
            const int b = (key - low) >> shift;
            atomicAdd(&shared->count[b], 1u);
            // A 64-bit addition in shared memory would be a loop of compare-and-swaps (sm_75 to sm_120). So there are
            // two of 32 bits, with a carry. Few weights reach the upper word.
            const unsigned long long weight = weigh(element(four, i));
            const unsigned add = static_cast<unsigned>(weight);
            const unsigned carry = add == 0u ? 0u : atomicAdd(&shared->weight_low[b], add) > ~add;
            const unsigned upper = static_cast<unsigned>(weight >> 32) + carry;
            if (upper != 0u) atomicAdd(&shared->weight_high[b], upper);
        }
    });
    __syncthreads();  // the block's tokens are in its bins
    for (int b = threadIdx.x; b < bins; b += block_threads) {
        if (shared->count[b] == 0u) continue;
        atomicAdd(&total->count[b], shared->count[b]);
        const unsigned long long upper = shared->weight_high[b];
        atomicAdd(&total->weight[b], upper << 32 | shared->weight_low[b]);
    }
}

// Finds the bin in which the sum over the bins, from the highest down, reaches target(sum over all). Every thread of
// every block gets bin, bin_count and above in `shared`, and the target. bin is -1 where the sum over all is smaller.
template <typename Target>
__device__ __forceinline__ unsigned long long find_bin(const Bins* total, Target target, SamplingShared* shared) {
    // Thread 0 owns the highest bins. Bins below 0, which the last threads may own, weigh 0, so none of them is found.
    const int first = bins - bins_per_thread * (static_cast<int>(threadIdx.x) + 1);
    unsigned long long weight[bins_per_thread], own = 0;
#pragma unroll
    for (int i = 0; i < bins_per_thread; ++i) own += weight[i] = first + i >= 0 ? total->weight[first + i] : 0ull;
    unsigned long long before = own;  // the inclusive sum over the lanes so far
#pragma unroll
    for (int offset = 1; offset < warp_threads; offset *= 2) {
        const unsigned long long other = __shfl_up_sync(full_warp, before, offset);
        if (lane_id() >= offset) before += other;
    }
    if (lane_id() == warp_threads - 1) shared->warp_total[warp_id()] = before;
    if (threadIdx.x == 0) shared->bin = -1;
    before -= own;
    __syncthreads();  // every warp's sum is in shared memory
    unsigned long long all = 0;
    for (int w = 0; w < block_warps; ++w) {
        if (w < warp_id()) before += shared->warp_total[w];
        all += shared->warp_total[w];
    }
    const unsigned long long wanted = target(all);
#pragma unroll
    for (int i = bins_per_thread - 1; i >= 0; --i) {
        if (before < wanted && wanted <= before + weight[i]) {  // of all bins, one at most
            shared->bin = first + i;
            shared->bin_count = total->count[first + i];
            shared->above = before;
        }
        before += weight[i];
    }
    __syncthreads();  // the bin is in shared memory
    return wanted;
}

// Returns the lowest key to keep of those that are at least `cut`: the one at which the sum of weigh(logit), from the
// largest logit down, reaches target(sum over all). It is `cut` where the sum over all is smaller. `used` counts Bins.
template <typename Weigh, typename Target, typename Exchange>
__device__ __forceinline__ unsigned lowest_kept(const float* logits, unsigned cut, Weigh weigh, Target target,
                                                Bins* steps, int* used, SamplingShared* shared, Exchange exchange) {
    unsigned low = 0u, span = 0xffffffffu;
    unsigned long long wanted = 0;
    for (int shift = key_bits - bin_bits;; shift = shift > bin_bits ? shift - bin_bits : 0) {
        Bins* total = steps + (*used)++;
        fill_bins(logits, low, span, shift, cut, weigh, total, shared);
        exchange();  // the tokens of all blocks are in `total`
        const bool first = span == 0xffffffffu;
        wanted = find_bin(total, [&](unsigned long long all) { return first ? target(all) : wanted; }, shared);
        if (shared->bin < 0) return cut;
        low += static_cast<unsigned>(shared->bin) << shift;
        span = (1u << shift) - 1u;
        wanted -= shared->above;
        if (shift == 0 || shared->bin_count == 1u) return low > cut ? low : cut;
    }
}

// Draws the token at `position` and writes it to *token. All threads of the grid call it with the same arguments.
// maximum   the largest logit;  block_best: one Best per block, in device memory;  arrivals: 0 between draws
// exchange  a barrier for the grid, after which every thread sees what any thread wrote before it. It is called up to
//           search_steps times for top-k and for top-p, and not at all without them
// Before the call, an exchange must have made `logits` visible, and no thread of the block still uses `shared`. After
// it, an exchange must come before any block reads *token or draws again.
template <typename Exchange>
__device__ __forceinline__ void draw_token(const float* logits, float maximum, const Sampling& sampling, int position,
                                           SamplingMemory* memory, Best* block_best, unsigned* arrivals, int* token,
                                           SamplingShared* shared, Exchange exchange) {
    unsigned cut = 1u;  // the lowest key to keep; NaN has a lower one
    int used = 0;
    if (sampling.top_k > 0) {
        cut = lowest_kept(logits, cut, [](float) { return 1ull; },
                          [&](unsigned long long) { return static_cast<unsigned long long>(sampling.top_k); },
                          memory->steps, &used, shared, exchange);
    }
    if (sampling.top_p != 0) {
        cut = lowest_kept(logits, cut,
                          [&](float logit) { return fixed_weight(token_weight(logit, maximum, sampling.scale)); },
                          [&](unsigned long long all) {  // top_p * all, rounded up, so at least 1
                              return __umul64hi(all, sampling.top_p) + (all * sampling.top_p != 0);
                          },
                          memory->steps, &used, shared, exchange);
    }
    Best best = no_best();
    for_four_logits(logits, [&](int first, float4 four) {
        const float largest = fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w));
        if (logit_key(largest) < cut) return;
        const Counter counter{{static_cast<unsigned>(first) / 4u, static_cast<unsigned>(position), 0u, 0u}};
        const Counter random = philox(counter, sampling.seed);  // one word for each of the four
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float logit = element(four, i);
            if (logit_key(logit) < cut) continue;
            const float weight = token_weight(logit, maximum, sampling.scale);
            best = better(best, Best{__fdiv_rn(weight, exponential(random.word[i])), first + i});
        }
    });
    if (grid_argmax(best, block_best, arrivals, token, &shared->argmax)) {  // in the last block
        uint4* words = reinterpret_cast<uint4*>(memory->steps);
        for (int i = threadIdx.x; i < used * static_cast<int>(sizeof(Bins) / sizeof(uint4)); i += block_threads)
            words[i] = uint4{0u, 0u, 0u, 0u};
    }
}
