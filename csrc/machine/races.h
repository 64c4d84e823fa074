// races.h: the race detector
// A race is two accesses to the same bytes that no synchronisation orders, at least one of them a write and at least
// one of them weak. Strong accesses (atomics, relaxed, acquire, release, volatile) do not race with each other if each
// is in the other's scope. The lanes of a warp are separate threads: only __syncwarp and barriers order them.
#pragma once

#include "timeline.h"

namespace machine {

class Races {
public:
    explicit Races(Timeline& timeline) : timeline_(timeline) {}
    // To be called before an access. The word is `at` bytes after the access's first byte. A race ends the launch.
    void read(Word& word, const How& how, uint64_t at);
    // same: the word already has the value that is written. Two writes of one value are a race in the memory model, but
    // the result does not depend on their order. Kernels rely on that, so it is not reported.
    void write(Word& word, const How& how, uint64_t at, bool same = false);

private:
    void against_writes(const Word& word, const How& how, uint64_t at, bool is_write);
    bool may_meet(const How& how, bool strong, Scope scope, Who who) const {
        return how.strong && strong && timeline_.together(how.scope, how.clock.who, scope, who);
    }
    void report(const How& how, uint64_t at, bool is_write, Who other, int32_t other_ins, bool other_writes);

    Timeline& timeline_;
};

}  // namespace machine
