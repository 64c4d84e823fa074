// control.h: functions of control.cpp for the scheduler
#pragma once

#include "machine.h"

namespace machine {

// Chooses the group that a warp runs in its turn: a ready one, or the polling one that has waited longest. False if
// none.
bool wake(Warp* w);

// Called at the start of a basic block if the warp has other groups. True if this group continues, with lanes w->mask.
bool converge(Warp* w, const Ins* p, uint32_t m);

// fail() for a fault with a second instruction, whose index is `other`.
void fail_with_other(Warp* w, const Ins* p, Fault fault, uint32_t lane, int32_t other);

}  // namespace machine
