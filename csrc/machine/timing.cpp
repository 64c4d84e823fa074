// timing.cpp: when each machine instruction of each warp issues
//
// A warp runs a piece of a basic block as without a clock, and its accesses are recorded. Then the clock goes through
// the machine instructions of the piece in order. Each issues when its operands, its pipe and an issue slot of its
// quadrant are free. The four quadrants of an SM share the load/store unit and L1. Misses go to L2 and DRAM, which all
// SMs share and where requests queue.
//
// Each SM runs alone through a window of time that is shorter than the latency of L2. Between two windows, L2 serves
// the requests of all SMs in order of their time. So SMs can run on several OS threads, and the result does not depend
// on the number of threads. Atomics and other accesses that other SMs may see run between windows too, one after
// another. That is exact for programs without races: any other value that an SM reads from another was written before
// some synchronisation.
#include "timing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "blocks.h"
#include "control.h"
#include "memory.h"
#include "threads.h"

namespace machine {

namespace {

constexpr double never = std::numeric_limits<double>::infinity();
constexpr uint32_t nobody_id = ~0u;
constexpr uint32_t landed_id = nobody_id - 1;  // for a slot whose load has landed
constexpr int line_bytes = 128, sector_bytes = 32;
constexpr double most_unread = 32 * 1024;  // bytes that DRAM may write in a row before it turns around to reads
constexpr uint64_t few_blocks = 32;    // up to this number a second OS thread does not pay
// Polling loads with no other progress are a deadlock after this many in a row, and so many cycles. The second limit is
// for grids in which every warp polls: no access to memory takes so long, not even behind prefetches of all of L2.
constexpr uint64_t vain_looks = 20'000;
constexpr double vain_cycles = 200'000;

// ---- The kind of each row of a program ----

enum class Act : uint8_t {
    other, enter, access, copy, prefetch, commit,
    // A warp pauses at all of the following.
    barrier, cluster_arrive, cluster_wait, leave, fence, synchronise, wait_for_copies, bulk_copy,
    mbarrier, mbarrier_wait, copies_arrive, local_pause
};

struct RowKind {
    Act act = Act::other;
    Space space = global;
    Form form = Form::wide;
    uint8_t size = 0;  // bytes per lane
    Space to = global;  // bulk_copy: the space that it writes; `space` is the one that it reads
    bool bulk = false;  // commit, wait_for_copies: for bulk copies
    bool all = false;   // wait_for_copies: includes copies in the open group
    bool read = false;  // wait_for_copies: waits only until the sources have been read
    bool parity = false;  // mbarrier_wait: the operand is the parity of the phase
    bool pauses() const { return act >= Act::barrier; }
};

RowKind kind_of(std::string_view name) {
    RowKind kind;
    std::vector<std::string_view> words;
    for (size_t from = 0; from <= name.size();) {
        const size_t to = std::min(name.find('.', from), name.size());
        words.push_back(name.substr(from, to - from));
        from = to + 1;
    }
    const auto is = [&](std::string_view start) { return name.substr(0, start.size()) == start; };
    if (name == "enter") return kind.act = Act::enter, kind;
    if (name == "exit") return kind.act = Act::leave, kind;
    if (name == "fence") return kind.act = Act::fence, kind;
    if (is("bar.warp")) return kind;
    if (is("barrier.cluster.arrive")) return kind.act = Act::cluster_arrive, kind;
    if (is("barrier.cluster.wait")) return kind.act = Act::cluster_wait, kind;
    if (is("bar.") || is("barrier.")) return kind.act = Act::barrier, kind;
    if (name == "cp.async") return kind.act = Act::copy, kind;
    if (name == "prefetch") return kind.act = Act::prefetch, kind;
    if (is("cp.")) {
        const auto has = [&](std::string_view word) { return std::find(words.begin(), words.end(), word) != words.end(); };
        kind.bulk = has("bulk");
        kind.all = has("wait_all");
        kind.read = has("read");
        if (has("commit_group")) return kind.act = Act::commit, kind;
        if (has("wait_group") || has("wait_all")) return kind.act = Act::wait_for_copies, kind;
        if (has("mbarrier")) return kind.act = Act::copies_arrive, kind;
        const size_t to = has("reduce") ? 4 : 3;  // words: cp, perhaps reduce, async, bulk, destination, source
        kind.to = words[to] == "shared" ? shared : global;
        kind.space = words[to + 1] == "shared" ? shared : global;
        return kind.act = Act::bulk_copy, kind;
    }
    if (is("mbarrier.test") || is("mbarrier.try"))
        return kind.act = Act::mbarrier_wait, kind.parity = words.back() == "parity", kind;
    if (is("mbarrier.") && words[1] != "pending_count") return kind.act = Act::mbarrier, kind;
    if (is("griddepcontrol") || is("nanosleep") || is("clock") || is("globaltimer")) return kind.act = Act::local_pause, kind;
    if (!is("ld.") && !is("st.") && !is("atom.")) return kind;
    const bool synchronises = words[1] == "sync", is_atomic = words[0] == "atom";
    const std::string_view space = words[synchronises ? 2 : 1];
    if (space == "param" || space == "const") return kind;
    kind.space = space == "shared" ? shared : space == "local" ? local : space == "gen" ? generic : global;
    uint32_t bits = 0, count = 1;
    for (size_t i = 2; i < words.size(); ++i) {
        const std::string_view word = words[i];
        if (word == "k") kind.form = Form::fixed;
        else if (word == "a32") kind.form = Form::narrow;
        else if (word == "v2") count = 2;
        else if (word == "v4") count = 4;
        else if (word.find("16x2") != word.npos) bits = 32;
        else if (word.size() > 1 && word.find_first_of("0123456789") != word.npos) {
            bits = 0;
            for (char c : word)
                if (c >= '0' && c <= '9') bits = bits * 10 + static_cast<uint32_t>(c - '0');
        }
    }
    kind.size = static_cast<uint8_t>(bits / 8 * count);
    kind.act = (synchronises || is_atomic) && kind.space != shared && kind.space != local ? Act::synchronise
               : synchronises                                                            ? Act::local_pause
                                                                                         : Act::access;
    return kind;
}

// ---- The tags of a cache: lines of 128 bytes with 4 sectors, 16 ways. Of the lines that a cache policy lets go first, the
// least recently used one is evicted; if there is none, of all lines. ----

class Tags {
public:
    struct Line {
        uint64_t number = ~0ull;
        double fill = 0;         // the time at which its last sector arrives
        uint32_t used = 0, epoch = 0;
        uint32_t fetch = nobody_id;  // its request in the SM's current window, if there is one
        uint8_t there = 0, dirty = 0;
        bool evict_first = false;  // as the last read said
    };

    explicit Tags(double bytes) {
        ways_ = 16;
        const auto lines = static_cast<uint64_t>(std::max(bytes / line_bytes, 16.0));
        sets_ = std::max<uint64_t>(lines / ways_, 1);
        lines_.resize(sets_ * ways_);
    }
    // Returns the line, after an eviction if it is new. evicted: the dirty sectors of the evicted line.
    Line& find(uint64_t number, uint8_t& evicted) {
        const uint64_t hash = number * 0x9e3779b97f4a7c15ull;
        Line* set = &lines_[static_cast<uint64_t>((static_cast<unsigned __int128>(hash) * sets_) >> 64) * ways_];
        ++now_;
        Line* oldest = set;
        for (uint32_t i = 0; i < ways_; ++i) {
            if (set[i].number == number && set[i].epoch == epoch_) return set[i].used = now_, evicted = 0, set[i];
            if (before(set[i], *oldest)) oldest = &set[i];
        }
        evicted = oldest->epoch == epoch_ ? oldest->dirty : 0;
        *oldest = Line{};
        oldest->number = number;
        oldest->used = now_;
        oldest->epoch = epoch_;
        return *oldest;
    }
    void clear() { ++epoch_; }

private:
    bool before(const Line& a, const Line& b) const {  // whether a is evicted before b
        if (a.epoch != epoch_ || b.epoch != epoch_) return a.epoch != epoch_;
        return a.evict_first != b.evict_first ? a.evict_first : a.used < b.used;
    }

    uint32_t ways_, now_ = 0, epoch_ = 1;
    uint64_t sets_;
    std::vector<Line> lines_;
};

struct LineSectors {
    uint64_t line;
    uint8_t sectors;
};

}  // namespace

// L2 and DRAM. They serve one request after another, in order of time.
class Device {
public:
    explicit Device(const Times& times) : times_(times), l2_(times.l2_bytes) {}

    double now = 0;  // the time at which the last launch ended

    void begin(Timing* timing) {
        timing_ = timing;
        ports_.assign(static_cast<size_t>(times_.sm_count), 0.0);
        line_free_.clear();
    }

    // An SM requests sectors of a line at `time`. Returns the time at which they arrive.
    double read(Found& found, double time, uint32_t sm, LineSectors at, bool evict_first, bool to_sm) {
        const auto [line, sectors] = at;
        const int count = std::popcount(sectors);
        // The rate of L2 is that of its ports to the SMs. A prefetch sends nothing through them.
        double there = serve(found, time, to_sm ? count : 0) + times_.l2_latency / 2;
        uint8_t evicted;
        Tags::Line& tag = l2_.find(line, evicted);
        if (evicted) write_back(found, time, std::popcount(evicted));
        tag.evict_first = evict_first;
        if (const uint8_t missing = sectors & ~tag.there) {
            const double bytes = sector_bytes * std::popcount(missing);
            dram_free_ = std::max(dram_free_, time) + bytes / times_.dram_bytes_per_cycle + turn(bytes);
            use(dram_free_, bytes);
            found.dram_read += bytes;
            tag.there |= missing;
            tag.fill = std::max(tag.fill, dram_free_ + times_.dram_latency - times_.l2_latency);
            there = std::max(there, dram_free_ + times_.dram_latency);
        } else {
            there = std::max(there, tag.fill + times_.l2_latency / 2);
        }
        if (!to_sm) return there;
        double& port = ports_[sm];
        port = std::max(port, there) + count * sector_bytes / times_.sm_bytes_per_cycle;
        return port;
    }

    // An SM writes sectors of a line. Returns the time at which it knows that L2 has them. An evicted line must have
    // been written back to DRAM by then.
    double write(Found& found, double time, uint64_t line, uint8_t sectors) {
        double taken = serve(found, time, std::popcount(sectors));
        uint8_t evicted;
        Tags::Line& tag = l2_.find(line, evicted);
        if (evicted) taken = std::max(taken, write_back(found, time, std::popcount(evicted)));
        tag.there |= sectors;
        tag.dirty |= sectors;
        return taken + times_.l2_latency / 2;
    }

    // An atomic or a synchronising access to sectors of a line. Returns the time at which its result arrives.
    double synchronise(Found& found, double time, uint32_t sm, LineSectors at, bool is_atomic, int lanes) {
        const uint64_t line = at.line;
        const int sectors = std::popcount(at.sectors);
        // The access must go to the half of L2 that owns the line. A copy in the other half does not help.
        const double way = times_.l2_latency / 2 + (line % 2 == sm % 2 ? 0 : times_.l2_far_extra / 2);
        const double at_slice = serve(found, time, sectors) + way - times_.l2_latency / 2;
        uint8_t evicted;
        Tags::Line& tag = l2_.find(line, evicted);
        if (evicted) write_back(found, time, std::popcount(evicted));
        tag.there = 15;
        // All such accesses to a line go to one slice of L2, which serves one at a time. Polling loads count too.
        double& free = line_free_[line];
        free = std::max(free, at_slice) + (is_atomic ? lanes * times_.atomic_interval : times_.slice_interval);
        const double there = free + way + (is_atomic ? times_.atomic_extra : 0);
        // It does not wait for data that the SM has requested before and that DRAM still holds, because the slices of L2
        // answer in any order. Its own bytes take their time at the port.
        return there + (sectors - 1) * sector_bytes / times_.sm_bytes_per_cycle;
    }

private:
    double serve(Found& found, double time, int sectors) {
        const double bytes = sectors * sector_bytes;
        found.l2_bytes += bytes;
        l2_free_ = std::max(l2_free_, time + times_.l2_latency / 2) + bytes / times_.l2_bytes_per_cycle;
        return l2_free_;
    }
    double write_back(Found& found, double time, int sectors) {
        const double bytes = sectors * sector_bytes;
        dram_free_ = std::max(dram_free_, time) + bytes / times_.dram_bytes_per_cycle;
        use(dram_free_, bytes);
        found.dram_written += bytes;
        unread_ = std::min(unread_ + bytes, most_unread);
        return dram_free_;
    }
    // The extra time for reading `bytes`: DRAM turns around between writes and reads, so a byte read after a byte
    // written costs more.
    double turn(double bytes) {
        const double turned = std::min(bytes, unread_);
        unread_ -= turned;
        return turned * times_.dram_turn;
    }
    void use(double time, double bytes) {
        if (!timing_->bucket) return;
        const auto at = static_cast<size_t>(std::max(0.0, time - timing_->origin) / timing_->bucket);
        if (at >= timing_->dram_use.size()) timing_->dram_use.resize(at + 1);
        timing_->dram_use[at] += static_cast<float>(bytes);
    }

    Times times_;
    Tags l2_;
    Timing* timing_ = nullptr;
    double l2_free_ = 0, dram_free_ = 0;
    double unread_ = 0;  // bytes written to DRAM that no read has followed yet, at most most_unread
    std::vector<double> ports_;
    std::unordered_map<uint64_t, double> line_free_;
};

Device* make_device(const Times& times) { return new Device(times); }
void delete_device(Device* device) { delete device; }

namespace {

// ---- A program's rows, prepared ----

struct Rows {
    const Program* program;
    const Schedule* schedule;
    const uint64_t* addresses;         // the device addresses of the launch's tensors
    std::vector<Ins> code;             // the copy that runs: it records accesses and stops at pauses
    std::vector<RowKind> kinds;        // per row
    std::vector<int32_t> first;        // per row: the first instruction of its piece
    std::vector<int32_t> end;          // per row: the end of its basic block's instructions
    std::vector<int32_t> block_first;  // per row: the first instruction of its basic block
    std::vector<uint16_t> ordinal;     // per row of an access: its number in its basic block
    uint32_t most_ordinals = 0, most_instructions = 0;
};

// ---- Warps with a clock ----

struct Record {
    Space space;
    uint32_t first, count;  // its lines in TimedWarp::lines
    uint32_t passes;        // passes over the banks of shared memory; for a copy, those of its write
    uint32_t lanes;         // number of lanes that take part
    bool far = false;       // true for shared memory of another block in the cluster
};

struct Sm;
struct TimedWarp;
struct TimedCluster;

// An mbarrier. The machine performs a copy earlier than the clock lets it land. So the machine may complete a phase
// before the modelled time of its end. The arrays are indexed by the parity of the phase.
struct Mbarrier {
    uint32_t pending[2] = {};  // number of copies whose landing time is not known yet
    double over[2] = {};       // the time of the latest other arrival
    bool by_copy[2] = {};      // true if that arrival was a copy
    std::vector<TimedWarp*> waiting;
};
struct Phase {
    Mbarrier* barrier;
    uint32_t parity;
};

// A warp's copies between two ends of groups. Here groups belong to a warp, on a GPU to each lane. That makes no
// difference if the lanes of a warp copy together.
struct Batch {
    uint64_t group;
    uint32_t pending = 0;         // number of copies whose landing time is not known yet
    double landed = 0, read = 0;  // when the last of the other copies has landed, and when all sources have been read
    bool closed = false;
    std::vector<Phase> arrivals = {};  // arrivals at mbarriers to be made once all copies have landed
};

struct Copies {
    uint64_t first = 0, group = 0;  // the number of the first batch in `batches`, and of the open group
    std::vector<Batch> batches;     // batches that the warp has not waited for; the last one may be open

    Batch& open() {
        if (batches.empty() || batches.back().closed) batches.push_back({group});
        return batches.back();
    }
    void close() {
        if (!batches.empty()) batches.back().closed = true;
    }
    void commit() {
        close();
        ++group;
    }
    uint64_t number() const { return first + batches.size() - 1; }
    Batch& at(uint64_t number) { return batches[number - first]; }
    // The number of batches before the last `groups` closed groups. With `all`, the number of all batches.
    size_t before(int64_t groups, bool all) const {
        size_t count = 0;
        while (count < batches.size() && (all || batches[count].group + static_cast<uint64_t>(groups) < group)) ++count;
        return count;
    }
    double over(size_t count, bool read) const {
        double when = 0;
        for (size_t i = 0; i < count; ++i) {
            const Batch& batch = batches[i];
            when = std::max(when, read ? batch.read : batch.pending ? never : batch.landed);
        }
        return when;
    }
    bool landed_by(size_t i, double when) const {
        return batches[i].closed && !batches[i].pending && batches[i].landed <= when;
    }
    void drop(size_t count) {
        batches.erase(batches.begin(), batches.begin() + static_cast<ptrdiff_t>(count));
        first += count;
    }
};

enum class State : uint8_t { runs, waits_for_l2, waits_for_copies, waits, ended };
enum class Cause : uint8_t { operand, memory };

struct TimedWarp {
    Warp* w = nullptr;
    Sm* sm = nullptr;
    TimedCluster* cluster = nullptr;
    const Rows* rows = nullptr;
    State state = State::runs;
    uint32_t quadrant = 0;
    double next = 0;        // when its next instruction may issue, without regard to other warps
    double earliest = 0;    // when its previous instruction has finished issuing
    Cause cause = Cause::operand;
    int32_t cursor = 0, end = 0, block_first = 0;
    uint32_t instance = 0;  // number of basic blocks that it has begun
    bool fresh = false, allowed = false;  // may enter a basic block; may run the pause that it is at
    bool vain = false;
    bool fenced = false;    // true after the fence that precedes its release
    double last_store = 0;
    Copies copies[2];       // cp.async; bulk copies of groups
    double arrived = 0;     // when it arrived at a barrier or began to wait for copies
    int32_t arrived_at = 0;
    std::vector<double> local;  // per instruction of its basic block: when the result is ready
    std::vector<uint32_t> local_load;  // per instruction: the load that it waits for
    std::vector<double> slots;  // per register slot: when the value is ready
    std::vector<uint32_t> slot_load;  // per register slot: the load that it waits for
    std::vector<Record> records;
    std::vector<LineSectors> lines;
    std::vector<LineSectors> synchronised;  // the lines of a synchronising access that L2 has not served yet
    std::vector<int16_t> record_of;   // per ordinal
};

// The blocks of a cluster, or one block. Each block is on its own SM.
struct TimedCluster {
    std::unique_ptr<Cluster> cluster;
    std::vector<Sm*> sms;  // by the rank of the block
    std::vector<std::unique_ptr<TimedWarp>> warps;
    double began = 0, ended = 0;
    double opens[2] = {};  // per parity of the phase: the earliest time at which the cluster's barrier may open
    std::unordered_map<const uint8_t*, Mbarrier> mbarriers;  // by their address

    const Block* first() const { return cluster->blocks.front(); }
};

// A bulk copy in flight. The copy engine of an SM requests one line after another.
struct Transfer {
    TimedCluster* cluster;  // null once the cluster has ended
    TimedWarp* warp;
    bool writes;            // true if it writes to L2
    bool evict_first;       // what it reads, in L2
    uint64_t at, end;       // the device addresses still to be requested
    double next, interval;  // the time of the next request; cycles between two requests
    uint32_t pending;       // number of lines requested and not yet there
    double landed;
    uint64_t batch;         // the warp's batch, used if `phases` is empty
    std::vector<Phase> phases;
};

struct Load {
    TimedWarp* warp;
    uint32_t instance, pending;
    int32_t local;          // the instruction, or -1 for a copy
    double ready;
    uint64_t batch;         // of a copy: its batch
};

enum class FetchKind : uint8_t { reading, writing, prefetching, synchronising };

// A request of an SM to L2 in this window, for sectors of a line.
struct Fetch {
    double time;
    uint64_t line;
    uint8_t sectors;
    FetchKind kind;
    bool keep;              // true if L1 keeps the sectors
    bool evict_first;       // in L2
    std::vector<uint32_t> loads;
    TimedWarp* warp;        // set if synchronising or writing
    Transfer* transfer;     // the bulk copy that it belongs to, or null
};

struct Sm {
    uint32_t number = 0;
    double slot_free[quadrants] = {}, pipe_free[quadrants][pipes_count] = {}, unit_free = 0;
    std::unique_ptr<Tags> l1;
    std::vector<TimedWarp*> warps;
    std::vector<std::unique_ptr<TimedCluster>> clusters;  // the clusters whose first block is on this SM
    std::vector<std::unique_ptr<Transfer>> transfers;
    double engine_free = 0;  // when the engine of bulk copies is free
    std::vector<Fetch> fetches;
    size_t fetches_used = 0;
    std::vector<Load> loads;
    std::vector<uint32_t> free_loads;
    double inflight = 0, lines = 0;  // bytes and lines of loads and stores in flight
    std::vector<std::pair<double, double>> landing;  // a heap of (landing time, bytes of a line)
    uint32_t next_quadrant = 0;
    Worker* worker = nullptr;
    Found found = {};
    std::vector<InstructionTimes>* times = nullptr;  // those of its OS thread
    std::vector<Wait> waits;
    uint64_t progress = 0, looks = 0;  // looks: number of mbarrier tests that failed

    // Sectors in flight land at `when`, or L2 accepts them then.
    void lands(double when, uint8_t sectors) {
        landing.push_back({when, sector_bytes * std::popcount(sectors)});
        std::push_heap(landing.begin(), landing.end(), std::greater<>());
    }
};

thread_local TimedWarp* current = nullptr;  // the warp that is running a piece

// ---- Operations that replace others when the clock is on ----

void stop_here(Warp* w, const Ins* p, uint32_t m) {
    w->pc = p;
    w->mask = m;
    w->running = false;
}

void timed_enter(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    TimedWarp* t = current;
    if (!t->fresh) return stop_here(w, p, m);
    if (w->others_count) {
        if (!converge(w, p, m)) return;
        m = w->mask;
    }
    t->fresh = false;
    const int32_t* block = t->rows->schedule->blocks + 2 * p->imm;
    t->block_first = t->cursor = block[0];
    t->end = block[0] + block[1];
    ++t->instance;
    BlockCount& count = w->counts[p->imm];
    ++count.times;
    count.lanes += std::popcount(m);
    NEXT;
}

void timed_pause(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    TimedWarp* t = current;
    if (!t->allowed) return stop_here(w, p, m);
    t->allowed = false;
    return t->rows->program->code[w->at(p)].run(w, p, r, m);
}

void add_sectors(std::vector<LineSectors>& lines, uint32_t first, uint64_t address, uint32_t size) {
    for (uint64_t at = address / sector_bytes; at <= (address + size - 1) / sector_bytes; ++at) {
        const uint64_t line = at / 4;
        const auto bit = static_cast<uint8_t>(1u << at % 4);
        size_t i = lines.size();
        while (i > first && lines[i - 1].line != line) --i;
        if (i > first) lines[i - 1].sectors |= bit;
        else lines.push_back({line, bit});
    }
}

// The difference between the device address and the host address. The device address of a tensor is the same in every
// run. Outside all tensors the result is 0; the access itself will be reported.
uint64_t to_device(Warp* w, const Rows& rows, int32_t site, uint64_t address, uint32_t size) {
    const int tensor = find_tensor(w, site, address, size);
    return tensor < 0 ? 0 : rows.addresses[tensor] - w->block->launch->tensors[tensor].begin;
}

// The block whose shared memory holds a generic or shared address, or null if no block of the cluster does.
Block* shared_block(Warp* w, uint64_t address) {
    const uint64_t rank = (address & ~window_mask) >> rank_shift;  // rank + 1; 0 is the own block
    if (rank == 0) return w->block;
    return w->block->cluster && rank <= cluster_blocks(*w->block->launch) ? w->block->cluster[rank - 1] : nullptr;
}

// The host address of an mbarrier, or null if it is not in shared memory; the access itself will be reported.
uint8_t* mbarrier_at(Warp* w, uint64_t address) {
    Block* block = shared_block(w, address);
    const uint64_t offset = address & ((1u << rank_shift) - 1);
    return block && offset + 8 <= block->shared_bytes ? block->shared + offset : nullptr;
}
// Its word, as defined in memory_async.cpp.
constexpr int parity_bit = 61;
uint64_t word_of(const uint8_t* barrier) {
    uint64_t word;
    memcpy(&word, barrier, sizeof word);
    return word;
}
uint32_t parity_of(const uint8_t* barrier) { return word_of(barrier) >> parity_bit & 1; }
bool is_mbarrier(const uint8_t* barrier) { return word_of(barrier) >> 62 == 2; }

// Stores the record of this row. Its lines are those from record.first on.
void keep(TimedWarp& t, int32_t row, Record record) {
    record.count = static_cast<uint32_t>(t.lines.size()) - record.first;
    t.record_of[t.rows->ordinal[row]] = static_cast<int16_t>(t.records.size());
    t.records.push_back(record);
}

void timed_access(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    TimedWarp* t = current;
    const int32_t row = w->at(p);
    const RowKind& kind = t->rows->kinds[row];
    if (m) {
        Addresses at;
        addresses_of(at, r, p->a, p->imm, kind.form);
        Record record{kind.space, static_cast<uint32_t>(t->lines.size()), 0, 1, static_cast<uint32_t>(std::popcount(m))};
        const uint32_t lane = first_lane(m);
        if (record.space == generic) {
            const uint64_t window = at[lane] & window_mask;
            record.space = window == shared_window ? shared : window == local_window ? local : global;
        }
        record.far = record.space == shared && shared_block(w, at[lane]) != w->block;
        const Pattern pattern = pattern_of(at, m, kind.size);
        if (record.space == shared) {
            record.passes = pattern == Pattern::same  ? 1
                            : pattern == Pattern::row ? passes_of(m, kind.size)
                                                      : wavefronts(at, m, kind.size);
        } else if (record.space == local) {
            // On a GPU, the words of all lanes at one offset of local memory are neighbours: one line.
            const uint64_t of_warp = (uint64_t{w->block->number} * 32 + w->index + 1) << 40;
            for (uint32_t word = 0; word < std::max(kind.size / 4u, 1u); ++word)
                t->lines.push_back({of_warp + (at[lane] & 0xffffff) / 4 + word, 15});
        } else if (pattern == Pattern::same) {
            const uint64_t device = to_device(w, *t->rows, p->c, at[lane], kind.size);
            add_sectors(t->lines, record.first, at[lane] + device, kind.size);
        } else if (pattern == Pattern::row) {
            const uint64_t device = to_device(w, *t->rows, p->c, at[lane], kind.size);
            uint64_t begin = (at[lane] + device) / sector_bytes;
            const uint64_t end = (at[31 - std::countl_zero(m)] + device + kind.size - 1) / sector_bytes + 1;
            while (begin < end) {
                const uint64_t line = begin / 4, stop = std::min(end, line * 4 + 4);
                t->lines.push_back({line, static_cast<uint8_t>(((1u << (stop - begin)) - 1) << begin % 4)});
                begin = stop;
            }
        } else {
            record.passes = wavefronts(at, m, kind.size);  // L1 and shared memory are one memory with the same banks
            for (uint32_t left = m; left; left &= left - 1) {
                const uint64_t address = at[first_lane(left)];
                add_sectors(t->lines, record.first, address + to_device(w, *t->rows, p->c, address, kind.size), kind.size);
            }
        }
        keep(*t, row, record);
    }
    return t->rows->program->code[row].run(w, p, r, m);
}

// cp.async. memory_async.cpp documents its operands.
void timed_copy(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    TimedWarp* t = current;
    const int32_t row = w->at(p);
    if (m) {
        const auto size = static_cast<uint32_t>(p[1].d);
        Addresses from, to;
        addresses_of(from, r, p->a, p[1].imm, Form::wide);
        addresses_of(to, r, p->d, p->imm, p[1].a ? Form::narrow : Form::wide);
        Record record{global, static_cast<uint32_t>(t->lines.size()), 0, wavefronts(to, m, size),
                      static_cast<uint32_t>(std::popcount(m))};
        for (uint32_t left = m; left; left &= left - 1) {
            const uint32_t lane = first_lane(left);
            uint32_t bytes = size;  // number of bytes read; zeros fill the rest
            if (p->b >= 0) bytes = std::min(bytes, lanes<uint32_t>(r, p->b)[lane]);
            if (p[1].b >= 0 && predicate(r, p[1].b) >> lane & 1) bytes = 0;
            if (bytes) add_sectors(t->lines, record.first, from[lane] + to_device(w, *t->rows, p->c, from[lane], bytes), bytes);
        }
        keep(*t, row, record);
    }
    return t->rows->program->code[row].run(w, p, r, m);
}

// A prefetch of a line, or of the number of bytes in b. It loads them into L2, even if the instruction names L1.
void timed_prefetch(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    TimedWarp* t = current;
    const int32_t row = w->at(p);
    if (m) {
        Addresses at;
        addresses_of(at, r, p->a, p->imm, p->a < 0 ? Form::fixed : Form::wide);
        Record record{global, static_cast<uint32_t>(t->lines.size()), 0, 1, static_cast<uint32_t>(std::popcount(m))};
        for (uint32_t left = m; left; left &= left - 1) {
            const uint32_t lane = first_lane(left);
            const uint64_t said = at[lane] + to_device(w, *t->rows, p->c, at[lane], 1);
            if (p->b < 0) add_sectors(t->lines, record.first, said / line_bytes * line_bytes, line_bytes);
            else if (const uint32_t bytes = lanes<uint32_t>(r, p->b)[lane]) add_sectors(t->lines, record.first, said, bytes);
        }
        keep(*t, row, record);
    }
    return t->rows->program->code[row].run(w, p, r, m);
}

Rows prepare(const Program* program, const Schedule* schedule, const uint64_t* addresses) {
    Rows rows;
    rows.program = program;
    rows.schedule = schedule;
    rows.addresses = addresses;
    rows.code.assign(program->code, program->code + program->count + 1);
    rows.kinds.resize(program->count + 1);
    rows.ordinal.resize(program->count + 1);
    rows.first.assign(program->count + 1, 0);
    rows.end.assign(program->count + 1, 0);
    rows.block_first.assign(program->count + 1, 0);
    std::unordered_map<int32_t, RowKind> known;
    std::vector<bool> pauses(program->count + 1);
    for (int32_t i = 0; i < schedule->instructions_count; ++i)
        if (const Instruction& one = schedule->instructions[i]; one.kind == Kind::pause && one.row >= 0) pauses[one.row] = true;
    uint32_t ordinals = 0;
    int32_t block = -1, first = 0;
    for (int32_t row = 0; row < program->count; ++row) {
        const int32_t operation = program->operations[row];
        if (operation >= 0) {
            auto found = known.find(operation);
            if (found == known.end()) found = known.emplace(operation, kind_of(operation_name(operation))).first;
            rows.kinds[row] = found->second;
            if (pauses[row] && !found->second.pauses()) rows.kinds[row].act = Act::local_pause;
        }
        switch (rows.kinds[row].act) {
            case Act::other: break;
            case Act::enter:
                rows.code[row].run = timed_enter;
                block = static_cast<int32_t>(program->code[row].imm);
                first = schedule->blocks[2 * block];
                ordinals = 0;
                break;
            case Act::access:
            case Act::copy:
            case Act::prefetch:
                rows.code[row].run = rows.kinds[row].act == Act::access ? timed_access
                                     : rows.kinds[row].act == Act::copy ? timed_copy
                                                                        : timed_prefetch;
                rows.ordinal[row] = static_cast<uint16_t>(ordinals++);
                rows.most_ordinals = std::max(rows.most_ordinals, ordinals);
                break;
            case Act::commit: break;
            default: rows.code[row].run = timed_pause;
        }
        if (block < 0) continue;
        const int32_t begin = schedule->blocks[2 * block], count = schedule->blocks[2 * block + 1];
        rows.block_first[row] = begin;
        rows.end[row] = begin + count;
        rows.most_instructions = std::max(rows.most_instructions, static_cast<uint32_t>(count));
        rows.first[row] = first;
        if (rows.kinds[row].pauses()) {  // the next piece begins after a pause
            while (first < begin + count && schedule->instructions[first].row != row) ++first;
            if (first < begin + count) ++first;
        }
    }
    for (int32_t i = 0; i < schedule->instructions_count; ++i) {
        const Instruction& one = schedule->instructions[i];
        if (one.joined > 1 && one.row >= 0) rows.kinds[one.row].size = static_cast<uint8_t>(rows.kinds[one.row].size * one.joined);
    }
    return rows;
}

// ---- One SM in one window ----

class Core {
public:
    Core(const Times& times, Timing& timing) : times_(times), timing_(timing) {}

    void begin_warp(Sm& sm, TimedCluster& cluster, Warp& w, const Rows& rows, double time) {
        auto t = std::make_unique<TimedWarp>();
        t->w = &w;
        t->sm = &sm;
        t->cluster = &cluster;
        t->rows = &rows;
        t->quadrant = sm.next_quadrant++ % quadrants;
        t->earliest = time;
        t->local.assign(rows.most_instructions + 1, 0.0);
        t->local_load.assign(rows.most_instructions + 1, nobody_id);
        t->slots.assign(rows.schedule->slots_count + 1, 0.0);
        t->slot_load.assign(rows.schedule->slots_count + 1, nobody_id);
        t->record_of.assign(rows.most_ordinals + 1, -1);
        run_piece(*t, false);
        settle(*t);
        sm.warps.push_back(t.get());
        cluster.warps.push_back(std::move(t));
    }

    void run_window(Sm& sm, double until) {
        for (;;) {
            TimedWarp* best = nullptr;
            double when = until;
            for (TimedWarp* t : sm.warps) {
                if (t->next >= when) continue;
                const double at = issue_time(sm, *t, until);
                if (at < when) best = t, when = at;
            }
            if (!best) break;
            issue(sm, *best, when);
        }
        for (auto& transfer : sm.transfers) ask_on(sm, *transfer, until);
    }

    // Runs a synchronising access, between windows. Its result arrives at `ready`. After a relaxed load the warp goes on
    // at once, so several can be in flight, but the next one is performed no earlier than the next window.
    void run_synchronising(TimedWarp& t, double ready, bool is_atomic, bool is_store, double until) {
        t.state = State::runs;
        const bool relaxed_access = !is_atomic && !(t.w->pc[1].c & (acquire | release | seq_cst));
        if (relaxed_access && !is_store) {
            t.local[t.arrived_at - t.block_first] = ready;
            set_results(t, at(t, t.arrived_at), ready, landed_id);
            t.earliest = std::max(t.earliest, until);
        } else if (!is_store) {
            t.earliest = std::max(t.earliest, ready);
        }
        if (!relaxed_access) t.sm->l1->clear();  // an acquire drops the lines of L1
        t.w->vain = 0;
        run_piece(t, true);
        t.vain = t.w->vain > 0;
        if (!t.vain) ++t.sm->progress;
        settle(t);
        wake_others(t, is_store ? t.earliest : ready);
    }

    // A line of a bulk copy lands at `when`, or L2 accepts it then.
    void line_lands(Transfer& transfer, double when) {
        transfer.landed = std::max(transfer.landed, when + times_.bulk_copy_extra);
        if (--transfer.pending || transfer.at < transfer.end || !transfer.cluster) return;
        if (transfer.phases.empty()) return copy_lands(*transfer.warp, true, transfer.batch, transfer.landed);
        for (Phase phase : transfer.phases) lands(phase, transfer.landed);
    }

    void land(Sm& sm, uint32_t id, double ready) {
        Load& load = sm.loads[id];
        load.ready = std::max(load.ready, ready);
        if (--load.pending) return;
        TimedWarp& t = *load.warp;
        if (load.local < 0) {
            sm.free_loads.push_back(id);
            return copy_lands(t, false, load.batch, load.ready + times_.async_copy_extra);
        }
        if (t.instance == load.instance) t.local[load.local] = load.ready;
        for (size_t slot = 0; slot < t.slot_load.size(); ++slot)
            if (t.slot_load[slot] == id) t.slots[slot] = load.ready, t.slot_load[slot] = landed_id;
        sm.free_loads.push_back(id);
        if (t.state == State::runs && t.next == never) settle(t);
    }

private:
    const Instruction& at(const TimedWarp& t, int32_t i) const { return t.rows->schedule->instructions[i]; }

    double value_of(const TimedWarp& t, int32_t source, bool& of_memory) const {
        if (source == -1) return 0;
        if (source < -1) {
            const double when = t.slots[-2 - source];
            if (t.slot_load[-2 - source] != nobody_id && when > t.earliest) of_memory = true;
            return when;
        }
        const Instruction& from = at(t, t.block_first + source);
        if (from.kind == Kind::free_) return sources_of(t, from, of_memory);
        const double when = t.local[source];
        if ((loads(from) || from.kind == Kind::pause) && when > t.earliest) of_memory = true;  // a relaxed load pauses
        return when;
    }

    double sources_of(const TimedWarp& t, const Instruction& from, bool& of_memory) const {
        double when = 0;
        for (int32_t source : from.sources) {
            if (source == -1) break;
            when = std::max(when, value_of(t, source, of_memory));
        }
        return when;
    }

    // Computes when the warp's next instruction may issue. At the end of a piece it runs the next piece.
    void settle(TimedWarp& t) {
        t.next = never;
        for (;;) {
            if (t.state != State::runs) return;
            if (t.cursor >= t.end) {
                // A pause without a machine instruction costs nothing.
                const bool at_pause = t.w->mask && t.rows->kinds[t.w->at(t.w->pc)].pauses();
                if (!run_piece(t, at_pause)) return;
                continue;
            }
            const Instruction& i = at(t, t.cursor);
            bool of_memory = false;
            if (i.kind == Kind::free_) {
                const double when = sources_of(t, i, of_memory);
                set_results(t, i, when, when == never ? load_of(t, i) : of_memory ? landed_id : nobody_id);
                ++t.cursor;
                continue;
            }
            if (i.kind == Kind::pause && (!t.w->mask || i.row != t.w->at(t.w->pc))) {
                // The warp's lanes are elsewhere: another group of the warp runs, or none can.
                if (!run_piece(t, false)) return;
                continue;
            }
            const double ready = sources_of(t, i, of_memory);
            t.cause = of_memory || ready == never ? Cause::memory : Cause::operand;
            t.next = std::max(t.earliest, ready);
            return;
        }
    }

    static bool loads(const Instruction& i) { return i.kind == Kind::load || i.kind == Kind::bypass; }

    // A load in flight that one of the instruction's sources waits for, or nobody_id. If there are several, it returns
    // the first; the model ignores the others.
    uint32_t load_of(const TimedWarp& t, const Instruction& i) const {
        for (int32_t source : i.sources) {
            if (source == -1) break;
            uint32_t id = nobody_id;
            if (source < -1) {
                if (t.slots[-2 - source] == never) id = t.slot_load[-2 - source];
            } else if (const Instruction& from = at(t, t.block_first + source); from.kind == Kind::free_) {
                id = load_of(t, from);
            } else if (t.local[source] == never) {
                id = t.local_load[source];
            }
            if (id != nobody_id) return id;
        }
        return nobody_id;
    }

    // load: the load that the result waits for if `when` is not known yet.
    void set_results(TimedWarp& t, const Instruction& i, double when, uint32_t load) {
        for (int32_t slot : i.results) {
            if (slot < 0) return;
            t.slots[slot] = when;
            t.slot_load[slot] = load;
        }
    }

    // Runs the warp to its next pause or the end of its basic block, for which it does not need the clock. Returns
    // false if the warp waits or has ended.
    bool run_piece(TimedWarp& t, bool allowed) {
        Warp* w = t.w;
        std::fill(t.record_of.begin(), t.record_of.end(), static_cast<int16_t>(-1));
        t.records.clear();
        t.lines.clear();
        Block* block = w->block;
        const uint32_t bit = 1u << w->index;
        block->ready &= ~bit;
        block->polling &= ~bit;
        if (!w->live) return t.state = State::ended, false;
        if (!wake(w)) return t.state = State::waits, t.next = never, false;
        const int32_t row = w->at(w->pc);
        t.allowed = allowed;
        t.fresh = t.rows->kinds[row].act == Act::enter;
        if (!t.fresh) {
            const int32_t from = allowed ? row + 1 : row;
            t.block_first = t.rows->block_first[from];
            t.cursor = t.rows->first[from];
            t.end = t.rows->end[from];
        }
        w->running = true;
        w->budget = 1 << 30;
        current = &t;
        while (w->running) w->pc->run(w, w->pc, w->r, w->mask);
        if (!w->live) return t.state = State::ended, true;
        bool ready = w->mask != 0, polling = false;
        for (int i = 0; i < w->others_count; ++i) {
            ready |= w->others[i].state == GroupState::ready;
            polling |= w->others[i].state == GroupState::polling;
        }
        if (!ready && !polling) t.state = State::waits;
        return true;
    }

    bool is_access(const Instruction& i) const {
        return i.kind == Kind::load || i.kind == Kind::store || i.kind == Kind::shared_load ||
               i.kind == Kind::shared_store || i.kind == Kind::bypass || i.kind == Kind::shared_atomic ||
               i.kind == Kind::prefetch || copies(i);
    }
    static bool copies(const Instruction& i) { return i.kind == Kind::copy || i.kind == Kind::bypass_copy; }

    bool is_full(const Sm& sm) const {
        return sm.inflight >= times_.inflight_bytes || sm.lines >= times_.inflight_lines;
    }

    double issue_time(Sm& sm, const TimedWarp& t, double until) const {
        const Instruction& i = at(t, t.cursor);
        double when = std::max({t.next, sm.slot_free[t.quadrant], sm.pipe_free[t.quadrant][i.pipe]});
        if (is_access(i)) {
            when = std::max(when, sm.unit_free - times_.queue);
            if ((loads(i) || copies(i) || i.kind == Kind::store) && is_full(sm)) {
                while (!sm.landing.empty() && sm.landing.front().first <= when) {
                    sm.inflight -= sm.landing.front().second;
                    --sm.lines;
                    std::pop_heap(sm.landing.begin(), sm.landing.end(), std::greater<>());
                    sm.landing.pop_back();
                }
                if (is_full(sm))
                    when = std::max(when, sm.landing.empty() ? until : sm.landing.front().first);
            }
        }
        return when;
    }

    // When L2 has everything that the block has written. A fence after these writes begins then.
    double arrived(const Sm& sm, const TimedWarp& one, double when) const {
        for (const TimedWarp* t : sm.warps)
            if (t->w->block == one.w->block) when = std::max(when, t->last_store);
        return when;
    }

    // True for a store or an atomic with release order and gpu scope. The assembler puts a fence before it.
    bool releases(const TimedWarp& t, const Instruction& i) const {
        if (i.kind != Kind::pause || t.rows->kinds[i.row].act != Act::synchronise) return false;
        const int32_t how = t.w->pc[1].c;
        return how & (release | seq_cst) && !(how & scope_cta);
    }

    void issue(Sm& sm, TimedWarp& t, double when) {
        const Instruction& i = at(t, t.cursor);
        InstructionTimes& times = (*sm.times)[t.cursor];
        if (releases(t, i) && !std::exchange(t.fenced, true)) {
            t.earliest = arrived(sm, t, when) + (t.w->pc[1].c & scope_system ? times_.system_fence : times_.fence);
            times.memory += t.earliest - when;
            sm.found.waited[2] += t.earliest - when;
            return settle(t);
        }
        t.fenced = false;
        ++times.issued;
        const double for_operands = t.next - t.earliest, for_slot = when - t.next;
        (t.cause == Cause::memory ? times.memory : times.operand) += for_operands;
        times.slot += for_slot;
        sm.found.waited[0] += for_slot;
        sm.found.waited[t.cause == Cause::memory ? 2 : 1] += for_operands;
        sm.found.issued += i.issues;
        sm.slot_free[t.quadrant] = when + i.issues;
        double& pipe = sm.pipe_free[t.quadrant][i.pipe];
        pipe = std::max(pipe, when) + i.busy;
        t.earliest = when + i.issues;
        const int32_t local = t.cursor - t.block_first;
        if (i.kind == Kind::pause) {
            t.local[local] = when;  // its result is there when the warp goes on, which t.earliest says
            set_results(t, i, when, nobody_id);
            return pause(sm, t, i, when);
        }
        double ready = when + i.latency;
        if (is_access(i)) ready = access(sm, t, i, when, local);
        t.local[local] = ready;
        if (ready != never) set_results(t, i, ready, loads(i) ? landed_id : nobody_id);
        ++t.cursor;
        if (!t.vain) ++sm.progress;
        settle(t);
    }

    double wider(uint32_t size) const {
        return size >= 16 ? times_.load_128_extra : size >= 8 ? times_.load_64_extra : 0;
    }

    double access(Sm& sm, TimedWarp& t, const Instruction& i, double when, int32_t local) {
        const RowKind& kind = t.rows->kinds[i.row];
        if (kind.act == Act::commit) return t.copies[kind.bulk].commit(), when;
        const bool recorded = kind.act == Act::access || kind.act == Act::copy || kind.act == Act::prefetch;
        const int16_t index = recorded ? t.record_of[t.rows->ordinal[i.row]] : -1;
        if (index < 0) {  // no lane took part, or an access that is not recorded, such as ldmatrix
            const double start = std::max(when, sm.unit_free);
            sm.unit_free = start + times_.memory_floor * i.issues;
            return start + times_.shared_latency;
        }
        const Record& record = t.records[index];
        const double start = std::max(when, sm.unit_free);
        if (record.space == shared) {
            const double cycles = std::max<double>(times_.memory_floor, record.passes);
            sm.unit_free = start + cycles;
            const double latency = record.far ? times_.cluster_latency : times_.shared_latency;
            return start + cycles - times_.memory_floor + latency + wider(kind.size);
        }
        const LineSectors* lines = t.lines.data() + record.first;
        const double for_tags = record.count > 2 ? times_.lines_base + record.count / times_.lines_per_cycle : 0;
        const bool copy = copies(i);
        // L1 delivers a value to each lane, even if several lanes load the same word.
        const double cycles = copy ? std::max(times_.memory_floor, for_tags)
                                   : std::max({times_.memory_floor, static_cast<double>(record.passes),
                                               record.lanes * kind.size / times_.l1_bytes_per_cycle, for_tags});
        sm.unit_free = start + cycles;
        // When a copy lands, it is written to shared memory as by a store. The unit's time for that is charged here,
        // because the model cannot reserve the unit for a later time.
        if (copy) sm.unit_free += std::max<double>(times_.memory_floor, record.passes);
        const double at_l1 = start + cycles - times_.memory_floor;
        if (i.kind == Kind::store) {
            for (uint32_t k = 0; k < record.count; ++k) {
                const uint32_t fetch = ask(sm, at_l1, lines[k], FetchKind::writing, false);
                sm.fetches[fetch].warp = &t;
                under_way(sm, lines[k].sectors);
            }
            t.last_store = std::max(t.last_store, at_l1 + times_.l2_latency);
            return at_l1;
        }
        if (i.kind == Kind::prefetch) {
            for (uint32_t k = 0; k < record.count; ++k) ask(sm, at_l1, lines[k], FetchKind::prefetching, false, i.evict_first);
            return at_l1;
        }
        const bool keep = i.kind != Kind::bypass && i.kind != Kind::bypass_copy;
        if (copy) local = -1;
        double ready = at_l1 + times_.l1_latency + wider(kind.size);
        uint32_t id = nobody_id;
        for (uint32_t k = 0; k < record.count; ++k) {
            Tags::Line* tag = nullptr;
            uint8_t missing = lines[k].sectors, evicted;
            if (keep) {
                tag = &sm.l1->find(lines[k].line, evicted);
                const uint8_t there = missing & tag->there;
                sm.found.l1_hits += std::popcount(there);
                missing &= ~tag->there;
                if (there && tag->fetch == nobody_id) ready = std::max(ready, tag->fill);
                if (there && tag->fetch != nobody_id) wait_for(sm, t, i, local, id, tag->fetch);
            }
            if (!missing) continue;
            sm.found.l1_misses += std::popcount(missing);
            const uint32_t fetch = ask(sm, at_l1, {lines[k].line, missing}, FetchKind::reading, keep, i.evict_first);
            if (tag) tag->there |= missing, tag->fetch = fetch;
            wait_for(sm, t, i, local, id, fetch);
            under_way(sm, missing);
        }
        if (id != nobody_id) sm.loads[id].ready = ready;
        if (copy) {
            Batch& batch = t.copies[false].open();
            if (id == nobody_id) batch.landed = std::max(batch.landed, ready + times_.async_copy_extra);
            return at_l1;
        }
        return id == nobody_id ? ready : never;
    }

    void under_way(Sm& sm, uint8_t sectors) {
        sm.inflight += sector_bytes * std::popcount(sectors);
        ++sm.lines;
    }

    uint32_t ask(Sm& sm, double time, LineSectors what, FetchKind kind, bool keep, bool evict_first = false) {
        if (sm.fetches_used == sm.fetches.size()) sm.fetches.emplace_back();
        Fetch& fetch = sm.fetches[sm.fetches_used];
        fetch.time = time;
        fetch.line = what.line;
        fetch.sectors = what.sectors;
        fetch.kind = kind;
        fetch.keep = keep;
        fetch.evict_first = evict_first;
        fetch.loads.clear();
        fetch.warp = nullptr;
        fetch.transfer = nullptr;
        return static_cast<uint32_t>(sm.fetches_used++);
    }

    void wait_for(Sm& sm, TimedWarp& t, const Instruction& i, int32_t local, uint32_t& id, uint32_t fetch) {
        if (id == nobody_id) {
            if (sm.free_loads.empty()) {
                sm.free_loads.push_back(static_cast<uint32_t>(sm.loads.size()));
                sm.loads.emplace_back();
            }
            id = sm.free_loads.back();
            sm.free_loads.pop_back();
            Load& load = sm.loads[id];
            load = {&t, t.instance, 0, local, 0, 0};
            if (local < 0) {
                ++t.copies[false].open().pending;
                load.batch = t.copies[false].number();
            } else {
                t.local_load[local] = id;
                set_results(t, i, never, id);
            }
        }
        std::vector<uint32_t>& loads = sm.fetches[fetch].loads;
        if (!loads.empty() && loads.back() == id) return;
        loads.push_back(id);
        ++sm.loads[id].pending;
    }

    // ---- Helpers for pauses ----

    // Takes the load/store unit for an access that has no record. Returns the time from which it has the unit.
    double take_unit(Sm& sm, double when) {
        const double start = std::max(when, sm.unit_free);
        sm.unit_free = start + times_.memory_floor;
        return start;
    }

    // The result of a pause arrives at `when`.
    void set_answer(TimedWarp& t, const Instruction& i, double when) {
        t.local[t.cursor - t.block_first] = when;
        set_results(t, i, when, nobody_id);
    }

    double fence_of(int64_t how) const {
        return how & scope_system ? times_.system_fence : how & seq_cst ? times_.sc_fence : times_.fence;
    }

    void hold(TimedWarp& t) {
        t.state = State::waits_for_copies;
        t.next = never;
    }
    void let_go_on(TimedWarp& t) {
        t.state = State::runs;
        ++t.sm->progress;
        run_piece(t, true);
        settle(t);
    }

    // The warp has waited since t.earliest and may continue from `when` on. reason: the index in Found::waited.
    void held_until(TimedWarp& t, double when, int reason) {
        const double waited = std::max(0.0, when - t.earliest);
        InstructionTimes& times = (*t.sm->times)[t.arrived_at];
        (reason == 2 ? times.memory : times.barrier) += waited;
        t.sm->found.waited[reason] += waited;
        t.earliest += waited;
    }

    // ---- Waits for groups of copies ----

    // Returns whether the landing time of all copies that the warp waits for is known. If so, the warp may continue
    // from that time on.
    bool copies_there(TimedWarp& t) {
        const Ins* wait = t.w->pc;
        const RowKind& kind = t.rows->kinds[t.w->at(wait)];
        Copies& copies = t.copies[kind.bulk];
        const size_t count = copies.before(wait->imm, kind.all);
        const double over = copies.over(count, kind.read);
        if (over == never) return false;
        if (!kind.read) copies.drop(count);
        held_until(t, over, 2);
        return true;
    }

    void copy_lands(TimedWarp& t, bool bulk, uint64_t number, double when) {
        Batch& batch = t.copies[bulk].at(number);
        batch.landed = std::max(batch.landed, when);
        if (--batch.pending) return;
        for (Phase phase : std::exchange(batch.arrivals, {})) lands(phase, batch.landed);
        const bool waits = t.state == State::waits_for_copies && t.rows->kinds[t.w->at(t.w->pc)].act == Act::wait_for_copies;
        if (waits && copies_there(t)) let_go_on(t);
    }

    // ---- mbarriers ----

    struct Noted {
        uint8_t* at;
        Phase phase;
        bool far;  // true in another block's shared memory
    };
    void note(TimedWarp& t, uint64_t address, std::vector<Noted>& barriers) {
        uint8_t* at = mbarrier_at(t.w, address);
        if (!at || std::any_of(barriers.begin(), barriers.end(), [&](const Noted& one) { return one.at == at; })) return;
        barriers.push_back({at, {&t.cluster->mbarriers[at], parity_of(at)}, shared_block(t.w, address) != t.w->block});
    }

    // The phase that the first lane waits for, and whether the machine has completed it. A null barrier is a fault.
    struct Awaited {
        Phase phase;
        bool over;
    };
    Awaited awaited_by(TimedWarp& t) {
        const Ins* p = t.w->pc;
        const uint32_t lane = first_lane(t.w->mask);
        Addresses at;
        addresses_of(at, t.w->r, p->a, p->imm, p[1].a ? Form::narrow : Form::wide);
        uint8_t* barrier = mbarrier_at(t.w, at[lane]);
        if (!barrier || !is_mbarrier(barrier)) return {{nullptr, 0}, false};
        const uint32_t parity = t.rows->kinds[t.w->at(p)].parity ? lanes<uint32_t>(t.w->r, p[1].b)[lane] & 1
                                                                 : lanes<uint64_t>(t.w->r, p[1].b)[lane] >> parity_bit & 1;
        return {{&t.cluster->mbarriers[barrier], parity}, parity_of(barrier) != parity};
    }

    // Returns whether the end of the phase is known. If so, the warp may continue from that time on. Otherwise try_wait
    // and test_wait both hold the warp: a GPU may do so for try_wait, and a loop around test_wait has the same effect.
    bool go_on(TimedWarp& t, const Awaited& awaited) {
        const auto [barrier, parity] = awaited.phase;
        if (!awaited.over || barrier->pending[parity]) return false;
        held_until(t, barrier->over[parity], barrier->by_copy[parity] ? 2 : 3);
        set_answer(t, at(t, t.cursor), t.earliest + times_.shared_latency);
        return true;
    }

    // Something that the phase needs has arrived.
    void comes(Phase phase, double when, bool copy) {
        Mbarrier& barrier = *phase.barrier;
        if (double& over = barrier.over[phase.parity]; when >= over) over = when, barrier.by_copy[phase.parity] = copy;
        for (TimedWarp* t : std::exchange(barrier.waiting, {})) {
            if (go_on(*t, awaited_by(*t))) let_go_on(*t);
            else barrier.waiting.push_back(t);
        }
    }
    void lands(Phase phase, double when) {
        --phase.barrier->pending[phase.parity];
        comes(phase, when, true);
    }

    // Arrives at the mbarrier when all earlier cp.async of the warp have landed.
    void arrive_behind(TimedWarp& t, Phase phase) {
        Copies& copies = t.copies[false];
        size_t over = 0;
        while (over < copies.batches.size() && copies.landed_by(over, t.earliest)) ++over;
        copies.drop(over);
        for (Batch& batch : copies.batches) {
            if (batch.pending) batch.arrivals.push_back(phase), ++phase.barrier->pending[phase.parity];
            else comes(phase, batch.landed, true);
        }
        copies.close();
    }

    // ---- Bulk copies ----

    // memory_async.cpp documents the operands. Assumptions about the copy engine of an SM: it requests lines at the
    // full rate of the SM's port to L2, however many are in flight, and its accesses to shared memory delay no other
    // access. A reduction is modelled as a write to L2.
    void bulk_copy(Sm& sm, TimedWarp& t, const RowKind& kind, double when, bool evict_first, std::vector<Noted>& barriers) {
        const Ins* p = t.w->pc;
        const auto form = [&](int bit) { return p[1].a & bit ? Form::narrow : Form::wide; };
        Addresses from, to, barrier;
        addresses_of(to, t.w->r, p->d, p->imm, form(1));
        addresses_of(from, t.w->r, p->a, p[1].imm, form(2));
        if (p[1].d >= 0) addresses_of(barrier, t.w->r, p[1].d, p[2].imm, form(4));
        for (uint32_t left = t.w->mask; left; left &= left - 1) {
            const uint32_t lane = first_lane(left), bytes = lanes<uint32_t>(t.w->r, p->b)[lane];
            const bool writes = kind.to == global, on_chip = !writes && kind.space != global;
            const uint64_t address = writes ? to[lane] : from[lane];
            const uint64_t at = on_chip ? 0 : address + to_device(t.w, *t.rows, p->c, address, bytes);
            const double interval = line_bytes / times_.sm_bytes_per_cycle;
            auto transfer = std::make_unique<Transfer>();
            *transfer = {t.cluster, &t, writes, evict_first, at, at + bytes, std::max(when, sm.engine_free), interval, 0, 0, 0, {}};
            sm.engine_free = transfer->next + (bytes + line_bytes - 1) / line_bytes * interval;
            if (p[1].d < 0) {
                Batch& batch = t.copies[true].open();
                ++batch.pending;
                batch.read = std::max(batch.read, sm.engine_free);
                transfer->batch = t.copies[true].number();
            } else {
                const uint32_t ranks = p[1].b < 0 ? 0 : lanes<uint32_t>(t.w->r, p[1].b)[lane] & 0xffff;
                for (uint32_t rank = 0; rank == 0 || ranks >> rank; ++rank) {
                    if (ranks && !(ranks >> rank & 1)) continue;
                    const uint64_t offset = barrier[lane] & ((1u << rank_shift) - 1);
                    const uint64_t place = ranks ? uint64_t{rank + 1} << rank_shift | offset : barrier[lane];
                    note(t, place, barriers);
                    uint8_t* known = mbarrier_at(t.w, place);
                    if (!known) continue;
                    transfer->phases.push_back({&t.cluster->mbarriers[known], parity_of(known)});
                    ++transfer->phases.back().barrier->pending[transfer->phases.back().parity];
                }
            }
            if (!on_chip && bytes) {
                sm.transfers.push_back(std::move(transfer));
                continue;
            }
            transfer->at = transfer->end;
            transfer->pending = 1;
            line_lands(*transfer, sm.engine_free + times_.cluster_latency);
        }
    }

    void ask_on(Sm& sm, Transfer& transfer, double until) {
        for (; transfer.at < transfer.end && transfer.next < until; transfer.next += transfer.interval) {
            const uint64_t line = transfer.at / line_bytes, stop = std::min(transfer.end, (line + 1) * line_bytes);
            const uint64_t first = transfer.at / sector_bytes, end = (stop + sector_bytes - 1) / sector_bytes;
            const auto sectors = static_cast<uint8_t>(((1u << (end - first)) - 1) << first % 4);
            const FetchKind kind = transfer.writes ? FetchKind::writing : FetchKind::reading;
            sm.fetches[ask(sm, transfer.next, {line, sectors}, kind, false, transfer.evict_first)].transfer = &transfer;
            ++transfer.pending;
            transfer.at = stop;
        }
    }

    // ---- A pause ----

    void pause(Sm& sm, TimedWarp& t, const Instruction& i, double when) {
        const RowKind& kind = t.rows->kinds[i.row];
        TimedCluster& cluster = *t.cluster;
        std::vector<Noted> barriers;  // the mbarriers that it may change
        bool looks = false;
        t.arrived = when;
        t.arrived_at = t.cursor;
        switch (kind.act) {
            case Act::synchronise: {
                Addresses at;
                addresses_of(at, t.w->r, t.w->pc->a, t.w->pc->imm, kind.form);
                t.synchronised.clear();
                for (uint32_t left = t.w->mask; left; left &= left - 1) {
                    const uint64_t said = at[first_lane(left)];
                    add_sectors(t.synchronised, 0, said + to_device(t.w, *t.rows, t.w->pc->c, said, kind.size), kind.size);
                }
                const double start = std::max(when, sm.unit_free);
                sm.unit_free = start + times_.memory_floor;
                const uint32_t fetch = ask(sm, start, t.synchronised[0], FetchKind::synchronising, false);
                sm.fetches[fetch].warp = &t;
                t.state = State::waits_for_l2;
                t.next = never;
                return;
            }
            case Act::fence:
                if (const int64_t how = t.w->pc->imm; how & scope_cta) {
                    t.earliest = when + times_.block_fence;
                } else {
                    t.earliest = arrived(sm, t, when) + fence_of(how);
                    sm.l1->clear();
                }
                break;
            case Act::wait_for_copies:
                if (!copies_there(t)) return hold(t);
                break;
            case Act::mbarrier_wait: {
                take_unit(sm, when);
                const Awaited awaited = awaited_by(t);
                if (!awaited.phase.barrier || go_on(t, awaited)) break;
                // The phase is not over. If other lanes of the warp may have to complete it, the wait polls.
                looks = !awaited.over && t.w->others_count;
                if (looks) break;
                awaited.phase.barrier->waiting.push_back(&t);
                return hold(t);
            }
            case Act::bulk_copy: bulk_copy(sm, t, kind, take_unit(sm, when), i.evict_first, barriers); break;
            case Act::mbarrier:
            case Act::copies_arrive: {
                set_answer(t, i, take_unit(sm, when) + times_.shared_latency);
                Addresses at;
                addresses_of(at, t.w->r, t.w->pc->a, t.w->pc->imm, t.w->pc[1].a ? Form::narrow : Form::wide);
                for (uint32_t left = t.w->mask; left; left &= left - 1) note(t, at[first_lane(left)], barriers);
                if (kind.act == Act::copies_arrive)
                    for (const Noted& one : barriers) arrive_behind(t, one.phase);
                break;
            }
            case Act::cluster_arrive: {
                const bool relaxes = t.w->pc->c & relaxed;
                double& opens = cluster.opens[cluster.first()->cluster_phase % 2];
                opens = std::max(opens, relaxes ? when + times_.cluster_barrier_relaxed
                                                : arrived(sm, t, when) + times_.cluster_barrier);
                break;
            }
            case Act::cluster_wait:
                if (t.w->cluster_phase != cluster.first()->cluster_phase)
                    held_until(t, cluster.opens[t.w->cluster_phase % 2], 3);
                break;
            default: break;
        }
        const uint64_t barriers_before = sm.worker->barriers;
        const uint32_t phase = cluster.first()->cluster_phase;
        ++(looks ? sm.looks : sm.progress);
        sm.worker->ticks = static_cast<uint64_t>(when);  // what %clock64 shows
        run_piece(t, true);
        if (kind.act == Act::mbarrier_wait) t.vain = looks;
        for (const Noted& one : barriers)
            if (parity_of(one.at) != one.phase.parity) comes(one.phase, when + (one.far ? times_.cluster_latency : 0), false);
        if (kind.act == Act::barrier && sm.worker->barriers != barriers_before) {
            const double open = when + times_.barrier_base + times_.barrier_per_warp * t.w->block->warps.size();
            t.earliest = std::max(t.earliest, open);
            wake_others(t, open);
        } else if (phase != cluster.first()->cluster_phase) {
            cluster.opens[(phase + 1) % 2] = 0;
            wake_others(t, std::max(when, cluster.opens[phase % 2]));
        } else {
            wake_others(t, when);
        }
        if (t.state == State::ended) {
            t.next = never;
            cluster.ended = std::max(cluster.ended, when);
            return;
        }
        settle(t);
    }
    // Resumes the warps of the block or the cluster that waited and can continue now.
    void wake_others(TimedWarp& one, double when) {
        if (!one.w->block->cluster && !one.w->block->ready) return;
        const TimedWarp* first = nullptr;  // the first to arrive of the warps that waited
        for (auto& other : one.cluster->warps) {
            TimedWarp* t = other.get();
            if (t == &one || t->state != State::waits || !(t->w->block->ready >> t->w->index & 1)) continue;
            const double waited = std::max(0.0, when - t->arrived);
            (*t->sm->times)[t->arrived_at].barrier += waited;
            t->sm->found.waited[3] += waited;
            if (!first || t->arrived < first->arrived) first = t;
            t->state = State::runs;
            t->earliest = std::max(t->earliest, when);
            t->cursor = t->end;  // the end of its piece
            settle(*t);
        }
        if (first && when - first->arrived >= timing_.wait_from)
            one.sm->waits.push_back({static_cast<int32_t>(first->sm->number), static_cast<int32_t>(first->w->block->number),
                                     static_cast<int32_t>(first->w->index), at(*first, first->arrived_at).row,
                                     static_cast<int32_t>(first->w->block->launch->number), first->arrived, when});
    }

    const Times& times_;
    Timing& timing_;
};

// ---- A launch ----

class TimedLaunch {
public:
    TimedLaunch(Launch* launch, std::vector<std::unique_ptr<Worker>>& workers, uint32_t threads, Timing& timing, Device& device,
                const Schedule& schedule, const uint64_t* addresses, double begin)
        : launch_(launch), timing_(timing), device_(device), times_(timing.times), core_(timing.times, timing),
          rows_(prepare(launch->program, &schedule, addresses)),
          threads_(launch->blocks() < few_blocks ? 1 : threads),
          span_(std::min(cluster_blocks(*launch), static_cast<uint32_t>(times_.sm_count))), begin_(begin) {
        launch->code = rows_.code.data();
        sms_.resize(static_cast<size_t>(times_.sm_count));
        instruction_times_.assign(threads_, std::vector<InstructionTimes>(schedule.instructions_count));
        const double l1 = std::max(times_.l1_bytes - static_cast<double>(launch->shared_bytes) * per_sm(), 16.0 * line_bytes);
        for (uint32_t i = 0; i < sms_.size(); ++i) {
            sms_[i] = std::make_unique<Sm>();
            sms_[i]->number = i;
            sms_[i]->l1 = std::make_unique<Tags>(l1);
            sms_[i]->worker = workers[i / span_ % threads_].get();
            sms_[i]->times = &instruction_times_[i / span_ % threads_];
            sms_[i]->unit_free = begin;
        }
        pool_.serial = next_serial_++;
    }

    Found run() {
        clusters_ = launch_->blocks() / cluster_blocks(*launch_);
        // The first blocks go to the SMs in turn, until all SMs are full.
        double time = begin_;
        for (uint32_t k = 0; k < per_sm(); ++k)
            for (size_t i = 0; i + span_ <= sms_.size(); i += span_)
                if (next_ < clusters_) start(*sms_[i], time += times_.block_interval * cluster_blocks(*launch_));
        handed_out_ = time;
        double window = std::min(times_.l2_latency / 2 - 1, 128.0);
        // The SMs of a cluster affect each other only after these latencies, so the window must be shorter.
        if (span_ > 1) window = std::min({window, times_.cluster_latency, times_.cluster_barrier_relaxed});
        window = std::max(16.0, window);
        double until = begin_;
        const std::function<void(uint32_t)> go_on = [&](uint32_t me) {
            for (size_t group = me; group * span_ < sms_.size(); group += threads_)
                for (size_t i = group * span_; i < std::min(sms_.size(), (group + 1) * span_); ++i)
                    core_.run_window(*sms_[i], until);
        };
        Threads& crew = Threads::get(threads_);
        uint64_t seen = 0, looked = 0, vain = 0;
        double moved = begin_;  // the time of the last progress
        while (!(launch_->done() && first_ask() == never) && !launch_->failed->load(std::memory_order_relaxed)) {
            double first = first_ask();
            for (auto& sm : sms_)
                for (TimedWarp* t : sm->warps) first = std::min(first, t->next);
            if (first == never) {
                report_deadlock(launch_, all_blocks());
                break;
            }
            from_ = std::max(until, first);
            until = from_ + window;
            crew.run(threads_, true, go_on);
            serve(until);
            end_blocks(until);
            if (interrupted.load(std::memory_order_relaxed)) report_end(launch_, Fault::interrupted);
            uint64_t progress = 0, looks = 0;
            for (auto& sm : sms_) progress += sm->progress, looks += sm->looks;
            vain = progress == seen ? vain + served_ + looks - looked : 0;
            if (progress != seen) moved = until;
            seen = progress;
            looked = looks;
            if (vain > vain_looks && until > moved + vain_cycles) report_deadlock(launch_, all_blocks());
        }
        for (auto& sm : sms_)
            for (auto& cluster : sm->clusters) end_cluster(pool_, std::move(cluster->cluster));
        return gather();
    }

private:
    uint32_t per_sm() const {
        return std::max<uint32_t>(1, launch_->resident / static_cast<uint32_t>(times_.sm_count));
    }

    // Starts the next cluster, on this SM and the following ones.
    void start(Sm& sm, double time) {
        auto cluster = std::make_unique<TimedCluster>();
        cluster->began = time;
        cluster->cluster = start_cluster(pool_, launch_, sm.worker, next_++, nullptr);
        launch_->next_block.fetch_add(1);
        for (Block* block : cluster->cluster->blocks) {
            cluster->sms.push_back(sms_[sm.number + block->rank % span_].get());
            for (Warp& w : block->warps) core_.begin_warp(*cluster->sms.back(), *cluster, w, rows_, time);
        }
        sm.clusters.push_back(std::move(cluster));
    }

    // The time of the next request of any bulk copy.
    double first_ask() const {
        double first = never;
        for (auto& sm : sms_)
            for (auto& transfer : sm->transfers)
                if (transfer->at < transfer->end) first = std::min(first, transfer->next);
        return first;
    }

    // Serves the SMs' requests to L2 of this window, in order of their time.
    void serve(double until) {
        buckets_.resize(static_cast<size_t>(until - from_) + 64);
        for (uint32_t s = 0; s < sms_.size(); ++s)
            for (uint32_t f = 0; f < sms_[s]->fetches_used; ++f) {
                const double late = std::max(0.0, sms_[s]->fetches[f].time - from_);
                buckets_[std::min(static_cast<size_t>(late), buckets_.size() - 1)].push_back({s, f});
            }
        served_ = 0;
        for (auto& bucket : buckets_) {
            for (auto [s, f] : bucket) serve(*sms_[s], s, f, until);
            bucket.clear();
        }
        for (auto& sm : sms_) {
            sm->fetches_used = 0;
            std::erase_if(sm->transfers, [](const auto& one) { return one->at == one->end && !one->pending; });
        }
    }

    void serve(Sm& sm, uint32_t s, uint32_t f, double until) {
        // Copied, because a warp that runs now may add requests for the next window.
        const double time = sm.fetches[f].time;
        const uint64_t line = sm.fetches[f].line;
        const uint8_t sectors = sm.fetches[f].sectors;
        const bool evict_first = sm.fetches[f].evict_first;
        Transfer* transfer = sm.fetches[f].transfer;
        if (transfer) ++sm.progress;
        switch (sm.fetches[f].kind) {
            case FetchKind::writing: {
                const double taken = device_.write(found_, time, line, sectors);
                if (transfer) return stored_ = std::max(stored_, taken), core_.line_lands(*transfer, taken);
                TimedWarp& t = *sm.fetches[f].warp;
                t.last_store = std::max(t.last_store, taken);
                stored_ = std::max(stored_, taken);
                return sm.lands(taken, sectors);
            }
            case FetchKind::prefetching: device_.read(found_, time, s, {line, sectors}, evict_first, false); return;
            case FetchKind::synchronising: {
                TimedWarp& t = *sm.fetches[f].warp;
                const Ins* pc = t.w->pc;
                const std::string_view name = operation_name(launch_->program->operations[t.w->at(pc)]);
                const bool is_atomic = name.substr(0, 4) == "atom";
                const bool is_store = name.substr(0, 3) == "st.";
                const bool waits = is_atomic || (!is_store && pc[1].c & (acquire | seq_cst));
                // Of an atomic, all lanes are taken to use the first line.
                if (is_atomic) t.synchronised.resize(1);
                double ready = 0;
                for (const LineSectors at : t.synchronised)
                    ready = std::max(ready, device_.synchronise(found_, time, s, at, is_atomic, std::popcount(t.w->mask)));
                ++served_;
                sm.found.waited[2] += waits ? ready - time : 0;
                (*sm.times)[t.cursor].memory += waits ? ready - time : 0;
                core_.run_synchronising(t, ready, is_atomic, is_store, until);
                return;
            }
            default: break;
        }
        const double ready = device_.read(found_, time, s, {line, sectors}, evict_first, true);
        if (transfer) return core_.line_lands(*transfer, ready);
        sm.lands(ready, sectors);
        if (sm.fetches[f].keep) {
            uint8_t evicted;
            Tags::Line& tag = sm.l1->find(line, evicted);
            tag.there |= sectors;
            tag.fill = std::max(tag.fill, ready);
            if (tag.fetch == f) tag.fetch = nobody_id;
        }
        for (uint32_t id : sm.fetches[f].loads) core_.land(sm, id, ready);
    }

    void end_blocks(double until) {
        std::vector<std::pair<TimedCluster*, Sm*>> ended;
        for (auto& sm : sms_)
            for (auto& cluster : sm->clusters)
                if (cluster->cluster->ended()) ended.push_back({cluster.get(), sm.get()});
        std::stable_sort(ended.begin(), ended.end(), [](const auto& a, const auto& b) {
            return a.first->ended < b.first->ended;
        });
        for (auto [cluster, sm] : ended) {
            const double when = cluster->ended;
            last_ = std::max(last_, when);
            for (size_t rank = 0; rank < cluster->sms.size(); ++rank) {
                Sm& own = *cluster->sms[rank];
                std::erase_if(own.warps, [&](const TimedWarp* t) { return t->cluster == cluster; });
                for (auto& transfer : own.transfers)
                    if (transfer->cluster == cluster) transfer->cluster = nullptr;
                if (timing_.wait_from < no_waits)
                    sm->waits.push_back({static_cast<int32_t>(own.number),
                                         static_cast<int32_t>(cluster->cluster->blocks[rank]->number), -1, -1,
                                         static_cast<int32_t>(launch_->number), cluster->began, when});
            }
            end_cluster(pool_, std::move(cluster->cluster));
            std::erase_if(sm->clusters, [&](const auto& own) { return own.get() == cluster; });
            if (next_ < clusters_) {
                handed_out_ = std::max(handed_out_ + times_.block_interval * cluster_blocks(*launch_), when);
                start(*sm, std::max(handed_out_ + times_.block_start, until));
            }
        }
    }

    std::vector<Block*> all_blocks() const {
        std::vector<Block*> blocks;
        for (auto& sm : sms_)
            for (auto& cluster : sm->clusters)
                for (Block* block : cluster->cluster->blocks) blocks.push_back(block);
        return blocks;
    }

    Found gather() {
        found_.begin = begin_;
        found_.end = std::max({begin_, last_, stored_});  // a launch ends when all its writes have arrived
        auto& sum = timing_.instructions[launch_->number];
        sum.assign(rows_.schedule->instructions_count, {});
        for (auto& part : instruction_times_)
            for (size_t i = 0; i < part.size(); ++i) {
                sum[i].issued += part[i].issued;
                sum[i].slot += part[i].slot;
                sum[i].operand += part[i].operand;
                sum[i].memory += part[i].memory;
                sum[i].barrier += part[i].barrier;
            }
        for (auto& sm : sms_) {
            found_.issued += sm->found.issued;
            found_.l1_hits += sm->found.l1_hits;
            found_.l1_misses += sm->found.l1_misses;
            for (int i = 0; i < 4; ++i) found_.waited[i] += sm->found.waited[i];
            timing_.waits.insert(timing_.waits.end(), sm->waits.begin(), sm->waits.end());
        }
        return found_;
    }

    static inline uint64_t next_serial_ = 1ull << 60;  // differs from the numbers of launches without a clock

    Launch* launch_;
    Timing& timing_;
    Device& device_;
    const Times& times_;
    Core core_;
    Rows rows_;
    uint32_t threads_, span_;  // span_: the number of neighbouring SMs of a cluster, all on one OS thread
    double begin_, from_ = 0, last_ = 0, stored_ = 0, handed_out_ = 0;
    BlockPool pool_;
    std::vector<std::unique_ptr<Sm>> sms_;
    std::vector<std::vector<InstructionTimes>> instruction_times_;
    std::vector<std::vector<std::pair<uint32_t, uint32_t>>> buckets_;
    uint64_t next_ = 0, clusters_ = 0, served_ = 0;
    Found found_ = {};
};

}  // namespace

void run_timed(std::vector<std::unique_ptr<Launch>>& launches, std::vector<std::vector<std::unique_ptr<Worker>>>& workers,
               uint32_t threads, Timing& timing, Device* device, const std::function<void(uint32_t)>& ended) {
    std::unique_ptr<Device> own;
    if (!device) own = std::make_unique<Device>(timing.times), device = own.get();
    device->begin(&timing);
    timing.origin = device->now;
    timing.found.assign(launches.size(), {});
    timing.instructions.assign(launches.size(), {});
    double time = device->now;
    for (uint32_t i = 0; i < launches.size() && !launches[i]->failed->load(); ++i) {
        const double begin = time + timing.starts[i];
        timing.found[i] = TimedLaunch(launches[i].get(), workers[i], threads, timing, *device, timing.schedules[i],
                                      timing.addresses[i], begin).run();
        time = device->now = timing.found[i].end;
        ended(i);
    }
}

}  // namespace machine
