// timeline.h: who has synchronised with whom, by the rules of PTX's memory consistency model
// Threads of a block through barriers, lanes through __syncwarp, clusters through theirs; any two through a release and
// the acquire that reads it, where each is in the other's scope; copies through what waits for them; launches by order.
#pragma once

#include <deque>
#include <functional>
#include <unordered_map>

#include "memory.h"
#include "words.h"

namespace machine {

// A copy that was asked for, and what is known to it.
struct Pending {
    Copy copy;
    Clock clock;
};

// The copies of one thread that end in order: its cp.async, or its cp.async.bulk of groups.
struct Copies {
    Who who = nobody;
    uint32_t asked = 0;              // so far; the epoch of the last
    std::deque<uint32_t> groups;     // the last epoch of each closed group that has not been waited for
    std::vector<Pending> pending;
};

struct Thread : Clock {
    std::vector<Ref<Release>> fences;    // the last of each scope: strong writes behind it publish it
    std::vector<Ref<Releases>> seen;     // by strong reads: a fence behind them acquires it
    Ref<Releases> acquired;              // the last of which the thread knows everything
    std::unique_ptr<Copies> copies_of[2];  // cp.async, bulk groups
};

// One block that runs.
struct Timed {
    uint32_t number;                 // counted on through launches
    uint32_t launch;                 // of those since all was forgotten
    std::vector<Thread> threads;
    Meeting barriers[16], cluster;
    Ref<View> cluster_open, sequential;  // sequential: what fence.sc of this block's threads have published
    // Bulk copies that an mbarrier counts, by thread and mbarrier.
    std::unordered_map<uint64_t, Point> bulk;
    std::vector<Pending> pending;    // these copies
};

// An mbarrier: who has arrived in this phase, and what those that waited for the last one know.
struct Mbarrier {
    Meeting arrived;
    Ref<View> over;
};

// How somebody accesses memory.
struct How {
    const Touch& touch;
    const Clock& clock;
    bool strong, acquires, releases, non_coherent;
    Scope scope;
};
Scope scope_of(int32_t access);

class Timeline {
public:
    // ---- What Events says ----
    // True if nothing before matters any more.
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

    // ---- Who is who ----
    Timed& block(const Block* block) {
        if (block != last_block_) last_block_ = block, last_timed_ = blocks_.at(block).get();
        return *last_timed_;
    }
    Thread& thread(const Warp* w, uint32_t lane) { return block(w->block).threads[w->thread(lane)]; }
    const std::unordered_map<const Block*, std::unique_ptr<Timed>>& blocks() const { return blocks_; }
    // Of an access: the launch, blockIdx and the thread; for a copy, the thread that asked for it.
    struct Origin {
        uint32_t launch, block[3], thread;
    };
    Origin origin(Who who) const;
    uint32_t launch_of(Who who) const;

    // ---- What comes before what ----
    bool knows(const Clock& clock, Who who, uint32_t epoch) const;
    bool knows(const Clock& clock, const Write& write) const;
    bool knows(const Clock& clock, const Read& read) const;
    // Whether two strong accesses are each in the other's scope.
    bool together(Scope a, Who x, Scope b, Who y) const;

    // ---- Strong accesses ----
    // A strong read has seen `write`.
    void observe(Thread& thread, const How& how, Write& write);
    // What a strong write publishes. `before`: the write that it replaces; an atomic carries on what that has published.
    Ref<Releases> publish(Thread& thread, const How& how, const Ref<Release>& own, const Write* before, bool is_atomic);
    Ref<Release> release(Thread& thread, Scope scope);
    void fence(Warp* w, uint32_t lane, int32_t access);

    // ---- Copies and mbarriers ----
    // A place for a copy, and what it knows. The thread goes on in a new epoch.
    Clock ask(Warp* w, uint32_t lane, const Copy& copy);
    void commit(Thread& thread, bool bulk);
    // All but the last `groups` groups are there: the last epoch of those that were waited for, 0 for none.
    uint32_t wait(Thread& thread, bool bulk, int64_t groups);
    void mbarrier(const Touch& touch, BarrierUse use, bool completed);
    // A copy or an arrival has come to its mbarrier.
    void landed(const Pending& pending, bool completed);

private:
    struct Launched {
        const Launch* launch;
        uint32_t begin;       // number of its first block
        uint32_t number;      // among those that run together
        Ref<View> end;        // what its blocks knew of other launches when they ended
        Ref<View> after;      // and all of itself
    };

    void acquire(Clock& clock, Release& release);
    Who new_place(Timed& timed, uint32_t thread);

    std::unordered_map<const Block*, std::unique_ptr<Timed>> blocks_;
    const Block* last_block_ = nullptr;
    Timed* last_timed_ = nullptr;
    std::vector<Launched> launches_;
    std::unordered_map<uint32_t, std::vector<uint32_t>> owners_;  // by block: the threads whose copies the places are
    std::unordered_map<const uint8_t*, Mbarrier> mbarriers_;
    Ref<View> sequential_;
};

}  // namespace machine
