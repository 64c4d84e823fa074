// timeline.cpp: which threads have synchronised with which; see timeline.h
#include "timeline.h"

#include <algorithm>

namespace machine {

namespace {

template <class F>
void each_lane(uint32_t m, F f) {
    for (; m; m &= m - 1) f(static_cast<uint32_t>(std::countr_zero(m)));
}

constexpr size_t many_releases = 256;  // more releases than this on one word are joined into one

}  // namespace

Scope scope_of(int32_t access) {
    return access & (scope_system | is_volatile) ? Scope::system
           : access & scope_cta                  ? Scope::cta
           : access & scope_cluster              ? Scope::cluster
                                                 : Scope::gpu;
}

// ---- Launches and blocks ----

bool Timeline::launch_starts(const Launch* launch, bool alone) {
    // A dependent launch has no order with its predecessor until it waits, even if the predecessor has ended by chance.
    const bool anew = alone && !launch->dependent;
    if (anew) {
        launches_.clear();
        owners_.clear();
        mbarriers_.clear();
        sequential_ = {};
    }
    const uint32_t begin = launches_.empty() ? 0 : launches_.back().begin + static_cast<uint32_t>(launches_.back().launch->blocks());
    launches_.push_back({launch, begin, launch->number, {}, {}});
    return anew;
}

void Timeline::block_starts(const Block* block) {
    auto timed = std::make_unique<Timed>();
    uint32_t launch = static_cast<uint32_t>(launches_.size()) - 1;
    while (launches_[launch].launch != block->launch) --launch;
    // In a grid of more than a million blocks numbers repeat. Then only races between two blocks of one number are
    // missed.
    timed->number = (launches_[launch].begin + block->number) & ((1u << (32 - place_bits)) - 1);
    timed->launch = launch;
    timed->threads.resize(block->threads);
    for (uint32_t i = 0; i < block->threads; ++i)
        timed->threads[i].who = timed->threads[i].self = timed->number << place_bits | i;
    for (Meeting& meeting : timed->barriers) meeting.block = timed->number;
    timed->cluster.block = timed->number;
    blocks_[block] = std::move(timed);
    last_block_ = nullptr;
}

void Timeline::block_ends(const Block* block) {
    Timed& timed = this->block(block);
    Launched& launched = launches_[timed.launch];
    const uint32_t begin = launched.begin, end = begin + static_cast<uint32_t>(launched.launch->blocks());
    Ref<View> known;
    for (const Thread& thread : timed.threads) {
        if (!thread.base || known == thread.base) continue;
        known = thread.base;
        const bool of_others = known->launches_below || known->launches ||
                               std::any_of(known->parts.begin(), known->parts.end(),
                                           [&](const auto& part) { return part.first < begin || part.first >= end; });
        if (of_others) launched.end = join(launched.end, known);
    }
    blocks_.erase(block);
    last_block_ = nullptr;
}

uint32_t Timeline::launch_of(Who who) const {
    uint32_t launch = static_cast<uint32_t>(launches_.size()) - 1;
    while (launch && launches_[launch].begin > block_of(who)) --launch;
    return launch;
}

Timeline::Origin Timeline::origin(Who who) const {
    const Launched& launched = launches_[launch_of(who)];
    const uint32_t number = block_of(who) - launched.begin, *grid = launched.launch->grid;
    const uint32_t* size = launched.launch->block;
    uint32_t thread = place_of(who);
    const uint32_t threads = size[0] * size[1] * size[2];
    if (thread >= threads) thread = owners_.at(block_of(who))[thread - threads];
    return {launched.number, {number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]}, thread};
}

// ---- Barriers ----

void Timeline::arrive(Warp* w, uint32_t m, unsigned id, bool waits) {
    Timed& timed = block(w->block);
    each_lane(m, [&](uint32_t lane) {
        timed.barriers[id].add(timed.threads[w->thread(lane)]);
        if (waits) timed.barriers[id].waiting.push_back(w->thread(lane));
    });
}

void Timeline::barrier_opens(const Block* block, unsigned id) {
    Timed& timed = this->block(block);
    Meeting& meeting = timed.barriers[id];
    // A barrier of all threads opens when each has arrived or exited. So it also comes after the writes of exited
    // threads.
    for (const Warp& w : block->warps)
        each_lane(block->barriers[id].expected ? 0 : ~w.live, [&](uint32_t lane) {
            if (w.thread(lane) < block->threads) meeting.add(timed.threads[w.thread(lane)]);
        });
    const std::vector<uint32_t> waiting = std::move(meeting.waiting);
    const uint32_t next = meeting.top + 1;
    const Ref<View> view = meeting.close();
    const Ref<Part>* own = view->find(timed.number);
    for (uint32_t place : waiting) {
        timed.threads[place].base = view;
        timed.threads[place].own = *own;
        timed.threads[place].epoch = next;  // the same for all, so that one entry holds the reads of a warp
    }
}

void Timeline::warp_sync(Warp* w, uint32_t named) {
    Timed& timed = block(w->block);
    Meeting meeting;
    meeting.block = timed.number;
    each_lane(named & w->live, [&](uint32_t lane) { meeting.add(timed.threads[w->thread(lane)]); });
    const uint32_t next = meeting.top + 1;
    const Ref<View> view = meeting.close();
    each_lane(named & w->live, [&](uint32_t lane) {
        timed.threads[w->thread(lane)].set_base(view);
        timed.threads[w->thread(lane)].epoch = next;
    });
}

void Timeline::cluster_arrive(Warp* w, uint32_t m) {
    Timed& timed = block(w->block);
    each_lane(m, [&](uint32_t lane) { timed.cluster.add(timed.threads[w->thread(lane)]); });
}

void Timeline::cluster_opens(const Block* first, uint32_t blocks) {
    Ref<View> all;
    for (uint32_t i = 0; i < blocks; ++i) all = join(all, block(first->cluster ? first->cluster[i] : first).cluster.close());
    for (uint32_t i = 0; i < blocks; ++i) block(first->cluster ? first->cluster[i] : first).cluster_open = all;
}

void Timeline::cluster_wait(Warp* w, uint32_t m) {
    Timed& timed = block(w->block);
    each_lane(m, [&](uint32_t lane) { timed.threads[w->thread(lane)].learn(timed.cluster_open); });
}

void Timeline::predecessor_done(Warp* w, uint32_t m) {
    Timed& timed = block(w->block);
    if (timed.launch == 0) return;
    Launched& before = launches_[timed.launch - 1];
    if (!before.after) {
        before.after = Ref<View>(new View);
        if (before.end) before.after = Ref<View>(new View(*before.end));
        before.after->learn_launch(timed.launch - 1);
        const uint32_t end = before.begin + static_cast<uint32_t>(before.launch->blocks());
        std::erase_if(before.after->parts, [&](const auto& part) { return part.first >= before.begin && part.first < end; });
    }
    each_lane(m, [&](uint32_t lane) { timed.threads[w->thread(lane)].learn(before.after); });
}

// ---- The order of accesses ----

bool Timeline::knows(const Clock& clock, Who who, uint32_t epoch) const {
    if (who == clock.self && epoch <= clock.self_epoch) return true;
    if (who == nobody) return false;
    if (block_of(who) == block_of(clock.who)) {
        if (clock.own && clock.own->knows(place_of(who), epoch)) return true;
        for (Point copy : clock.copies)
            if (copy.who == who && copy.epoch >= epoch) return true;
        return false;
    }
    if (!clock.base) return false;
    const Ref<Part>* part = clock.base->find(block_of(who));
    if (part && (*part)->knows(place_of(who), epoch)) return true;
    return (clock.base->launches_below || clock.base->launches) && clock.base->knows_launch(launch_of(who));
}

bool Timeline::knows(const Clock& clock, const Write& write) const {
    if (write.who == nobody || knows(clock, write.who, write.epoch)) return true;
    return write.seen && std::any_of(write.seen->begin(), write.seen->end(),
                                     [&](Point point) { return knows(clock, point.who, point.epoch); });
}

bool Timeline::knows(const Clock& clock, const Read& read) const {
    for (uint32_t left = read.lanes; left; left &= left - 1)
        if (!knows(clock, read.warp * 32 + std::countr_zero(left), read.epoch)) return false;
    return true;
}

bool Timeline::together(Scope a, Who x, Scope b, Who y) const {
    const Scope narrow = std::min(a, b);
    if (narrow >= Scope::gpu) return true;
    if (x == nobody || y == nobody) return false;
    if (block_of(x) == block_of(y)) return true;
    if (narrow == Scope::cta || launch_of(x) != launch_of(y)) return false;
    const Origin one = origin(x), other = origin(y);
    const uint32_t* size = launches_[launch_of(x)].launch->cluster;
    for (int i = 0; i < 3; ++i)
        if (one.block[i] / size[i] != other.block[i] / size[i]) return false;
    return true;
}

// ---- Releases and acquires ----

void Timeline::acquire(Clock& clock, Release& release) {
    if (!knows(clock, release.point.who, release.point.epoch)) clock.learn(release.view());
}

Ref<Release> Timeline::release(Thread& thread, Scope scope) {
    Ref<Release> release(new Release);
    release->scope = scope;
    release->point = {thread.who, thread.epoch};
    release->base = thread.base;
    release->copies = thread.copies;
    ++thread.epoch;
    return release;
}

void Timeline::observe(Thread& thread, const How& how, Write& write) {
    if (!write.strong || !together(write.scope, write.who, how.scope, thread.who)) return;
    if (write.releases && !(write.releases == thread.acquired)) {
        bool left = false;
        Ref<View> all;
        for (const auto& release : write.releases->all) {
            if (knows(thread, release->point.who, release->point.epoch)) continue;
            if (how.acquires && together(release->scope, release->point.who, how.scope, thread.who)) {
                if (!all) all = Ref<View>(thread.base ? new View(*thread.base) : new View);
                join_into(all, release->view());
            } else left = true;
        }
        if (all) thread.set_base(all);
        if (!left) thread.acquired = write.releases;
        else if (thread.seen.empty() || !(thread.seen.back() == write.releases)) thread.seen.push_back(write.releases);
    }
    if (knows(thread, write)) return;
    if (!write.seen) write.seen = std::make_unique<std::vector<Point>>();
    write.seen->push_back({thread.who, thread.epoch});
}

Ref<Releases> Timeline::publish(Thread& thread, const How& how, const Ref<Release>& own, const Write* before, bool is_atomic) {
    const bool goes_on = is_atomic && before && before->strong && together(before->scope, before->who, how.scope, thread.who);
    if (!own && thread.fences.empty() && goes_on) return before->releases;
    Ref<Releases> releases(new Releases);
    auto& all = releases->all;
    auto add = [&](const Ref<Release>& release) {
        // A thread's earlier releases of the same scope are part of its new one.
        std::erase_if(all, [&](const auto& old) {
            return old->point.who == release->point.who && old->scope == release->scope && old->point.epoch <= release->point.epoch;
        });
        all.push_back(release);
    };
    if (before && before->releases)
        for (const auto& release : before->releases->all)
            if (goes_on || release->point.who == thread.who) all.push_back(release);
    for (const auto& fence : thread.fences) add(fence);
    if (own) add(own);
    if (all.empty()) return {};
    if (all.size() > many_releases) {
        Ref<Release> joined(new Release);
        joined->scope = Scope::gpu;
        joined->point = {nobody, 0};
        for (const auto& release : all)
            if (release->scope >= Scope::gpu) joined->whole = join(joined->whole, release->view());
        std::erase_if(all, [](const auto& release) { return release->scope >= Scope::gpu; });
        if (joined->whole) all.push_back(joined);
    }
    return releases;
}

void Timeline::fence(Warp* w, uint32_t lane, int32_t access) {
    Timed& timed = block(w->block);
    Thread& thread = timed.threads[w->thread(lane)];
    const Scope scope = scope_of(access);
    std::erase_if(thread.seen, [&](const Ref<Releases>& seen) {
        bool all = true;
        for (const auto& release : seen->all) {
            if (together(release->scope, release->point.who, scope, thread.who)) acquire(thread, *release);
            else all = false;
        }
        return all;
    });
    const bool wide = scope >= Scope::gpu;
    if (access & seq_cst) {
        thread.learn(timed.sequential);
        if (wide) thread.learn(sequential_);
    }
    const Ref<Release> published = release(thread, scope);
    if (access & seq_cst) {
        timed.sequential = join(timed.sequential, published->view());
        if (wide) sequential_ = join(sequential_, published->view());
    }
    std::erase_if(thread.fences, [&](const auto& fence) { return fence->scope == scope; });
    thread.fences.push_back(published);
}

// ---- Copies and mbarriers ----

Who Timeline::new_place(Timed& timed, uint32_t thread) {
    auto& owners = owners_[timed.number];
    if (timed.threads.size() + owners.size() == places) owners.pop_back();  // all further copies share the last place
    owners.push_back(thread);
    return timed.number << place_bits | static_cast<uint32_t>(timed.threads.size() + owners.size() - 1);
}

Clock Timeline::ask(Warp* w, uint32_t lane, const Copy& copy) {
    Timed& timed = block(w->block);
    Thread& thread = timed.threads[w->thread(lane)];
    Clock clock = thread;
    clock.self = thread.who;
    clock.self_epoch = thread.epoch++;
    if (copy.kind == Copy::bulk) {
        const uint64_t key = reinterpret_cast<uint64_t>(copy.barrier) << 10 | w->thread(lane);
        Point& last = timed.bulk.try_emplace(key, Point{nobody, 0}).first->second;
        if (last.who == nobody) last.who = new_place(timed, w->thread(lane));
        clock.who = last.who;
        clock.epoch = ++last.epoch;
    } else {
        auto& copies = thread.copies_of[copy.kind == Copy::bulk_group];
        if (!copies) copies = std::make_unique<Copies>();
        if (copies->who == nobody) copies->who = new_place(timed, w->thread(lane));
        clock.who = copies->who;
        clock.epoch = copy.kind == Copy::arrival ? copies->asked : ++copies->asked;
    }
    return clock;
}

void Timeline::commit(Thread& thread, bool bulk) {
    if (auto& copies = thread.copies_of[bulk]) copies->groups.push_back(copies->asked);
}

uint32_t Timeline::wait(Thread& thread, bool bulk, int64_t groups) {
    auto& copies = thread.copies_of[bulk];
    uint32_t until = 0;
    while (copies && static_cast<int64_t>(copies->groups.size()) > groups) {
        until = copies->groups.front();
        copies->groups.pop_front();
    }
    if (until) thread.learn_copy({copies->who, until});
    return until;
}

void Timeline::mbarrier(const Touch& touch, BarrierUse use, bool completed) {
    Timed& timed = block(touch.w->block);
    Thread& thread = timed.threads[touch.w->thread(touch.lane)];
    Mbarrier& barrier = mbarriers_[touch.host];
    switch (use) {
        case BarrierUse::init:
        case BarrierUse::inval:
            barrier = {};
            barrier.arrived.block = timed.number;
            return;
        case BarrierUse::wait:
            if (completed) thread.learn(barrier.over);
            return;
        case BarrierUse::arrive:
            barrier.arrived.add(thread);
            [[fallthrough]];
        case BarrierUse::expect:
        case BarrierUse::complete:
            if (completed) barrier.over = join(barrier.over, barrier.arrived.close());
    }
}

void Timeline::landed(const Pending& pending, bool completed) {
    if (!pending.copy.barrier) return;
    Mbarrier& barrier = mbarriers_[reinterpret_cast<const uint8_t*>(pending.copy.barrier)];
    if (pending.clock.epoch) barrier.arrived.add(Point{pending.clock.who, pending.clock.epoch});
    if (completed) barrier.over = join(barrier.over, barrier.arrived.close());
}

}  // namespace machine
