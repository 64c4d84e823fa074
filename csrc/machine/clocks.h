// clocks.h: what each thread knows to have happened, as vector clocks
// A thread counts epochs; a new one begins whenever something of the old one is published: at a barrier, a release, a
// fence. An access is stamped with its thread and epoch, and comes before whatever a thread does that knows this epoch.
// What a thread knows is its base, a view that never changes and that many threads share, and its own past. A view has a
// part for each block of which anything is known, and equal parts are shared as well, so that knowing a whole grid costs
// a pointer a block.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "machine.h"

namespace machine {

// What counted pointers of one OS thread point at. A copy starts with nobody pointing at it.
struct Counted {
    uint32_t users = 0;
    Counted() = default;
    Counted(const Counted&) {}
    Counted& operator=(const Counted&) { return *this; }
};

template <class T>
class Ref {
public:
    Ref() = default;
    explicit Ref(T* to) : to_(to) { hold(); }
    Ref(const Ref& other) : to_(other.to_) { hold(); }
    Ref(Ref&& other) noexcept : to_(std::exchange(other.to_, nullptr)) {}
    Ref& operator=(Ref other) noexcept { return std::swap(to_, other.to_), *this; }
    ~Ref() {
        if (to_ && --to_->users == 0) delete to_;
    }
    T* operator->() const { return to_; }
    T& operator*() const { return *to_; }
    explicit operator bool() const { return to_; }
    bool operator==(const Ref& other) const { return to_ == other.to_; }

private:
    void hold() {
        if (to_) ++to_->users;
    }
    T* to_ = nullptr;
};

// Somebody who accesses memory: the number of the block, counted on through launches that may overlap, and the place in
// it. Places behind those of the threads are asynchronous copies.
using Who = uint32_t;
constexpr Who nobody = ~0u;
constexpr int place_bits = 12;
constexpr uint32_t places = 1u << place_bits;
inline uint32_t block_of(Who who) { return who >> place_bits; }
inline uint32_t place_of(Who who) { return who & (places - 1); }

struct Point {
    Who who;
    uint32_t epoch;
};

// The epochs known of one block, by place; 0: nothing.
struct Part : Counted {
    std::vector<uint32_t> epochs;

    bool knows(uint32_t place, uint32_t epoch) const { return place < epochs.size() && epochs[place] >= epoch; }
    void learn(uint32_t place, uint32_t epoch) {
        if (place >= epochs.size()) epochs.resize(place + 1);
        if (epochs[place] < epoch) epochs[place] = epoch;
    }
};

struct View : Counted {
    std::vector<std::pair<uint32_t, Ref<Part>>> parts;  // by block, sorted
    // Launches of which everything is known: those below a number, and a bit for each of the next 64.
    uint32_t launches_below = 0;
    uint64_t launches = 0;

    const Ref<Part>* find(uint32_t block) const;
    bool knows_launch(uint32_t launch) const {
        return launch < launches_below || (launch - launches_below < 64 && launches >> (launch - launches_below) & 1);
    }
    void learn_launch(uint32_t launch) { learn_launches(launch < 63 ? 0 : launch - 63, 1ull << (launch < 63 ? launch : 63)); }
    // All below a number, and those of a bit mask from there on.
    void learn_launches(uint32_t below, uint64_t mask);
    void put(uint32_t block, Ref<Part> part);
    void learn(Point point);
};

// What both know. One of the two where it knows all that the other does. Null knows nothing.
Ref<View> join(const Ref<View>& a, const Ref<View>& b);
// The same in place, for a view that nobody else has.
void join_into(Ref<View>& a, const Ref<View>& b);

// What a thread or a copy knows when it accesses memory.
struct Clock {
    Who who = nobody;
    uint32_t epoch = 1;
    Who self = nobody;             // a thread knows its own past; a copy that of the thread that asked for it
    uint32_t self_epoch = ~0u;     // until here
    Ref<View> base;
    Ref<Part> own;                 // the base's part of the own block
    std::vector<Point> copies;     // that the thread has waited for

    void set_base(Ref<View> view) {
        base = std::move(view);
        const Ref<Part>* part = base ? base->find(block_of(who)) : nullptr;
        own = part ? *part : Ref<Part>();
    }
    void learn(const Ref<View>& view) { set_base(join(base, view)); }
    void learn_copy(Point point);
};

// ---- Releases ----

enum Scope : uint8_t { cta, cluster, gpu, system };

// What a thread has published, to be learned by whoever acquires it.
struct Release : Counted {
    Scope scope;
    Point point;
    Ref<View> base;
    std::vector<Point> copies;
    Ref<View> whole;  // all of it, made when first acquired

    const Ref<View>& view();
};

// What comes with the value of a word: releases of which this value is a part or a successor.
struct Releases : Counted {
    std::vector<Ref<Release>> all;
};

// Threads that come to one place, and what they know together. Most of them are of one block.
struct Meeting {
    uint32_t block = 0;
    Ref<View> base;
    Ref<Part> part;  // of the block; only the meeting has it
    uint32_t top = 0;  // the latest epoch of any
    std::vector<uint32_t> waiting;  // places

    void add(Clock& clock);
    void add(Point copy);
    // What all know; the meeting starts anew.
    Ref<View> close();
};

}  // namespace machine
