// timing.h: a clock for launches: when each machine instruction of each warp issues, on a card that is described
// What is computed is what every run computes; this says when. See timing.cpp.
#pragma once

#include <memory>
#include <vector>

#include "scheduler.h"

namespace machine {

// What an instruction is to the clock.
enum class Kind : uint8_t {
    plain,
    free_,        // costs nothing on a GPU, and hands on the time of its sources
    load, store,  // global, local or generic memory
    shared_load, shared_store,
    pause,        // others may see it, or wait for it: it runs when the clock says
    shared_atomic,
    copy,         // cp.async, and the end of a group of them
    prefetch,
    bypass,       // a load that leaves no line in L1
    bypass_copy,  // a copy that leaves none
};

constexpr int quadrants = 4;     // of an SM
constexpr int pipes_count = 12;  // what they are stands in luce_edu/machine/schedule.py
constexpr int most_sources = 6, most_results = 4;

// A machine instruction (or some in a row that are one PTX instruction), as the assembler might order them.
struct Instruction {
    int32_t row;      // of the program's code; -1: none is left of it there
    uint8_t pipe;
    Kind kind;
    uint16_t issues;  // issue slots that it takes
    float latency;    // cycles until what depends on it may issue; a memory access adds its own
    float busy;       // cycles that it keeps its pipe
    int32_t sources[most_sources];  // n: instruction n of this basic block; -1: none; -2 - k: register slot k, from before
    int32_t results[most_results];  // register slots whose value is this one's behind the block; -1: none
    int32_t statement;  // not for the core
    int32_t joined;   // shared loads that it makes at once: its own and those of the same size behind it in memory
};
static_assert(sizeof(Instruction) == 64);

struct Schedule {
    const Instruction* instructions;
    const int32_t* blocks;  // of each basic block: its first instruction, and how many
    int32_t blocks_count, instructions_count;
    int32_t slots_count;
};

// A card's times, in cycles of its SMs' clock, and bytes a cycle. Their sources stand in luce_edu/machine/clock.py.
struct Times {
    double sm_count;
    double shared_latency, l1_latency, l2_latency, dram_latency;
    double load_64_extra, load_128_extra;  // cycles more for wider loads
    double memory_floor;                 // cycles of the load/store unit for a warp's access, at least
    double lines_base, lines_per_cycle;  // of more than two lines, at least base + lines / lines_per_cycle
    double l1_bytes_per_cycle;           // and what it carries
    double l1_bytes, l2_bytes;
    double l2_bytes_per_cycle, sm_bytes_per_cycle, dram_bytes_per_cycle;
    double inflight_bytes, inflight_lines;  // of loads and stores that an SM may wait for
    double atomic_extra, atomic_interval;
    double fence, sc_fence, block_fence, system_fence;
    double barrier_base, barrier_per_warp;
    double block_interval;               // cycles from one block handed out to the next, of the whole GPU
    double block_start;                  // cycles from the end of a block until the one in its place begins
    double dram_turn;                    // cycles more for each byte that is written to DRAM and one that is read
    double l2_far_extra;                 // cycles, from the half of L2 in which a word lies to an SM at the other
    double slice_interval;               // cycles of a slice of L2 for a request, whatever it moves
    double queue;                        // cycles of work that may wait for the load/store unit before a warp has to
    double async_copy_extra, bulk_copy_extra;          // cycles that cp.async and a bulk copy take longer than a load
    double cluster_barrier, cluster_barrier_relaxed;   // cycles from the last arrival, with and without release
    double cluster_latency;              // cycles to the shared memory of another block of the cluster
};

// What the clock found out about one launch.
struct Found {
    double begin, end;                   // cycles
    double dram_read, dram_written, l2_bytes, l1_hits, l1_misses;  // bytes; sectors of 32
    double issued;                       // machine instructions
    double waited[4];                    // cycles of warps: for an issue slot or pipe, operands, memory, barriers
};

// What a time line shows: where a block waited at a barrier (of its warps the one that came first), or, with row -1,
// from when to when a block was on its SM.
struct Wait {
    int32_t sm, block, warp, row, launch;
    double begin, end;
};

constexpr double no_waits = 1e300;  // cycles from which waits are noted, when none is to be

struct InstructionTimes {
    double issued, slot, operand, memory, barrier;  // times; cycles waited, by reason
};

class Device;  // L2 and DRAM, which stay warm from launch to launch

struct Timing {
    std::vector<Schedule> schedules;     // by launch
    std::vector<const uint64_t*> addresses;  // by launch: of its tensors, on the device
    // By launch: cycles from the end of the one before. Two launches never overlap here. So griddepcontrol costs nothing,
    // and what a dependent launch does before it waits, it does in its own time and not beside its predecessor.
    std::vector<double> starts;
    Times times;
    std::vector<Found> found;
    std::vector<std::vector<InstructionTimes>> instructions;
    std::vector<Wait> waits;             // launch by launch, in each SM by SM
    double wait_from = no_waits;         // shorter ones are not noted
    std::vector<float> dram_use;         // bytes in each `bucket` cycles
    double bucket = 0;
    double origin = 0;                   // the device's time when the first bucket begins
};

// Runs launches one after another with the clock on. The device keeps what L2 holds; null: an empty one.
void run_timed(std::vector<std::unique_ptr<Launch>>& launches, std::vector<std::vector<std::unique_ptr<Worker>>>& workers,
               uint32_t threads, Timing& timing, Device* device, const std::function<void(uint32_t)>& ended);

Device* make_device(const Times& times);
void delete_device(Device* device);

}  // namespace machine
