// hostile.h: memory that is as late and as stale as PTX's memory consistency model allows
// All stores take effect at once, and each word remembers its last writes. A load may return any of these writes,
// unless the thread knows of a later write or has seen one. So where no synchronisation orders them, stores become
// visible late and out of order, lines of L1 are stale, and a flag overtakes its data. A program without races always
// reads the right value. The seed decides whether an asynchronous copy is performed at once or when something waits for
// it.
#pragma once

#include "timeline.h"

namespace machine {

class Hostile {
public:
    Hostile(Timeline& timeline, uint64_t seed, std::function<void(const Pending&)> land);

    // Chooses the write whose value a load of the word returns.
    Write* choose(Word& word, const How& how);

    void copy(Pending pending);
    // The thread has waited for its copies up to an epoch.
    void wait(Thread& thread, bool bulk, uint32_t until);
    // A wait for an mbarrier has not succeeded yet.
    void look(const Block* block, const uint8_t* barrier);
    void block_ends(const Block* block);
    // Performs all pending copies, and lets loads return the newest value for a while. False if nothing was late.
    bool drain();

private:
    uint64_t random();
    bool chance(uint32_t of_16) { return (random() & 15) < of_16; }
    void land_those(std::vector<Pending>& pending, const std::function<bool(const Pending&)>& which);
    bool land_all(Timed& timed);

    Timeline& timeline_;
    uint64_t state_;
    uint32_t stale_, late_;  // how many of 16 loads are stale, and of 16 copies late
    uint32_t fresh_ = 0;     // number of loads left that return the newest value after drain()
    std::function<void(const Pending&)> land_;
};

}  // namespace machine
