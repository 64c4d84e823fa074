// scheduler.h: what scheduler.cpp offers interface.cpp
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "machine.h"

namespace machine {

// How launches run.
struct Order {
    uint32_t threads;          // OS threads, 1 or more; with a seed there is one
    bool seeded;
    uint64_t seed;
    uint64_t instructions;     // of warps; more than these end the launches. 0: any number
};

// One instruction of a warp that is stepped through: where it stood, with which lanes, and the registers before it.
struct Trace {
    uint32_t block, warp;      // whose
    const Program* program;    // run() sets these two: the program, and a copy of its code whose functions all stop
    Ins* code;
    uint64_t most, steps;      // that there is room for, and that were taken
    int32_t* at;               // by step
    uint32_t* mask;
    uint8_t* registers;        // arena_bytes by step; one more at the end
};

// Runs launches one after another, or with a seed those marked `dependent` beside the one before. Counts are added up in
// workers, one for each launch and OS thread: launch i has workers[i]. `ended` is called for each launch that has started,
// once it has ended.
void run(std::vector<std::unique_ptr<Launch>>& launches, std::vector<std::vector<std::unique_ptr<Worker>>>& workers,
         const Order& order, Trace* trace, const std::function<void(uint32_t)>& ended);

// Set by a signal; the launches that run end with Fault::interrupted.
extern std::atomic<bool> interrupted;

}  // namespace machine
