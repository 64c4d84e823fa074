// scheduler.cpp: blocks on OS threads, the order of turns, and the detection of deadlocks
//
// Without a seed   Each OS thread has its own blocks. It runs a warp until the warp waits, and a block until all its
//                  warps wait. Then it takes another block, up to the number that the card holds at the same time.
// With a seed      There is one OS thread. A generator picks the warp and the length of each turn, so an order can be
//                  repeated. A dependent launch starts while its predecessor runs, as soon as that one allows it.
// Deadlock         No warp is ready, no polling load has seen anything new for `patience` rounds, and no block can
//                  start.
#include "blocks.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "control.h"
#include "memory.h"
#include "threads.h"

namespace machine {

std::atomic<bool> interrupted = false;

namespace {

constexpr uint32_t patience = 10'000;   // rounds in which no polling load sees anything new
constexpr int32_t turn_blocks = 4096;   // basic blocks per turn; signals and the budget are checked between turns

// ---- Turns ----

void stop(Warp* w, const Ins* p, uint8_t*, uint32_t m) {
    w->pc = p;
    w->mask = m;
}

// Runs one instruction at a time and records the state before each.
void step(Warp* w, Trace* trace) {
    while (w->running && trace->steps < trace->most) {
        const int32_t at = w->at(w->pc);
        trace->at[trace->steps] = at;
        trace->mask[trace->steps] = w->mask;
        memcpy(trace->registers + trace->steps * trace->program->arena_bytes, w->r, trace->program->arena_bytes);
        ++trace->steps;
        trace->code[at].run = (w->block->launch->watcher ? trace->program->watched : trace->program->code)[at].run;
        w->pc->run(w, w->pc, w->r, w->mask);
        trace->code[at].run = stop;
    }
    memcpy(trace->registers + trace->steps * trace->program->arena_bytes, w->r, trace->program->arena_bytes);
    if (trace->steps < trace->most) return;
    w->block->launch->failed->store(1);  // the trace is full, so the launch ends
    w->running = false;
}

enum class Turn { none, vain, progress };

bool has(const Warp& w, GroupState state) {
    for (int i = 0; i < w.others_count; ++i)
        if (w.others[i].state == state) return true;
    return false;
}

// Runs a turn of at most `blocks` basic blocks. Sets the block's ready and polling bits.
Turn take_turn(Warp* w, int32_t blocks, Trace* trace) {
    Block* block = w->block;
    const uint32_t bit = 1u << w->index;
    block->ready &= ~bit;
    block->polling &= ~bit;
    // A turn that ran more than polls is progress, even if it ends with a poll in vain: others may wait for its writes.
    w->moved = w->mask != 0 || has(*w, GroupState::ready);
    if (!wake(w)) return Turn::none;
    w->budget = blocks;
    w->running = true;
    w->vain = 0;
    if (trace && w->code == trace->code) step(w, trace);
    while (w->running) w->pc->run(w, w->pc, w->r, w->mask);
    const bool ready = w->mask != 0 || has(*w, GroupState::ready), polling = has(*w, GroupState::polling);
    if (ready) block->ready |= bit;
    else if (polling) block->polling |= bit;
    return w->vain > 0 && polling && !ready && !w->moved ? Turn::vain : Turn::progress;
}

uint64_t instructions_of(const Worker& worker) {
    uint64_t sum = 0;
    const Program& program = *worker.launch->program;
    for (size_t i = 0; i < worker.counts.size(); ++i) sum += worker.counts[i].times * program.block_lengths[i];
    return sum;
}

// The number of basic blocks between two checks of the budget. A check is slow, but a small budget needs it often.
uint64_t between_looks(const Order& order) {
    constexpr uint64_t most = 1 << 18;
    return order.instructions ? std::min(most, order.instructions) : most;
}

// ---- Without a seed ----

// State that the OS threads of one launch share.
struct Together {
    std::atomic<uint64_t> progress = 0;
    std::mutex mutex;
    uint64_t stuck_at = ~0ull;           // the value of `progress` at which the threads in `stuck` are stuck
    std::vector<bool> stuck, finished;
    std::vector<std::vector<Block*>> blocks;  // the blocks of each OS thread, for a report
};

class Runner {
public:
    Runner(Launch* launch, Worker* worker, BlockPool& pool, uint32_t me, uint32_t threads, Together& together, const Order& order)
        : launch_(launch), worker_(worker), pool_(pool), me_(me), threads_(threads), together_(together), order_(order) {
        const uint32_t size = cluster_blocks(*launch);
        clusters_ = launch->blocks() / size;
        const uint64_t resident = std::max(launch->resident / size, 1u);
        capacity_ = std::max<uint64_t>(resident / threads + (me < resident % threads), 1);
        mine_ = me;
        turn_ = static_cast<int32_t>(std::min<uint64_t>(turn_blocks, between_looks(order)));
    }

    void run() {
        std::vector<std::unique_ptr<Cluster>> resident;
        uint32_t rounds_in_vain = 0;
        uint64_t seen_progress = 0, entered = 0;
        while (!launch_->failed->load(std::memory_order_relaxed)) {
            bool progress = false, looked = false;
            for (size_t i = 0; i < resident.size() && !launch_->failed->load(std::memory_order_relaxed);) {
                for (Block* block : resident[i]->blocks) {
                    while (block->ready) {
                        Warp& w = block->warps[std::countr_zero(block->ready)];
                        if (take_turn(&w, turn_, nullptr) == Turn::progress) progress = true;
                        else looked = true;
                        entered += turn_ - w.budget;
                        if (entered > between_looks(order_)) entered = 0, look_at_budget();
                        if (launch_->failed->load(std::memory_order_relaxed) || interrupted.load(std::memory_order_relaxed)) break;
                    }
                }
                if (interrupted.load(std::memory_order_relaxed)) report_end(launch_, Fault::interrupted);
                if (resident[i]->ended()) {
                    end_cluster(pool_, std::move(resident[i]));
                    resident.erase(resident.begin() + static_cast<ptrdiff_t>(i));
                } else ++i;
            }
            if (launch_->failed->load(std::memory_order_relaxed)) break;
            if (resident.size() < capacity_) {
                const uint64_t number = next();
                if (number < clusters_) {
                    resident.push_back(start_cluster(pool_, launch_, worker_, number, nullptr));
                    continue;
                }
                if (resident.empty()) break;
            }
            if (progress) {
                together_.progress.fetch_add(1, std::memory_order_acq_rel);
                rounds_in_vain = 0;
            }
            // Polling warps get another turn.
            for (auto& cluster : resident)
                for (Block* block : cluster->blocks)
                    if (block->polling) block->ready |= block->polling, looked = true;
            if (progress) continue;
            if (uint64_t now = together_.progress.load(std::memory_order_acquire); now != seen_progress)
                seen_progress = now, rounds_in_vain = 0;
            if (++rounds_in_vain > 64) {
                if (rounds_in_vain % 64 == 0) sched_yield();
#if defined(__x86_64__)
                __builtin_ia32_pause();
#endif
            }
            if (!looked || rounds_in_vain >= patience) stuck(resident, seen_progress);
        }
        while (!resident.empty()) {  // blocks are left only after a report
            end_cluster(pool_, std::move(resident.back()));
            resident.pop_back();
        }
        finish();
    }

private:
    // The next cluster for this OS thread. A cooperative grid is divided evenly, because all of it is resident at once.
    uint64_t next() {
        if (!launch_->cooperative) return launch_->next_block.fetch_add(1);
        const uint64_t number = mine_;
        mine_ += threads_;
        if (number < clusters_) launch_->next_block.fetch_add(1);
        return number;
    }

    void look_at_budget() {
        if (order_.instructions && instructions_of(*worker_) > order_.instructions) report_end(launch_, Fault::budget);
    }

    void stuck(const std::vector<std::unique_ptr<Cluster>>& resident, uint64_t at) {
        std::lock_guard lock(together_.mutex);
        if (together_.progress.load() != at) return;
        if (together_.stuck_at != at) {
            together_.stuck_at = at;
            together_.stuck.assign(threads_, false);
        }
        together_.stuck[me_] = true;
        together_.blocks[me_].clear();
        for (auto& cluster : resident)
            for (Block* block : cluster->blocks) together_.blocks[me_].push_back(block);
        std::vector<Block*> all;
        for (uint32_t i = 0; i < threads_; ++i) {
            if (!together_.stuck[i] && !together_.finished[i]) return;
            all.insert(all.end(), together_.blocks[i].begin(), together_.blocks[i].end());
        }
        report_deadlock(launch_, all);
    }

    void finish() {
        std::lock_guard lock(together_.mutex);
        together_.finished[me_] = true;
        together_.blocks[me_].clear();
        together_.progress.fetch_add(1);
    }

    Launch* launch_;
    Worker* worker_;
    BlockPool& pool_;
    uint32_t me_, threads_;
    Together& together_;
    const Order& order_;
    uint64_t clusters_, capacity_, mine_;
    int32_t turn_;
};

uint64_t launch_serial = 0;

void run_parallel(Launch* launch, std::vector<std::unique_ptr<Worker>>& workers, const Order& order) {
    const uint64_t clusters = launch->blocks() / cluster_blocks(*launch);
    const auto threads = static_cast<uint32_t>(
        std::min<uint64_t>({order.threads, clusters, std::max(launch->resident / cluster_blocks(*launch), 1u)}));
    Threads& pool = Threads::get(threads);
    Together together;
    together.finished.assign(threads, false);
    together.stuck.assign(threads, false);
    together.blocks.resize(threads);
    ++launch_serial;
    pool.run(threads, launch->cooperative, [&](uint32_t i) {
        pool.pool(i).serial = launch_serial;
        Runner(launch, workers[i].get(), pool.pool(i), i, threads, together, order).run();
    });
}

// ---- With a seed ----

class Generator {  // splitmix64
public:
    explicit Generator(uint64_t seed) : state_(seed) {}
    uint64_t operator()() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    uint64_t below(uint64_t n) { return (*this)() % n; }

private:
    uint64_t state_;
};

class Seeded {
public:
    Seeded(std::vector<std::unique_ptr<Launch>>& launches, std::vector<std::vector<std::unique_ptr<Worker>>>& workers,
           const Order& order, Trace* trace, const std::function<void(uint32_t)>& ended)
        : ended_(ended), launches_(launches), workers_(workers), order_(order), trace_(trace), random_(order.seed),
          pool_(Threads::get(1).pool(0)) {
        pool_.serial = ++launch_serial;
        style_ = random_.below(3);
    }

    void run() {
        begun_ = 0;
        begin_launch();
        uint64_t vain = 0, entered = 0;
        while (!failed()) {
            begin_allowed();
            if (running_.empty()) break;  // the last launch has ended
            const uint64_t choices = count_choices();
            if (choices == 0 || vain > patience + 64 * choices) {
                if (drained()) {
                    vain = 0;
                    continue;
                }
                report_deadlock(running_.front()->launch, all_blocks());
                break;
            }
            const Turn turn = act(random_.below(choices), entered);
            vain = turn == Turn::progress ? 0 : vain + 1;
            if (interrupted.load(std::memory_order_relaxed)) report_end(running_.front()->launch, Fault::interrupted);
            if (entered > between_looks(order_)) entered = 0, look_at_budget();
        }
        for (auto& running : running_) {  // launches are left only after a report
            for (auto& cluster : running->resident) end_cluster(pool_, std::move(cluster));
            ended_(running->launch->number);
        }
    }

private:
    struct Running {
        Launch* launch;
        Worker* worker;
        std::vector<uint64_t> order;  // the clusters still to start, the next one last
        std::vector<std::unique_ptr<Cluster>> resident;
        uint64_t capacity;
    };

    bool failed() const { return launches_[0]->failed->load() != 0; }

    void begin_launch() {
        Launch* launch = launches_[begun_].get();
        auto running = std::make_unique<Running>();
        running->launch = launch;
        running->worker = workers_[begun_][0].get();
        const uint64_t clusters = launch->blocks() / cluster_blocks(*launch);
        running->order.resize(clusters);
        for (uint64_t i = 0; i < clusters; ++i) running->order[i] = i;
        for (uint64_t i = clusters; i > 1; --i) std::swap(running->order[i - 1], running->order[random_.below(i)]);
        running->capacity = std::max(launch->resident / cluster_blocks(*launch), 1u);
        launch->predecessor = is_running(begun_ - 1) ? launches_[begun_ - 1].get() : nullptr;
        if (launch->watcher) launch->watcher->launch_starts(launch, running_.empty());
        last_ = nullptr;  // so that a block of the new launch may run first
        running_.push_back(std::move(running));
        ++begun_;
    }

    bool is_running(size_t number) const {
        return std::any_of(running_.begin(), running_.end(), [&](const auto& running) { return running->launch->number == number; });
    }

    // The next launch may begin when all earlier launches have ended. A dependent launch may begin once all blocks of
    // its predecessor allow it, even if still earlier launches are running.
    void begin_allowed() {
        for (size_t i = 0; i < running_.size();) {
            Launch* launch = running_[i]->launch;
            if (!launch->done()) {
                ++i;
                continue;
            }
            if (launch->watcher) launch->watcher->launch_ends(launch);
            ended_(launch->number);
            running_.erase(running_.begin() + static_cast<ptrdiff_t>(i));
            for (auto& running : running_)
                if (running->launch->predecessor == launch) wake_waiting(*running);
        }
        if (begun_ == launches_.size()) return;
        if (running_.empty()) return begin_launch();
        const Launch* before = launches_[begun_ - 1].get();
        if (launches_[begun_]->dependent && before->blocks_let_go.load() == before->blocks()) begin_launch();
    }

    void wake_waiting(Running& running) {
        running.launch->predecessor = nullptr;
        for (auto& cluster : running.resident)
            for (Block* block : cluster->blocks)
                for (Warp& w : block->warps)
                    for (int i = 0; i < w.others_count; ++i)
                        if (w.others[i].state == GroupState::waiting) {
                            w.others[i].state = GroupState::ready;
                            block->ready |= 1u << w.index;
                        }
    }

    uint64_t count_choices() {
        // Collects the blocks that can run, and one entry per launch that can start another block.
        choices_.clear();
        for (auto& running : running_) {
            for (auto& cluster : running->resident)
                for (Block* block : cluster->blocks)
                    if (block->ready || block->polling) choices_.push_back({running.get(), block});
            if (!running->order.empty() && running->resident.size() < running->capacity) choices_.push_back({running.get(), nullptr});
        }
        return choices_.size();
    }

    Turn act(uint64_t choice, uint64_t& entered) {
        auto [running, block] = choices_[choice];
        // In styles 1 and 2 the last block continues as long as it can, except in one of 16 turns: a spin on a plain
        // load looks like work that never ends.
        if (style_ != 0 && random_.below(16))
            for (const Choice& again : choices_)
                if (again.block && again.block == last_ && last_->ready) running = again.running, block = last_;
        if (!block) {
            running->resident.push_back(start_cluster(pool_, running->launch, running->worker, running->order.back(), trace_));
            running->order.pop_back();
            running->launch->next_block.fetch_add(1);
            return Turn::progress;
        }
        last_ = block;
        // Ready warps mostly come before polling ones.
        uint32_t from = block->ready && (!block->polling || random_.below(8)) ? block->ready : block->polling ? block->polling : block->ready;
        for (uint64_t skip = random_.below(std::popcount(from)); skip; --skip) from &= from - 1;
        Warp& w = block->warps[std::countr_zero(from)];
        const auto blocks = static_cast<int32_t>(style_ == 2 ? turn_blocks : 1 + random_.below(style_ == 0 ? 8 : 64));
        const Turn turn = take_turn(&w, blocks, trace_);
        entered += static_cast<uint64_t>(blocks - std::max(w.budget, 0));
        for (size_t i = 0; block->live_threads == 0 && i < running->resident.size(); ++i) {
            if (!running->resident[i]->ended()) continue;
            last_ = nullptr;
            end_cluster(pool_, std::move(running->resident[i]));
            running->resident.erase(running->resident.begin() + static_cast<ptrdiff_t>(i));
            break;
        }
        return turn;
    }

    // Lets late stores take effect. Returns true if there were any.
    bool drained() {
        for (auto& running : running_)
            if (running->launch->watcher && running->launch->watcher->drain()) return true;
        return false;
    }

    std::vector<Block*> all_blocks() const {
        std::vector<Block*> blocks;
        for (auto& cluster : running_.front()->resident)
            for (Block* block : cluster->blocks) blocks.push_back(block);
        return blocks;
    }

    void look_at_budget() {
        uint64_t sum = 0;
        for (auto& of_launch : workers_)
            for (auto& worker : of_launch) sum += instructions_of(*worker);
        if (order_.instructions && sum > order_.instructions) report_end(running_.front()->launch, Fault::budget);
    }

    struct Choice {
        Running* running;
        Block* block;  // null: start another block
    };

    const std::function<void(uint32_t)>& ended_;
    std::vector<std::unique_ptr<Launch>>& launches_;
    std::vector<std::vector<std::unique_ptr<Worker>>>& workers_;
    const Order& order_;
    Trace* trace_;
    Generator random_;
    BlockPool& pool_;
    uint64_t style_;  // 0: short turns, any block next; 1: a block as long as it can, short turns; 2: same, long turns
    size_t begun_ = 0;
    std::vector<std::unique_ptr<Running>> running_;
    std::vector<Choice> choices_;
    Block* last_ = nullptr;  // the block of the last turn; null once it has ended
};

}  // namespace

void run(std::vector<std::unique_ptr<Launch>>& launches, std::vector<std::vector<std::unique_ptr<Worker>>>& workers,
         const Order& order, Trace* trace, const std::function<void(uint32_t)>& ended) {
    std::vector<Ins> stopping;
    if (trace) {
        trace->program = launches[0]->program;
        stopping.assign(trace->program->code, trace->program->code + trace->program->count + 1);
        for (Ins& ins : stopping) ins.run = stop;
        trace->code = stopping.data();
    }
    if (order.seeded) return Seeded(launches, workers, order, trace, ended).run();
    for (uint32_t i = 0; i < launches.size() && !launches[i]->failed->load(); ++i) {
        run_parallel(launches[i].get(), workers[i], order);
        ended(i);
    }
}

}  // namespace machine
