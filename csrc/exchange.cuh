// exchange.cuh: vectors that blocks exchange without a barrier, as cells that are empty or hold a float
// Layout    A cell has 32 bits: those of a float, or `empty`, those of a NaN that is never published: every value is the
//           result of arithmetic, whose NaN has the bits 0x7fffffff. There are two copies of all cells. Tokens use them
//           in turn.
// Computes  publish():  cell = value;  the same cell in the other copy = empty, for the next token
//           await():    while the cell is empty: wait;  return the float in it
// Memory    A 32-bit access is performed as a whole, so a reader that does not see `empty` sees the float of one store.
//           Nothing else is read because of it, so all accesses are relaxed: no fence, no acquire. Other threads of the
//           block may read the cell again after a __syncthreads: then they see the same value.
//           The other copy holds values of the token before, which nobody reads any more, and nobody may find them there
//           in the next token. csrc/streaming.cu says why both hold.
// Against   tagged.cuh, whose words have the tag beside the float: a cell has half the bytes, which counts because every
//           block reads whole vectors. But every cell must be published in every token, by the same block.
// Chain     store to L2, load from L2. A grid barrier needs a store, a fence, an atomic, a polling load, and a load.
// Checked   tests/stages/test_streaming.py
#pragma once
#include "block.cuh"

using Cell = unsigned;
constexpr Cell empty = 0xffffffffu;

__device__ __forceinline__ void store_cell(Cell* p, Cell cell) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(cell) : "memory");
}

// to_other: from a cell to the same one in the other copy
__device__ __forceinline__ void publish(Cell* p, float value, int to_other) {
    store_cell(p, __float_as_uint(value));
    store_cell(p + to_other, empty);
}

__device__ __forceinline__ Cell load_cell(const Cell* p) {
    Cell cell;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(cell) : "l"(p) : "memory");
    return cell;
}

// Four neighbouring cells by one 16-byte load, or zeros. Each is performed as a whole, the four perhaps not.
__device__ __forceinline__ uint4 load_four(const Cell* p, bool has = true) {
    uint4 four{};
    asm volatile("{ .reg .pred has; setp.ne.u32 has, %5, 0;\n"
                 "@has ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(four.x), "+r"(four.y), "+r"(four.z), "+r"(four.w) : "l"(p), "r"(static_cast<unsigned>(has))
                 : "memory");
    return four;
}

__device__ __forceinline__ float await(const Cell* p) {
    Cell cell;
    do cell = load_cell(p);
    while (cell == empty);
    return __uint_as_float(cell);
}

// The loads of `count` cells, and of `count` times four neighbouring cells if the thread has them: place(k) is that of the
// k-th. All are issued before the first is looked at; a branch between them would make each wait for the one before.
template <int count, typename Place>
__device__ __forceinline__ void load_cells(Place place, Cell (&cell)[count]) {
#pragma unroll
    for (int k = 0; k < count; ++k) cell[k] = load_cell(place(k));
}

template <int count, typename Place, typename Has>
__device__ __forceinline__ void load_fours(Place place, Has has, uint4 (&four)[count]) {
#pragma unroll
    for (int k = 0; k < count; ++k) four[k] = load_four(place(k), has(k));
}

__device__ __forceinline__ bool is_empty(Cell cell) { return cell == empty; }
__device__ __forceinline__ bool is_empty(uint4 f) { return f.x == empty || f.y == empty || f.z == empty || f.w == empty; }

template <typename T, int count>
__device__ __forceinline__ bool any_empty(const T (&cells)[count]) {
    bool any = false;
#pragma unroll
    for (int k = 0; k < count; ++k) any |= is_empty(cells[k]);
    return any;
}

__device__ __forceinline__ float4 to_floats(uint4 f) {
    return float4{__uint_as_float(f.x), __uint_as_float(f.y), __uint_as_float(f.z), __uint_as_float(f.w)};
}

// A thread of a block takes elements 4 * i to 4 * i + 3 of a vector of n, for i = threadIdx.x, + block_threads, ...
template <int n>
constexpr int fours_per_thread = (n / 4 + block_threads - 1) / block_threads;

// Whether a thread has a k-th four. Only its last one may be missing, so for the others this is known when compiled.
template <int n>
__device__ __forceinline__ bool has_four(int thread, int k) {
    return (k + 1) * block_threads <= n / 4 || thread + k * block_threads < n / 4;
}

// The block waits for all n cells, each thread for its own: store(k, value) gets elements 4 * i to 4 * i + 3 for
// i = own + k * block_threads, where own is threadIdx.x. A warp polls a single cell at first, because whole vectors would
// take bandwidth from the weights.
template <int n, typename Store>
__device__ __forceinline__ void await_vector(const Cell* cells, int own, Store store) {
    static_assert(n % 4 == 0, "cells go in fours");
    const auto four = [&](int thread, int k) { return cells + 4 * (thread + k * block_threads); };
    constexpr int count = fours_per_thread<n>, at_once = count < 4 ? count : 4;  // more would take too many registers
    const int first_of_warp = own / warp_threads * warp_threads;
    const int last = has_four<n>(first_of_warp, count - 1) ? count - 1 : count - 2;
    if (last >= 0) await(four(first_of_warp, last));
#pragma unroll
    for (int first = 0; first < count; first += at_once) {
        const auto has = [&](int k) { return has_four<n>(own, first + k); };
        uint4 found[at_once];
        do load_fours([&](int k) { return four(own, first + k); }, has, found);
        while (any_empty(found));
#pragma unroll
        for (int k = 0; k < at_once; ++k) store(first + k, to_floats(found[k]));
    }
}
