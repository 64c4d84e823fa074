// timing.h: a clock for launches. It models when each machine instruction of each warp issues on a given card.
// Results do not depend on the clock. See timing.cpp.
#pragma once

#include <memory>
#include <vector>

#include "scheduler.h"

namespace machine {

// The kinds of instruction that the clock treats differently.
enum class Kind : uint8_t {
    plain,
    free_,        // costs nothing on a GPU; its result is ready when its sources are
    load, store,  // global, local or generic memory
    shared_load, shared_store,
    pause,        // other warps may see it or wait for it, so the clock decides when it runs
    shared_atomic,
    copy,         // cp.async, and the end of a group of them
    prefetch,
    bypass,       // a load that leaves no line in L1
    bypass_copy,  // a copy that leaves no line in L1
};

constexpr int quadrants = 4;     // per SM
constexpr int pipes_count = 12;  // luce_edu/machine/schedule.py lists them
constexpr int most_sources = 6, most_results = 4;

// A machine instruction, or several in a row that make one PTX instruction, in an order that ptxas might choose.
struct Instruction {
    int32_t row;      // the index in the program's code, or -1 if the code has no such instruction
    uint8_t pipe;
    Kind kind;
    uint16_t issues;  // number of issue slots that it takes
    float latency;    // cycles until a dependent instruction may issue; a memory access adds its own
    float busy;       // cycles for which it occupies its pipe
    int32_t sources[most_sources];  // n: instruction n of this basic block; -2 - k: slot k of an earlier one; -1: none
    int32_t results[most_results];  // register slots that hold its value after the basic block; -1: none
    int32_t statement;  // not used here
    int16_t joined;   // number of shared loads of consecutive addresses that this instruction performs
    int16_t evict_first;  // 1 if L2 shall evict what it touches before other lines
};
static_assert(sizeof(Instruction) == 64);

struct Schedule {
    const Instruction* instructions;
    const int32_t* blocks;  // per basic block: its first instruction, and the number of instructions
    int32_t blocks_count, instructions_count;
    int32_t slots_count;
};

// A card's times in cycles of the SM clock, and its rates in bytes per cycle. luce_edu/machine/clock.py has the
// sources.
struct Times {
    double sm_count;
    double shared_latency, l1_latency, l2_latency, dram_latency;
    double load_64_extra, load_128_extra;  // extra latency of wider loads
    double memory_floor;                 // the least time in the load/store unit for a warp's access
    double lines_base, lines_per_cycle;  // more than two lines take at least lines_base + lines / lines_per_cycle
    double l1_bytes_per_cycle;           // and the bytes take bytes / l1_bytes_per_cycle
    double l1_bytes, l2_bytes;
    double l2_bytes_per_cycle, sm_bytes_per_cycle, dram_bytes_per_cycle;
    double inflight_bytes, inflight_lines;  // limits of an SM's loads and stores in flight
    double atomic_extra, atomic_interval;
    double fence, sc_fence, block_fence, system_fence;
    double barrier_base, barrier_per_warp;
    double block_interval;               // between the starts of two blocks, for the whole GPU
    double block_start;                  // from the end of a block to the start of the block that replaces it
    double dram_turn;                    // extra per byte read after a byte written: DRAM turns around
    double l2_far_extra;                 // extra to reach a word in the other half of L2
    double slice_interval;               // a slice of L2 is busy for this long per request, whatever its size
    double queue;                        // work that may queue at the load/store unit before a warp must wait
    double async_copy_extra, bulk_copy_extra;          // extra latency of cp.async and of a bulk copy
    double cluster_barrier, cluster_barrier_relaxed;   // from the last arrival, with and without release
    double cluster_latency;              // latency of the shared memory of another block in the cluster
};

// The clock's results for one launch.
struct Found {
    double begin, end;                   // cycles
    double dram_read, dram_written, l2_bytes, l1_hits, l1_misses;  // bytes; sectors of 32
    double issued;                       // machine instructions
    double waited[4];                    // cycles that warps waited: for issue slot or pipe, operands, memory, barriers
};

// An entry of a time line: a block's wait at a barrier, from its first warp's arrival on, or, with row -1, the time
// that the block spent on its SM.
struct Wait {
    int32_t sm, block, warp, row, launch;
    double begin, end;
};

constexpr double no_waits = 1e300;  // a value of wait_from that records no wait

struct InstructionTimes {
    double issued, slot, operand, memory, barrier;  // number of issues; cycles waited, by reason
};

class Device;  // L2 and DRAM. L2 keeps its contents from launch to launch.

struct Timing {
    std::vector<Schedule> schedules;     // per launch
    std::vector<const uint64_t*> addresses;  // per launch: the device addresses of its tensors
    // Per launch: cycles from the end of the previous one. Launches never overlap here. So griddepcontrol costs
    // nothing, and the work of a dependent launch before its wait is not hidden behind its predecessor.
    std::vector<double> starts;
    Times times;
    std::vector<Found> found;
    std::vector<std::vector<InstructionTimes>> instructions;
    std::vector<Wait> waits;             // sorted by launch, then by SM
    double wait_from = no_waits;         // shorter waits are not recorded
    std::vector<float> dram_use;         // bytes per `bucket` cycles
    double bucket = 0;
    double origin = 0;                   // the device time at which the first bucket begins
};

// Runs launches one after another with the clock on. `device` keeps the contents of L2; null stands for an empty L2.
void run_timed(std::vector<std::unique_ptr<Launch>>& launches, std::vector<std::vector<std::unique_ptr<Worker>>>& workers,
               uint32_t threads, Timing& timing, Device* device, const std::function<void(uint32_t)>& ended);

Device* make_device(const Times& times);
void delete_device(Device* device);

}  // namespace machine
