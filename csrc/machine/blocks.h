// blocks.h: the start and end of blocks, and reports of deadlocks
#pragma once

#include <memory>
#include <vector>

#include "scheduler.h"

namespace machine {

// Blocks that have ended, kept so that new blocks can reuse their memory. One pool per OS thread.
class BlockPool {
public:
    Block* take(Launch* launch, Worker* worker, uint64_t number, const Trace* trace);
    void give_back(Block* block) { free_.emplace_back(block); }

    uint64_t serial = 0;  // the number of the launch; its address alone could be that of an earlier one

private:
    static void place(Block* block, Launch* launch, uint64_t number);
    void prepare(Block* block, Launch* launch, Worker* worker, const Trace* trace);

    std::vector<std::unique_ptr<Block>> free_;
};

// The blocks of a cluster, which start and end together. A block without a cluster is a cluster of one.
struct Cluster {
    std::vector<Block*> blocks;
    bool ended() const {
        for (const Block* block : blocks)
            if (block->live_threads) return false;
        return true;
    }
};

uint32_t cluster_blocks(const Launch& launch);

std::unique_ptr<Cluster> start_cluster(BlockPool& pool, Launch* launch, Worker* worker, uint64_t number, const Trace* trace);
void end_cluster(BlockPool& pool, std::unique_ptr<Cluster> cluster);

// Both end the launch with a report, unless it has one already.
void report_deadlock(Launch* launch, const std::vector<Block*>& blocks);
void report_end(Launch* launch, Fault fault);

}  // namespace machine
