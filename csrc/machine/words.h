// words.h: the history of each word of global and shared memory: its last writes, and the reads since
// A word is 4 bytes. After an access to a part of it, each of its bytes has its own entry.
#pragma once

#include <array>
#include <bitset>
#include <memory>
#include <unordered_map>
#include <vector>

#include "clocks.h"

namespace machine {

struct Write {
    Write* before = nullptr;  // the previous write, if it is still kept
    Who who = nobody;         // nobody: the initial value
    uint32_t epoch = 0;
    int32_t ins = -1;
    uint32_t value = 0;       // the value of the word, or of the byte
    bool strong = false;      // atomic, relaxed, release, volatile
    Scope scope = gpu;
    Ref<Releases> releases;
    // Strong reads that saw this write without an acquire. A thread that knows one of them knows of this write.
    std::unique_ptr<std::vector<Point>> seen;
};

// Reads by lanes of one warp in one epoch.
struct Read {
    uint32_t warp = 0;  // the Who of lane 0, divided by 32
    uint32_t lanes = 0;
    uint32_t epoch = 0;
    int32_t ins = -1;
    bool strong = false;
    Scope scope = gpu;
};

struct Word {
    Write* last = nullptr;
    Read read;
    std::unique_ptr<std::vector<Read>> reads;  // further reads

    ~Word() { clear(); }
    void clear() {
        while (Write* write = last) last = write->before, delete write;
        read = {};
        reads.reset();
    }
};

class Words {
public:
    // Calls f(word, at, shift, bytes) for each word of a range. `at` is the offset in the range, `shift` the offset in
    // the word. Without `all` it leaves out words that have no entry; with `all` it creates entries.
    template <class F>
    void each(const uint8_t* host, uint64_t size, bool all, F f) {
        const auto begin = reinterpret_cast<uint64_t>(host), end = begin + size;
        for (uint64_t at = begin; at < end;) {
            const uint64_t page_end = (at | (page_bytes - 1)) + 1, here = end < page_end ? end : page_end;
            Page* page = find(at / page_bytes, all);
            if (!page) {
                at = here;
                continue;
            }
            while (at < here) {
                const uint32_t index = at % page_bytes / 4, shift = at % 4;
                const auto bytes = static_cast<uint32_t>(here - at < 4 - shift ? here - at : 4 - shift);
                if (all && bytes < 4 && !page->is_split[index]) split(page, index);
                if (__builtin_expect(page->is_split[index], 0)) {
                    auto& parts = *page->parts[static_cast<uint16_t>(index)];
                    for (uint32_t i = 0; i < bytes; ++i) f(parts[shift + i], at - begin + i, 0u, 1u);
                } else f(page->words[index], at - begin, shift, bytes);
                at += bytes;
            }
        }
    }

    // Forgets a range of whole words.
    void forget(const uint8_t* host, uint64_t size);
    void forget_all();

private:
    static constexpr uint64_t page_bytes = 4096;
    struct Page {
        std::array<Word, page_bytes / 4> words;
        std::bitset<page_bytes / 4> is_split;
        std::unordered_map<uint16_t, std::unique_ptr<std::array<Word, 4>>> parts;
    };

    Page* find(uint64_t number, bool make) {
        auto& [known, page] = recent_[number % recent_.size()];
        if (known == number && (page || !make)) return page;
        return find_slow(number, make);
    }
    Page* find_slow(uint64_t number, bool make);
    static void split(Page* page, uint32_t index);

    std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
    std::array<std::pair<uint64_t, Page*>, 256> recent_{};  // a cache of pages; null: the page does not exist
};

}  // namespace machine
