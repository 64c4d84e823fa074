// watchers.cpp: passes every access to the timeline, to hostile memory, to the race detector and to the marks
#include "watchers.h"

#include <algorithm>
#include <span>

#include "hostile.h"
#include "memory_change.h"
#include "races.h"

namespace machine {

namespace {

constexpr int kept_writes = 4;  // number of writes kept per word

class Observer final : public Watcher {
public:
    Observer(bool hostile, bool races, uint64_t seed, std::span<const Marked> marked)
        : is_hostile_(hostile), finds_races_(races), marked_(marked),
          hostile_(timeline_, seed, [this](const Pending& pending) { land(pending); }), races_(timeline_) {}

    // ---- Accesses ----

    void load(const Touch& touch, void* value) override {
        Watcher::load(touch, value);
        look_at_marks(touch, true, false);
        if (touch.space != global && touch.space != shared) return;
        Thread& thread = timeline_.thread(touch.w, touch.lane);
        const How how = how_of(touch, thread);
        words_.each(touch.host, touch.size, finds_races_, [&](Word& word, uint64_t at, uint32_t shift, uint32_t bytes) {
            if (finds_races_) races_.read(word, how, at);
            if (!word.last) return;
            Write* seen = is_hostile_ ? hostile_.choose(word, how) : word.last;
            if (seen != word.last) memcpy(static_cast<uint8_t*>(value) + at, reinterpret_cast<uint8_t*>(&seen->value) + shift, bytes);
            if (how.strong) timeline_.observe(thread, how, *seen);
        });
    }

    void store(const Touch& touch, const void* value) override {
        look_at_marks(touch, false, true);
        if (touch.space == global || touch.space == shared) {
            Thread& thread = timeline_.thread(touch.w, touch.lane);
            const How how = how_of(touch, thread);
            const uint32_t epoch = thread.epoch;
            const Ref<Release> own = how.releases ? timeline_.release(thread, how.scope) : Ref<Release>();
            words_.each(touch.host, touch.size, true, [&](Word& word, uint64_t at, uint32_t, uint32_t bytes) {
                const bool same = memcmp(touch.host + at, static_cast<const uint8_t*>(value) + at, bytes) == 0;
                if (finds_races_) races_.write(word, how, at, same);
                Ref<Releases> releases;
                if (how.strong) releases = timeline_.publish(thread, how, own, word.last, false);
                remember(word, how, epoch, std::move(releases), touch.host + at, static_cast<const uint8_t*>(value) + at, bytes);
            });
        }
        Watcher::store(touch, value);
    }

    uint64_t atomic(const Touch& touch, Change change, uint64_t b, uint64_t c) override {
        if (touch.space != global && touch.space != shared) return Watcher::atomic(touch, change, b, c);
        look_at_marks(touch, true, true);
        Thread& thread = timeline_.thread(touch.w, touch.lane);
        How how = how_of(touch, thread);
        how.strong = true;
        uint8_t before[8];
        memcpy(before, touch.host, touch.size);
        const uint64_t old = Watcher::atomic(touch, change, b, c);
        const bool writes = change != change::compare || old == b;
        words_.each(touch.host, touch.size, true, [&](Word& word, uint64_t at, uint32_t, uint32_t) {
            if (finds_races_) races_.read(word, how, at);
            if (finds_races_ && writes) races_.write(word, how, at);
            if (word.last) timeline_.observe(thread, how, *word.last);
        });
        if (!writes) return old;
        const uint32_t epoch = thread.epoch;
        const Ref<Release> own = how.releases ? timeline_.release(thread, how.scope) : Ref<Release>();
        words_.each(touch.host, touch.size, true, [&](Word& word, uint64_t at, uint32_t, uint32_t bytes) {
            Ref<Releases> releases = timeline_.publish(thread, how, own, word.last, true);
            remember(word, how, epoch, std::move(releases), before + at, touch.host + at, bytes);
        });
        return old;
    }

    void fence(Warp* w, const Ins*, uint32_t mask, int32_t access) override {
        for (uint32_t left = mask; left; left &= left - 1) timeline_.fence(w, first_lane(left), access);
    }

    // A later write of these bytes is a race, which gives a better report. Otherwise the read is reported when the
    // block ends.
    bool takes_unwritten(const Touch& touch) override {
        if (finds_races_) unwritten_.try_emplace(touch.w->block, touch);
        return finds_races_;
    }

    // ---- Copies and mbarriers ----

    void barrier(const Touch& touch, BarrierUse use, bool completed) override {
        timeline_.mbarrier(touch, use, completed);
        if (is_hostile_ && use == BarrierUse::wait && !completed) hostile_.look(touch.w->block, touch.host);
    }

    void copy(const Copy& copy) override {
        Pending pending{copy, timeline_.ask(copy.from.w, copy.from.lane, copy)};
        if (is_hostile_) hostile_.copy(std::move(pending));
        else land(pending);
    }

    void commit(Warp* w, const Ins*, uint32_t mask, bool bulk) override {
        for (uint32_t left = mask; left; left &= left - 1) timeline_.commit(timeline_.thread(w, first_lane(left)), bulk);
    }

    void wait(Warp* w, const Ins*, uint32_t mask, bool bulk, int64_t groups, bool) override {
        for (uint32_t left = mask; left; left &= left - 1) {
            Thread& thread = timeline_.thread(w, first_lane(left));
            const uint32_t until = timeline_.wait(thread, bulk, groups);
            if (is_hostile_ && until) hostile_.wait(thread, bulk, until);
        }
    }

    // ---- Launches, blocks, barriers ----

    void launch_starts(Launch* launch, bool alone) override {
        if (timeline_.launch_starts(launch, alone)) words_.forget_all();
    }
    void block_starts(Block* block) override {
        words_.forget(block->shared, block->shared_bytes);
        timeline_.block_starts(block);
    }
    void block_ends(Block* block) override {
        if (is_hostile_ && !block->launch->failed->load()) hostile_.block_ends(block);
        if (const auto found = unwritten_.find(block); found != unwritten_.end()) {
            const Touch& touch = found->second;
            fail(touch.w, touch.p, Fault::uninitialised, touch.lane, touch.address, touch.size, touch.space, false);
            unwritten_.erase(found);
        }
        timeline_.block_ends(block);
    }
    void arrive(Warp* w, uint32_t m, unsigned id, bool waits) override { timeline_.arrive(w, m, id, waits); }
    void barrier_opens(Block* block, unsigned id) override { timeline_.barrier_opens(block, id); }
    void warp_sync(Warp* w, uint32_t named) override { timeline_.warp_sync(w, named); }
    void cluster_arrive(Warp* w, uint32_t m) override { timeline_.cluster_arrive(w, m); }
    void cluster_opens(Block* first, uint32_t blocks) override { timeline_.cluster_opens(first, blocks); }
    void cluster_wait(Warp* w, uint32_t m) override { timeline_.cluster_wait(w, m); }
    void predecessor_done(Warp* w, uint32_t m) override { timeline_.predecessor_done(w, m); }
    bool drain() override { return is_hostile_ && hostile_.drain(); }

private:
    static How how_of(const Touch& touch, const Clock& clock) {
        const int32_t access = touch.access;
        return {touch, clock, (access & (relaxed | acquire | release | seq_cst | is_volatile)) != 0,
                (access & (acquire | seq_cst)) != 0, (access & (release | seq_cst)) != 0, (access & non_coherent) != 0,
                scope_of(access)};
    }

    // Records a write of a word. `old` and `value` are its bytes before and after.
    void remember(Word& word, const How& how, uint32_t epoch, Ref<Releases> releases, const uint8_t* old, const uint8_t* value, uint32_t bytes) {
        const Who who = how.clock.who;
        const int32_t ins = how.touch.w->at(how.touch.p);
        Write* last = word.last;
        if (!how.strong && last && !last->strong && last->who == who && last->epoch == epoch) {
            memcpy(&last->value, value, bytes);
            last->ins = ins;
            return;
        }
        if (!last && is_hostile_) {
            word.last = new Write;
            memcpy(&word.last->value, old, bytes);
        }
        auto write = new Write{word.last, who, epoch, ins, 0, how.strong, how.scope, std::move(releases), nullptr};
        memcpy(&write->value, value, bytes);
        word.last = write;
        for (int kept = 1; write && kept < kept_writes; ++kept) write = write->before;
        if (!write || !write->before) return;
        delete write->before;
        write->before = nullptr;
    }

    void look_at_marks(const Touch& touch, bool reads, bool writes) {
        if (marked_.empty() || touch.space != global) return;
        const auto at = reinterpret_cast<uint64_t>(touch.host);
        const auto after = std::upper_bound(marked_.begin(), marked_.end(), at, [](uint64_t a, const Marked& m) { return a < m.begin; });
        if (after == marked_.begin() || at >= after[-1].end) return;
        uint8_t* marks = after[-1].marks + (at - after[-1].begin);
        for (uint32_t i = 0; i < touch.size; ++i) {
            const bool is_read = reads && marks[i] == unwritten, is_written = writes && marks[i] == guarded;
            if (is_read || is_written) {
                const uint32_t size = touch.size < 16 ? touch.size : 4;  // for a vector, the size of an element
                fail(touch.w, touch.p, is_read ? Fault::uninitialised : Fault::read_only, touch.lane,
                     touch.address + i / size * size, size, touch.space, is_written);
                return;
            }
            if (writes) marks[i] = unmarked;
        }
    }

    // Performs a copy.
    void land(const Pending& pending) {
        const Copy& copy = pending.copy;
        const bool moves = copy.kind != Copy::arrival;
        const How from = how_of(copy.from, pending.clock), to = how_of(copy.to, pending.clock);
        std::vector<uint8_t> old;
        if (moves) {
            if (copy.from.size) look_at_marks(copy.from, true, false);
            look_at_marks(copy.to, copy.reduce != nullptr, true);
            if (finds_races_ && copy.from.size)
                words_.each(copy.from.host, copy.from.size, true, [&](Word& word, uint64_t at, uint32_t, uint32_t) { races_.read(word, from, at); });
            old.assign(copy.to.host, copy.to.host + copy.to.size);
        }
        const bool completed = finish(copy);
        if (moves)
            words_.each(copy.to.host, copy.to.size, true, [&](Word& word, uint64_t at, uint32_t, uint32_t bytes) {
                if (finds_races_) races_.write(word, to, at);
                remember(word, to, pending.clock.epoch, {}, old.data() + at, copy.to.host + at, bytes);
            });
        timeline_.landed(pending, completed);
        changed(copy.from.w);
    }

    const bool is_hostile_, finds_races_;
    const std::span<const Marked> marked_;
    Timeline timeline_;
    Words words_;
    Hostile hostile_;
    Races races_;
    std::unordered_map<const Block*, Touch> unwritten_;  // per block: the first read of unwritten bytes
};

}  // namespace

std::unique_ptr<Watcher> make_watcher(bool hostile, bool races, uint64_t seed, const Marked* marked, uint64_t marked_count) {
    if (!hostile && !races && !marked_count) return nullptr;
    return std::make_unique<Observer>(hostile, races, seed, std::span(marked, marked_count));
}

}  // namespace machine
