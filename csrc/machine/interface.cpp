// interface.cpp: the functions that luce_edu/machine/core.py calls, and the structs that both share
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "memory.h"
#include "scheduler.h"
#include "timing.h"
#include "watchers.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace machine {

namespace {

// Static initialisers fill the registry, in any order of the files. So the first use creates it.
std::vector<Entry>& registry() {
    static std::vector<Entry> entries;
    return entries;
}

void data_slot(Warp* w, const Ins* p, uint8_t*, uint32_t m) { fail(w, p, Fault::unsupported, std::countr_zero(m)); }

}  // namespace

void add_operations(std::initializer_list<Entry> entries) {
    registry().insert(registry().end(), entries.begin(), entries.end());
}

const char* operation_name(int32_t operation) { return registry()[operation].name; }

// A program as Python passes it. In `code`, an index into the registry replaces each function, -1 in a slot.
struct ProgramText {
    const Ins* code;
    int32_t count, arena_bytes;
    const uint8_t* image;
    int32_t image_at, image_bytes;
    const SpecialSlot* specials;
    int32_t specials_count, shared_bytes, local_bytes, blocks_count, sites_count, parameter_bytes;
    const int32_t* block_lengths;
    const int32_t* lines;
};

// Counts of one launch for one tensor. gap: the first range of bytes that it left unwritten, if it wrote any.
struct TensorCount {
    uint64_t asked_read, asked_write, moved_read, moved_write, distinct_read, distinct_write, gap_begin, gap_end;
};

struct LaunchText {
    const Program* program;
    const uint8_t* parameters;
    uint32_t grid[3], block[3], cluster[3];
    uint32_t dynamic_shared_bytes, sm_count, resident, cooperative, dependent, strict;
    const Tensor* tensors;
    uint32_t tensors_count;
    // Results: counts per basic block, per memory instruction and per tensor; then the numbers of barriers and atomics.
    BlockCount* counts;
    Site* sites;
    TensorCount* traffic;
    uint64_t* totals;
};

struct OrderText {
    uint32_t threads, seeded;
    uint64_t seed, instructions;
    uint32_t hostile, races;
    Trace* trace;
    const Marked* marked;
    uint64_t marked_count;
};

EXPORT int32_t luce_operations(const char** names) {
    const auto& entries = registry();
    if (names)
        for (size_t i = 0; i < entries.size(); ++i) names[i] = entries[i].name;
    return static_cast<int32_t>(entries.size());
}

EXPORT Program* luce_load(const ProgramText* text) {
    // The program owns one allocation for each array, which never moves.
    auto copy = [](const auto* from, size_t count) {
        auto to = new std::remove_cvref_t<decltype(*from)>[count + 1]();
        if (count) memcpy(to, from, count * sizeof *from);
        return to;
    };
    Ins* code = copy(text->code, text->count);
    Ins* watched = copy(text->code, text->count);
    auto operations = new int32_t[text->count + 1];
    const auto& entries = registry();
    for (int32_t i = 0; i < text->count; ++i) {
        const auto op = reinterpret_cast<intptr_t>(text->code[i].run);
        operations[i] = static_cast<int32_t>(op);
        code[i].run = op < 0 ? data_slot : entries[op].run;
        watched[i].run = op < 0 ? data_slot : entries[op].watched ? entries[op].watched : entries[op].run;
    }
    code[text->count].run = watched[text->count].run = data_slot;
    return new Program{code, watched, text->count, text->arena_bytes, copy(text->image, text->image_bytes),
                       text->image_at, text->image_bytes, copy(text->specials, text->specials_count),
                       text->specials_count, text->shared_bytes, text->local_bytes, text->blocks_count,
                       copy(text->block_lengths, text->blocks_count), text->sites_count, text->parameter_bytes,
                       operations, copy(text->lines, text->count)};
}

EXPORT void luce_unload(Program* program) {
    delete[] program->code;
    delete[] program->watched;
    delete[] program->image;
    delete[] program->specials;
    delete[] program->block_lengths;
    delete[] program->operations;
    delete[] program->lines;
    delete program;
}

namespace {

std::mutex one_at_a_time;
std::string printed;

void on_interrupt(int) { interrupted.store(true); }

// While launches run, Ctrl-C ends them. Python's own handler does not see the signal.
class Interrupts {
public:
    Interrupts() {
        interrupted.store(false);
        active_ = syscall(SYS_gettid) == getpid();
        if (!active_) return;
        struct sigaction ours = {};
        ours.sa_handler = on_interrupt;
        sigaction(SIGINT, nullptr, &before_);
        active_ = before_.sa_handler != SIG_IGN;
        if (active_) sigaction(SIGINT, &ours, nullptr);
    }
    ~Interrupts() {
        if (active_) sigaction(SIGINT, &before_, nullptr);
    }

private:
    bool active_;
    struct sigaction before_;
};

}  // namespace

namespace {

// Counts and clears the bits of [from, to).
uint64_t count_and_clear(uint64_t* bits, uint64_t from, uint64_t to) {
    uint64_t sum = 0;
    for (uint64_t word = from / 64; word < (to + 63) / 64; ++word) {
        sum += std::popcount(bits[word]);
        bits[word] = 0;
    }
    return sum;
}

// Finds the first range of unwritten bytes in [0, total). No byte outside [low, high) was written.
void find_gap(const uint64_t* bits, uint64_t low, uint64_t high, uint64_t total, TensorCount& count) {
    auto is_written = [&](uint64_t byte) { return byte >= low && byte < high && (bits[byte / 64] >> byte % 64 & 1); };
    uint64_t at = low > 0 ? 0 : low;
    while (at < high && is_written(at)) at += bits[at / 64] == ~0ull && at % 64 == 0 ? 64 : 1;
    at = std::min(at, total);
    if (at == total) return;
    count.gap_begin = at;
    while (at < total && !is_written(at)) {
        if (at < low) at = low;
        else if (at >= high) at = total;
        else ++at;
    }
    count.gap_end = at;
}

// Adds the counts of all OS threads for a launch to Python's arrays, and clears the tensors' bits.
void add_up(const LaunchText& text, const Launch& launch, const std::vector<std::unique_ptr<Worker>>& workers) {
    std::vector<Traffic> extents(text.tensors_count);
    for (const auto& worker : workers) {
        for (size_t k = 0; k < worker->counts.size(); ++k) {
            text.counts[k].times += worker->counts[k].times;
            text.counts[k].lanes += worker->counts[k].lanes;
        }
        for (size_t k = 0; k < worker->sites.size(); ++k) {
            Site& to = text.sites[k];
            const Site& from = worker->sites[k];
            to.times += from.times, to.lanes += from.lanes, to.bytes += from.bytes;
            to.sectors += from.sectors, to.wavefronts += from.wavefronts;
        }
        for (size_t k = 0; k < worker->traffic.size(); ++k) {
            TensorCount& to = text.traffic[k];
            const Traffic& from = worker->traffic[k];
            to.asked_read += from.asked_read, to.asked_write += from.asked_write;
            to.moved_read += from.moved_read, to.moved_write += from.moved_write;
            if (from.high) extents[k].extend(from.low, from.high - from.low);
        }
        text.totals[0] += worker->barriers;
        text.totals[1] += worker->atomics;
    }
    for (size_t k = 0; k < extents.size(); ++k) {
        const Tensor& tensor = launch.tensors[k];
        TensorCount& count = text.traffic[k];
        const auto [low, high] = std::pair(extents[k].low, extents[k].high);
        if (!high) continue;
        if (count.asked_write) find_gap(tensor.written, low, high, tensor.end - tensor.begin, count);
        if (count.asked_read) count.distinct_read = count_and_clear(tensor.read, low, high);
        if (count.asked_write) count.distinct_write = count_and_clear(tensor.written, low, high);
    }
}

}  // namespace

namespace {

// The launches of a run, and for each launch one worker per OS thread.
struct Run {
    std::atomic<uint32_t> failed = 0;
    std::vector<std::unique_ptr<Launch>> launches;
    std::vector<std::vector<std::unique_ptr<Worker>>> workers;

    Run(const LaunchText* texts, uint32_t count, uint32_t threads, Watcher* watcher, Report* report) : workers(count) {
        memset(report, 0, sizeof *report);
        for (uint32_t i = 0; i < count; ++i) {
            const LaunchText& text = texts[i];
            auto launch = std::make_unique<Launch>();
            launch->program = text.program;
            launch->parameters = text.parameters;
            for (int k = 0; k < 3; ++k)
                launch->grid[k] = text.grid[k], launch->block[k] = text.block[k], launch->cluster[k] = text.cluster[k];
            launch->dynamic_shared_bytes = text.dynamic_shared_bytes;
            // Dynamic memory begins at a multiple of 16. Without it, the size is exactly the static size.
            launch->shared_bytes = text.dynamic_shared_bytes
                                       ? (text.program->shared_bytes + 15) / 16 * 16 + text.dynamic_shared_bytes
                                       : text.program->shared_bytes;
            launch->tensors = text.tensors;
            launch->tensors_count = text.tensors_count;
            launch->sm_count = text.sm_count;
            launch->resident = text.resident;
            launch->cooperative = text.cooperative;
            launch->dependent = text.dependent;
            launch->strict = text.strict;
            launch->number = i;
            launch->watcher = watcher;
            launch->code = watcher ? text.program->watched : text.program->code;
            launch->failed = &failed;
            launch->predecessor = nullptr;
            launch->report = report;
            for (uint32_t t = 0; t < threads; ++t) {
                auto worker = std::make_unique<Worker>();
                worker->launch = launch.get();
                worker->watcher = watcher;
                worker->counts.resize(text.program->blocks_count);
                worker->sites.resize(text.program->sites_count);
                worker->traffic.resize(text.tensors_count);
                worker->last_tensor.resize(text.program->sites_count);
                workers[i].push_back(std::move(worker));
            }
            launches.push_back(std::move(launch));
        }
    }
    ~Run() {
        printed.clear();
        for (const auto& of_launch : workers)
            for (const auto& worker : of_launch) printed += worker->printed;
    }
};

}  // namespace

// Runs launches to their end. The fault of `report` is 0 if there was none.
EXPORT void luce_run(const LaunchText* texts, uint32_t count, const OrderText* order, Report* report) {
    std::lock_guard lock(one_at_a_time);
    std::unique_ptr<Watcher> watcher =
        make_watcher(order->hostile, order->races, order->seed, order->marked, order->marked_count);
    const uint32_t threads = order->seeded || watcher ? 1 : order->threads;
    Run run(texts, count, threads, watcher.get(), report);
    Interrupts guard;
    auto ended = [&](uint32_t i) { add_up(texts[i], *run.launches[i], run.workers[i]); };
    machine::run(run.launches, run.workers, {threads, order->seeded || watcher, order->seed, order->instructions}, order->trace,
                 ended);
}

// A device for runs with the clock. Its L2 keeps its contents from run to run.
EXPORT Device* luce_device(const Times* times) { return make_device(*times); }
EXPORT void luce_free_device(Device* device) { delete_device(device); }

// The input and results of the clock for one launch. `instructions` has one entry per instruction of the schedule.
struct TimedText {
    Schedule schedule;
    const uint64_t* addresses;  // the device addresses of its tensors
    double start;  // cycles from the end of the previous launch
    Found found;
    InstructionTimes* instructions;
};

// The same as luce_run with the clock on. Of the last launch, waits of `wait_from` cycles or more go to `waits`, at
// most `waits_count` of them, which becomes how many there were; what DRAM moved in each `bucket` cycles to dram_use.
struct ClockText {
    Times times;
    double wait_from, bucket;
    Wait* waits;
    float* dram_use;
    uint64_t waits_count, dram_count;
};

EXPORT void luce_time(const LaunchText* texts, TimedText* timed, uint32_t count, ClockText* clock, Device* device, uint32_t threads,
                      Report* report) {
    std::lock_guard lock(one_at_a_time);
    Run run(texts, count, threads, nullptr, report);
    Timing timing;
    timing.times = clock->times;
    timing.wait_from = clock->wait_from;
    timing.bucket = clock->bucket;
    for (uint32_t i = 0; i < count; ++i) {
        timing.schedules.push_back(timed[i].schedule);
        timing.addresses.push_back(timed[i].addresses);
        timing.starts.push_back(timed[i].start);
    }
    {
        Interrupts guard;
        run_timed(run.launches, run.workers, threads, timing, device,
                  [&](uint32_t i) { add_up(texts[i], *run.launches[i], run.workers[i]); });
    }
    for (uint32_t i = 0; i < count; ++i) {
        timed[i].found = timing.found[i];
        if (timed[i].instructions) std::copy(timing.instructions[i].begin(), timing.instructions[i].end(), timed[i].instructions);
    }
    const uint64_t waits = std::min<uint64_t>(clock->waits_count, timing.waits.size());
    std::copy_n(timing.waits.begin(), waits, clock->waits);
    clock->waits_count = timing.waits.size();
    const uint64_t buckets = std::min<uint64_t>(clock->dram_count, timing.dram_use.size());
    std::copy_n(timing.dram_use.begin(), buckets, clock->dram_use);
    clock->dram_count = timing.dram_use.size();
}

// The text that the kernels of the last luce_run printed.
EXPORT const char* luce_printed() { return printed.c_str(); }

// The sizes of the structs, with which Python checks its own definitions.
EXPORT int32_t luce_size(const char* name) {
    static const std::map<std::string, size_t> sizes = {
        {"Ins", sizeof(Ins)}, {"ProgramText", sizeof(ProgramText)}, {"LaunchText", sizeof(LaunchText)},
        {"OrderText", sizeof(OrderText)}, {"Report", sizeof(Report)}, {"Tensor", sizeof(Tensor)},
        {"Traffic", sizeof(Traffic)}, {"Site", sizeof(Site)}, {"BlockCount", sizeof(BlockCount)}, {"Trace", sizeof(Trace)},
        {"Marked", sizeof(Marked)},
        {"Times", sizeof(Times)}, {"TimedText", sizeof(TimedText)}, {"ClockText", sizeof(ClockText)}, {"Wait", sizeof(Wait)},
        {"Instruction", sizeof(Instruction)}, {"InstructionTimes", sizeof(InstructionTimes)},
    };
    const auto found = sizes.find(name);
    return found == sizes.end() ? -1 : static_cast<int32_t>(found->second);
}

}  // namespace machine
