// tensor_core.cuh: c += a b for a small tile, by one warp
// Computes  for i in [0, 16), j in [0, 8), t in [0, 8): c[i][j] += a[i][t] * b[t][j]
//           a and b are rounded to TF32 (10 bits of fraction), products and sums are fp32
// Layout    lane = 4 * row + slot, row = tile_row() in [0, 8), slot = tile_slot() in [0, 4). A lane holds
//             of a  (row, slot) (row + 8, slot) (row, slot + 4) (row + 8, slot + 4)
//             of b  (slot, row) (slot + 4, row): here `row` is a column of b
//             of c  (row, 2 slot) (row, 2 slot + 1) (row + 8, 2 slot) (row + 8, 2 slot + 1)
//           The eight terms of a sum may come in any order if a and b use the same one. So a lane may put neighbouring
//           elements of a row into its slots and load eight bf16 with one instruction: see terms_at().
// Why TF32  One kind of tile serves all operands: fp32 keeps three bits more than it would as bf16, and bf16 loses
//           none. Where both operands are bf16, bf16 tiles would do twice the work per instruction.
// Needs     Ampere or newer for tensor cores. Turing has none for TF32: there the product takes 32 shuffles and fp32
//           arithmetic per tile, which is slow.
// Checked   tests/csrc/test_tensor_core.py
#pragma once
#include "block.cuh"

__device__ __forceinline__ int tile_row() { return lane_id() / 4; }
__device__ __forceinline__ int tile_slot() { return lane_id() % 4; }

struct TileA {
    float x[4];
};
struct TileB {
    float x[2];
};
struct TileC {
    float x[4];
};

// Rounds to nearest, ties away from 0. A number that was bf16 does not need it.
__device__ __forceinline__ float to_tf32(float x) {
#if __CUDA_ARCH__ >= 800
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
#else
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return x;  // the sum below would change infinity and NaN
    return __uint_as_float((bits + 0x1000u) & 0xffffe000u);
#endif
}

#if __CUDA_ARCH__ < 800
// Not inlined, because it is long and a kernel has hundreds of these products.
__device__ __noinline__ TileC multiply_add_by_shuffles(TileC c, TileA a, TileB b) {
    const int row = tile_row() * 4, even_column = 2 * tile_slot() * 4, odd_column = even_column + 4;
#pragma unroll
    for (int term = 0; term < 8; ++term) {
        const int slot = term % 4, half = term / 4;
        const float upper = __shfl_sync(full_warp, a.x[2 * half], row + slot);
        const float lower = __shfl_sync(full_warp, a.x[2 * half + 1], row + slot);
        const float left = __shfl_sync(full_warp, b.x[half], even_column + slot);
        const float right = __shfl_sync(full_warp, b.x[half], odd_column + slot);
        c.x[0] = fmaf(upper, left, c.x[0]), c.x[1] = fmaf(upper, right, c.x[1]);
        c.x[2] = fmaf(lower, left, c.x[2]), c.x[3] = fmaf(lower, right, c.x[3]);
    }
    return c;
}
#endif

__device__ __forceinline__ void multiply_add(TileC& c, const TileA& a, const TileB& b) {
#if __CUDA_ARCH__ >= 800
    // volatile, because all lanes must execute it: the compiler must not move it into a branch that only some take
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
        : "r"(__float_as_uint(a.x[0])), "r"(__float_as_uint(a.x[1])), "r"(__float_as_uint(a.x[2])),
          "r"(__float_as_uint(a.x[3])), "r"(__float_as_uint(b.x[0])), "r"(__float_as_uint(b.x[1])));
#else
    c = multiply_add_by_shuffles(c, a, b);
#endif
}

// A sum goes over blocks of 32 terms, with four products per block. A lane's slots hold the eight terms of the block
// from terms_at() on. Product `step` in [0, 4) uses its terms 2 * step and 2 * step + 1, for a and b alike.
constexpr int block_terms = 32;
constexpr int block_steps = 4;
__device__ __forceinline__ int terms_at() { return 8 * tile_slot(); }

// Eight neighbouring numbers as floats.
struct Eight {
    float x[8];
};

__device__ __forceinline__ Eight load_eight(const bf16* p) {
    const bf16x8 packed = *reinterpret_cast<const bf16x8*>(p);
    Eight eight;
#pragma unroll
    for (int i = 0; i < 4; ++i) eight.x[2 * i] = even(packed.pair[i]), eight.x[2 * i + 1] = odd(packed.pair[i]);
    return eight;
}

__device__ __forceinline__ Eight load_eight(const float* p) {
    const float4 low = *reinterpret_cast<const float4*>(p), high = *reinterpret_cast<const float4*>(p + 4);
    return Eight{{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

__device__ __forceinline__ void store_eight(bf16* p, const Eight& eight) {
    bf16x8 packed;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        packed.pair[i] = to_bf16(eight.x[2 * i]).bits | static_cast<unsigned>(to_bf16(eight.x[2 * i + 1]).bits) << 16;
    *reinterpret_cast<bf16x8*>(p) = packed;
}

// Operand a of product `step`. upper, lower: this lane's eight terms of rows tile_row() and tile_row() + 8.
__device__ __forceinline__ TileA tile_a(const Eight& upper, const Eight& lower, int step) {
    return TileA{{upper.x[2 * step], lower.x[2 * step], upper.x[2 * step + 1], lower.x[2 * step + 1]}};
}

// Operand b of product `step`. column: this lane's eight terms of column tile_row().
__device__ __forceinline__ TileB tile_b(const Eight& column, int step) {
    return TileB{{column.x[2 * step], column.x[2 * step + 1]}};
}

// The same from shared memory, where b points at the block's first term and the tile's first column. With an odd stride
// the 32 lanes read 32 different banks: 8 * stride * slot + row, modulo 32.
__device__ __forceinline__ TileB tile_b(const float* b, int stride, int step) {
    const float* at = b + (terms_at() + 2 * step) * stride + tile_row();
    return TileB{{at[0], at[stride]}};
}
