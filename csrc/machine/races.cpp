// races.cpp: the race detector; see races.h
// It keeps the last writes of each word and the reads since. Of ordered reads only the last is kept, because what comes
// after it comes after the earlier ones too. This is the idea of FastTrack (Flanagan and Freund, 2009). One entry holds
// the lanes of a warp.
#include "races.h"

namespace machine {

void Races::report(const How& how, uint64_t at, bool is_write, Who other, int32_t other_ins, bool other_writes) {
    const Touch& touch = how.touch;
    Launch* launch = touch.w->block->launch;
    if (launch->failed->load()) return;
    const uint64_t size = touch.size < 16 ? touch.size : 4;  // for a vector, the size of an element
    fail(touch.w, touch.p, Fault::race, touch.lane, touch.address + at / size * size, size, touch.space, is_write);
    Report& report = *launch->report;
    const Timeline::Origin origin = timeline_.origin(other);
    report.is_write = is_write | other_writes << 1;
    report.other_ins = other_ins;
    for (int i = 0; i < 3; ++i) report.other_block[i] = origin.block[i];
    report.other_thread = origin.thread;
    report.value = origin.launch;  // the other access may be in another launch
}

void Races::against_writes(const Word& word, const How& how, uint64_t at, bool is_write) {
    for (const Write* write = word.last; write && write->who != nobody; write = write->before) {
        // While a kernel runs, nothing may write what its ld.global.nc reads, whatever the order.
        const bool too_late = how.non_coherent && timeline_.launch_of(write->who) == timeline_.launch_of(how.clock.who);
        const bool known = !too_late && timeline_.knows(how.clock, *write);
        if (!known && !may_meet(how, write->strong, write->scope, write->who))
            return report(how, at, is_write, write->who, write->ins, true);
        if (!write->strong) return;  // earlier writes came before this one
    }
}

void Races::read(Word& word, const How& how, uint64_t at) {
    against_writes(word, how, at, false);
    const Read read = {how.clock.who / 32, 1u << how.clock.who % 32, how.clock.epoch, how.touch.w->at(how.touch.p), how.strong, how.scope};
    const auto is_same = [&](const Read& old) {
        return old.warp == read.warp && old.epoch == read.epoch && old.strong == read.strong && old.scope == read.scope;
    };
    const auto is_covered = [&](const Read& old) { return (old.strong || !read.strong) && timeline_.knows(how.clock, old); };
    if (is_same(word.read)) {
        word.read.lanes |= read.lanes;
        return;
    }
    if (!word.reads || word.reads->empty()) {
        if (word.read.lanes == 0 || is_covered(word.read)) {
            word.read = read;
            return;
        }
        if (!word.reads) word.reads = std::make_unique<std::vector<Read>>();
    }
    auto& reads = *word.reads;
    for (auto old = reads.rbegin(); old != reads.rend(); ++old)
        if (is_same(*old)) {
            old->lanes |= read.lanes;
            return;
        }
    if (reads.size() >= 8 && std::has_single_bit(reads.size())) std::erase_if(reads, is_covered);
    reads.push_back(read);
}

void Races::write(Word& word, const How& how, uint64_t at, bool same) {
    if (!same) against_writes(word, how, at, true);
    // Strong reads without an order to a strong write are kept, because the next write may be weak.
    const auto is_over = [&](const Read& read) {
        if (timeline_.knows(how.clock, read)) return true;
        if (may_meet(how, read.strong, read.scope, read.warp * 32)) return false;
        for (uint32_t left = read.lanes; left; left &= left - 1) {
            const Who who = read.warp * 32 + std::countr_zero(left);
            if (timeline_.knows(how.clock, who, read.epoch)) continue;
            report(how, at, true, who, read.ins, false);
            break;
        }
        return true;
    };
    if (word.read.lanes && is_over(word.read)) word.read = {};
    if (word.reads) std::erase_if(*word.reads, is_over);
}

}  // namespace machine
