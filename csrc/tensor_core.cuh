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
//           none. Where both operands are bf16, bf16 tiles do twice the work per instruction: see the end of the file.
// Needs     Ampere or newer for tensor cores. Turing has none for TF32 or bf16: there the product takes 32 shuffles and
//           fp32 arithmetic per tile, which is slow.
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

__device__ __forceinline__ Eight widen(const bf16x8& packed) {
    Eight eight;
#pragma unroll
    for (int i = 0; i < 4; ++i) eight.x[2 * i] = even(packed.pair[i]), eight.x[2 * i + 1] = odd(packed.pair[i]);
    return eight;
}

// One 16-byte load. NVRTC would split some of these into four.
__device__ __forceinline__ bf16x8 load_x8(const bf16* p) {
    bf16x8 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.pair[0]), "=r"(v.pair[1]), "=r"(v.pair[2]), "=r"(v.pair[3]) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ Eight load_eight(const bf16* p) { return widen(load_x8(p)); }

__device__ __forceinline__ Eight load_eight(const float* p) {
    const float4 low = *reinterpret_cast<const float4*>(p), high = *reinterpret_cast<const float4*>(p + 4);
    return Eight{{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

// Two floats rounded to bf16, in one register.
__device__ __forceinline__ unsigned to_bf16_pair(float even, float odd) {
#if __CUDA_ARCH__ >= 800
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(odd), "f"(even));
    return pair;
#else
    return to_bf16(even).bits | static_cast<unsigned>(to_bf16(odd).bits) << 16;
#endif
}

__device__ __forceinline__ void store_eight(bf16* p, const Eight& eight) {
    bf16x8 packed;
#pragma unroll
    for (int i = 0; i < 4; ++i) packed.pair[i] = to_bf16_pair(eight.x[2 * i], eight.x[2 * i + 1]);
    *reinterpret_cast<bf16x8*>(p) = packed;
}

// Two neighbouring bf16 numbers in one 4-byte access.
__device__ __forceinline__ float2 load_two(const bf16* p) {
    const unsigned pair = *reinterpret_cast<const unsigned*>(p);
    return float2{even(pair), odd(pair)};
}

__device__ __forceinline__ void store_two(bf16* p, float first, float second) {
    *reinterpret_cast<unsigned*>(p) = to_bf16_pair(first, second);
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

// ---- The same for bf16, with 16 terms, for four tiles that share a
// Computes  for n in [0, 4): c[n] += (the sum of the `parts` tiles a) b[n]
// Layout    lane = 4 * row + slot as above. A lane holds two neighbouring terms per register, of
//             a  (row, 2 slot) (row + 8, 2 slot) (row, 2 slot + 8) (row + 8, 2 slot + 8)
//             b  (2 slot, row) (2 slot + 8, row)
//           c is as above, so that two neighbouring tiles of c are an a of the next product, once packed.

struct Bf16A {
    unsigned x[4];
};
struct Bf16B {
    unsigned x[2];
};

template <int parts>
__device__ __forceinline__ void multiply_add_four(TileC* c, const Bf16A (&a)[parts], const Bf16B (&b)[4]) {
#if __CUDA_ARCH__ >= 800
#pragma unroll
    for (int part = 0; part < parts; ++part)
#pragma unroll
        for (int n = 0; n < 4; ++n)  // neighbouring products add to different tiles, so none waits for the one before
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                "{%0, %1, %2, %3};"
                : "+f"(c[n].x[0]), "+f"(c[n].x[1]), "+f"(c[n].x[2]), "+f"(c[n].x[3])
                : "r"(a[part].x[0]), "r"(a[part].x[1]), "r"(a[part].x[2]), "r"(a[part].x[3]), "r"(b[n].x[0]),
                  "r"(b[n].x[1]));
#else
    const int row = tile_row() * 4, column = 2 * tile_slot() * 4;
#pragma unroll 1
    for (int slot = 0; slot < 4; ++slot)  // not unrolled, because it is long
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float upper[2] = {}, lower[2] = {};  // two terms of the two rows
#pragma unroll
            for (int part = 0; part < parts; ++part) {
                const unsigned first = __shfl_sync(full_warp, a[part].x[2 * half], row + slot);
                const unsigned second = __shfl_sync(full_warp, a[part].x[2 * half + 1], row + slot);
                upper[0] += even(first), upper[1] += odd(first), lower[0] += even(second), lower[1] += odd(second);
            }
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const unsigned two = __shfl_sync(full_warp, b[n].x[half], column + 4 * i + slot);
                    c[n].x[i] = fmaf(upper[1], odd(two), fmaf(upper[0], even(two), c[n].x[i]));
                    c[n].x[2 + i] = fmaf(lower[1], odd(two), fmaf(lower[0], even(two), c[n].x[2 + i]));
                }
        }
#endif
}

// A block of 32 terms, of which a lane's slots hold the eight from terms_at() on. upper, lower: of rows tile_row() and
// tile_row() + 8; columns: of column tile_row() of each tile
__device__ __forceinline__ void multiply_add_block(TileC* c, const bf16x8& upper, const bf16x8& lower,
                                                   const bf16x8 (&columns)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const Bf16A a[1] = {{upper.pair[i], lower.pair[i], upper.pair[i + 1], lower.pair[i + 1]}};
        Bf16B b[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) b[n] = Bf16B{{columns[n].pair[i], columns[n].pair[i + 1]}};
        multiply_add_four(c, a, b);
    }
}

// Two floats cut to bf16, in one register.
__device__ __forceinline__ unsigned upper_halves(float even, float odd) {
    return __byte_perm(__float_as_uint(even), __float_as_uint(odd), 0x7632);
}

// Four matrices of 8 x 8 bf16 numbers from shared memory. Lane 8 i + j gives the address of row j of matrix i, 16 bytes.
// A lane gets of each (row, 2 slot) and (row, 2 slot + 1), or transposed (2 slot, row) and (2 slot + 1, row).
struct Matrices {
    unsigned x[4];
};

template <bool transposed>
__device__ __forceinline__ Matrices load_matrices(const bf16* row) {
    Matrices m;
    if (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(m.x[0]), "=r"(m.x[1]), "=r"(m.x[2]), "=r"(m.x[3]) : "r"(shared_address(row)) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(m.x[0]), "=r"(m.x[1]), "=r"(m.x[2]), "=r"(m.x[3]) : "r"(shared_address(row)) : "memory");
    return m;
}
