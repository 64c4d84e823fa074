// histogram.cu: atomic additions that all meet in one word, in global or in shared memory
// Computes  bins[v] += how often v stands in values, after bins have been set to 0
// Shapes    values [n] uint32 below 512; bins [512] uint32. The published inputs are all 0.
// Work      one value a thread; histogram_global takes 512 threads a block
// Slow by choice: the first threads set the bins to 0 while other blocks may add already, as published. The result is
//           right where the bins are 0 before the launch.
// Checked   tests/measure/test_validation.py
// Source    R100001/Programming-Massively-Parallel-Processors, histogram
constexpr int bin_count = 512;

extern "C" __global__ void histogram_global(const unsigned* values, unsigned* bins, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < bin_count) bins[i] = 0u;
    __syncthreads();
    if (i < n) atomicAdd(bins + values[i], 1u);
}

// The block counts in shared memory first, and then adds all its words to the global ones.
extern "C" __global__ void histogram_shared(const unsigned* values, unsigned* bins, int n) {
    __shared__ unsigned mine[bin_count];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    for (int bin = threadIdx.x; bin < bin_count; bin += blockDim.x) mine[bin] = 0u;
    __syncthreads();
    if (i < n) atomicAdd(mine + values[i], 1u);
    __syncthreads();
    for (int bin = threadIdx.x; bin < bin_count; bin += blockDim.x) atomicAdd(bins + bin, mine[bin]);
}
