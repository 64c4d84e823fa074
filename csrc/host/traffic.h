// traffic.h: what a kernel's loads and stores move, tensor by tensor, and which of them go astray
// A kernel library built for counting calls __tsan_read4(address) and its like before each access: that is g++'s and
// clang's -fsanitize=thread, with the functions below in place of their runtime. So plain `x[i]` is counted too, and no
// kernel is written differently for it.
//
// Asked     bytes that threads asked for: 32 lanes that read one float ask for 128
// Moved     32 bytes for each sector that a warp's access touches, as a GPU's L1 asks its L2. Lanes of a warp are
//           matched by instruction and by how often each has executed it, which is what they do when they stay together
// Distinct  bytes that were touched at all: the least that has to come from memory once
// Astray    an access outside every tensor, and outside shared memory, stack and constants, ends the launch; so does one
//           at an address that its size does not divide, which a GPU refuses
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <bit>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "host/runtime.h"

namespace emulator {

constexpr uint64_t sector_bytes = 32;

// Which bytes of one tensor have been touched in this launch: a bit each, in pages that exist once touched.
class Footprint {
public:
    ~Footprint() {
        if (uint64_t* bits = bits_.load()) munmap(bits, mapped_);
    }
    // Marks bytes [first, first + size) of a tensor of `total` bytes; returns how many are new.
    uint64_t mark(uint64_t first, uint64_t size, uint64_t total) {
        uint64_t* bits = bits_.load(std::memory_order_acquire);
        if (!bits) bits = map(total);
        uint64_t fresh = 0;
        for (uint64_t byte = first, end = first + size; byte < end;) {
            const uint64_t count = std::min(64 - byte % 64, end - byte);
            const uint64_t mask = (count == 64 ? ~0ull : (1ull << count) - 1) << (byte % 64);
            std::atomic_ref<uint64_t> word(bits[byte / 64]);
            uint64_t old = word.load(std::memory_order_relaxed);
            if (~old & mask) old = word.fetch_or(mask, std::memory_order_relaxed);
            fresh += std::popcount(~old & mask);
            byte += count;
        }
        return fresh;
    }

private:
    uint64_t* map(uint64_t total) {
        const size_t size = (total / 64 + 1) * 8;
        void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) std::abort();
        uint64_t* none = nullptr;
        mapped_ = size;  // the same for all who try
        if (bits_.compare_exchange_strong(none, static_cast<uint64_t*>(memory))) return static_cast<uint64_t*>(memory);
        munmap(memory, size);
        return none;
    }
    std::atomic<uint64_t*> bits_ = nullptr;
    std::atomic<size_t> mapped_ = 0;
};

// The footprints of one launch; read and written apart.
struct Footprints {
    explicit Footprints(unsigned tensors) : read(tensors), written(tensors) {}
    std::vector<Footprint> read, written;
};

// What the blocks on one OS thread moved. Blocks run one after the other there.
class Tally {
public:
    void begin_launch(const Request& request, Footprints& footprints) {
        request_ = &request;
        footprints_ = &footprints;
        traffic_.assign(request.tensors_count, {});
        last_ = 0;
    }
    void begin_block() {
        for (auto& warp : warps_) warp.clear();
    }
    // The tensor that holds these bytes, or -1.
    int find(uint64_t address, uint64_t size) {
        const Tensor* tensors = request_->tensors;
        if (last_ >= request_->tensors_count || address < tensors[last_].begin || address >= tensors[last_].end) {
            const Tensor* end = tensors + request_->tensors_count;
            const Tensor* after =
                std::upper_bound(tensors, end, address, [](uint64_t a, const Tensor& t) { return a < t.begin; });
            if (after == tensors || address >= after[-1].end) return -1;
            last_ = static_cast<unsigned>(after - 1 - tensors);
        }
        return address + size <= tensors[last_].end ? static_cast<int>(last_) : -1;
    }
    void count(unsigned tensor, uint64_t address, uint64_t size, bool is_write, uintptr_t instruction, unsigned warp,
               unsigned lane, unsigned lanes) {
        const Tensor& t = request_->tensors[tensor];
        Traffic& traffic = traffic_[tensor];
        auto& footprint = is_write ? footprints_->written[tensor] : footprints_->read[tensor];
        (is_write ? traffic.asked_write : traffic.asked_read) += size;
        (is_write ? traffic.distinct_write : traffic.distinct_read) +=
            footprint.mark(address - t.begin, size, t.end - t.begin);
        Execution& execution = execution_of(warps_[warp][instruction], lane, lanes);
        for (uint64_t sector = address / sector_bytes; sector <= (address + size - 1) / sector_bytes; ++sector)
            if (execution.add(sector)) (is_write ? traffic.moved_write : traffic.moved_read) += sector_bytes;
    }
    void add_to(Traffic* total) const {
        for (size_t i = 0; i < traffic_.size(); ++i) {
            const Traffic& t = traffic_[i];
            total[i].asked_read += t.asked_read, total[i].asked_write += t.asked_write;
            total[i].moved_read += t.moved_read, total[i].moved_write += t.moved_write;
            total[i].distinct_read += t.distinct_read, total[i].distinct_write += t.distinct_write;
        }
    }

private:
    // One execution of one instruction by a warp: the sectors that its lanes have touched so far.
    struct Execution {
        unsigned char lanes = 0, sectors_count = 0;
        uint64_t sectors[16];  // enough for 32 lanes that read 16 bytes each, side by side
        std::vector<uint64_t> more_sectors;

        bool add(uint64_t sector) {
            const auto end = sectors + sectors_count;
            if (std::find(sectors, end, sector) != end) return false;
            if (sectors_count < std::size(sectors)) return sectors[sectors_count++] = sector, true;
            if (std::find(more_sectors.begin(), more_sectors.end(), sector) != more_sectors.end()) return false;
            return more_sectors.push_back(sector), true;
        }
    };
    struct Instruction {
        std::deque<Execution> open;  // those that some lane has yet to reach
        uint32_t first = 0;          // number of the first of them
        uint32_t executed[32] = {};  // by lane
    };
    // A lane runs ahead of the others until it waits, so a long loop has many open. But lanes that diverged may never
    // reach an execution: beyond this many the first is dropped, its sectors already counted.
    static constexpr size_t most_open = 1 << 16;

    static Execution& execution_of(Instruction& instruction, unsigned lane, unsigned lanes) {
        auto& [open, first, executed] = instruction;
        while (!open.empty() && (open.front().lanes == lanes || open.size() > most_open)) open.pop_front(), ++first;
        const uint32_t number = executed[lane]++;
        if (number < first) executed[lane] = first + 1;
        const uint32_t place = number < first ? 0 : number - first;
        while (open.size() <= place) open.emplace_back();
        ++open[place].lanes;
        return open[place];
    }

    const Request* request_ = nullptr;
    Footprints* footprints_ = nullptr;
    std::vector<Traffic> traffic_;
    unsigned last_ = 0;  // where the last access fell: the next is most often there too
    std::unordered_map<uintptr_t, Instruction> warps_[32];
};

}  // namespace emulator
