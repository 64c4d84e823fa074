// blocks.cpp: the start and end of blocks, and reports of deadlocks; see blocks.h
#include "blocks.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "memory.h"

namespace machine {

namespace {

constexpr size_t stagger = 192;  // bytes between arenas, so that they do not use the same cache sets

void fill(Lanes<uint32_t>& slot, uint32_t value) { slot = broadcast<uint32_t>(value); }

// Fills a special register of a warp. Registers that depend only on the place in the block are filled the first time.
void fill_special(const Block* block, const Warp& w, SpecialSlot special, bool first_time) {
    auto& slot = lanes<uint32_t>(w.r, special.at);
    const Launch& launch = *block->launch;
    const uint32_t* size = launch.block;
    const uint32_t* in_cluster = launch.cluster;
    auto of_thread = [&](auto value) {
        if (first_time)
            for (uint32_t lane = 0; lane < warp_lanes; ++lane) slot[lane] = value(w.thread(lane), lane);
    };
    switch (static_cast<Special>(special.special)) {
        case Special::tid_x: return of_thread([&](uint32_t t, uint32_t) { return t % size[0]; });
        case Special::tid_y: return of_thread([&](uint32_t t, uint32_t) { return t / size[0] % size[1]; });
        case Special::tid_z: return of_thread([&](uint32_t t, uint32_t) { return t / size[0] / size[1]; });
        case Special::laneid: return of_thread([&](uint32_t, uint32_t lane) { return lane; });
        case Special::lanemask_eq: return of_thread([&](uint32_t, uint32_t lane) { return 1u << lane; });
        case Special::lanemask_lt: return of_thread([&](uint32_t, uint32_t lane) { return (1u << lane) - 1; });
        case Special::lanemask_le: return of_thread([&](uint32_t, uint32_t lane) { return (2u << lane) - 1; });
        case Special::lanemask_gt: return of_thread([&](uint32_t, uint32_t lane) { return ~((2u << lane) - 1); });
        case Special::lanemask_ge: return of_thread([&](uint32_t, uint32_t lane) { return ~((1u << lane) - 1); });
        case Special::ntid_x: return fill(slot, size[0]);
        case Special::ntid_y: return fill(slot, size[1]);
        case Special::ntid_z: return fill(slot, size[2]);
        case Special::nctaid_x: return fill(slot, launch.grid[0]);
        case Special::nctaid_y: return fill(slot, launch.grid[1]);
        case Special::nctaid_z: return fill(slot, launch.grid[2]);
        case Special::ctaid_x: return fill(slot, block->index[0]);
        case Special::ctaid_y: return fill(slot, block->index[1]);
        case Special::ctaid_z: return fill(slot, block->index[2]);
        case Special::warpid: return fill(slot, w.index);
        case Special::nwarpid: return fill(slot, static_cast<uint32_t>(block->warps.size()));
        case Special::smid: return fill(slot, block->number % launch.sm_count);
        case Special::nsmid: return fill(slot, launch.sm_count);
        case Special::gridid: return fill(slot, launch.number);
        case Special::dynamic_smem_size: return fill(slot, launch.dynamic_shared_bytes);
        case Special::total_smem_size: return fill(slot, launch.shared_bytes);
        case Special::clusterid_x: return fill(slot, block->index[0] / in_cluster[0]);
        case Special::clusterid_y: return fill(slot, block->index[1] / in_cluster[1]);
        case Special::clusterid_z: return fill(slot, block->index[2] / in_cluster[2]);
        case Special::nclusterid_x: return fill(slot, launch.grid[0] / in_cluster[0]);
        case Special::nclusterid_y: return fill(slot, launch.grid[1] / in_cluster[1]);
        case Special::nclusterid_z: return fill(slot, launch.grid[2] / in_cluster[2]);
        case Special::cluster_ctaid_x: return fill(slot, block->index[0] % in_cluster[0]);
        case Special::cluster_ctaid_y: return fill(slot, block->index[1] % in_cluster[1]);
        case Special::cluster_ctaid_z: return fill(slot, block->index[2] % in_cluster[2]);
        case Special::cluster_nctaid_x: return fill(slot, in_cluster[0]);
        case Special::cluster_nctaid_y: return fill(slot, in_cluster[1]);
        case Special::cluster_nctaid_z: return fill(slot, in_cluster[2]);
        case Special::cluster_ctarank: return fill(slot, block->rank);
        case Special::cluster_nctarank: return fill(slot, in_cluster[0] * in_cluster[1] * in_cluster[2]);
        case Special::is_explicit_cluster: return fill(slot, block->cluster != nullptr);
    }
}

// The linear index of a block, from the number of its cluster and its rank in it.
uint64_t number_in_grid(const Launch& launch, uint64_t cluster, uint32_t rank) {
    uint64_t clusters[3], index[3];
    for (int i = 0; i < 3; ++i) clusters[i] = launch.grid[i] / launch.cluster[i];
    const uint64_t at[3] = {cluster % clusters[0], cluster / clusters[0] % clusters[1], cluster / clusters[0] / clusters[1]};
    const uint32_t in[3] = {rank % launch.cluster[0], rank / launch.cluster[0] % launch.cluster[1],
                            rank / launch.cluster[0] / launch.cluster[1]};
    for (int i = 0; i < 3; ++i) index[i] = at[i] * launch.cluster[i] + in[i];
    return index[0] + launch.grid[0] * (index[1] + launch.grid[1] * index[2]);
}

// ---- The report of a deadlock ----

const char* state_name(GroupState state) {
    switch (state) {
        case GroupState::ready: return "ready";
        case GroupState::polling: return "look";
        case GroupState::at_barrier: return "barrier";
        case GroupState::at_warp_sync: return "warp";
        case GroupState::at_cluster_barrier: return "cluster";
        case GroupState::waiting: return "launch";
    }
    return "";
}

std::string number_ranges(const std::vector<uint32_t>& sorted) {
    std::string text;
    for (size_t i = 0; i < sorted.size();) {
        size_t end = i + 1;
        while (end < sorted.size() && sorted[end] == sorted[end - 1] + 1) ++end;
        text += (text.empty() ? "" : ",") + std::to_string(sorted[i]);
        if (end - i > 1) text += "-" + std::to_string(sorted[end - 1]);
        i = end;
    }
    return text;
}

// Describes all waiting threads: entries "state instruction blocks threads", separated by semicolons. luce_edu/machine/
// report.py turns it into sentences.
std::string who_waits_where(std::vector<Block*> blocks) {
    std::sort(blocks.begin(), blocks.end(), [](Block* a, Block* b) { return a->number < b->number; });
    std::map<std::string, std::vector<uint32_t>> places;  // blocks with the same state, instruction and threads
    for (Block* block : blocks) {
        std::map<std::pair<std::string, int32_t>, std::vector<uint32_t>> waits;
        for (Warp& w : block->warps) {
            auto add = [&](const Group& group) {
                const auto at = group.state == GroupState::polling ? static_cast<int32_t>(group.meets) : w.at(group.pc);
                for (uint32_t left = group.mask; left; left &= left - 1)
                    waits[{state_name(group.state), at}].push_back(w.thread(std::countr_zero(left)));
            };
            if (w.mask) add({w.pc, w.mask, GroupState::ready, 0, 0});
            for (int i = 0; i < w.others_count; ++i) add(w.others[i]);
        }
        for (auto& [where, threads] : waits) {
            std::sort(threads.begin(), threads.end());
            places[where.first + " " + std::to_string(where.second) + " @ " + number_ranges(threads)].push_back(block->number);
        }
    }
    std::string text;
    for (auto& [what, numbers] : places) {
        std::string entry = what;
        entry.replace(entry.find('@'), 1, number_ranges(numbers));
        if (text.size() + entry.size() + 2 > sizeof Report::text) break;
        text += (text.empty() ? "" : ";") + entry;
    }
    return text;
}

}  // namespace

uint32_t cluster_blocks(const Launch& launch) { return launch.cluster[0] * launch.cluster[1] * launch.cluster[2]; }

Block* BlockPool::take(Launch* launch, Worker* worker, uint64_t number, const Trace* trace) {
    if (free_.empty()) free_.push_back(std::make_unique<Block>());
    std::unique_ptr<Block> block = std::move(free_.back());
    free_.pop_back();
    place(block.get(), launch, number);
    prepare(block.get(), launch, worker, trace);
    return block.release();
}

void BlockPool::prepare(Block* block, Launch* launch, Worker* worker, const Trace* trace) {
    const Program& program = *launch->program;
    block->launch = launch;
    block->worker = worker;
    block->threads = block->live_threads = launch->block[0] * launch->block[1] * launch->block[2];
    const uint32_t warps = (block->threads + warp_lanes - 1) / warp_lanes;
    const size_t arena = (program.arena_bytes + 63) / 64 * 64 + stagger / 64 * 64;
    const bool same = block->filled_for == launch && block->filled_serial == serial;
    if (block->registers.size() < arena * warps + 64) block->registers.resize(arena * warps + 64);
    auto base = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(block->registers.data()) + 63) / 64 * 64);
    const size_t local = static_cast<size_t>(program.local_bytes) * warp_lanes;
    if (block->local_memory.size() < local * warps) block->local_memory.resize(local * warps);
    if (local) memset(block->local_memory.data(), 0xff, local * warps);
    const size_t local_words = local_written_words(program) * warp_lanes;
    if (local) block->local_written.assign(local_words * warps, 0);
    block->shared_bytes = launch->shared_bytes;
    if (block->shared_memory.size() < launch->shared_bytes + 256u) block->shared_memory.resize(launch->shared_bytes + 256u);
    block->shared = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(block->shared_memory.data()) + 127) / 128 * 128);
    memset(block->shared, 0xff, launch->shared_bytes);
    block->written.assign(launch->shared_bytes / 64 + 2, 0);
    block->shared_written = block->written.data();
    for (auto& barrier : block->barriers) barrier = {};
    block->let_go = false;
    block->cluster_arrived = block->cluster_phase = 0;
    block->cluster = nullptr;
    block->rank = 0;
    if (block->warps.size() != warps) block->warps.resize(warps);
    for (uint32_t i = 0; i < warps; ++i) {
        Warp& w = block->warps[i];
        w.r = base + i * arena;
        w.index = static_cast<uint8_t>(i);
        w.block = block;
        w.worker = worker;
        w.code = launch->code;
        if (trace && trace->block == block->number && trace->warp == i) w.code = trace->code;
        w.pc = w.code;
        const uint32_t present = std::min(block->threads - i * warp_lanes, static_cast<uint32_t>(warp_lanes));
        w.mask = w.live = present == warp_lanes ? all_lanes : (1u << present) - 1;
        w.others_count = 0;
        w.counts = worker->counts.data();
        w.sites = worker->sites.data();
        for (auto& look : w.looks) look.at = nullptr;
        w.oldest_look = 0;
        w.vain = 0;
        w.cluster_phase = 0;
        w.free_run = 0;
        w.local = local ? block->local_memory.data() + i * local : nullptr;
        w.local_written = local ? block->local_written.data() + i * local_words : nullptr;
        if (!same && program.image_bytes) memcpy(w.r + program.image_at, program.image, program.image_bytes);
    }
    block->ready = warps == 32 ? all_lanes : (1u << warps) - 1;
    block->polling = 0;
    block->is_fresh = !same;
    block->filled_for = launch;
    block->filled_serial = serial;
}

void BlockPool::place(Block* block, Launch* launch, uint64_t number) {
    block->number = static_cast<uint32_t>(number);
    block->index[0] = static_cast<uint32_t>(number % launch->grid[0]);
    block->index[1] = static_cast<uint32_t>(number / launch->grid[0] % launch->grid[1]);
    block->index[2] = static_cast<uint32_t>(number / launch->grid[0] / launch->grid[1]);
}

std::unique_ptr<Cluster> start_cluster(BlockPool& pool, Launch* launch, Worker* worker, uint64_t number, const Trace* trace) {
    auto cluster = std::make_unique<Cluster>();
    const uint32_t size = cluster_blocks(*launch);
    for (uint32_t rank = 0; rank < size; ++rank) {
        const uint64_t at = size == 1 ? number : number_in_grid(*launch, number, rank);
        Block* block = pool.take(launch, worker, at, trace);
        block->rank = rank;
        cluster->blocks.push_back(block);
    }
    for (Block* block : cluster->blocks) {
        if (size > 1) block->cluster = cluster->blocks.data();
        for (Warp& w : block->warps)
            for (int i = 0; i < launch->program->specials_count; ++i)
                fill_special(block, w, launch->program->specials[i], block->is_fresh);
        if (launch->watcher) launch->watcher->block_starts(block);
    }
    return cluster;
}

void end_cluster(BlockPool& pool, std::unique_ptr<Cluster> cluster) {
    for (Block* block : cluster->blocks) {
        Launch* launch = block->launch;
        if (launch->watcher) launch->watcher->block_ends(block);
        if (!block->let_go) launch->blocks_let_go.fetch_add(1);
        launch->blocks_done.fetch_add(1, std::memory_order_acq_rel);
        pool.give_back(block);
    }
}

void report_deadlock(Launch* launch, const std::vector<Block*>& blocks) {
    uint32_t none = 0;
    if (!launch->failed->compare_exchange_strong(none, 1)) return;
    Report& report = *launch->report;
    const uint64_t started = std::min(launch->next_block.load() * cluster_blocks(*launch), launch->blocks());
    report.fault = static_cast<int32_t>(started < launch->blocks() ? Fault::lost_launch : Fault::deadlock);
    report.value = static_cast<int64_t>(launch->blocks() - started);
    report.launch = static_cast<int32_t>(launch->number);
    report.ins = report.other_ins = -1;
    const std::string text = who_waits_where(blocks);
    memcpy(report.text, text.c_str(), text.size() + 1);
}

void report_end(Launch* launch, Fault fault) {
    uint32_t none = 0;
    if (!launch->failed->compare_exchange_strong(none, 1)) return;
    launch->report->fault = static_cast<int32_t>(fault);
    launch->report->launch = static_cast<int32_t>(launch->number);
    launch->report->ins = launch->report->other_ins = -1;
}

}  // namespace machine
