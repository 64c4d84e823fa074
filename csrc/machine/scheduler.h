// scheduler.h: functions of scheduler.cpp for interface.cpp
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "machine.h"

namespace machine {

// Options of a run.
struct Order {
    uint32_t threads;          // number of OS threads, at least 1; with a seed only one is used
    bool seeded;
    uint64_t seed;
    uint64_t instructions;     // the launches end after this number of warp instructions; 0: no limit
};

// The trace of one warp: for each step the instruction, the active lanes, and the registers before it.
struct Trace {
    uint32_t block, warp;      // the traced block and warp
    const Program* program;    // run() sets program and code: code is a copy whose functions all stop
    Ins* code;
    uint64_t most, steps;      // the capacity, and the number of steps recorded
    int32_t* at;               // per step
    uint32_t* mask;
    uint8_t* registers;        // arena_bytes per step, and once more for the end
};

// Runs launches one after another. With a seed, a launch marked `dependent` may overlap its predecessor. The counts of
// launch i go to workers[i], one worker per OS thread. `ended` is called once for each started launch, when it has
// ended.
void run(std::vector<std::unique_ptr<Launch>>& launches, std::vector<std::vector<std::unique_ptr<Worker>>>& workers,
         const Order& order, Trace* trace, const std::function<void(uint32_t)>& ended);

// Set by a signal handler. The running launches then end with Fault::interrupted.
extern std::atomic<bool> interrupted;

}  // namespace machine
