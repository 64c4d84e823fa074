// export.h: lets the launcher call a kernel that it knows only by name
// luce_edu/backends/host.py includes the .cu file and then defines, for each kernel, an emulator::Export; the parameter
// types come from the kernel's own C++ type, so that nothing has to be registered.
#pragma once

#include <utility>

#include "host/runtime.h"

namespace emulator {

struct Export {
    Entry entry;
    const char* signature;  // a letter for each parameter: p a pointer, i int, u unsigned, f float
};

template <class T>
constexpr char letter() {
    if (std::is_pointer_v<T>) return 'p';
    if (std::is_same_v<T, int>) return 'i';
    if (std::is_same_v<T, unsigned>) return 'u';
    if (std::is_same_v<T, float>) return 'f';
    return 0;
}

template <class T>
T argument(uint64_t bits) {
    if constexpr (std::is_pointer_v<T>) return reinterpret_cast<T>(bits);
    else return std::bit_cast<T>(static_cast<uint32_t>(bits));
}

template <class... Parameters>
constexpr char signature[] = {letter<Parameters>()..., 0};

template <auto kernel, class... Parameters, size_t... i>
constexpr Export exported(void (*)(Parameters...), std::index_sequence<i...>) {
    static_assert((letter<Parameters>() && ...), "a kernel takes pointers, int, unsigned and float");
    return {[](const uint64_t* args) { ((void)args, kernel(argument<Parameters>(args[i])...)); },
            signature<Parameters...>};
}

template <auto kernel, class... Parameters>
constexpr Export exported(void (*pointer)(Parameters...)) {
    return exported<kernel>(pointer, std::index_sequence_for<Parameters...>());
}

template <auto kernel>
constexpr Export exported() {
    return exported<kernel>(kernel);
}

}  // namespace emulator
