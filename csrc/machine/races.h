// races.h: two accesses to the same bytes that nothing orders, one of them a write and one of them weak
// Strong accesses (atomics, relaxed, acquire, release, volatile) do not race with each other where each is in the
// other's scope. Lanes of a warp are threads like others: only __syncwarp and barriers order them.
#pragma once

#include "timeline.h"

namespace machine {

class Races {
public:
    explicit Races(Timeline& timeline) : timeline_(timeline) {}
    // Before an access of the word that lies `at` bytes behind the access's begin. A race ends the launch with a report.
    void read(Word& word, const How& how, uint64_t at);
    // same: what it writes is there already. Two writes of one value race with each other by the letter only: whichever
    // comes last, the value is that. Kernels rely on it, as where all lanes write what all of them know.
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
