// watchers.h: hostile memory and the race detector, by request
#pragma once

#include <memory>

#include "memory.h"

namespace machine {

// Null where neither is asked for: then no access is told to anybody.
std::unique_ptr<Watcher> make_watcher(bool hostile, bool races, uint64_t seed, Report* report);

}  // namespace machine
