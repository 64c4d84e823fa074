// Kernels whose arguments the fake driver reads. Pointers, ints and floats alternate, so that offsets have gaps.
extern "C" __global__ void mixed(float* a, int n, float scale, const float* b, int m) {
    a[threadIdx.x] = n * scale + b[threadIdx.x] + m;
}
extern "C" __global__ void none() {}
