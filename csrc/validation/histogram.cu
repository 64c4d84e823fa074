// histogram.cu: atomic additions to one word, in global or in shared memory
// Computes  for b in [0, 512): bins[b] = 0
//           for i in [0, n): bins[values[i]] += 1
// Shapes    values [n] uint32 below 512; bins [512] uint32. The published inputs are all 0.
// Work      one value per thread; histogram_global takes 512 threads per block
// As published, histogram_global has a race: the first threads clear the bins while other blocks may already add. The
//           result is right if the bins are 0 before the launch.
// Checked   tests/measure/records/test_validation.py
// Source    R100001/Programming-Massively-Parallel-Processors, histogram
constexpr int bin_count = 512;

extern "C" __global__ void histogram_global(const unsigned* values, unsigned* bins, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < bin_count) bins[i] = 0u;
    __syncthreads();
    if (i < n) atomicAdd(bins + values[i], 1u);
}

// Each block counts in shared memory first, then adds its counts to the global ones.
extern "C" __global__ void histogram_shared(const unsigned* values, unsigned* bins, int n) {
    __shared__ unsigned mine[bin_count];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    for (int bin = threadIdx.x; bin < bin_count; bin += blockDim.x) mine[bin] = 0u;
    __syncthreads();
    if (i < n) atomicAdd(mine + values[i], 1u);
    __syncthreads();
    for (int bin = threadIdx.x; bin < bin_count; bin += blockDim.x) atomicAdd(bins + bin, mine[bin]);
}
