// words.cuh: the PTX that the planted kernels are made of, one instruction per function
// Each is `asm volatile` with memory clobbered, so that the compiler keeps the written order and the fault of a planted
// kernel reaches the machine.
#pragma once

#define WORD __device__ __forceinline__

#define LOAD(name, instruction)                                                       \
    WORD unsigned name(const unsigned* p) {                                           \
        unsigned v;                                                                   \
        asm volatile(instruction " %0, [%1];" : "=r"(v) : "l"(p) : "memory");         \
        return v;                                                                     \
    }
LOAD(load_plain, "ld.global.u32")
LOAD(load_nc, "ld.global.nc.u32")
LOAD(load_volatile, "ld.volatile.global.u32")
LOAD(load_relaxed, "ld.relaxed.gpu.global.u32")
LOAD(load_acquire, "ld.acquire.gpu.global.u32")
LOAD(load_acquire_block, "ld.acquire.cta.global.u32")

#define STORE(name, instruction)                                                      \
    WORD void name(unsigned* p, unsigned v) {                                         \
        asm volatile(instruction " [%0], %1;" ::"l"(p), "r"(v) : "memory");           \
    }
STORE(store_plain, "st.global.u32")
STORE(store_relaxed, "st.relaxed.gpu.global.u32")
STORE(store_release, "st.release.gpu.global.u32")
STORE(store_release_block, "st.release.cta.global.u32")

#define ADD(name, instruction)                                                        \
    WORD unsigned name(unsigned* p, unsigned v) {                                     \
        unsigned old;                                                                 \
        asm volatile(instruction " %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory"); \
        return old;                                                                   \
    }
ADD(add_relaxed, "atom.relaxed.gpu.global.add.u32")
ADD(add_relaxed_block, "atom.relaxed.cta.global.add.u32")
ADD(add_acquire, "atom.acquire.gpu.global.add.u32")
ADD(add_release, "atom.release.gpu.global.add.u32")
ADD(add_acq_rel, "atom.acq_rel.gpu.global.add.u32")

WORD unsigned take(unsigned* lock) {  // returns 0 if the lock was free
    unsigned old;
    asm volatile("atom.relaxed.gpu.global.cas.b32 %0, [%1], 0, 1;" : "=r"(old) : "l"(lock) : "memory");
    return old;
}

// A grid barrier, as in csrc/grid_barrier.cuh.
WORD void grid_barrier(unsigned* word) {
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned top = 1u << 31, share = blockIdx.x == 0 ? top - (gridDim.x - 1) : 1u;
        const unsigned before = add_release(word, share);
        while (((load_acquire(word) ^ before) & top) == 0) {}  // waits for the grid
    }
    __syncthreads();
}

WORD void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
WORD void fence_block() { asm volatile("fence.acq_rel.cta;" ::: "memory"); }
WORD void fence_sc() { asm volatile("fence.sc.gpu;" ::: "memory"); }

// Asynchronous copies of 16 bytes by each thread, in groups.
WORD unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

WORD void copy_16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
WORD void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int newest>  // this many groups may still be under way
WORD void wait_for_all_but() {
    asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
}

// A bulk copy and the mbarrier that counts its bytes.
#if __CUDA_ARCH__ >= 900
WORD void mbarrier_init(unsigned long long* barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
WORD void mbarrier_expect(unsigned long long* barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
WORD void mbarrier_wait(unsigned long long* barrier, unsigned parity) {
    unsigned done = 0;
    while (!done) {
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    }
}
WORD void copy_bulk(void* to, const void* from, unsigned bytes, unsigned long long* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}
// Orders earlier accesses of threads to shared memory before later ones of bulk copies.
WORD void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

WORD void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
WORD void let_successor_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#endif
