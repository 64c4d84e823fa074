// tensor_core.cu: each function of csrc/tensor_core.cuh on its own, for tests/csrc/test_tensor_core.py
#include "tensor_core.cuh"

#define KERNEL extern "C" __global__ void __launch_bounds__(block_threads)

// For each warp: c [16, 8] += the sum of `count` products a [16, 8] b [8, 8], one after the other
KERNEL products(const float* a, const float* b, float* c, int count) {
    const int warp = blockIdx.x * block_warps + warp_id(), row = tile_row(), slot = tile_slot();
    c += warp * 128;
    TileC sum{{c[row * 8 + 2 * slot], c[row * 8 + 2 * slot + 1], c[(row + 8) * 8 + 2 * slot],
               c[(row + 8) * 8 + 2 * slot + 1]}};
    for (int i = 0; i < count; ++i) {
        const float *left = a + (warp * count + i) * 128, *right = b + (warp * count + i) * 64;
        const TileA x{{to_tf32(left[row * 8 + slot]), to_tf32(left[(row + 8) * 8 + slot]), to_tf32(left[row * 8 + slot + 4]),
                       to_tf32(left[(row + 8) * 8 + slot + 4])}};
        const TileB y{{to_tf32(right[slot * 8 + row]), to_tf32(right[(slot + 4) * 8 + row])}};
        multiply_add(sum, x, y);
    }
    for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 2; ++i) c[(row + 8 * half) * 8 + 2 * slot + i] = sum.x[2 * half + i];
}

// c [16, 8] = a [16, 32] b^T for b [8, 32]; of each row, a lane loads eight terms
KERNEL block_by_columns(const bf16* a, const bf16* b, float* c) {
    const int row = tile_row(), at = terms_at();
    const Eight upper = load_eight(a + row * 32 + at), lower = load_eight(a + (row + 8) * 32 + at);
    const Eight column = load_eight(b + row * 32 + at);
    TileC sum{};
    for (int step = 0; step < block_steps; ++step) multiply_add(sum, tile_a(upper, lower, step), tile_b(column, step));
    for (int x = 0; x < 4; ++x) c[(row + x / 2 * 8) * 8 + 2 * tile_slot() + x % 2] = sum.x[x];
}

// c [16, 8] = a [16, 32] b for b [32, 8], whose rows are `stride` apart
KERNEL block_by_rows(const bf16* a, const float* b, float* c, int stride) {
    const int row = tile_row(), at = terms_at();
    const Eight upper = load_eight(a + row * 32 + at), lower = load_eight(a + (row + 8) * 32 + at);
    TileC sum{};
    for (int step = 0; step < block_steps; ++step)
        multiply_add(sum, tile_a(upper, lower, step), tile_b(b, stride, step));
    for (int x = 0; x < 4; ++x) c[(row + x / 2 * 8) * 8 + 2 * tile_slot() + x % 2] = sum.x[x];
}

// read [steps, 2, lanes]: the elements of b [32, stride] that each lane reads in each step
KERNEL reads_of_tile_b(const float* b, float* read, int stride) {
    for (int step = 0; step < block_steps; ++step) {
        const TileB tile = tile_b(b, stride, step);
        for (int i = 0; i < 2; ++i) read[(2 * step + i) * warp_threads + lane_id()] = tile.x[i];
    }
}

// c[n] [16, 8] += (a + a) b[n] for a [16, 16], b[n] [16, 8]; b, or each half transposed, comes through shared memory
KERNEL bf16_products(const bf16* a, const bf16* b, float* c, int is_transposed) {
    __shared__ alignas(16) bf16 staged[64][8];  // eight matrices, two of each b[n]
    const int row = tile_row(), slot = tile_slot();
    for (int i = lane_id(); i < 512; i += warp_threads) staged[i / 8][i % 8] = b[i];
    __syncthreads();
    Bf16A x[2];
    for (int i = 0; i < 4; ++i)
        x[0].x[i] = x[1].x[i] = *reinterpret_cast<const unsigned*>(a + (row + i % 2 * 8) * 16 + 2 * slot + i / 2 * 8);
    TileC sums[4];
    Bf16B y[4];
    for (int n = 0; n < 4; n += 2) {
        const bf16* at = staged[16 * n + lane_id()];
        const Matrices m = is_transposed ? load_matrices<false>(at) : load_matrices<true>(at);
        y[n] = Bf16B{{m.x[0], m.x[1]}}, y[n + 1] = Bf16B{{m.x[2], m.x[3]}};
    }
    for (int n = 0; n < 4; ++n)
        for (int i = 0; i < 4; ++i) sums[n].x[i] = c[n * 128 + (row + i / 2 * 8) * 8 + 2 * slot + i % 2];
    multiply_add_four(sums, x, y);
    for (int n = 0; n < 4; ++n)
        for (int i = 0; i < 4; ++i) c[n * 128 + (row + i / 2 * 8) * 8 + 2 * slot + i % 2] = sums[n].x[i];
}

// y = the sum of the two bf16 numbers to which x is cut
KERNEL cut_all(const float* x, float* y) {
    const int i = blockIdx.x * block_threads + threadIdx.x;
    const unsigned upper = upper_halves(x[i], 0.0f);
    y[i] = even(upper) + even(upper_halves(x[i] - even(upper), 0.0f));
}

KERNEL round_all(const float* x, float* y) {
    const int i = blockIdx.x * block_threads + threadIdx.x;
    y[i] = to_tf32(x[i]);
}

// floats = packed = in, eight numbers per thread
KERNEL eights(const bf16* in, float* floats, bf16* packed) {
    const int at = 8 * (blockIdx.x * block_threads + threadIdx.x);
    const Eight eight = load_eight(in + at);
    for (int i = 0; i < 8; ++i) floats[at + i] = eight.x[i];
    store_eight(packed + at, load_eight(floats + at));
}
