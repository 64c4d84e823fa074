// transpose.cu: out = in^T, with the lanes of a warp along the rows of `in` or along the rows of `out`
// Computes  for r, c in [0, n): out[c][r] = in[r][c];  transpose_copy: out[r][c] = in[r][c]
// Shapes    in, out [n, n] fp32, n a multiple of a block's tile
// Work      blocks are numbered in one dimension, TILES_X of them in x: see sgemm.cu. transpose_*: block (16, 16), one
//           element per thread. transpose_tile_*: block of 256 as 32 x 8, a tile of 64 x 32, eight elements per thread,
//           all read before the first is written
// Slow by choice: no shared memory, so the addresses of either the loads or the stores of a warp are one row apart
// Checked   tests/measure/records/test_validation.py
// Source    ayush-os/transpose; Lei Mao's article on transposes with CuTe; written anew
#define TRANSPOSE(name) extern "C" __global__ void name(const float* in, float* out, int n)

__device__ __forceinline__ int block_x() { return blockIdx.x % TILES_X; }
__device__ __forceinline__ int block_y() { return blockIdx.x / TILES_X; }

TRANSPOSE(transpose_reads_rows) {
    const int column = block_x() * 16 + threadIdx.x, row = block_y() * 16 + threadIdx.y;
    if (row < n && column < n) out[column * n + row] = in[row * n + column];
}

TRANSPOSE(transpose_writes_rows) {
    const int row = block_x() * 16 + threadIdx.x, column = block_y() * 16 + threadIdx.y;
    if (row < n && column < n) out[column * n + row] = in[row * n + column];
}

TRANSPOSE(transpose_copy) {
    const int column = block_x() * 16 + threadIdx.x, row = block_y() * 16 + threadIdx.y;
    if (row < n && column < n) out[row * n + column] = in[row * n + column];
}

// Copies a tile. Element (along, across) of `in` is at along * in_along + across * in_across, and likewise in `out`.
__device__ __forceinline__ void tile(const float* in, int in_along, int in_across, float* out, int out_along,
                                     int out_across) {
    const int along = block_x() * 64 + threadIdx.x % 32, across = block_y() * 32 + threadIdx.x / 32;
    float value[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) value[i][j] = in[(along + 32 * i) * in_along + (across + 8 * j) * in_across];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) out[(along + 32 * i) * out_along + (across + 8 * j) * out_across] = value[i][j];
}

TRANSPOSE(transpose_tile_reads_rows) { tile(in, 1, n, out, n, 1); }
TRANSPOSE(transpose_tile_writes_rows) { tile(in, n, 1, out, 1, n); }
