// options.cu: a kernel whose faults a GPU does not report. The virtual GPU reports them if its options say so.

// Thread 0 exits before the barrier. Every other thread reads the element that its neighbour writes: a race.
extern "C" __global__ void late(int* x, int rounds) {
    if (threadIdx.x == 0) return;
    __syncthreads();
    int value = x[threadIdx.x - 1];
    for (int i = 0; i < rounds; ++i) value = value * value + i;
    x[threadIdx.x] = value;
}
