// Kernels whose arguments the fake driver reads: pointers, ints and floats mixed, so that offsets have gaps.
extern "C" __global__ void mixed(float* a, int n, float scale, const float* b, int m) {
    a[threadIdx.x] = n * scale + b[threadIdx.x] + m;
}
extern "C" __global__ void none() {}
