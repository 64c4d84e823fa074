// recursion.cu: a function that calls itself, so the size of its stack is not known
__device__ __noinline__ int deep(volatile int* depth) {
    *depth = *depth + 1;
    return *depth < 1000000 ? deep(depth) + *depth : 0;
}

extern "C" __global__ void endless_recursion(int* out) { out[0] = deep(out); }
