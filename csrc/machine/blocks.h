// blocks.h: blocks of threads, from their start to their end, and what is said when none can go on
#pragma once

#include <memory>
#include <vector>

#include "scheduler.h"

namespace machine {

// Blocks that have ended, whose memory serves the next ones. Of one OS thread.
class BlockPool {
public:
    Block* take(Launch* launch, Worker* worker, uint64_t number, const Trace* trace);
    void give_back(Block* block) { free_.emplace_back(block); }

    uint64_t serial = 0;  // of the launch, as addresses are used again

private:
    static void place(Block* block, Launch* launch, uint64_t number);
    void prepare(Block* block, Launch* launch, Worker* worker, const Trace* trace);

    std::vector<std::unique_ptr<Block>> free_;
};

// Blocks of a cluster start and end together; alone, a block is a cluster of one.
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

// End the launch with a report, unless it has one: nobody can go on, or it was told to end.
void report_deadlock(Launch* launch, const std::vector<Block*>& blocks);
void report_end(Launch* launch, Fault fault);

}  // namespace machine
