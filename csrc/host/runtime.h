// runtime.h: what a compiled kernel and the emulator's runtime know of each other
// Kernels are compiled into one shared library a module, the runtime (runtime.cpp) into one of its own: the
// thread_local memory of a kernel library is then exactly the `__shared__` memory of its kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

using Location = std::source_location;

// What a thread can wait for.
enum class Operation : unsigned char {
    shuffle,
    vote,
    syncwarp,
    syncthreads,
    wait_while_equal,
    load_acquire,
    atomic,
    nanosleep
};

// What kernel code reads of the thread and the block it runs in.
struct ThreadView {
    uint3 index;      // threadIdx
    unsigned number;  // threads of a block in a row: x fastest, then y, then z
};
struct BlockView {
    uint3 index;  // blockIdx
    dim3 dim, grid;
    void* dynamic_shared;
};
struct Current {
    ThreadView* thread;
    BlockView* block;
};

#pragma GCC visibility push(default)

// A block stays on one OS thread from start to end, so this is the same for all its life.
extern __thread Current current __attribute__((tls_model("initial-exec")));

// A rendezvous of the lanes in `mask`. shuffle: what lane `source` brought. vote: a bit for each lane that brought
// something other than 0. syncwarp: 0.
uint64_t warp_rendezvous(Operation, unsigned mask, uint64_t value, unsigned source, Location);
void block_barrier(Location);
// Returns once *address differs from `old` in a bit of `mask`.
void wait_for_change(const unsigned* address, unsigned old, unsigned mask, Location);
// An atomic has stored here: wake whoever waits for it.
void stored(const void* address);
// A load or an atomic of `size` bytes has seen `value` here and changed nothing: others may run now.
void seen(Operation, const void* address, unsigned size, uint64_t value, Location);
void fence();
[[noreturn]] void trap(Location);

// A load or store of the calling thread, counted where the launch asks for it. `alignment` is what a GPU insists on, and
// `instruction` where it stands.
void accessed(const void*, size_t size, size_t alignment, bool is_write, const void* instruction);

// Addresses of one tensor, and what a launch moved of it (traffic.h).
struct Tensor {
    uint64_t begin, end;
};
struct Traffic {
    uint64_t asked_read, asked_write, moved_read, moved_write, distinct_read, distinct_write;
};

// A launch. `args` holds 8 bytes for each parameter of the kernel.
using Entry = void (*)(const uint64_t* args);
struct Request {
    const char* name;
    Entry entry;
    const uint64_t* args;
    uint64_t args_count;
    uint64_t shared_module, shared_bytes;  // the kernel library's thread_local memory, from luce_shared_memory
    unsigned grid[3], block[3];
    unsigned dynamic_shared_bytes;
    unsigned resident_blocks;  // of this launch that the device can hold at the same time
    unsigned cooperative;      // 1: every block starts at once, as the caller has checked that they fit
    unsigned seeded;           // 1: one thread at a time, in an order that `seed` decides
    unsigned strict;           // 1: no thread of a block may leave before a __syncthreads of it
    uint64_t seed;
    // Counting, for a kernel library built for it. Sorted, without overlap; null: count nothing.
    const Tensor* tensors;
    uint64_t tensors_count;
    Traffic* traffic;           // one for each tensor, added to
    uint64_t* block_barriers;   // __syncthreads passed by whole blocks, added to
};

extern "C" {
// Runs a launch to its end. Null, or what went wrong: valid until this OS thread launches again.
const char* luce_launch(const Request*);
// Finds the thread_local memory of the library that holds `entry`.
void luce_shared_memory(const void* entry, uint64_t* module, uint64_t* bytes);
}

#pragma GCC visibility pop

}  // namespace emulator
