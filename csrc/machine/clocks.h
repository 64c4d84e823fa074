// clocks.h: vector clocks: which accesses each thread knows to have happened
// A thread counts epochs. A new epoch begins when the old one is published: at a barrier, a release, a fence. An access
// gets its thread and epoch as a stamp. It comes before all that a thread does that knows this epoch. A thread knows
// its own past and its base: an immutable view that many threads share. A view has a part for each block of which
// something is known. Equal parts are shared too, so that a view of a whole grid costs one pointer per block.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "machine.h"

namespace machine {

// The base of objects with a reference count, used by one OS thread. A copy starts with a count of 0.
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

// The source of an access: the number of its block, counted across launches that may overlap, and a place in the block.
// Places after those of the threads are asynchronous copies.
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

// The known epoch of each place in one block; 0 means that nothing is known.
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
    // The launches that are fully known: those below a number, and one bit for each of the next 64.
    uint32_t launches_below = 0;
    uint64_t launches = 0;

    const Ref<Part>* find(uint32_t block) const;
    bool knows_launch(uint32_t launch) const {
        return launch < launches_below || (launch - launches_below < 64 && launches >> (launch - launches_below) & 1);
    }
    void learn_launch(uint32_t launch) { learn_launches(launch < 63 ? 0 : launch - 63, 1ull << (launch < 63 ? launch : 63)); }
    // Adds all launches below a number, and those in a bit mask from that number on.
    void learn_launches(uint32_t below, uint64_t mask);
    void put(uint32_t block, Ref<Part> part);
    void learn(Point point);
};

// The union of both views. It is one of the two if that one contains the other. Null is the empty view.
Ref<View> join(const Ref<View>& a, const Ref<View>& b);
// The same in place, for a view that is not shared.
void join_into(Ref<View>& a, const Ref<View>& b);

// What a thread or a copy knows when it accesses memory.
struct Clock {
    Who who = nobody;
    uint32_t epoch = 1;
    Who self = nobody;             // whose past it knows: its own for a thread, the issuing thread's for a copy
    uint32_t self_epoch = ~0u;     // up to this epoch
    Ref<View> base;
    Ref<Part> own;                 // the base's part for the own block
    std::vector<Point> copies;     // copies that the thread has waited for

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

// What a thread has published. A thread that acquires it learns it.
struct Release : Counted {
    Scope scope;
    Point point;
    Ref<View> base;
    std::vector<Point> copies;
    Ref<View> whole;  // the full view, made at the first acquire

    const Ref<View>& view();
};

// The releases that an acquire of a word's value synchronises with.
struct Releases : Counted {
    std::vector<Ref<Release>> all;
};

// Threads that arrive at one place, such as a barrier, and the union of what they know. Most are of one block.
struct Meeting {
    uint32_t block = 0;
    Ref<View> base;
    Ref<Part> part;  // the part of the block, not shared
    uint32_t top = 0;  // the latest epoch of any of them
    std::vector<uint32_t> waiting;  // their places

    void add(Clock& clock);
    void add(Point copy);
    // Returns what they all know, and resets the meeting.
    Ref<View> close();
};

}  // namespace machine
