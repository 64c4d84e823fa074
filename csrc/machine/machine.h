// machine.h: what the parts of the virtual GPU share
// A program is PTX that luce_edu/machine/assemble.py has turned into instructions of 32 bytes, each with the address of
// the function that runs it. A warp runs as one: 32 lanes, one register arena, a mask of active lanes. Each function
// ends by calling the next one (a sibling call, so no stack grows), also a branch that all its lanes take; where lanes
// part, wait or end, the loop in scheduler.cpp has control again.
//
//   vectors.h      lanes as vectors             alu_*.cpp     arithmetic, conversions, comparisons, moves
//   memory.cpp     loads, stores, atomics       control.cpp   branches, barriers, votes, shuffles, calls
//   matrix.cpp     mma, ldmatrix                scheduler.cpp blocks on OS threads, residency, deadlock
//   blocks.cpp     a block's start and end      timing.cpp    a clock: when each instruction issues
//   clocks.cpp     what each thread knows       timeline.cpp  who has synchronised with whom
//   words.cpp      what happened to each word   watchers.cpp  who tells these of every access
//   hostile.cpp    late and stale memory        races.cpp     what nothing orders
//   text.cpp       printf and assert            interface.cpp what Python calls
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

// r: the warp's registers; m: the lanes that are active.
using Op = void (*)(Warp* w, const Ins* p, uint8_t* r, uint32_t m);

// d is where a result goes, or what a store takes; a, b, c where operands are: offsets in bytes into the arena.
// An instruction with more operands is followed by one or more slots that hold them and are never run.
struct Ins {
    Op run;
    int32_t d, a, b, c;
    int64_t imm;
};
static_assert(sizeof(Ins) == 32);

#define NEXT return p[1].run(w, p + 1, r, m)
#define NEXT_AFTER(slots) return p[1 + (slots)].run(w, p + 1 + (slots), r, m)

// ---- The registry: the name of an instruction and what runs it ----

// `watched` runs in its place where each access is told to hostile memory, the race detector or the stepper.
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

// Windows of the generic address space that no host address falls into. An address of shared memory inside its own
// space is a plain offset; of another block of the cluster, (rank + 1) << 24 | offset.
constexpr uint64_t shared_window = 0x7f00'0000'0000'0000;
constexpr uint64_t local_window = 0x7e00'0000'0000'0000;
constexpr uint64_t window_mask = 0xff00'0000'0000'0000;

enum Space : uint8_t { generic, global, shared, local, constant, param };

// What an access asks of memory order; in `c` of the slot behind a memory instruction.
enum Access : int32_t {
    weak = 0,
    relaxed = 1,      // also volatile
    acquire = 2,
    release = 4,      // acq_rel: acquire | release
    seq_cst = 8,      // fence.sc
    scope_cta = 16,   // no scope bit: gpu
    scope_system = 32,
    scope_cluster = 64,
    non_coherent = 128,  // ld.global.nc
    is_volatile = 256,
};

// A range of global memory that a launch may touch: a tensor, or a variable of the module.
struct Tensor {
    uint64_t begin, end;
    uint64_t* read;     // a bit for each byte that was read, or null
    uint64_t* written;  // and written
    uint64_t read_only;  // 1: a write is an error
};

// Bytes asked for by threads, and 32 for each sector that a warp's access touches; by tensor.
struct Traffic {
    uint64_t asked_read = 0, asked_write = 0, moved_read = 0, moved_write = 0;
    uint64_t low = ~0ull, high = 0;  // all touched bytes lie between these, counted from the tensor's begin

    void extend(uint64_t from, uint64_t size) {
        low = from < low ? from : low;
        high = from + size > high ? from + size : high;
    }
};

// By memory instruction.
struct Site {
    uint64_t times, lanes, bytes, sectors, wavefronts;  // wavefronts: passes over shared memory's 32 banks
};

// By basic block.
struct BlockCount {
    uint64_t times, lanes;
};

// ---- Programs ----

// A special register with a slot of its own in the arena, filled when a warp starts.
enum class Special : int32_t {
    tid_x, tid_y, tid_z, ntid_x, ntid_y, ntid_z, ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_y, nctaid_z,
    laneid, warpid, nwarpid, smid, nsmid, gridid, lanemask_eq, lanemask_lt, lanemask_le, lanemask_gt, lanemask_ge,
    dynamic_smem_size, total_smem_size,
    clusterid_x, clusterid_y, clusterid_z, nclusterid_x, nclusterid_y, nclusterid_z,
    cluster_ctaid_x, cluster_ctaid_y, cluster_ctaid_z, cluster_nctaid_x, cluster_nctaid_y, cluster_nctaid_z,
    cluster_ctarank, cluster_nctarank, is_explicit_cluster,
};
struct SpecialSlot {
    int32_t special, at;  // 4 bytes a lane
};

struct Program {
    const Ins* code;
    const Ins* watched;           // the same with the watched functions
    int32_t count;                // instructions, slots included
    int32_t arena_bytes;          // registers of a warp
    const uint8_t* image;         // what the arena starts as: constants
    int32_t image_at, image_bytes;
    const SpecialSlot* specials;
    int32_t specials_count;
    int32_t shared_bytes;         // static
    int32_t local_bytes;          // a thread
    int32_t blocks_count;         // basic blocks
    const int32_t* block_lengths; // PTX instructions in each
    int32_t sites_count;          // memory instructions
    int32_t parameter_bytes;
    const int32_t* operations;    // by instruction: its number in the registry, -1 in a slot that holds operands
    const int32_t* lines;         // by instruction: a number for its source line, the same for the same line
};

// ---- Running ----

// waiting: for the launch before this one, or for a barrier of the cluster.
enum class GroupState : uint8_t { ready, polling, at_barrier, at_warp_sync, at_cluster_barrier, waiting };

// Lanes of a warp that are together. The group that runs is in the warp itself; the others are in `others`.
struct Group {
    const Ins* pc;     // of the barrier or warp operation itself while it waits there
    uint32_t mask;
    GroupState state;
    uint8_t barrier;   // at_barrier: which
    uint32_t meets;    // at_warp_sync: the lanes that have to come; polling: the index of the look; at_barrier: its votes
};

struct Warp {
    uint8_t* r;
    const Ins* pc;      // where to go on, once the loop has control
    uint32_t mask;      // active lanes
    uint32_t live;      // lanes that have not exited
    int32_t budget;     // basic blocks until it is another warp's turn
    bool running;       // false ends its turn
    uint8_t others_count;
    uint8_t index;      // in its block
    const Ins* code;    // of the program: the plain, the watched or the stepped copy of it
    uint32_t saved;     // the mask to go back to after a predicated instruction
    BlockCount* counts;  // of the OS thread it is on
    Site* sites;
    Block* block;
    Worker* worker;
    Group others[warp_lanes];
    // Polling: what the last looks saw, so that looking in vain is recognised.
    struct Look {
        const Ins* at;
        uint64_t seen;
    } looks[4];
    uint32_t vain;       // looks in vain, one after another
    uint32_t cluster_phase;  // of the cluster's barrier, when it arrived there
    int32_t free_run;    // basic blocks that this group may run before the lowest one gets its turn again
    uint8_t* local;      // local memory: lane by lane
    uint64_t* local_written;  // a bit for each byte of it that was written; each lane's begin with a word

    uint32_t thread(uint32_t lane) const { return index * 32u + lane; }
    int32_t at(const Ins* p) const { return static_cast<int32_t>(p - code); }
};

// Kinds of report; their words are in luce_edu/machine/report.py.
enum class Fault : int32_t {
    none, out_of_bounds, misaligned, uninitialised, divergent_barrier, deadlock, lost_launch, budget, trap, assertion,
    missing_lanes, interrupted, race, read_only, bad_barrier, unsupported,
};

struct Report {
    int32_t fault;
    int32_t ins;           // index into the program's code
    uint32_t block[3];
    uint32_t thread;       // of the block, in a row
    int32_t space;
    int32_t is_write;
    uint64_t address;
    uint64_t size;
    int32_t launch;        // which of the launches that run together
    int32_t other_ins;     // race: the other access
    uint32_t other_block[3];
    uint32_t other_thread;
    int64_t value;
    char text[4096];       // deadlock: who waits where, as "kind,ins,block,first-last;…"; assert: the message
};

// Of one launch, for the OS threads that run it.
struct Launch {
    const Program* program;
    const uint8_t* parameters;   // the kernel's parameter space
    uint32_t grid[3], block[3], cluster[3];
    uint32_t dynamic_shared_bytes;
    uint32_t shared_bytes;       // static and dynamic
    const Tensor* tensors;       // sorted, without overlap
    uint32_t tensors_count;
    uint32_t sm_count;
    bool strict;
    uint32_t number;             // among launches that run together
    uint32_t resident;           // blocks that the card holds at the same time
    bool cooperative, dependent;
    Watcher* watcher;            // null: nobody looks at single accesses (memory.h)
    const Ins* code;             // the program's, or the copy of it that is watched
    // ---- while it runs ----
    std::atomic<uint32_t>* failed;     // of all launches that run together: the first report wins
    std::atomic<uint64_t> next_block;  // that nobody has started
    std::atomic<uint64_t> blocks_done;
    std::atomic<uint64_t> blocks_let_go;  // that have allowed the next kernel to start, or ended
    const Launch* predecessor;   // that may still run: griddepcontrol.wait waits for it; null if all before has ended
    Report* report;

    uint64_t blocks() const { return static_cast<uint64_t>(grid[0]) * grid[1] * grid[2]; }
    bool done() const { return blocks_done.load(std::memory_order_acquire) == blocks(); }
};

// An OS thread, and what it counts. Nothing here is shared with another, so nothing is atomic.
// (With launches that overlap, it has one of these for each.)
struct Worker {
    Launch* launch;
    std::vector<BlockCount> counts;  // by basic block
    std::vector<Site> sites;       // by memory instruction
    std::vector<Traffic> traffic;  // by tensor
    std::vector<uint32_t> last_tensor;  // by site: where the last access fell; the next is most often there too
    uint64_t barriers = 0;       // bar.sync passed by whole blocks
    uint64_t atomics = 0;
    std::string printed;
    uint64_t ticks = 0;          // what clocks show
    const Ins* looking = nullptr;  // the last look in vain
    Watcher* watcher = nullptr;  // told of every access where the watched code runs; see memory.h
};

struct Block {
    Launch* launch;
    Worker* worker;
    uint32_t index[3], number;   // blockIdx, and in a row
    uint32_t rank;               // in its cluster
    Block** cluster;             // the blocks of its cluster by rank, or null
    uint8_t* shared;             // static, then dynamic; poisoned with 0xff
    uint64_t* shared_written;    // a bit for each byte that somebody wrote
    uint32_t shared_bytes;
    uint32_t threads;
    std::vector<Warp> warps;
    uint32_t live_threads;       // that have not exited
    struct Barrier {
        uint32_t arrived = 0, expected = 0;  // threads; expected 0: all that live
        uint32_t votes = 0;    // bar.red: threads that voted yes
        int32_t first_ins = -1;  // where the first came
    } barriers[16];
    uint32_t ready = 0, polling = 0;  // a bit for each warp; neither: it waits or has ended
    bool let_go = false;              // has allowed the next kernel to start
    uint32_t cluster_arrived = 0;     // threads, of rank 0's block for the whole cluster
    uint32_t cluster_phase = 0;
    // Its memory, kept for the next block.
    std::vector<uint8_t> registers, local_memory, shared_memory;
    std::vector<uint64_t> written, local_written;
    const void* filled_for = nullptr;  // the launch whose constants are in the registers
    uint64_t filled_serial = 0;
    bool is_fresh = true;
};

// ---- What memory.cpp offers the others ----

// The tensor that holds all these bytes, or -1; `site` remembers the last one.
int find_tensor(Warp* w, int32_t site, uint64_t address, uint64_t size);

// Host memory behind `size` bytes at a generic or spaced address of one lane, checked: null after fail().
uint8_t* resolve(Warp* w, const Ins* p, uint32_t lane, Space space, uint64_t address, uint32_t size, bool is_write);

// ---- What scheduler.cpp and control.cpp offer the others ----

// An atomic or a volatile, relaxed or acquire load has seen `seen` (any hash of all lanes' values) and changed nothing.
// True: it was a look in vain; the op sets nothing more, ends the warp's turn with `return give_way(w, next, m)`.
bool looked_in_vain(Warp* w, const Ins* p, uint64_t seen);
// Something was stored or changed that others may wait for; the looks of this warp start anew.
void changed(Warp* w);
// Ends the turn; the warp goes on at `next` later.
void give_way(Warp* w, const Ins* next, uint32_t m);

// Ends the launch with a report (the first one wins) and this warp's turn. Ops return after it.
void fail(Warp* w, const Ins* p, Fault fault, uint32_t lane, uint64_t address = 0, uint64_t size = 0,
          int space = 0, bool is_write = false);

}  // namespace machine
