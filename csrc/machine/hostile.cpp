// hostile.cpp: late and stale memory; see hostile.h
#include "hostile.h"

namespace machine {

Hostile::Hostile(Timeline& timeline, uint64_t seed, std::function<void(const Pending&)> land)
    : timeline_(timeline), state_(seed ^ 0x5851f42d4c957f2d), land_(std::move(land)) {
    constexpr uint32_t shares[] = {8, 15, 2, 12};
    stale_ = shares[random() % 4];
    constexpr uint32_t late[] = {16, 8, 14, 2};
    late_ = late[random() % 4];
}

uint64_t Hostile::random() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

Write* Hostile::choose(Word& word, const How& how) {
    Write* write = word.last;
    // A strong 64-bit read must not mix two writes.
    if (how.strong && how.touch.size > 4) return write;
    const auto must_be_seen = [&] {
        if (!timeline_.knows(how.clock, *write)) return false;
        // ld.global.nc may read from a cache that is not refreshed before the kernel ends.
        return !how.non_coherent || write->who == nobody || timeline_.launch_of(write->who) != timeline_.launch_of(how.clock.who);
    };
    while (write->before && !must_be_seen()) {
        if (fresh_) {
            --fresh_;
            break;
        }
        if (!chance(stale_)) break;
        write = write->before;
    }
    return write;
}

// Performs the chosen copies in a random order.
void Hostile::land_those(std::vector<Pending>& pending, const std::function<bool(const Pending&)>& which) {
    std::vector<Pending> now, later;
    for (Pending& one : pending) (which(one) ? now : later).push_back(std::move(one));
    pending = std::move(later);
    for (size_t i = now.size(); i > 1; --i) std::swap(now[i - 1], now[random() % i]);
    for (const Pending& one : now) land_(one);
}

void Hostile::copy(Pending pending) {
    const Touch& touch = pending.copy.from;
    Timed& timed = timeline_.block(touch.w->block);
    const Copy::Kind kind = pending.copy.kind;
    if (kind == Copy::bulk) {
        if (!chance(late_)) return land_(pending);
        timed.pending.push_back(std::move(pending));
        return;
    }
    Thread& thread = timeline_.thread(touch.w, touch.lane);
    auto& mine = thread.copies_of[kind == Copy::bulk_group]->pending;
    if (kind == Copy::arrival ? mine.empty() : !chance(late_)) return land_(pending);
    mine.push_back(std::move(pending));
}

void Hostile::wait(Thread& thread, bool bulk, uint32_t until) {
    auto& copies = thread.copies_of[bulk];
    if (!copies || copies->pending.empty()) return;
    land_those(copies->pending, [&](const Pending& one) { return one.copy.kind != Copy::arrival && one.clock.epoch <= until; });
    // An arrival after these copies no longer waits for anything.
    land_those(copies->pending, [&](const Pending& one) { return one.copy.kind == Copy::arrival && one.clock.epoch <= until; });
}

void Hostile::look(const Block* block, const uint8_t* barrier) {
    if (!fresh_ && chance(late_ / 2)) return;
    const auto is_for_it = [&](const Pending& one) { return reinterpret_cast<const uint8_t*>(one.copy.barrier) == barrier; };
    const uint32_t blocks = block->cluster ? block->launch->cluster[0] * block->launch->cluster[1] * block->launch->cluster[2] : 1;
    for (uint32_t rank = 0; rank < blocks; ++rank) {
        Timed& timed = timeline_.block(block->cluster ? block->cluster[rank] : block);
        land_those(timed.pending, is_for_it);
        for (Thread& thread : timed.threads) {
            auto& copies = thread.copies_of[0];
            if (!copies) continue;
            uint32_t until = 0;
            for (const Pending& one : copies->pending)
                if (one.copy.kind == Copy::arrival && is_for_it(one)) until = one.clock.epoch;
            if (until) wait(thread, false, until);
        }
    }
}

bool Hostile::land_all(Timed& timed) {
    bool any = !timed.pending.empty();
    land_those(timed.pending, [](const Pending&) { return true; });
    for (Thread& thread : timed.threads)
        for (const bool bulk : {false, true})
            if (thread.copies_of[bulk] && !thread.copies_of[bulk]->pending.empty()) any = true, wait(thread, bulk, ~0u);
    return any;
}

void Hostile::block_ends(const Block* block) { land_all(timeline_.block(block)); }

bool Hostile::drain() {
    bool any = false;
    for (auto& [block, timed] : timeline_.blocks()) any |= land_all(*timed);
    if (any || fresh_ == 0) {
        fresh_ = 1'000'000;
        return true;
    }
    return false;
}

}  // namespace machine
