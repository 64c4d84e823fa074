// words.cpp: the table of words; see words.h
#include "words.h"

namespace machine {

Words::Page* Words::find_slow(uint64_t number, bool make) {
    auto found = pages_.find(number);
    if (found == pages_.end() && make) found = pages_.emplace(number, std::make_unique<Page>()).first;
    Page* page = found == pages_.end() ? nullptr : found->second.get();
    recent_[number % recent_.size()] = {number, page};
    return page;
}

// Gives each byte of a word its own entry, a copy of the word's.
void Words::split(Page* page, uint32_t index) {
    Word& word = page->words[index];
    auto parts = std::make_unique<std::array<Word, 4>>();
    for (uint32_t i = 0; i < 4; ++i) {
        Word& part = (*parts)[i];
        Write** to = &part.last;
        for (const Write* write = word.last; write; write = write->before) {
            *to = new Write{nullptr, write->who, write->epoch, write->ins, write->value >> 8 * i & 0xff, write->strong,
                            write->scope, write->releases, nullptr};
            if (write->seen) (*to)->seen = std::make_unique<std::vector<Point>>(*write->seen);
            to = &(*to)->before;
        }
        part.read = word.read;
        if (word.reads) part.reads = std::make_unique<std::vector<Read>>(*word.reads);
    }
    word.clear();
    page->is_split[index] = true;
    page->parts[static_cast<uint16_t>(index)] = std::move(parts);
}

void Words::forget(const uint8_t* host, uint64_t size) {
    const auto begin = reinterpret_cast<uint64_t>(host), end = begin + size;
    for (uint64_t at = begin; at < end; at += 4) {
        Page* page = find(at / page_bytes, false);
        if (!page) {
            at |= page_bytes - 4;
            continue;
        }
        const uint32_t index = at % page_bytes / 4;
        page->words[index].clear();
        if (page->is_split[index]) {
            page->is_split[index] = false;
            page->parts.erase(static_cast<uint16_t>(index));
        }
    }
}

void Words::forget_all() {
    pages_.clear();
    recent_ = {};
}

}  // namespace machine
