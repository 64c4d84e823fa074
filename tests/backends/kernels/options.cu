// options.cu: a kernel that hardware lets pass, and that is named to those who ask for more

// Thread 0 leaves before the barrier. The others write what their neighbour reads, and nothing orders the two.
extern "C" __global__ void late(int* x, int rounds) {
    if (threadIdx.x == 0) return;
    __syncthreads();
    int value = x[threadIdx.x - 1];
    for (int i = 0; i < rounds; ++i) value = value * value + i;
    x[threadIdx.x] = value;
}
