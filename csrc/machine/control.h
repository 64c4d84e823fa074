// control.h: what control.cpp offers the scheduler
#pragma once

#include "machine.h"

namespace machine {

// Gives a warp whose turn comes a group to run: a ready one, or the polling one that has waited longest. False: none can.
bool wake(Warp* w);

// At the start of a basic block with other groups about: true where this group goes on, with w->mask as its lanes.
bool converge(Warp* w, const Ins* p, uint32_t m);

// fail() for a fault that has a second place: the index of another instruction.
void fail_with_other(Warp* w, const Ins* p, Fault fault, uint32_t lane, int32_t other);

}  // namespace machine
