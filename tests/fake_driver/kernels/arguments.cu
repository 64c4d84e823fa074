// Kernels whose arguments the fake driver reads. Pointers, ints and floats alternate, so that offsets have gaps.
extern "C" __global__ void mixed(float* a, int n, float scale, const float* b, int m) {
    a[threadIdx.x] = n * scale + b[threadIdx.x] + m;
}
extern "C" __global__ void none() {}
// With 2,048 bytes of static shared memory, and as many more as the launch asks for.
extern "C" __global__ void shared(float* a) {
    __shared__ float fixed[512];
    extern __shared__ float asked[];
    fixed[threadIdx.x] = asked[threadIdx.x] = a[threadIdx.x];
    __syncthreads();
    a[threadIdx.x] = fixed[blockDim.x - 1 - threadIdx.x] + asked[blockDim.x - 1 - threadIdx.x];
}
