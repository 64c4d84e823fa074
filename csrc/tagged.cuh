// tagged.cuh: floats that say which token they belong to, so that blocks exchange them without a barrier
// Layout    A word has 64 bits: the float in its lower half, a tag in its upper half. The tag is the number of the token.
// Computes  publish():    word = (tag, value), one 64-bit store
//           await_...():  while the upper half of word != tag: wait;  value = the lower half of word
// Memory    A 64-bit access is performed as a whole, so a reader that sees the tag has the value of the same store.
//           Nothing else is read because of the tag, so both accesses are relaxed: no fence, no acquire. Other threads of
//           the block may read the word again after a __syncthreads: then they see this value or a later one.
//           A word is written again for a later token only. A block may do so when no block still waits for the old
//           value: csrc/streaming.cu says why that holds.
// Against   exchange.cuh, whose cells have half the bytes: a word may be left out in a token, or come from another block.
// Chain     store to L2, load from L2. A grid barrier needs a store, a fence, an atomic, a polling load, and a load.
// Checked   tests/stages/test_streaming.py
// Source    the scheme of the "LL" protocol of NVIDIA's NCCL
#pragma once
#include "block.cuh"

using Word = unsigned long long;

__device__ __forceinline__ void publish(Word* p, float value, unsigned tag) {
    const Word word = static_cast<Word>(tag) << 32 | __float_as_uint(value);
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(word) : "memory");
}

// The same as a release, for a reader that acquires: everything that this block did before is then ordered, too.
__device__ __forceinline__ void publish_release(Word* p, float value, unsigned tag) {
    const Word word = static_cast<Word>(tag) << 32 | __float_as_uint(value);
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(word) : "memory");
}

__device__ __forceinline__ float value_of(Word word) { return __uint_as_float(static_cast<unsigned>(word)); }
__device__ __forceinline__ unsigned tag_of(Word word) { return static_cast<unsigned>(word >> 32); }

__device__ __forceinline__ Word load_word(const Word* p) {
    Word word;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(p) : "memory");
    return word;
}

// Two neighbouring words by one 16-byte load. Each is performed as a whole, the pair perhaps not, and each has its tag.
struct TwoWords {
    Word first, second;
};
__device__ __forceinline__ TwoWords load_two(const Word* p) {
    TwoWords two;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(two.first), "=l"(two.second) : "l"(p) : "memory");
    return two;
}

__device__ __forceinline__ float await_acquire(const Word* p, unsigned tag) {
    Word word;
    do asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(p) : "memory");
    while (tag_of(word) != tag);
    return value_of(word);
}

__device__ __forceinline__ float2 await_two(const Word* p, unsigned tag) {
    TwoWords two;
    do two = load_two(p);
    while (tag_of(two.first) != tag || tag_of(two.second) != tag);
    return float2{value_of(two.first), value_of(two.second)};
}

// Waits for `count` pairs of words: pair(k) is the place of the k-th one. All loads are issued before the first is
// looked at; a branch between them would make each wait for the one before.
template <int count, typename Place>
__device__ __forceinline__ void await_pairs(Place pair, unsigned tag, float2 (&value)[count]) {
    bool missing;
    do {
        TwoWords two[count];
#pragma unroll
        for (int k = 0; k < count; ++k) two[k] = load_two(pair(k));
        missing = false;
#pragma unroll
        for (int k = 0; k < count; ++k) {
            value[k] = float2{value_of(two[k].first), value_of(two[k].second)};
            missing |= tag_of(two[k].first) != tag || tag_of(two[k].second) != tag;
        }
    } while (missing);
}
