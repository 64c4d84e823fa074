// watchers.h: creates the watcher for hostile memory, the race detector and marks on memory
#pragma once

#include <memory>

#include "memory.h"

namespace machine {

// A range of global memory with one mark per byte. The ranges are sorted and do not overlap.
struct Marked {
    uint64_t begin, end;
    uint8_t* marks;  // of type Mark
};
// unwritten: no write yet, so a read is a fault; the first write removes the mark. guarded: a write is a fault, whose
// report names the writing thread.
enum Mark : uint8_t { unmarked, unwritten, guarded };

// Returns null if none of them is wanted. Then the code runs unwatched.
std::unique_ptr<Watcher> make_watcher(bool hostile, bool races, uint64_t seed, const Marked* marked, uint64_t marked_count);

}  // namespace machine
