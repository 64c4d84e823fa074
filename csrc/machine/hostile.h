// hostile.h: memory that is as late and as stale as PTX's memory consistency model allows
// All stores take effect at once, and each word remembers its last writes. A load may return any of them that nothing
// obliges it to have passed: a later write that the thread knows of, or has seen before. So a store reaches others late
// and out of order, a line of L1 is stale, a flag overtakes its data, each where nothing orders them; and a program
// without races always gets the one value that it must. Asynchronous copies wait until something waits for them, or are
// carried out at once: the seed decides.
#pragma once

#include "timeline.h"

namespace machine {

class Hostile {
public:
    Hostile(Timeline& timeline, uint64_t seed, std::function<void(const Pending&)> land);

    // The write whose value a load of the word returns.
    Write* choose(Word& word, const How& how);

    void copy(Pending pending);
    // Copies up to an epoch have been waited for.
    void wait(Thread& thread, bool bulk, uint32_t until);
    // Somebody waits in vain for an mbarrier.
    void look(const Block* block, const uint8_t* barrier);
    void block_ends(const Block* block);
    // Copies that are on their way arrive, and loads return the newest for a while. False: nothing was late.
    bool drain();

private:
    uint64_t random();
    bool chance(uint32_t of_16) { return (random() & 15) < of_16; }
    void land_those(std::vector<Pending>& pending, const std::function<bool(const Pending&)>& which);
    bool land_all(Timed& timed);

    Timeline& timeline_;
    uint64_t state_;
    uint32_t stale_, late_;  // of 16 loads, of 16 copies
    uint32_t fresh_ = 0;     // loads that are not stale after drain()
    std::function<void(const Pending&)> land_;
};

}  // namespace machine
