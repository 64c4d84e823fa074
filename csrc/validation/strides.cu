// strides.cu: the cost of a warp's load from L1 whose lanes are `stride` elements apart
// Computes  for n in [0, loads / 8): sum += at[0] * at[4] + at[8] * at[12] + at[20] * at[16] + at[24] * at[28]
//           out is written only if the sum is `never`
// Shapes    in [64 * stride + 29] or [33 * pitch + 93] elements of ELEMENT (float or double); out [64]
// Work      ONE block of 1024 threads. `loads` is the number of loads per thread, a multiple of 8. `zero` is 0, but the
//           compiler does not know that, so it repeats the loads in each round.
// Checked   tests/measure/records/test_validation.py
// Source    te42kyfo/gpu-benches, gpu-strides
using Element = ELEMENT;

// Eight loads and four multiply-adds per round.
__device__ __forceinline__ Element rounds(const Element* at, int zero, int loads) {
    Element sum = 0;
#pragma unroll 1
    for (int n = 0; n < loads; n += 8) {
        at += zero;
        sum += at[0] * at[4];
        sum += at[8] * at[12];
        sum += at[20] * at[16];
        sum += at[24] * at[28];
    }
    return sum;
}

// Thread t in [0, 1024) starts at element t % 64 * stride.
extern "C" __global__ void strided(const Element* in, Element* out, int zero, int stride, int loads, Element never) {
    const Element sum = rounds(in + threadIdx.x % 64 * stride, zero, loads);
    if (sum == never) out[threadIdx.x % 64] = sum;
}

// A block of w x 1024/w threads reads a part of a matrix: x goes along a row, y over the rows, which are `pitch` apart.
extern "C" __global__ void __launch_bounds__(1024)
    blocked(const Element* in, Element* out, int zero, int pitch, int loads, Element never) {
    const Element sum = rounds(in + threadIdx.x % 64 + (threadIdx.y % 32 + 1) * pitch, zero, loads);
    if (sum == never) out[threadIdx.x % 64] = sum;
}
