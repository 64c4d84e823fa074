// events.h: the events of launches, blocks and synchronisation that a watcher of memory gets
#pragma once

#include "machine.h"

namespace machine {

struct Events {
    virtual ~Events() = default;
    // alone: all earlier launches have ended.
    virtual void launch_starts(Launch*, bool alone) { (void)alone; }
    virtual void launch_ends(Launch*) {}
    virtual void block_starts(Block*) {}
    virtual void block_ends(Block*) {}
    // Lanes m arrive at barrier `id` of the block. waits: they wait for it (bar.sync) or not (bar.arrive).
    virtual void arrive(Warp*, uint32_t m, unsigned id, bool waits) { (void)m, (void)id, (void)waits; }
    virtual void barrier_opens(Block*, unsigned id) { (void)id; }
    // The lanes of `named` meet at a __syncwarp. Shuffles and votes also wait for lanes, but do not order memory.
    virtual void warp_sync(Warp*, uint32_t named) { (void)named; }
    virtual void cluster_arrive(Warp*, uint32_t m) { (void)m; }
    virtual void cluster_opens(Block* first, uint32_t blocks) { (void)first, (void)blocks; }
    virtual void cluster_wait(Warp*, uint32_t m) { (void)m; }
    // griddepcontrol.wait has returned.
    virtual void predecessor_done(Warp*, uint32_t m) { (void)m; }
    // No thread can continue: let late effects happen. False if there are none.
    virtual bool drain() { return false; }
};

}  // namespace machine
