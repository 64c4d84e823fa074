// A libcuda.so.1 for tests: the real cuda-core loads it in place of NVIDIA's. It runs no kernel.
//
// It has the functions that luce_edu's cuda backend calls through cuda-core 1.2. A call of any other function ends the
// process with that function's name.
// Kernels, their parameters and registers are read from the cubin that is loaded, which is NVRTC's own.
// Each launch becomes a line of JSON in fake_log(), with the bytes of every argument, cut by the kernel's own sizes.
// fake_set() chooses what the device can do, and which function fails with which error.
#include <cuda.h>
#include <elf.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

struct Parameter { size_t offset, size; };
struct Kernel {
    std::string name;
    int registers = 0, static_shared = 0;
    int asked_shared = -1;  // the most dynamic shared memory of a launch; -1: what every block may have, 48 KiB in all
    std::vector<Parameter> parameters;
};
struct Library { std::map<std::string, Kernel> kernels; };

// What fake_set() can change. A name of a driver function holds the CUresult that its next call returns.
std::map<std::string, int> settings = {
    {"devices", 1}, {"major", 9}, {"minor", 0}, {"multiprocessors", 132}, {"driver", 13000},
    {"cooperative", 1}, {"capturing", 0}, {"dependent_in_capture", 1}, {"shared_optin", 227 * 1024},
};
std::string launches;  // lines of JSON
std::string calls;     // names of the functions called, one a line
CUcontext primary = reinterpret_cast<CUcontext>(0x1000), current = nullptr;

// Attributes of .nv.info, found in NVRTC's cubins; checks.py compares what they give with the kernels' declarations and
// with ptxas's report.
constexpr unsigned char FORMAT_SIZED = 4, REGISTER_COUNT = 0x2f, PARAMETER = 0x17;

template <class Each>
void each_attribute(const unsigned char* info, size_t size, Each each) {
    for (size_t at = 0; at + 4 <= size;) {
        const bool sized = info[at] == FORMAT_SIZED;
        const size_t bytes = sized ? info[at + 2] | info[at + 3] << 8 : 0;
        if (sized) each(info[at + 1], info + at + 4);
        at += 4 + bytes;
    }
}

template <class T>
T read(const unsigned char* at) { T value; std::memcpy(&value, at, sizeof value); return value; }

// Sections .nv.info.NAME hold a kernel's parameters, .nv.info every kernel's registers by symbol.
Library* load(const void* image) {
    const auto* base = static_cast<const unsigned char*>(image);
    const auto* header = reinterpret_cast<const Elf64_Ehdr*>(base);
    if (std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return nullptr;
    const auto* sections = reinterpret_cast<const Elf64_Shdr*>(base + header->e_shoff);
    const char* names = reinterpret_cast<const char*>(base + sections[header->e_shstrndx].sh_offset);
    auto* library = new Library;
    const std::string prefix = ".nv.info.";
    const Elf64_Shdr *symbols = nullptr, *all_kernels = nullptr;
    for (int i = 0; i < header->e_shnum; ++i) {
        const std::string name = names + sections[i].sh_name;
        if (sections[i].sh_type == SHT_SYMTAB) symbols = &sections[i];
        if (name == ".nv.info") all_kernels = &sections[i];
        if (name.rfind(prefix, 0) != 0) continue;
        Kernel kernel;
        kernel.name = name.substr(prefix.size());
        each_attribute(base + sections[i].sh_offset, sections[i].sh_size, [&](int attribute, const unsigned char* value) {
            if (attribute != PARAMETER) return;
            const size_t ordinal = read<unsigned short>(value + 4);
            kernel.parameters.resize(std::max(kernel.parameters.size(), ordinal + 1));
            kernel.parameters[ordinal] = {read<unsigned short>(value + 6), read<unsigned>(value + 8) >> 18};
        });
        library->kernels[kernel.name] = kernel;
    }
    for (int i = 0; i < header->e_shnum; ++i) {
        const std::string name = names + sections[i].sh_name, shared = ".nv.shared.";
        const auto kernel = library->kernels.find(name.rfind(shared, 0) == 0 ? name.substr(shared.size()) : "");
        // For Hopper and newer, 1 KiB of the section is the part that CUDA reserves, which is no part of a block's limit.
        if (kernel != library->kernels.end()) kernel->second.static_shared = sections[i].sh_size - 1024;
    }
    if (symbols && all_kernels) {
        const auto* table = reinterpret_cast<const Elf64_Sym*>(base + symbols->sh_offset);
        const char* strings = reinterpret_cast<const char*>(base + sections[symbols->sh_link].sh_offset);
        each_attribute(base + all_kernels->sh_offset, all_kernels->sh_size, [&](int attribute, const unsigned char* value) {
            if (attribute != REGISTER_COUNT) return;
            const auto kernel = library->kernels.find(strings + table[read<unsigned>(value)].st_name);
            if (kernel != library->kernels.end()) kernel->second.registers = read<unsigned>(value + 4);
        });
    }
    return library;
}

// Records the call. Returns the error that a test has planned for it, once, or success.
CUresult called(const char* function) {
    calls += std::string(function) + "\n";
    const auto planned = settings.find(function);
    if (planned == settings.end()) return CUDA_SUCCESS;
    const auto result = static_cast<CUresult>(planned->second);
    settings.erase(planned);
    return result;
}

// On a multiprocessor of 65,536 registers, 2,048 threads, 32 blocks and 228 KiB of shared memory. A warp gets registers
// in units of 256. A block takes 1 KiB of shared memory more than it asks for.
int resident_blocks(const Kernel& kernel, int threads, int dynamic_shared) {
    const int shared = kernel.static_shared + dynamic_shared;
    if (kernel.asked_shared < 0 ? shared > 48 * 1024 : dynamic_shared > kernel.asked_shared) return 0;
    const int warps = (threads + 31) / 32, each_warp = (kernel.registers * 32 + 255) / 256 * 256;
    const int by_registers = each_warp ? 65536 / (each_warp * warps) : 32;
    return std::min({32, 64 / warps, by_registers, 228 * 1024 / (shared + 1024)});
}

// A function that this driver lacks becomes refuse<I>, and absent[I] is its name.
constexpr size_t MOST_ABSENT = 1024;
std::vector<std::string> absent;
template <size_t I>
CUresult refuse() {
    std::fprintf(stderr, "fake driver: there is no %s\n", absent[I].c_str());
    std::abort();
}
template <size_t... I>
void* refusal(size_t which, std::index_sequence<I...>) {
    static CUresult (*const all[])() = {refuse<I>...};
    return reinterpret_cast<void*>(all[which]);
}
void* refuse_by_name(const char* function) {
    absent.emplace_back(function);
    return absent.size() > MOST_ABSENT ? nullptr : refusal(absent.size() - 1, std::make_index_sequence<MOST_ABSENT>{});
}

}  // namespace

#define CALL(name) if (const CUresult planned = called(#name); planned != CUDA_SUCCESS) return planned

extern "C" {

// ---- For the tests ----
void fake_set(const char* name, int value) { settings[name] = value; }
const char* fake_log() { return launches.c_str(); }
const char* fake_calls() { return calls.c_str(); }
void fake_clear() { launches.clear(); calls.clear(); }

// ---- The driver ----
CUresult cuInit(unsigned) { CALL(cuInit); return CUDA_SUCCESS; }
// NVRTC asks for a table of hooks of NVIDIA's tools, and works without it.
CUresult cuGetExportTable(const void**, const CUuuid*) { return CUDA_ERROR_NOT_FOUND; }
CUresult cuDriverGetVersion(int* version) { *version = settings["driver"]; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* count) { *count = settings["devices"]; return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = settings["major"]; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = settings["minor"]; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = settings["multiprocessors"]; break;
        case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH: *value = settings["cooperative"]; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 48 * 1024; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = settings["shared_optin"]; break;
        default: std::fprintf(stderr, "fake driver: device attribute %d\n", attribute); return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { *context = primary; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* context) { *context = current; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { current = context; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* device) { *device = 0; return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
CUresult cuStreamGetCtx(CUstream, CUcontext* context) { CALL(cuStreamGetCtx); *context = primary; return CUDA_SUCCESS; }

CUresult cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option*, void**, unsigned, CUlibraryOption*,
                           void**, unsigned) {
    CALL(cuLibraryLoadData);
    *library = reinterpret_cast<CUlibrary>(load(code));
    return *library ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}
CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
    CALL(cuLibraryGetKernel);
    auto& kernels = reinterpret_cast<Library*>(library)->kernels;
    const auto found = kernels.find(name);
    if (found == kernels.end()) return CUDA_ERROR_NOT_FOUND;
    *kernel = reinterpret_cast<CUkernel>(&found->second);
    return CUDA_SUCCESS;
}
CUresult cuKernelGetParamInfo(CUkernel handle, size_t index, size_t* offset, size_t* size) {
    CALL(cuKernelGetParamInfo);
    const auto& parameters = reinterpret_cast<Kernel*>(handle)->parameters;
    if (index >= parameters.size()) return CUDA_ERROR_INVALID_VALUE;
    *offset = parameters[index].offset;
    if (size) *size = parameters[index].size;
    return CUDA_SUCCESS;
}
CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel handle, CUdevice) {
    CALL(cuKernelSetAttribute);
    auto& kernel = *reinterpret_cast<Kernel*>(handle);
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
    if (value < 0 || value + kernel.static_shared > settings["shared_optin"]) return CUDA_ERROR_INVALID_VALUE;
    kernel.asked_shared = value;
    return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int threads, size_t shared) {
    CALL(cuOccupancyMaxActiveBlocksPerMultiprocessor);
    *blocks = resident_blocks(*reinterpret_cast<Kernel*>(function), threads, shared);
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** arguments, void**) {
    CALL(cuLaunchKernelEx);
    const auto& kernel = *reinterpret_cast<Kernel*>(function);
    int cooperative = 0, dependent = 0, other = 0;
    for (unsigned i = 0; i < config->numAttrs; ++i) {
        const CUlaunchAttribute& attribute = config->attrs[i];
        if (attribute.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) cooperative = attribute.value.cooperative;
        else if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
            dependent = attribute.value.programmaticStreamSerializationAllowed;
        else ++other;
    }
    if (dependent && settings["capturing"] && !settings["dependent_in_capture"]) return CUDA_ERROR_INVALID_HANDLE;
    const long threads = 1L * config->blockDimX * config->blockDimY * config->blockDimZ;
    const long blocks = 1L * config->gridDimX * config->gridDimY * config->gridDimZ;
    if (threads < 1 || threads > 1024 || blocks < 1) return CUDA_ERROR_INVALID_VALUE;
    const int resident = resident_blocks(kernel, threads, config->sharedMemBytes);
    if (resident < 1) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    if (cooperative && blocks > 1L * resident * settings["multiprocessors"])
        return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    char line[512];
    std::snprintf(line, sizeof line,
        "{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"smem\": %u, \"stream\": %zu, "
        "\"cooperative\": %d, \"dependent\": %d, \"other_attributes\": %d, \"arguments\": [", kernel.name.c_str(),
        config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX, config->blockDimY, config->blockDimZ,
        config->sharedMemBytes, reinterpret_cast<size_t>(config->hStream), cooperative, dependent, other);
    launches += line;
    for (size_t i = 0; i < kernel.parameters.size(); ++i) {
        launches += i ? ", \"" : "\"";
        const auto* bytes = static_cast<const unsigned char*>(arguments[i]);
        for (size_t b = 0; b < kernel.parameters[i].size; ++b) {
            char hex[3];
            std::snprintf(hex, sizeof hex, "%02x", bytes[b]);
            launches += hex;
        }
        launches += '"';
    }
    launches += "]}\n";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** text) {
    switch (error) {
        case CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: *text = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"; break;
        case CUDA_ERROR_INVALID_HANDLE: *text = "CUDA_ERROR_INVALID_HANDLE"; break;
        case CUDA_ERROR_LAUNCH_FAILED: *text = "CUDA_ERROR_LAUNCH_FAILED"; break;
        case CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE: *text = "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"; break;
        default: *text = "CUDA_ERROR_UNKNOWN";
    }
    return CUDA_SUCCESS;
}

CUresult cuGetProcAddress_v2(const char* symbol, void** function, int, cuuint64_t, CUdriverProcAddressQueryResult* status);
}

#define NAMED(name) {#name, reinterpret_cast<void*>(&name)}
CUresult cuGetProcAddress_v2(const char* symbol, void** function, int, cuuint64_t, CUdriverProcAddressQueryResult* status) {
    static const std::map<std::string, void*> known = {
        NAMED(cuInit), NAMED(cuDriverGetVersion), NAMED(cuDeviceGetCount), NAMED(cuDeviceGetAttribute),
        NAMED(cuDevicePrimaryCtxRetain), NAMED(cuDevicePrimaryCtxRelease), NAMED(cuCtxGetCurrent), NAMED(cuCtxSetCurrent),
        NAMED(cuCtxGetDevice), NAMED(cuStreamGetCtx), NAMED(cuLibraryLoadData), NAMED(cuLibraryGetKernel),
        NAMED(cuKernelGetParamInfo), NAMED(cuKernelSetAttribute),
        NAMED(cuOccupancyMaxActiveBlocksPerMultiprocessor), NAMED(cuLaunchKernelEx),
        NAMED(cuGetErrorName), NAMED(cuGetProcAddress_v2),
        {"cuGetProcAddress", reinterpret_cast<void*>(&cuGetProcAddress_v2)},
    };
    const auto found = known.find(symbol);
    *function = found == known.end() ? refuse_by_name(symbol) : found->second;
    if (status) *status = CU_GET_PROC_ADDRESS_SUCCESS;
    return CUDA_SUCCESS;
}
