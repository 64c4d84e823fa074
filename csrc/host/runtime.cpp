// runtime.cpp: runs kernels as a GPU would, on CPU threads, and names what would hang there
//
// Threads    a CUDA thread is a fiber; it runs until it waits, then switches straight to the next ready fiber
// Warps      lanes meet at shuffles, votes and __syncwarp; the last to arrive computes the result of each
// Blocks     a block stays on one OS thread (a Slot), whose thread_local memory is the block's static shared memory
// Slots      live from launch to launch; the OS thread that launches is one of them
// Waiting    a block with no ready thread sleeps until a value that it waits for has changed
// Deadlock   every started block sleeps, no value has changed, no further block fits: found at once, no time-out.
//            A hand-written spin is a wait that may look again; it is part of a deadlock after `patience` looks
// Seeds      with a seed one fiber runs at a time and a generator picks each next one, so an order can be had again
// Counting   a library built for it says each load and store: see traffic.h
// Poison     shared memory starts as 0xFF in every block: NaN as fp32 and as bf16
// Strict     stricter than hardware on purpose: a __syncthreads is met by all threads of the block at one source line,
//            a warp operation by all lanes of its mask at one source line, and none of them may have left before.
//            A launch that is not `strict` has __syncthreads wait only for threads that have not left, as a GPU does
//            since Volta (PTX ISA, exit: a barrier that only exiting threads hold up is released)
#include "host/runtime.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "host/context.h"
#include "host/traffic.h"

// How the C library finds a library's thread_local memory: index.module, index.offset.
extern "C" void* __tls_get_addr(void* index);

namespace emulator {

__thread Current current;

namespace {

constexpr unsigned patience = 10'000;      // looks in vain, all else asleep, before a spin counts as a deadlock
constexpr unsigned turns_per_warp = 4096;  // switches inside a warp before another ready warp gets its turn
constexpr size_t stack_bytes = 64 * 1024;
constexpr unsigned guarded_stacks = 8192;  // each takes 2 of the 65530 mappings that Linux gives a process
constexpr auto look_again = std::chrono::milliseconds(1);  // for stores that nothing announces, such as volatile ones

struct Launch;
struct Slot;

// ---- Words for reports ----

const char* const operation_names[] = {"a shuffle",        "a vote",       "__syncwarp", "__syncthreads",
                                       "wait_while_equal", "load_acquire", "an atomic",  "__nanosleep"};

std::string name(Operation operation, Location at) {
    return std::string(operation_names[static_cast<int>(operation)]) + " at " + at.file_name() + ":" +
           std::to_string(at.line());
}

bool same(Location a, Location b) { return a.line() == b.line() && a.file_name() == b.file_name(); }

// "thread 3", "threads 0..15, 17"
std::string ranges(const char* noun, const std::vector<unsigned>& sorted) {
    std::string text;
    for (size_t i = 0; i < sorted.size();) {
        size_t end = i + 1;
        while (end < sorted.size() && sorted[end] == sorted[end - 1] + 1) ++end;
        text += (text.empty() ? "" : ", ") + std::to_string(sorted[i]);
        if (end - i > 1) text += (end - i == 2 ? ", " : "..") + std::to_string(sorted[end - 1]);
        i = end;
    }
    return std::string(noun) + (sorted.size() > 1 ? "s " : " ") + text;
}

// Joins "who does what", with who grouped by what, in the order in which each `what` first comes.
class Grouping {
public:
    void add(unsigned who, const std::string& what) {
        auto [place, is_new] = members_.try_emplace(what);
        if (is_new) order_.push_back(what);
        place->second.push_back(who);
    }
    std::string text(const char* noun, const char* link, const char* separator) const {
        std::string all;
        for (const std::string& what : order_)
            all += (all.empty() ? "" : separator) + ranges(noun, members_.at(what)) + link + what;
        return all;
    }

private:
    std::map<std::string, std::vector<unsigned>> members_;
    std::vector<std::string> order_;
};

std::string describe_number(const ThreadView& thread) { return "thread " + std::to_string(thread.number); }

// ---- Threads, warps, blocks ----

struct alignas(64) Thread : ThreadView {
    Context context;
    std::byte* stack;  // its upper end
    // What it waits for, while it does.
    Operation operation;
    Location at;
    const void* address;
    unsigned size;
    uint64_t value;  // the wait ends when *address differs from it
    // What it saw last, to tell a spin from a single look.
    const void* seen_address;
    uint64_t seen_value;
    unsigned looks;  // since it last changed anything

    bool changed() const {
        if (size == 4) return __atomic_load_n(static_cast<const uint32_t*>(address), __ATOMIC_SEQ_CST) != value;
        if (size == 8) return __atomic_load_n(static_cast<const uint64_t*>(address), __ATOMIC_SEQ_CST) != value;
        return false;
    }
};

// Lanes of one warp that meet.
struct Group {
    unsigned mask, arrived, votes;
    Operation operation;
    Location at;
};

// A bit for each lane.
struct Warp {
    unsigned present;  // the last warp of a block can be partial
    unsigned ready, started, left;
    unsigned at_barrier, meeting;  // wait in __syncthreads, in a warp operation
    unsigned waiting, spinning;    // wait for a value: until it changes, or until it is worth another look
    unsigned open;                 // a bit for each group in use
    Group groups[32];
    uint64_t brought[32], result[32];
    unsigned source[32];

    Group& group_of(unsigned lane_bit) {
        unsigned among = open;
        while (!(groups[std::countr_zero(among)].arrived & lane_bit)) among &= among - 1;
        return groups[std::countr_zero(among)];
    }
    // A group that waits for this lane, or null.
    const Group* waits_for(unsigned lane_bit) const {
        for (unsigned among = open; among; among &= among - 1) {
            const Group& group = groups[std::countr_zero(among)];
            if (group.mask & ~group.arrived & lane_bit) return &group;
        }
        return nullptr;
    }
};

struct Block : BlockView {
    Launch* launch;
    Slot* slot;
    unsigned number, threads_count, live;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    unsigned ready_warps;  // a bit for each warp
    unsigned last_warp, last_lane, turns;
    unsigned at_barrier;  // threads
    Location barrier_at;
    uint64_t barriers;  // passed

    Thread& thread() { return static_cast<Thread&>(*current.thread); }
    Warp& warp_of(const Thread& thread) { return warps[thread.number / 32]; }
    static unsigned bit_of(const Thread& thread) { return 1u << (thread.number % 32); }

    void begin(Launch&, unsigned number);
    void make_ready(unsigned warp, unsigned lanes) {
        warps[warp].ready |= lanes;
        ready_warps |= 1u << warp;
    }
    bool has_started(const Thread& thread) { return warp_of(thread).started & bit_of(thread); }
    void start(Thread& thread, std::byte* stack) {
        warp_of(thread).started |= bit_of(thread);
        thread.stack = stack;
        thread.seen_address = nullptr;
        thread.looks = 0;
    }
    Thread& choose();
    [[gnu::noinline]] Thread& choose_when_idle();
    void resume(Thread&);
    void wait() { resume(choose()); }
    void give_way();
    void leave(Thread&);
    void open_barrier();
    void wait_for(Thread&, Operation, const void* address, unsigned size, uint64_t value, Location, bool spin);
    bool any_waiting() const;
    bool any_spinning() const;
    bool changed() const;
    void wake_changed();
    void wake_spinning();
    std::string describe(const Thread&);
    std::string describe();
    std::string list(unsigned warp, unsigned lanes) const;
    // Errors, out of the way of the code that runs between two switches.
    [[gnu::cold]] void check_partners(const Thread&, const Group&);
    [[noreturn, gnu::cold]] void fail_mask(const Thread&, Operation, Location);
    [[noreturn, gnu::cold]] void fail_sources(const Thread&, unsigned absent, Location);
    [[noreturn, gnu::cold]] void fail_barrier(const Thread&, Location);
    [[noreturn, gnu::cold]] void fail_access(const Thread&, uint64_t address, size_t, bool is_write, const void* at,
                                            const std::string& what);
    [[noreturn, gnu::cold]] void fail(const std::string& what);
    [[noreturn]] void abandon();
};

// Runs one block at a time on one OS thread.
struct Slot {
    Block block;
    Context main;  // where the OS thread waits while fibers run
    std::vector<std::byte*> stacks, free_stacks;
    std::byte* shared = nullptr;
    size_t shared_size = 0;
    std::byte* static_shared = nullptr;  // this OS thread's memory of the kernel library
    Tally tally;
    // Under the device's mutex.
    std::condition_variable wakeup;
    bool invited = false, busy = false, asleep = false;
    bool look = false;  // woken to look again, though nothing has changed

    Slot() { block.slot = this; }
    std::byte* take_stack();
    void run_block(Launch&, unsigned number);
    bool may_access(const Thread&, const std::byte* begin, size_t size) const;
    void sleep();
    void serve(std::unique_lock<std::mutex>&);
};

struct Launch {
    const Request& request;
    unsigned total;
    std::vector<unsigned> order;     // of starting; empty: 0, 1, 2, ...
    std::vector<bool> is_finished;   // by block
    unsigned started = 0, finished = 0, running = 0;
    std::atomic<unsigned> asleep = 0;
    std::atomic<unsigned> vain_looks = 0;
    std::atomic<bool> failed = false;
    std::string report;
    uint64_t generator;
    Footprints footprints;

    explicit Launch(const Request& request);
    unsigned random(unsigned below);
    unsigned room() const { return std::min(total - started, request.resident_blocks - running); }
    bool over() const { return running == 0 && (failed || finished == total); }
    void invite(Slot&);
    void invite_another();
    void let_others_run(Slot* free_slot);
    void settle();
    void wake(Slot&, bool look);
    void fail(const std::string& what);
    std::string describe_deadlock();
};

// The emulated GPU: one launch at a time.
struct Device {
    std::mutex one_launch;
    std::mutex mutex;
    std::vector<std::unique_ptr<Slot>> slots;  // slot 0 is the OS thread that launches
    std::atomic<unsigned> stacks = 0;
    Launch* launch = nullptr;
    const unsigned processors = std::max(1u, std::thread::hardware_concurrency());
    // How many threads wait for a value at an address with this hash: a store looks here before it takes the mutex.
    std::atomic<unsigned> watched[256] = {};

    std::atomic<unsigned>& watchers(const void* address) {
        return watched[(reinterpret_cast<uintptr_t>(address) >> 2) % 256];
    }
    Slot& idle_slot();
    void wake_changed();
};

// Never destroyed, as its OS threads outlive main. They do not follow into the child of a fork, which gets a new one.
Device* the_device = [] {
    pthread_atfork(nullptr, nullptr, [] { the_device = new Device; });
    return new Device;
}();

Device& device() { return *the_device; }

unsigned nth_set_bit(unsigned bits, unsigned n) {
    while (n--) bits &= bits - 1;
    return static_cast<unsigned>(std::countr_zero(bits));
}

// ---- A block ----

// The bottom of every fiber's stack: runs a thread, then any thread that has not started yet, on the same stack.
void run_threads() {
    Block& block = static_cast<Block&>(*current.block);
    for (;;) {
        Thread& thread = block.thread();
        block.launch->request.entry(block.launch->request.args);
        block.leave(thread);
        if (block.live == 0) {
            block.slot->free_stacks.push_back(thread.stack);
            switch_context(thread.context, block.slot->main);
        }
        Thread& next = block.choose();
        if (block.has_started(next)) {
            block.slot->free_stacks.push_back(thread.stack);
            current.thread = &next;
            switch_context(thread.context, next.context);
        }
        block.start(next, thread.stack);
        current.thread = &next;
    }
}

void Block::begin(Launch& new_launch, unsigned new_number) {
    launch = &new_launch;
    number = new_number;
    const Request& request = launch->request;
    const dim3 new_dim(request.block[0], request.block[1], request.block[2]);
    if (new_dim.x != dim.x || new_dim.y != dim.y || new_dim.z != dim.z || threads.empty()) {
        dim = new_dim;
        threads_count = dim.x * dim.y * dim.z;
        threads.resize(std::max<size_t>(threads.size(), threads_count));
        warps.resize((threads_count + 31) / 32);
        for (unsigned i = 0; i < threads_count; ++i) {
            threads[i].number = i;
            threads[i].index = {i % dim.x, i / dim.x % dim.y, i / (dim.x * dim.y)};
        }
    }
    grid = dim3(request.grid[0], request.grid[1], request.grid[2]);
    index = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
    live = threads_count;
    at_barrier = ready_warps = 0;
    barriers = 0;
    last_warp = 0;
    last_lane = 31;
    turns = turns_per_warp;
    for (unsigned i = 0; i < warps.size(); ++i) {
        Warp& warp = warps[i];
        const unsigned lanes = std::min(32u, threads_count - 32 * i);
        warp.present = lanes == 32 ? ~0u : (1u << lanes) - 1;
        warp.ready = warp.started = warp.left = warp.at_barrier = warp.meeting = warp.waiting = warp.spinning =
            warp.open = 0;
        make_ready(i, warp.present);
    }
}

// Takes the next thread to run out of the ready ones.
Thread& Block::choose() {
    if (ready_warps == 0) return choose_when_idle();
    if (launch->request.seeded) {
        last_warp = nth_set_bit(ready_warps, launch->random(std::popcount(ready_warps)));
        const unsigned ready = warps[last_warp].ready;
        last_lane = nth_set_bit(ready, launch->random(std::popcount(ready)));
    } else {
        if (!(ready_warps >> last_warp & 1) || --turns == 0) {
            const unsigned above = ready_warps & (~1u << last_warp);
            last_warp = std::countr_zero(above ? above : ready_warps);
            last_lane = 31;
            turns = turns_per_warp;
        }
        const unsigned ready = warps[last_warp].ready, above = ready & (~1u << last_lane);
        last_lane = std::countr_zero(above ? above : ready);
    }
    Warp& warp = warps[last_warp];
    warp.ready &= ~(1u << last_lane);
    if (warp.ready == 0) ready_warps &= ~(1u << last_warp);
    return threads[32 * last_warp + last_lane];
}

// No thread is ready: the block sleeps until a value has changed that one of them waits for.
Thread& Block::choose_when_idle() {
    for (;;) {
        if (launch->failed) abandon();
        wake_changed();
        if (ready_warps) return choose();
        if (!any_waiting() && !any_spinning()) fail("deadlock: all threads of block " + std::to_string(number) +
                                                    " wait for each other: " + describe());
        slot->sleep();
        if (slot->look) wake_spinning();
    }
}

// Switches from the running thread to `next`, and returns when that thread is chosen again.
void Block::resume(Thread& next) {
    Thread& self = thread();
    if (&next == &self) return;
    if (!has_started(next)) {
        start(next, slot->take_stack());
        prepare_context(next.context, next.stack - stack_bytes, next.stack, run_threads);
    }
    current.thread = &next;
    switch_context(self.context, next.context);
}

// In a seeded order, any thread may run here.
void Block::give_way() {
    if (!launch->request.seeded) return;
    Thread& self = thread();
    make_ready(self.number / 32, bit_of(self));
    wait();
}

void Block::leave(Thread& thread) {
    Warp& warp = warp_of(thread);
    const unsigned bit = bit_of(thread);
    if (at_barrier && launch->request.strict)
        fail("divergent barrier: " + describe_number(thread) + " left while " + describe());
    if (const Group* group = warp.waits_for(bit))
        fail(describe_number(thread) + " left while " + list(thread.number / 32, group->arrived) + " waits for it in " +
             name(group->operation, group->at));
    warp.left |= bit;
    --live;
    if (at_barrier && at_barrier == live) open_barrier();
}

// All have come who still can.
void Block::open_barrier() {
    at_barrier = 0;
    ++barriers;
    for (unsigned i = 0; i < warps.size(); ++i) {
        if (!warps[i].at_barrier) continue;
        make_ready(i, warps[i].at_barrier);
        warps[i].at_barrier = 0;
    }
}

std::string Block::list(unsigned warp, unsigned lanes) const {
    std::vector<unsigned> numbers;
    for (; lanes; lanes &= lanes - 1) numbers.push_back(32 * warp + std::countr_zero(lanes));
    return ranges("thread", numbers);
}

// A thread comes to a group some of whose lanes wait elsewhere or have left: can they still come?
void Block::check_partners(const Thread& self, const Group& group) {
    Warp& warp = warp_of(self);
    const unsigned index = self.number / 32, missing = group.mask & ~group.arrived & ~bit_of(self);
    const std::string mine = describe_number(self) + " in " + name(group.operation, group.at) + " waits for ";
    if (const unsigned left = missing & warp.left) fail(mine + list(index, left) + ", which left before");
    if (const unsigned lanes = missing & warp.at_barrier)
        fail("divergent barrier: " + mine + list(index, lanes) + " in " + name(Operation::syncthreads, barrier_at));
    for (unsigned lanes = missing & warp.meeting; lanes; lanes &= lanes - 1) {
        const Group& other = warp.group_of(lanes & -lanes);
        if (!(other.mask & bit_of(self))) continue;  // those lanes can finish without this one, and then come
        const bool one_place = other.operation == group.operation && same(other.at, group.at);
        fail(std::string("lanes of a warp ") + (one_place ? "give different masks: " : "meet in different places: ") +
             list(index, other.arrived) + " in " + name(other.operation, other.at) + ", " + describe_number(self) +
             " in " + name(group.operation, group.at));
    }
}

void Block::fail_mask(const Thread& self, Operation operation, Location at) {
    fail(describe_number(self) + " is not in the mask that it gives to " + name(operation, at));
}

void Block::fail_sources(const Thread& self, unsigned absent, Location at) {
    fail(name(Operation::shuffle, at) + " reads from " + list(self.number / 32, absent) + ", not in its mask");
}

void Block::fail_barrier(const Thread& self, Location at) {
    fail("divergent barrier: " + describe_number(self) + " in " + name(Operation::syncthreads, at) + " while " +
         describe());
}

// The launcher knows the tensors' names and the library's lines, so the report has their numbers between braces.
void Block::fail_access(const Thread& self, uint64_t address, size_t size, bool is_write, const void* at,
                        const std::string& what) {
    const Request& request = launch->request;
    uint64_t nearest = 0, distance = ~0ull;
    for (uint64_t i = 0; i < request.tensors_count; ++i) {
        const Tensor& t = request.tensors[i];
        const uint64_t away = address < t.begin ? t.begin - address : address >= t.end ? address - t.end : 0;
        if (away < distance) distance = away, nearest = i;
    }
    Dl_info library{};
    dladdr(at, &library);
    const auto offset = reinterpret_cast<uint64_t>(at) - reinterpret_cast<uint64_t>(library.dli_fbase);
    const auto from_begin = request.tensors_count ? static_cast<int64_t>(address - request.tensors[nearest].begin) : 0;
    fail(describe_number(self) + (is_write ? " writes " : " reads ") + std::to_string(size) +
         " bytes " + what + ": {access " + std::to_string(nearest) + " " + std::to_string(from_begin) + " " +
         std::to_string(offset) + "}");
}

bool Block::any_waiting() const {
    return std::any_of(warps.begin(), warps.end(), [](const Warp& warp) { return warp.waiting != 0; });
}

bool Block::any_spinning() const {
    return std::any_of(warps.begin(), warps.end(), [](const Warp& warp) { return warp.spinning != 0; });
}

bool Block::changed() const {
    for (size_t i = 0; i < warps.size(); ++i)
        for (unsigned lanes = warps[i].waiting | warps[i].spinning; lanes; lanes &= lanes - 1)
            if (threads[32 * i + std::countr_zero(lanes)].changed()) return true;
    return false;
}

void Block::wake_changed() {
    for (unsigned i = 0; i < warps.size(); ++i) {
        Warp& warp = warps[i];
        for (unsigned lanes = warp.waiting | warp.spinning; lanes; lanes &= lanes - 1) {
            const unsigned lane = std::countr_zero(lanes), bit = 1u << lane;
            if (!threads[32 * i + lane].changed()) continue;
            warp.waiting &= ~bit;
            warp.spinning &= ~bit;
            make_ready(i, bit);
        }
    }
}

void Block::wake_spinning() {
    slot->look = false;
    for (unsigned i = 0; i < warps.size(); ++i) {
        if (!warps[i].spinning) continue;
        make_ready(i, warps[i].spinning);
        warps[i].spinning = 0;
    }
}

void Block::wait_for(Thread& self, Operation operation, const void* address, unsigned size, uint64_t value, Location at,
                     bool spin) {
    self.operation = operation;
    self.address = address;
    self.size = size;
    self.value = value;
    self.at = at;
    device().watchers(address).fetch_add(1);
    Warp& warp = warp_of(self);
    (spin ? warp.spinning : warp.waiting) |= bit_of(self);
    wait();
    device().watchers(address).fetch_sub(1);
}

std::string Block::describe(const Thread& thread) {
    Warp& warp = warp_of(thread);
    const unsigned bit = bit_of(thread);
    if (warp.left & bit) return "left";
    if (warp.at_barrier & bit) return "in " + name(Operation::syncthreads, barrier_at);
    if (warp.meeting & bit) return "in " + name(warp.group_of(bit).operation, warp.group_of(bit).at);
    if (warp.waiting & bit) return "in " + name(thread.operation, thread.at);
    if (warp.spinning & bit) return "spinning with " + name(thread.operation, thread.at);
    return has_started(thread) ? "running" : "about to start";
}

std::string Block::describe() {
    Grouping grouping;
    for (unsigned i = 0; i < threads_count; ++i) grouping.add(i, describe(threads[i]));
    return grouping.text("thread", " ", ", ");
}

void Block::fail(const std::string& what) {
    {
        std::lock_guard lock(device().mutex);
        launch->fail("block " + std::to_string(number) + ": " + what);
    }
    abandon();
}

// Gives up the block's fibers where they stand; nothing in a kernel needs a destructor.
void Block::abandon() {
    switch_context(thread().context, slot->main);
    std::abort();
}

// ---- A slot ----

std::byte* Slot::take_stack() {
    if (free_stacks.empty()) {
        // A warp's worth at a time, with a page below each stack that an overflow runs into; below all 32 together
        // where there are very many.
        constexpr unsigned warp = 32;
        const bool all_guarded = device().stacks.fetch_add(warp) < guarded_stacks;
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), pitch = page + stack_bytes;
        void* memory = mmap(nullptr, warp * pitch, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        bool good = memory != MAP_FAILED;
        for (unsigned i = 0; good && i < warp; ++i) {
            std::byte* guard = static_cast<std::byte*>(memory) + i * pitch;
            if (all_guarded || i == 0) good = mprotect(guard, page, PROT_NONE) == 0;
            // Tops two cache lines apart: at equal offsets in their pages, 32 lanes would fight for 8 cache ways.
            stacks.push_back(guard + pitch - i * 128);
        }
        if (!good) block.fail("no memory for more thread stacks: use fewer or smaller blocks");
        free_stacks.assign(stacks.rbegin(), stacks.rbegin() + warp);
    }
    std::byte* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
}

void Slot::run_block(Launch& launch, unsigned number) {
    const Request& request = launch.request;
    if (request.dynamic_shared_bytes > shared_size) {
        std::free(shared);
        shared_size = (request.dynamic_shared_bytes + 4095u) & ~4095u;
        shared = static_cast<std::byte*>(std::aligned_alloc(4096, shared_size));
        if (!shared) std::abort();
    }
    std::memset(shared, 0xFF, request.dynamic_shared_bytes);
    if (request.shared_bytes) {
        struct {
            unsigned long module, offset;
        } index = {request.shared_module, 0};
        static_shared = static_cast<std::byte*>(__tls_get_addr(&index));
        std::memset(static_shared, 0xFF, request.shared_bytes);
    }
    tally.begin_launch(request, launch.footprints);
    tally.begin_block();
    block.begin(launch, number);
    block.dynamic_shared = shared;
    current.block = &block;
    Thread& first = block.choose();
    current.thread = &first;
    block.start(first, take_stack());
    prepare_context(first.context, first.stack - stack_bytes, first.stack, run_threads);
    switch_context(main, first.context);
    if (block.live != 0) free_stacks.assign(stacks.rbegin(), stacks.rend());  // abandoned
    current = {};
}

// Memory that a thread may use beside the tensors: shared memory, its own stack, its arguments, what the kernel's own
// library holds beside code, which is constants and globals.
bool Slot::may_access(const Thread& thread, const std::byte* begin, size_t size) const {
    const Request& request = block.launch->request;
    const auto inside = [&](const void* first, size_t bytes) {
        const auto start = static_cast<const std::byte*>(first);
        const auto offset = static_cast<size_t>(begin - start);
        return begin >= start && size <= bytes && offset <= bytes - size;
    };
    if (inside(shared, request.dynamic_shared_bytes) || inside(static_shared, request.shared_bytes)) return true;
    if (inside(thread.stack - stack_bytes, stack_bytes) || inside(request.args, 8 * request.args_count)) return true;
    if (inside(&current, sizeof current)) return true;
    if (inside(current.thread, sizeof(ThreadView)) || inside(current.block, sizeof(BlockView))) return true;
    Dl_info holder{}, own{};
    return dladdr(begin, &holder) && dladdr(reinterpret_cast<const void*>(request.entry), &own) &&
           holder.dli_fbase == own.dli_fbase;
}

// The block has nothing to run until a value changes elsewhere, or until a spin may look again.
void Slot::sleep() {
    Launch& launch = *block.launch;
    std::unique_lock lock(device().mutex);
    if (launch.failed || block.changed()) return;
    asleep = true;
    ++launch.asleep;
    launch.let_others_run(nullptr);
    while (asleep) {
        if (launch.request.seeded) {
            wakeup.wait(lock);
        } else if (wakeup.wait_for(lock, look_again) == std::cv_status::timeout && asleep) {
            if (block.changed() || block.any_spinning()) launch.wake(*this, true);
        }
    }
}

// Runs blocks while invited to.
void Slot::serve(std::unique_lock<std::mutex>& lock) {
    while (invited) {
        invited = false;
        Launch* launch = device().launch;
        if (!launch || launch->failed || launch->room() == 0) return;
        const unsigned next = launch->started++;
        const unsigned number = launch->order.empty() ? next : launch->order[next];
        ++launch->running;
        busy = true;
        lock.unlock();
        run_block(*launch, number);
        lock.lock();
        busy = false;
        --launch->running;
        if (launch->request.tensors) tally.add_to(launch->request.traffic);
        if (launch->request.block_barriers) *launch->request.block_barriers += block.barriers;
        if (block.live == 0) {
            ++launch->finished;
            launch->is_finished[number] = true;
        }
        launch->let_others_run(this);
    }
}

// ---- A launch ----

Launch::Launch(const Request& request)
    : request(request), total(request.grid[0] * request.grid[1] * request.grid[2]), is_finished(total),
      generator(request.seed), footprints(static_cast<unsigned>(request.tensors_count)) {
    if (!request.seeded) return;
    order.resize(total);
    for (unsigned i = 0; i < total; ++i) {
        order[i] = i;
        std::swap(order[i], order[random(i + 1)]);
    }
}

// splitmix64 (Steele, Lea and Flood, 2014)
unsigned Launch::random(unsigned below) {
    uint64_t z = generator += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return static_cast<unsigned>((z ^ (z >> 31)) % below);
}

void Launch::invite(Slot& slot) {
    slot.invited = true;
    slot.wakeup.notify_one();
}

void Launch::invite_another() {
    const auto& slots = device().slots;
    const auto coming = std::count_if(slots.begin(), slots.end(), [](const auto& slot) { return slot->invited; });
    if (coming < room()) invite(device().idle_slot());
}

void Launch::wake(Slot& slot, bool look) {
    slot.asleep = false;
    slot.look = look;
    --asleep;
    slot.wakeup.notify_one();
}

// Under the mutex: a block fell asleep, or finished and left `free_slot`.
void Launch::let_others_run(Slot* free_slot) {
    if (over()) {
        device().slots.front()->wakeup.notify_one();
    } else if (failed) {
        return;
    } else if (request.seeded) {
        if (running == asleep) settle();
    } else if (room() > 0) {
        if (free_slot) invite(*free_slot);
        else invite_another();
    } else if (running > 0 && running == asleep) {
        settle();
    }
}

// Every started block is asleep, so no value changes any more: whoever can go on now does, or nobody ever will.
void Launch::settle() {
    std::vector<Slot*> changed, spinning;
    for (auto& slot : device().slots) {
        if (!slot->asleep) continue;
        if (slot->block.changed()) changed.push_back(slot.get());
        else if (slot->block.any_spinning()) spinning.push_back(slot.get());
    }
    const unsigned startable = room() > 0 ? total - started : 0;
    if (request.seeded && changed.size() + startable > 0) {
        const unsigned pick = random(static_cast<unsigned>(changed.size()) + startable);
        if (pick < changed.size()) wake(*changed[pick], false);
        else invite(device().idle_slot());
        vain_looks = 0;
    } else if (!changed.empty()) {
        for (Slot* slot : changed) wake(*slot, false);
        vain_looks = 0;
    } else if (!spinning.empty() && ++vain_looks < patience) {
        if (request.seeded) spinning = {spinning[random(static_cast<unsigned>(spinning.size()))]};
        for (Slot* slot : spinning) wake(*slot, true);
    } else {
        fail(describe_deadlock());
    }
}

// Under the mutex. Blocks that sleep wake to give up; blocks that run give up when they next wait.
void Launch::fail(const std::string& what) {
    if (failed) return;
    report = std::string("kernel ") + request.name + ": " + what;
    if (request.seeded) report += " (seed " + std::to_string(request.seed) + ")";
    failed = true;
    for (auto& slot : device().slots)
        if (slot->asleep) wake(*slot, false);
}

std::string Launch::describe_deadlock() {
    Grouping grouping;
    std::map<unsigned, std::string> asleep_blocks;
    for (auto& slot : device().slots)
        if (slot->asleep) asleep_blocks[slot->block.number] = slot->block.describe();
    for (unsigned i = 0; i < total; ++i) {
        const auto found = asleep_blocks.find(i);
        grouping.add(i, found != asleep_blocks.end() ? ": " + found->second
                        : is_finished[i]             ? ": all threads have left"
                        : total == 1                 ? " has not started"
                                                     : " not started");
    }
    return "deadlock: nothing that is awaited can still happen: " + grouping.text("block", "", "; ");
}

// ---- The device ----

// A slot that runs nothing and is asked for nothing; a new one with its OS thread if there is none.
Slot& Device::idle_slot() {
    for (auto& slot : slots)
        if (!slot->busy && !slot->invited) return *slot;
    slots.push_back(std::make_unique<Slot>());
    Slot* slot = slots.back().get();
    if (slots.size() > 1) {
        std::thread([this, slot] {
            std::unique_lock lock(mutex);
            for (;;) {
                slot->wakeup.wait(lock, [slot] { return slot->invited; });
                slot->serve(lock);
            }
        }).detach();
    }
    return *slot;
}

void Device::wake_changed() {
    if (launch->request.seeded) return;  // whoever holds the floor keeps it
    std::lock_guard lock(mutex);
    for (auto& slot : slots)
        if (slot->asleep && slot->block.changed()) launch->wake(*slot, false);
}

Block& block() { return static_cast<Block&>(*current.block); }

}  // namespace

// ---- What kernels call ----

uint64_t warp_rendezvous(Operation operation, unsigned mask, uint64_t value, unsigned source, Location at) {
    Block& block = emulator::block();
    Thread& self = block.thread();
    Warp& warp = block.warp_of(self);
    const unsigned lane = self.number % 32, bit = 1u << lane;
    if (!(mask & bit)) block.fail_mask(self, operation, at);
    mask &= warp.present;
    unsigned place = warp.open;
    for (; place; place &= place - 1) {
        const Group& group = warp.groups[std::countr_zero(place)];
        if (group.mask == mask && group.operation == operation && same(group.at, at)) break;
    }
    const bool is_first = place == 0;
    if (is_first) place = ~warp.open;
    Group& group = warp.groups[std::countr_zero(place)];
    if (is_first) {
        warp.open |= place & -place;
        group = {mask, 0, 0, operation, at};
    }
    if ((warp.left | warp.at_barrier | warp.meeting) & mask & ~group.arrived) block.check_partners(self, group);
    group.arrived |= bit;
    warp.brought[lane] = value;
    warp.source[lane] = source;
    group.votes |= value ? bit : 0;
    if (group.arrived != mask) {
        warp.meeting |= bit;
        block.wait();
        return warp.result[lane];
    }
    if (operation == Operation::shuffle) {
        unsigned sources = 0;
        for (unsigned lanes = mask; lanes; lanes &= lanes - 1) {
            const unsigned i = std::countr_zero(lanes);
            sources |= 1u << warp.source[i];
            warp.result[i] = warp.brought[warp.source[i]];
        }
        if (const unsigned absent = sources & ~mask) block.fail_sources(self, absent, at);
    } else {
        for (unsigned lanes = mask; lanes; lanes &= lanes - 1) warp.result[std::countr_zero(lanes)] = group.votes;
    }
    warp.open &= ~(place & -place);
    warp.meeting &= ~mask;
    if (mask != bit) block.make_ready(self.number / 32, mask & ~bit);
    const uint64_t result = warp.result[lane];
    block.give_way();
    return result;
}

void block_barrier(Location at) {
    Block& block = emulator::block();
    Thread& self = block.thread();
    Warp& warp = block.warp_of(self);
    const unsigned bit = Block::bit_of(self);
    if (block.at_barrier == 0) {
        if (block.live != block.threads_count && block.launch->request.strict) block.fail_barrier(self, at);
        block.barrier_at = at;
    } else if (!same(block.barrier_at, at)) {
        block.fail_barrier(self, at);
    }
    if (warp.waits_for(bit)) block.fail_barrier(self, at);
    if (++block.at_barrier < block.live) {
        warp.at_barrier |= bit;
        block.wait();
        return;
    }
    block.open_barrier();
    block.give_way();
}

void wait_for_change(const unsigned* address, unsigned old, unsigned mask, Location at) {
    Block& block = emulator::block();
    block.give_way();
    for (unsigned now; (((now = __atomic_load_n(address, __ATOMIC_SEQ_CST)) ^ old) & mask) == 0;)
        block.wait_for(block.thread(), Operation::wait_while_equal, address, sizeof(unsigned), now, at, false);
}

void stored(const void* address) {
    Block& block = emulator::block();
    block.thread().looks = 0;
    if (block.launch->vain_looks != 0) block.launch->vain_looks = 0;
    if (device().watchers(address) != 0) device().wake_changed();
    block.give_way();
}

void seen(Operation operation, const void* address, unsigned size, uint64_t value, Location at) {
    Block& block = emulator::block();
    Thread& self = block.thread();
    const bool again = address == nullptr || (self.seen_address == address && self.seen_value == value);
    self.seen_address = address;
    self.seen_value = value;
    // A spin over several addresses never sees the same one twice in a row.
    constexpr unsigned many_looks = 64;
    if (again || ++self.looks % many_looks == 0) block.wait_for(self, operation, address, size, value, at, true);
    else block.give_way();
}

void fence() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (block().launch->asleep != 0) device().wake_changed();
}

void accessed(const void* address, size_t size, size_t alignment, bool is_write, const void* instruction) {
    if (!current.block) return;
    Block& block = emulator::block();
    const Request& request = block.launch->request;
    if (!request.tensors) return;
    if (block.launch->failed) block.abandon();  // it may be on its way to where the other one has been refused
    const auto begin = reinterpret_cast<uint64_t>(address);
    const Thread& self = block.thread();
    Tally& tally = block.slot->tally;
    if (begin % alignment) {
        const std::string what = "at an address that " + std::to_string(alignment) + " does not divide";
        block.fail_access(self, begin, size, is_write, instruction, what);
    }
    if (const int tensor = tally.find(begin, size); tensor >= 0) {
        const unsigned warp = self.number / 32;
        tally.count(tensor, begin, size, is_write, reinterpret_cast<uintptr_t>(instruction), warp, self.number % 32,
                    std::popcount(block.warps[warp].present));
    } else if (!block.slot->may_access(self, static_cast<const std::byte*>(address), size)) {
        block.fail_access(self, begin, size, is_write, instruction, "outside every tensor");
    }
}

void trap(Location at) {
    Block& block = emulator::block();
    block.fail(describe_number(block.thread()) + ": __trap at " + at.file_name() + ":" +
               std::to_string(at.line()));
}

const char* luce_launch(const Request* request) {
    static thread_local std::string report;
    Device& device = emulator::device();
    std::lock_guard one_launch(device.one_launch);
    Launch launch(*request);
    std::unique_lock lock(device.mutex);
    if (device.slots.empty()) device.idle_slot();
    device.launch = &launch;
    Slot& own = *device.slots.front();
    unsigned at_once = request->cooperative ? launch.total : device.processors;
    if (request->seeded) at_once = 1;
    own.invited = true;
    for (unsigned i = 1; i < std::min(at_once, launch.room()); ++i) launch.invite_another();
    while (!launch.over()) {
        own.wakeup.wait(lock, [&] { return own.invited || launch.over(); });
        own.serve(lock);
    }
    device.launch = nullptr;
    for (auto& slot : device.slots) slot->invited = false;
    if (!launch.failed) return nullptr;
    for (auto& watchers : device.watched) watchers = 0;
    report = launch.report;
    return report.c_str();
}

void luce_shared_memory(const void* entry, uint64_t* module, uint64_t* bytes) {
    struct Search {
        uintptr_t address;
        uint64_t module = 0, bytes = 0;
    } search{reinterpret_cast<uintptr_t>(entry)};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
            Search& search = *static_cast<Search*>(data);
            bool here = false;
            uint64_t bytes = 0;
            for (int i = 0; i < info->dlpi_phnum; ++i) {
                const auto& segment = info->dlpi_phdr[i];
                const uintptr_t start = info->dlpi_addr + segment.p_vaddr;
                if (segment.p_type == PT_LOAD && search.address >= start && search.address < start + segment.p_memsz)
                    here = true;
                if (segment.p_type == PT_TLS) bytes = segment.p_memsz;
            }
            if (!here) return 0;
            search.module = info->dlpi_tls_modid;
            search.bytes = bytes;
            return 1;
        },
        &search);
    *module = search.module;
    *bytes = search.bytes;
}

}  // namespace emulator

// ---- What a library built for counting calls, in place of the thread sanitizer's own runtime ----

#define LUCE_ACCESS(name, size, alignment, is_write)                                                \
    extern "C" __attribute__((visibility("default"))) void __tsan_##name(void* address) {           \
        emulator::accessed(address, size, alignment, is_write, __builtin_return_address(0));        \
    }
LUCE_ACCESS(read1, 1, 1, false)
LUCE_ACCESS(read2, 2, 2, false)
LUCE_ACCESS(read4, 4, 4, false)
LUCE_ACCESS(read8, 8, 8, false)
LUCE_ACCESS(read16, 16, 16, false)
LUCE_ACCESS(write1, 1, 1, true)
LUCE_ACCESS(write2, 2, 2, true)
LUCE_ACCESS(write4, 4, 4, true)
LUCE_ACCESS(write8, 8, 8, true)
LUCE_ACCESS(write16, 16, 16, true)
// The compiler has made one access of several, or takes them for packed: a GPU does not do them at once.
LUCE_ACCESS(unaligned_read2, 2, 1, false)
LUCE_ACCESS(unaligned_read4, 4, 1, false)
LUCE_ACCESS(unaligned_read8, 8, 1, false)
LUCE_ACCESS(unaligned_read16, 16, 1, false)
LUCE_ACCESS(unaligned_write2, 2, 1, true)
LUCE_ACCESS(unaligned_write4, 4, 1, true)
LUCE_ACCESS(unaligned_write8, 8, 1, true)
LUCE_ACCESS(unaligned_write16, 16, 1, true)

#pragma GCC visibility push(default)
extern "C" {
void __tsan_read_range(void* address, unsigned long size) {
    emulator::accessed(address, size, 1, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, unsigned long size) {
    emulator::accessed(address, size, 1, true, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, unsigned long size) {
    emulator::accessed(from, size, 1, false, __builtin_return_address(0));
    emulator::accessed(to, size, 1, true, __builtin_return_address(0));
    return std::memcpy(to, from, size);
}
void* __tsan_memset(void* to, int value, unsigned long size) {
    emulator::accessed(to, size, 1, true, __builtin_return_address(0));
    return std::memset(to, value, size);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
#pragma GCC visibility pop
