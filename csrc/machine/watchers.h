// watchers.h: hostile memory, the race detector and marks on memory, by request
#pragma once

#include <memory>

#include "memory.h"

namespace machine {

// Global memory with a mark for each of its bytes. The ranges are sorted and do not overlap.
struct Marked {
    uint64_t begin, end;
    uint8_t* marks;  // of type Mark
};
// unwritten: nobody has written there, so a read is a fault; the first write takes the mark away. guarded: a write is a
// fault, which says who writes there.
enum Mark : uint8_t { unmarked, unwritten, guarded };

// Null where nothing is asked for: then no access is told to anybody.
std::unique_ptr<Watcher> make_watcher(bool hostile, bool races, uint64_t seed, const Marked* marked, uint64_t marked_count);

}  // namespace machine
