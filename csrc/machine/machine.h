// machine.h: types and functions that the parts of the virtual GPU share
// luce_edu/machine/assemble.py turns PTX into a program: instructions of 32 bytes, each with the address of the
// function that runs it. A warp runs as a unit: 32 lanes, one register arena, a mask of active lanes. Each function
// ends with a sibling call of the next one, so the stack does not grow. A branch that all lanes take is such a call
// too. When lanes diverge, wait or exit, control returns to the loop in scheduler.cpp.
//
//   vectors.h      lanes as vectors             alu_*.cpp     arithmetic, conversions, comparisons, moves
//   memory.cpp     loads, stores, atomics       control.cpp   branches, barriers, votes, shuffles, calls
//   matrix.cpp     mma, ldmatrix                scheduler.cpp blocks on OS threads, residency, deadlock
//   blocks.cpp     start and end of a block     timing.cpp    the clock: when each instruction issues
//   clocks.cpp     vector clocks                timeline.cpp  which threads have synchronised
//   words.cpp      the history of each word     watchers.cpp  passes every access to the two below
//   hostile.cpp    late and stale memory        races.cpp     the race detector
//   text.cpp       printf and assert            interface.cpp functions that Python calls
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "vectors.h"

namespace machine {

struct Warp;
struct Block;
struct Worker;
struct Launch;
struct Ins;
struct Watcher;

// Runs instruction p. r: the warp's registers; m: the mask of active lanes.
using Op = void (*)(Warp* w, const Ins* p, uint8_t* r, uint32_t m);

// d, a, b, c are byte offsets into the arena. d is the register of the result (of a store: of the value), the others
// are operands. An instruction with more operands is followed by slots that hold them and are never run.
struct Ins {
    Op run;
    int32_t d, a, b, c;
    int64_t imm;
};
static_assert(sizeof(Ins) == 32);

#define NEXT return p[1].run(w, p + 1, r, m)
#define NEXT_AFTER(slots) return p[1 + (slots)].run(w, p + 1 + (slots), r, m)

// ---- The registry: the name of each instruction and the function that runs it ----

// `watched` runs in place of `run` when a watcher (hostile memory, the race detector, the stepper) gets every access.
struct Entry {
    const char* name;
    Op run;
    Op watched = nullptr;
};
void add_operations(std::initializer_list<Entry> entries);
const char* operation_name(int32_t operation);
// At namespace scope of a source file: REGISTER(alu_float, {"add.f32", add_f32}, {"sub.f32", sub_f32});
#define REGISTER(name, ...) static const bool name##_registered = (::machine::add_operations({__VA_ARGS__}), true)

// ---- Memory ----

// Windows of the generic address space in which no host address lies. In the shared space, an address is an offset in
// the block's own memory, or (rank + 1) << 24 | offset for another block of the cluster.
constexpr uint64_t shared_window = 0x7f00'0000'0000'0000;
constexpr uint64_t local_window = 0x7e00'0000'0000'0000;
constexpr uint64_t window_mask = 0xff00'0000'0000'0000;

enum Space : uint8_t { generic, global, shared, local, constant, param };

// The memory order of an access, stored in `c` of the slot after a memory instruction.
enum Access : int32_t {
    weak = 0,
    relaxed = 1,      // also volatile
    acquire = 2,
    release = 4,      // acq_rel: acquire | release
    seq_cst = 8,      // fence.sc
    scope_cta = 16,   // without a scope bit the scope is gpu
    scope_system = 32,
    scope_cluster = 64,
    non_coherent = 128,  // ld.global.nc
    is_volatile = 256,
};

// A range of global memory that a launch may touch: a tensor, or a variable of the module.
struct Tensor {
    uint64_t begin, end;
    uint64_t* read;      // one bit per byte that was read, or null
    uint64_t* written;   // one bit per byte that was written, or null
    uint64_t read_only;  // 1: a write is an error
};

// Counts per tensor. asked: bytes that threads access; moved: 32 bytes per sector that a warp's access touches.
struct Traffic {
    uint64_t asked_read = 0, asked_write = 0, moved_read = 0, moved_write = 0;
    uint64_t low = ~0ull, high = 0;  // all accessed bytes lie in [low, high), counted from the tensor's begin

    void extend(uint64_t from, uint64_t size) {
        low = from < low ? from : low;
        high = from + size > high ? from + size : high;
    }
};

// Counts per memory instruction.
struct Site {
    uint64_t times, lanes, bytes, sectors, wavefronts;  // wavefronts: passes over shared memory's 32 banks
};

// Counts per basic block.
struct BlockCount {
    uint64_t times, lanes;
};

// ---- Programs ----

// A special register. It has its own slot in the arena, which is filled when a warp starts.
enum class Special : int32_t {
    tid_x, tid_y, tid_z, ntid_x, ntid_y, ntid_z, ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_y, nctaid_z,
    laneid, warpid, nwarpid, smid, nsmid, gridid, lanemask_eq, lanemask_lt, lanemask_le, lanemask_gt, lanemask_ge,
    dynamic_smem_size, total_smem_size,
    clusterid_x, clusterid_y, clusterid_z, nclusterid_x, nclusterid_y, nclusterid_z,
    cluster_ctaid_x, cluster_ctaid_y, cluster_ctaid_z, cluster_nctaid_x, cluster_nctaid_y, cluster_nctaid_z,
    cluster_ctarank, cluster_nctarank, is_explicit_cluster,
};
struct SpecialSlot {
    int32_t special, at;  // 4 bytes per lane
};

struct Program {
    const Ins* code;
    const Ins* watched;           // the same code with the watched functions
    int32_t count;                // number of instructions, including slots
    int32_t arena_bytes;          // size of a warp's registers
    const uint8_t* image;         // constants with which the arena starts
    int32_t image_at, image_bytes;
    const SpecialSlot* specials;
    int32_t specials_count;
    int32_t shared_bytes;         // static shared memory
    int32_t local_bytes;          // per thread
    int32_t blocks_count;         // number of basic blocks
    const int32_t* block_lengths; // number of PTX instructions in each
    int32_t sites_count;          // number of memory instructions
    int32_t parameter_bytes;
    const int32_t* operations;    // per instruction: its number in the registry, or -1 for a slot of operands
    const int32_t* lines;         // per instruction: a number that stands for its source line
};

// ---- Running ----

// waiting: for the previous launch, or for a barrier of the cluster.
enum class GroupState : uint8_t { ready, polling, at_barrier, at_warp_sync, at_cluster_barrier, waiting };

// Lanes of a warp that execute together. The warp itself holds the running group, `others` holds the rest.
struct Group {
    const Ins* pc;     // while the group waits: the barrier or warp operation itself
    uint32_t mask;
    GroupState state;
    uint8_t barrier;   // at_barrier: the number of the barrier
    uint32_t meets;    // at_warp_sync: the lanes that must arrive; polling: the index in `looks`; at_barrier: its votes
};

struct Warp {
    uint8_t* r;
    const Ins* pc;      // where to continue when the loop resumes this warp
    uint32_t mask;      // active lanes
    uint32_t live;      // lanes that have not exited
    int32_t budget;     // basic blocks left in this turn
    bool running;       // false ends the turn
    bool moved;         // whether this turn has run more than polls
    uint8_t others_count;
    uint8_t index;      // the warp's number in its block
    const Ins* code;    // the copy of the program that runs: plain, watched or stepped
    uint32_t saved;     // the mask to restore after a predicated instruction
    BlockCount* counts;  // those of the OS thread that runs this warp
    Site* sites;
    Block* block;
    Worker* worker;
    Group others[warp_lanes];
    // Polling: what the latest polling loads of each group saw. A load that sees the same value again was in vain. Groups
    // of a warp may poll in the same loop, each for other values, so a look is known by its lanes, too.
    struct Look {
        const Ins* at;
        uint32_t mask;
        uint64_t seen;
    } looks[32];  // more than the loads that a loop issues together, for a few groups
    uint8_t oldest_look;  // the place that is used next
    uint32_t vain;       // number of polling loads in a row that saw nothing new
    uint32_t cluster_phase;  // the phase of the cluster's barrier at which this warp arrived
    int32_t free_run;    // basic blocks that this group may run before the group with the lowest pc runs again
    uint8_t* local;      // local memory, lane after lane
    uint64_t* local_written;  // one bit per byte of it that was written; the bits of each lane begin a new word

    uint32_t thread(uint32_t lane) const { return index * 32u + lane; }
    int32_t at(const Ins* p) const { return static_cast<int32_t>(p - code); }
};

// Kinds of report. luce_edu/machine/report.py has the text of each.
enum class Fault : int32_t {
    none, out_of_bounds, misaligned, uninitialised, divergent_barrier, deadlock, lost_launch, budget, trap, assertion,
    missing_lanes, interrupted, race, read_only, bad_barrier, unsupported,
};

struct Report {
    int32_t fault;
    int32_t ins;           // index into the program's code
    uint32_t block[3];
    uint32_t thread;       // the linear index in the block
    int32_t space;
    int32_t is_write;
    uint64_t address;
    uint64_t size;
    int32_t launch;        // the index among the launches that run together
    int32_t other_ins;     // race: the instruction of the other access
    uint32_t other_block[3];
    uint32_t other_thread;
    int64_t value;
    char text[4096];       // deadlock: who waits where, see who_waits_where() in blocks.cpp; assert: the message
};

// One launch, shared by the OS threads that run it.
struct Launch {
    const Program* program;
    const uint8_t* parameters;   // the kernel's parameter space
    uint32_t grid[3], block[3], cluster[3];
    uint32_t dynamic_shared_bytes;
    uint32_t shared_bytes;       // static and dynamic
    const Tensor* tensors;       // sorted by address, not overlapping
    uint32_t tensors_count;
    uint32_t sm_count;
    bool strict;
    uint32_t number;             // the index among the launches that run together
    uint32_t resident;           // the number of blocks that the card holds at the same time
    bool cooperative, dependent;
    Watcher* watcher;            // null: no watcher gets the accesses (memory.h)
    const Ins* code;             // the program's code, or the watched copy of it
    // ---- while it runs ----
    std::atomic<uint32_t>* failed;     // shared by all launches that run together: the first report wins
    std::atomic<uint64_t> next_block;  // the next block to start
    std::atomic<uint64_t> blocks_done;
    std::atomic<uint64_t> blocks_let_go;  // blocks that have allowed the next kernel to start, or have ended
    const Launch* predecessor;   // the launch that griddepcontrol.wait waits for; null if all earlier ones have ended
    Report* report;

    uint64_t blocks() const { return static_cast<uint64_t>(grid[0]) * grid[1] * grid[2]; }
    bool done() const { return blocks_done.load(std::memory_order_acquire) == blocks(); }
};

// What one OS thread counts in one launch. No other OS thread uses it, so nothing here is atomic.
struct Worker {
    Launch* launch;
    std::vector<BlockCount> counts;  // per basic block
    std::vector<Site> sites;       // per memory instruction
    std::vector<Traffic> traffic;  // per tensor
    std::vector<uint32_t> last_tensor;  // per site: the tensor of the last access, most often that of the next too
    uint64_t barriers = 0;       // number of bar.sync that whole blocks have passed
    uint64_t atomics = 0;
    std::string printed;
    uint64_t ticks = 0;          // the value that %clock shows
    const Ins* looking = nullptr;  // the last polling load that saw nothing new
    Watcher* watcher = nullptr;  // gets every access of the watched code; see memory.h
};

struct Block {
    Launch* launch;
    Worker* worker;
    uint32_t index[3], number;   // blockIdx, and its linear index
    uint32_t rank;               // its rank in the cluster
    Block** cluster;             // the blocks of its cluster by rank, or null
    uint8_t* shared;             // shared memory: static, then dynamic; starts as 0xff bytes
    uint64_t* shared_written;    // one bit per byte that was written
    uint32_t shared_bytes;
    uint32_t threads;
    std::vector<Warp> warps;
    uint32_t live_threads;       // threads that have not exited
    struct Barrier {
        uint32_t arrived = 0, expected = 0;  // numbers of threads; expected 0: all that have not exited
        uint32_t votes = 0;    // bar.red: number of threads that voted yes
        int32_t first_ins = -1;  // the instruction at which the first thread arrived
    } barriers[16];
    uint32_t ready = 0, polling = 0;  // one bit per warp; a warp with neither waits or has ended
    bool let_go = false;              // true once it has allowed the next kernel to start
    uint32_t cluster_arrived = 0;     // threads at the cluster's barrier; only the block of rank 0 counts them
    uint32_t cluster_phase = 0;
    // The block's memory, kept for the next block.
    std::vector<uint8_t> registers, local_memory, shared_memory;
    std::vector<uint64_t> written, local_written;
    const void* filled_for = nullptr;  // the launch whose constants are in the registers
    uint64_t filled_serial = 0;
    bool is_fresh = true;
};

// ---- Functions of memory.cpp ----

// Returns the index of the tensor that holds all these bytes, or -1. The site caches the result.
int find_tensor(Warp* w, int32_t site, uint64_t address, uint64_t size);

// Checks `size` bytes at an address of one lane and returns the host memory behind them, or null after fail().
uint8_t* resolve(Warp* w, const Ins* p, uint32_t lane, Space space, uint64_t address, uint32_t size, bool is_write);

// ---- Functions of scheduler.cpp and control.cpp ----

// To be called after an atomic or a volatile, relaxed or acquire load that changed nothing and saw `seen`, a hash of
// all lanes' values. Returns true if the warp is polling and saw nothing new. The op must then write no further
// register and end the warp's turn with `return give_way(w, next, m)`.
bool looked_in_vain(Warp* w, const Ins* p, uint32_t m, uint64_t seen);
// To be called after a change that other threads may wait for. It resets the polling state of this warp.
void changed(Warp* w);
// Ends the turn; the warp continues at `next` later.
void give_way(Warp* w, const Ins* next, uint32_t m);

// Ends the launch with a report (the first one wins) and ends this warp's turn. An op must return after it.
void fail(Warp* w, const Ins* p, Fault fault, uint32_t lane, uint64_t address = 0, uint64_t size = 0,
          int space = 0, bool is_write = false);

}  // namespace machine
