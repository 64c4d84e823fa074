// traffic.cu: kernels whose loads and stores can be counted by hand, and kernels with a wrong access
// A comment such as `// store` at the end of a line is a mark: a test finds by it the line that a report must name.
#include "primitives.cuh"

__device__ __forceinline__ int self() { return blockIdx.x * blockDim.x + threadIdx.x; }

// ---- Patterns ----

extern "C" __global__ void copy(const float* x, float* y, int n) {
    if (self() < n) y[self()] = x[self()];
}

extern "C" __global__ void strided(const float* x, float* y, int stride) { y[self()] = x[self() * stride]; }

extern "C" __global__ void broadcast(const float* x, float* y) { y[self()] = x[0]; }

extern "C" __global__ void copy2(const float* x, float* y) {
    reinterpret_cast<float2*>(y)[self()] = reinterpret_cast<const float2*>(x)[self()];
}

extern "C" __global__ void copy4(const float* x, float* y) {
    reinterpret_cast<float4*>(y)[self()] = reinterpret_cast<const float4*>(x)[self()];
}

// One member of a float4 is a load of 4 bytes.
extern "C" __global__ void member(const float* x, float* y) { y[self()] = reinterpret_cast<const float4*>(x)[self()].z; }

extern "C" __global__ void copy_weights(const bf16* x, bf16* y) {
    const bf16x8 w = load_weights(x + 8 * self());
    *reinterpret_cast<bf16x8*>(y + 8 * self()) = w;
}

extern "C" __global__ void copy_bf16(const bf16* x, bf16* y) { y[self()] = to_bf16(2.0f * to_float(x[self()])); }

extern "C" __global__ void copy_bytes(const unsigned char* x, unsigned char* y) { y[self()] = x[self()] + 1; }

// The compiler does not know the size, so it makes loops of the two calls.
extern "C" __global__ void copy_by_memcpy(const float* x, float* y, int bytes) {
    memset(y + self(), 0, bytes);
    memcpy(y + self(), x + self(), bytes);
}

extern "C" __global__ void upper_half_leaves(const float* x, float* y) {
    if (threadIdx.x % 32 >= 16) return;
    y[self()] = x[self()];
}

extern "C" __global__ void odd_lanes_leave(const float* x, float* y) {
    if (threadIdx.x % 2) return;
    y[self()] = x[self()];
}

// Lane l reads column l of l % 4 + 1 rows of 32; then all lanes store together.
extern "C" __global__ void ragged(const float* x, float* y) {
    float sum = 0.0f;
    for (int row = 0; row <= threadIdx.x % 4; ++row) sum += x[32 * row + threadIdx.x];
    y[threadIdx.x] = sum;
}

// Each block reads the same rows of x; each row is read twice.
extern "C" __global__ void rows_twice(const float* x, float* y, int rows, int cols) {
    float sum = 0.0f;
    for (int pass = 0; pass < 2; ++pass) {
        for (int row = 0; row < rows; ++row) sum += x[row * cols + threadIdx.x];
        __syncthreads();  // without it the compiler would read each row once
    }
    y[self()] = sum;
}

// A warp reads n elements, 32 side by side. The virtual GPU runs the whole loop of a lane before that of the next.
extern "C" __global__ void long_loop(const float* x, float* y, int n) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32) sum += x[i];
    y[threadIdx.x] = sum;
}

extern "C" __global__ void atomics(int* counts) { atomicAdd(&counts[threadIdx.x % 8], 1); }

extern "C" __global__ void flags(unsigned* flag) {
    store_release(&flag[0], load_acquire(&flag[1]) + 1);
}

__device__ const float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};
__device__ int calls = 0;

// y = x through shared memory, dynamic shared memory, a local array, a constant and a global: only x and y count
extern "C" __global__ void detours(const float* x, float* y) {
    __shared__ float fixed[32];
    DYNAMIC_SHARED(float, dynamic);
    const int i = threadIdx.x;
    volatile float local[8];
    fixed[i] = x[i];
    __syncthreads();
    dynamic[i] = fixed[31 - i];
    __syncthreads();
    local[i % 8] = dynamic[31 - i];
    calls = calls + 1;
    y[i] = local[i % 8] * table[i % 4] / table[i % 4];
}

// The sum over `count` arrays, whose addresses are in memory.
extern "C" __global__ void pointers(const float* const* x, float* y, int count) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += x[i][threadIdx.x];
    y[threadIdx.x] = sum;
}

// Block b passes count * b barriers.
extern "C" __global__ void barriers(int count) {
    for (int i = 0; i < count * static_cast<int>(blockIdx.x); ++i) __syncthreads();
}

extern "C" __global__ void add_up(const float* a, const float* b, const float* c, float* y) {
    y[self()] = a[self()] + b[self()] + c[self()];
}

// ---- Out of bounds or misaligned, in thread `who` alone ----

extern "C" __global__ void store(float* y, int index, int who) {
    if (self() == who) y[index] = 7.0f;  // store
}

extern "C" __global__ void load(const float* x, float* y, int index, int who) {
    if (self() == who) y[0] = x[index];  // load
}

extern "C" __global__ void store4(float* y, int index, int who) {
    if (self() == who) *reinterpret_cast<float4*>(y + index) = make_float4(7.0f, 7.0f, 7.0f, 7.0f);  // store4
}

extern "C" __global__ void load4(const float* x, float* y, int index, int who) {
    if (self() != who) return;
    const float4 v = *reinterpret_cast<const float4*>(x + index);  // load4
    y[0] = v.x + v.w;
}

extern "C" __global__ void weights(const bf16* x, float* y, int index, int who) {
    if (self() == who) y[0] = even(load_weights(x + index).pair[3]);  // weights
}

extern "C" __global__ void add(float* y, int index, int who) {
    if (self() == who) atomicAdd(&y[index], 7.0f);  // add
}

extern "C" __global__ void release(unsigned* y, int index, int who) {
    if (self() == who) store_release(&y[index], 7u);  // release
}

extern "C" __global__ void move(float* y, int index, int who) {
    if (self() == who) memcpy(y + index, y, 4 * (30 - index) + 4);  // move
}

// A store to an address that belongs to no tensor
extern "C" __global__ void nowhere(int address) {
    *reinterpret_cast<float*>(static_cast<long long>(address)) = 7.0f;  // nowhere
}

// The last block stores out of bounds at once, the others after a long loop. None of these stores may happen.
extern "C" __global__ void all_outside(const float* x, float* y, int index, int steps) {
    float sum = 0.0f;
    if (blockIdx.x + 1 < gridDim.x)
        for (int i = 0; i < steps; ++i) sum += static_cast<const volatile float*>(x)[i % 32];
    y[index + blockIdx.x] = sum + 7.0f;  // all_outside
}
