// timeline.h: which threads have synchronised with which, by the rules of PTX's memory consistency model
// Barriers synchronise the threads of a block, __syncwarp the lanes of a warp, cluster barriers a cluster. A release
// synchronises with the acquire that reads it if each is in the other's scope. A wait synchronises with the copies that
// it waits for. A launch comes after the earlier ones.
#pragma once

#include <deque>
#include <functional>
#include <unordered_map>

#include "memory.h"
#include "words.h"

namespace machine {

// A copy that has been issued and not performed yet, and its clock.
struct Pending {
    Copy copy;
    Clock clock;
};

// The copies of one thread that complete in order: its cp.async, or its cp.async.bulk of groups.
struct Copies {
    Who who = nobody;
    uint32_t asked = 0;              // number of copies so far, which is the epoch of the last one
    std::deque<uint32_t> groups;     // the last epoch of each closed group that the thread has not waited for
    std::vector<Pending> pending;
};

struct Thread : Clock {
    std::vector<Ref<Release>> fences;    // the last fence of each scope: a later strong write publishes it
    std::vector<Ref<Releases>> seen;     // seen by strong reads: a later fence acquires them
    Ref<Releases> acquired;              // the last releases that the thread has fully acquired
    std::unique_ptr<Copies> copies_of[2];  // cp.async, bulk groups
};

// A running block.
struct Timed {
    uint32_t number;                 // counted across launches
    uint32_t launch;                 // counted since the last reset
    std::vector<Thread> threads;
    Meeting barriers[16], cluster;
    Ref<View> cluster_open, sequential;  // sequential: what fence.sc of this block's threads have published
    // Bulk copies that an mbarrier counts, by thread and mbarrier.
    std::unordered_map<uint64_t, Point> bulk;
    std::vector<Pending> pending;    // the bulk copies themselves
};

// An mbarrier: the arrivals of this phase, and what a thread learns that has waited for the previous phase.
struct Mbarrier {
    Meeting arrived;
    Ref<View> over;
};

// The kind of an access to memory.
struct How {
    const Touch& touch;
    const Clock& clock;
    bool strong, acquires, releases, non_coherent;
    Scope scope;
};
Scope scope_of(int32_t access);

class Timeline {
public:
    // ---- The functions of Events ----
    // Returns true if no earlier access matters any more.
    bool launch_starts(const Launch* launch, bool alone);
    void block_starts(const Block* block);
    void block_ends(const Block* block);
    void arrive(Warp* w, uint32_t m, unsigned id, bool waits);
    void barrier_opens(const Block* block, unsigned id);
    void warp_sync(Warp* w, uint32_t named);
    void cluster_arrive(Warp* w, uint32_t m);
    void cluster_opens(const Block* first, uint32_t blocks);
    void cluster_wait(Warp* w, uint32_t m);
    void predecessor_done(Warp* w, uint32_t m);

    // ---- Threads ----
    Timed& block(const Block* block) {
        if (block != last_block_) last_block_ = block, last_timed_ = blocks_.at(block).get();
        return *last_timed_;
    }
    Thread& thread(const Warp* w, uint32_t lane) { return block(w->block).threads[w->thread(lane)]; }
    const std::unordered_map<const Block*, std::unique_ptr<Timed>>& blocks() const { return blocks_; }
    // The launch, blockIdx and thread of an access. For a copy, the thread is the one that issued it.
    struct Origin {
        uint32_t launch, block[3], thread;
    };
    Origin origin(Who who) const;
    uint32_t launch_of(Who who) const;

    // ---- The order of accesses ----
    bool knows(const Clock& clock, Who who, uint32_t epoch) const;
    bool knows(const Clock& clock, const Write& write) const;
    bool knows(const Clock& clock, const Read& read) const;
    // True if two strong accesses are each in the other's scope.
    bool together(Scope a, Who x, Scope b, Who y) const;

    // ---- Strong accesses ----
    // A strong read has seen `write`.
    void observe(Thread& thread, const How& how, Write& write);
    // What a strong write publishes. before: the write that it replaces; an atomic also publishes what `before` did.
    Ref<Releases> publish(Thread& thread, const How& how, const Ref<Release>& own, const Write* before, bool is_atomic);
    Ref<Release> release(Thread& thread, Scope scope);
    void fence(Warp* w, uint32_t lane, int32_t access);

    // ---- Copies and mbarriers ----
    // Creates the clock of a new copy. The thread begins a new epoch.
    Clock ask(Warp* w, uint32_t lane, const Copy& copy);
    void commit(Thread& thread, bool bulk);
    // The thread has waited for all but the last `groups` groups. Returns the last epoch of these copies, or 0 for
    // none.
    uint32_t wait(Thread& thread, bool bulk, int64_t groups);
    void mbarrier(const Touch& touch, BarrierUse use, bool completed);
    // A copy or an arrival has reached its mbarrier.
    void landed(const Pending& pending, bool completed);

private:
    struct Launched {
        const Launch* launch;
        uint32_t begin;       // the number of its first block
        uint32_t number;      // the index among the launches that run together
        Ref<View> end;        // what its blocks knew of other launches when they ended
        Ref<View> after;      // `end` and all of this launch
    };

    void acquire(Clock& clock, Release& release);
    Who new_place(Timed& timed, uint32_t thread);

    std::unordered_map<const Block*, std::unique_ptr<Timed>> blocks_;
    const Block* last_block_ = nullptr;
    Timed* last_timed_ = nullptr;
    std::vector<Launched> launches_;
    std::unordered_map<uint32_t, std::vector<uint32_t>> owners_;  // per block: the thread that owns each copy's place
    std::unordered_map<const uint8_t*, Mbarrier> mbarriers_;
    Ref<View> sequential_;
};

}  // namespace machine
