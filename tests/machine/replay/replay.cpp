// replay.cpp: runs launches of the virtual GPU that another process has recorded (tests/machine/replay/__init__.py)
// An image holds the core's input in the core's structs, with offsets into the image in place of pointers. It also has
// room for everything that the launches write and count.
//
//   replay IMAGE OUTPUT     exit status 2: not an image for this core; 3: memory that a recorded pointer names is taken
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "machine.h"

using namespace machine;

namespace {

// The structs that interface.cpp and core.py share.
struct ProgramText {
    const Ins* code;
    int32_t count, arena_bytes;
    const uint8_t* image;
    int32_t image_at, image_bytes;
    const SpecialSlot* specials;
    int32_t specials_count, shared_bytes, local_bytes, blocks_count, sites_count, parameter_bytes;
    const int32_t *block_lengths, *lines;
};
struct LaunchText {
    Program* program;  // in the image: its number
    const uint8_t* parameters;
    uint32_t grid[3], block[3], cluster[3];
    uint32_t dynamic_shared_bytes, sm_count, resident, cooperative, dependent, strict;
    Tensor* tensors;
    uint32_t tensors_count;
    BlockCount* counts;
    Site* sites;
    void* traffic;
    uint64_t* totals;
};
struct OrderText {
    uint32_t threads, seeded;
    uint64_t seed, instructions;
    uint32_t hostile, races;
    void* trace;
    void* marked;
    uint64_t marked_count;
};

// The structs of the image itself.
struct Header {
    uint64_t magic, names_at, names_count, programs_at, programs_count, runs_at, runs_count;
};
struct Run {
    uint64_t launches_at, launches_count, regions_at, regions_count, order_at, report_at;
};
struct Region {  // memory that a launch may touch, at its address; after_at 0: nothing writes to it
    uint64_t address, size, before_at, after_at;
};
constexpr uint64_t magic = 0x2179616c70657221;

}  // namespace

extern "C" {
int32_t luce_operations(const char** names);
Program* luce_load(const ProgramText* text);
void luce_run(const LaunchText* texts, uint32_t count, const OrderText* order, Report* report);
int32_t luce_size(const char* name);
}

namespace {

std::vector<char> image;

template <class T>
T* at(uint64_t offset) {
    return reinterpret_cast<T*>(image.data() + offset);
}
template <class T>
void locate(T*& pointer) {
    pointer = at<T>(reinterpret_cast<uint64_t>(pointer));
}

[[noreturn]] void end(int status, const char* why, uint64_t which = 0) {
    fprintf(stderr, "%s %#llx\n", why, static_cast<unsigned long long>(which));
    exit(status);
}

// Maps those pages of a region that are not mapped yet.
void map_pages(const Region& region) {
    constexpr uint64_t page = 4096;
    static std::set<uint64_t> mapped;
    for (uint64_t begin = region.address / page * page; begin < region.address + region.size; begin += page) {
        if (!mapped.insert(begin).second) continue;
        void* wanted = reinterpret_cast<void*>(begin);
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
        if (mmap(wanted, page, PROT_READ | PROT_WRITE, flags, -1, 0) != wanted) end(3, "memory is taken:", begin);
    }
}

// Another build registers its instructions in another order, so the image has them by name.
std::vector<int64_t> numbers_of_operations(const Header& header) {
    std::vector<const char*> names(luce_operations(nullptr));
    luce_operations(names.data());
    std::map<std::string, int64_t> numbers;
    for (size_t i = 0; i < names.size(); ++i) numbers[names[i]] = i;
    std::vector<int64_t> found;
    const char* name = at<char>(header.names_at);
    for (uint64_t i = 0; i < header.names_count; ++i, name += strlen(name) + 1) {
        if (!numbers.contains(name)) end(2, (std::string("this core has no ") + name).c_str(), i);
        found.push_back(numbers[name]);
    }
    return found;
}

std::vector<Program*> load_programs(const Header& header) {
    const std::vector<int64_t> numbers = numbers_of_operations(header);
    std::vector<Program*> programs;
    for (uint64_t i = 0; i < header.programs_count; ++i) {
        ProgramText text = at<ProgramText>(header.programs_at)[i];
        locate(text.code), locate(text.image), locate(text.specials), locate(text.block_lengths), locate(text.lines);
        std::vector<Ins> code(text.code, text.code + text.count);
        for (Ins& ins : code) {
            const auto number = reinterpret_cast<int64_t>(ins.run);
            if (number >= 0) ins.run = reinterpret_cast<Op>(numbers[number]);
        }
        text.code = code.data();
        programs.push_back(luce_load(&text));
    }
    return programs;
}

void replay(const Run& run, const std::vector<Program*>& programs) {
    const Region* regions = at<Region>(run.regions_at);
    for (uint64_t i = 0; i < run.regions_count; ++i) {
        map_pages(regions[i]);
        memcpy(reinterpret_cast<void*>(regions[i].address), at<char>(regions[i].before_at), regions[i].size);
    }
    LaunchText* launches = at<LaunchText>(run.launches_at);
    std::vector<std::vector<uint64_t>> bits;  // of bytes that were read or written
    for (uint64_t i = 0; i < run.launches_count; ++i) {
        LaunchText& launch = launches[i];
        launch.program = programs[reinterpret_cast<uint64_t>(launch.program)];
        locate(launch.parameters), locate(launch.tensors), locate(launch.counts), locate(launch.sites);
        launch.traffic = at<char>(reinterpret_cast<uint64_t>(launch.traffic));
        locate(launch.totals);
        for (uint32_t k = 0; k < launch.tensors_count; ++k) {
            Tensor& tensor = launch.tensors[k];
            for (uint64_t** to : {&tensor.read, &tensor.written})
                *to = bits.emplace_back((tensor.end - tensor.begin) / 64 + 2).data();
        }
    }
    luce_run(launches, run.launches_count, at<OrderText>(run.order_at), at<Report>(run.report_at));
    for (uint64_t i = 0; i < run.regions_count; ++i)
        if (const Region& region = regions[i]; region.after_at)
            memcpy(at<char>(region.after_at), reinterpret_cast<const void*>(region.address), region.size);
}

}  // namespace

int main(int, char** arguments) {
    std::ifstream input(arguments[1], std::ios::binary);
    image.assign(std::istreambuf_iterator<char>(input), {});
    const Header& header = *at<Header>(0);
    if (image.size() < sizeof header || header.magic != magic) end(2, "no image:", image.size());
    const std::pair<const char*, size_t> sizes[] = {
        {"ProgramText", sizeof(ProgramText)}, {"LaunchText", sizeof(LaunchText)}, {"OrderText", sizeof(OrderText)},
        {"Tensor", sizeof(Tensor)}, {"Report", sizeof(Report)}, {"Ins", sizeof(Ins)},
    };
    for (const auto& [name, size] : sizes)
        if (luce_size(name) != static_cast<int32_t>(size)) end(2, name, size);
    const std::vector<Program*> programs = load_programs(header);
    for (uint64_t i = 0; i < header.runs_count; ++i) replay(at<Run>(header.runs_at)[i], programs);
    std::ofstream(arguments[2], std::ios::binary).write(image.data(), image.size());
}
