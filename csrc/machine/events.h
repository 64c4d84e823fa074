// events.h: what a watcher of memory is told of launches, blocks and synchronisation
#pragma once

#include "machine.h"

namespace machine {

struct Events {
    virtual ~Events() = default;
    // `alone`: all launches before it have ended.
    virtual void launch_starts(Launch*, bool alone) { (void)alone; }
    virtual void launch_ends(Launch*) {}
    virtual void block_starts(Block*) {}
    virtual void block_ends(Block*) {}
    // Lanes m come to barrier `id` of the block, and wait for it or not; it opens for all that wait.
    virtual void arrive(Warp*, uint32_t m, unsigned id, bool waits) { (void)m, (void)id, (void)waits; }
    virtual void barrier_opens(Block*, unsigned id) { (void)id; }
    // The lanes of `named` meet at a __syncwarp. Shuffles and votes wait for lanes too, but order no memory.
    virtual void warp_sync(Warp*, uint32_t named) { (void)named; }
    virtual void cluster_arrive(Warp*, uint32_t m) { (void)m; }
    virtual void cluster_opens(Block* first, uint32_t blocks) { (void)first, (void)blocks; }
    virtual void cluster_wait(Warp*, uint32_t m) { (void)m; }
    // griddepcontrol.wait has waited.
    virtual void predecessor_done(Warp*, uint32_t m) { (void)m; }
    // Nobody can go on: bring out what is late. False: there is nothing.
    virtual bool drain() { return false; }
};

}  // namespace machine
