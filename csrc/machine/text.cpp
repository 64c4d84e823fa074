// text.cpp: printf and assert in kernels
// In PTX, printf is vprintf(format, arguments). Both are addresses: of the format's bytes, and of the arguments in
// local memory. There, 4-byte arguments are at multiples of 4 and 8-byte arguments at multiples of 8; floats are
// doubles. The text of one call is not mixed with that of other threads.
#include <cstdio>
#include <cstring>

#include "memory.h"

namespace machine {

namespace {

constexpr size_t most_text = 1 << 20;  // bytes that one launch may print; the rest is dropped, as on a GPU

// Reads a string at a global address, up to a zero, the end of its tensor or 4096 bytes. False if no tensor is there.
bool read_string(Warp* w, uint64_t address, std::string& text) {
    const Launch* launch = w->block->launch;
    for (uint32_t i = 0; i < launch->tensors_count; ++i) {
        const Tensor& tensor = launch->tensors[i];
        if (address < tensor.begin || address >= tensor.end) continue;
        const size_t most = std::min<uint64_t>(tensor.end - address, 4096);
        const char* bytes = reinterpret_cast<const char*>(address);
        text.assign(bytes, strnlen(bytes, most));
        return true;
    }
    return false;
}

// Formats the text that one lane prints. False after fail(), if one of the addresses is wrong.
bool format_lane(Warp* w, const Ins* p, uint32_t lane, uint64_t format_at, uint64_t arguments_at, std::string& out) {
    std::string format;
    if (!read_string(w, format_at, format)) return fail(w, p, Fault::out_of_bounds, lane, format_at, 1), false;
    uint64_t at = 0;
    auto next = [&](uint32_t size, uint64_t& value) {
        at = (at + size - 1) / size * size;
        const uint8_t* host = resolve(w, p, lane, generic, arguments_at + at, size, false);
        if (!host) return false;
        value = 0;
        memcpy(&value, host, size);
        at += size;
        return true;
    };
    for (size_t i = 0; i < format.size();) {
        if (format[i] != '%') {
            out += format[i++];
            continue;
        }
        size_t end = format.find_first_not_of("-+ #0123456789.*", i + 1);
        if (end == std::string::npos) break;
        size_t letter = format.find_first_not_of("hljztL", end);
        if (letter == std::string::npos) break;
        const std::string length = format.substr(end, letter - end);
        const char kind = format[letter];
        std::string spec = format.substr(i, end - i);
        i = letter + 1;
        if (kind == '%') {
            out += '%';
            continue;
        }
        // An argument for a width or precision replaces its star.
        for (size_t star; (star = spec.find('*')) != std::string::npos;) {
            uint64_t number;
            if (!next(4, number)) return false;
            spec.replace(star, 1, std::to_string(static_cast<int32_t>(number)));
        }
        const bool wide = length == "l" || length == "ll" || length == "j" || length == "z" || length == "t";
        char text[512];
        uint64_t value;
        if (strchr("diouxXc", kind)) {
            if (!next(wide && kind != 'c' ? 8 : 4, value)) return false;
            if (kind == 'c') snprintf(text, sizeof text, (spec + 'c').c_str(), static_cast<int>(value));
            else if (strchr("di", kind)) snprintf(text, sizeof text, (spec + "lld").c_str(), wide ? static_cast<long long>(value) : static_cast<long long>(static_cast<int32_t>(value)));
            else snprintf(text, sizeof text, (spec + "ll" + kind).c_str(), static_cast<unsigned long long>(value));
            out += text;
        } else if (strchr("eEfFgGaA", kind)) {
            if (!next(8, value)) return false;
            double number;
            memcpy(&number, &value, 8);
            snprintf(text, sizeof text, (spec + kind).c_str(), number);
            out += text;
        } else if (kind == 'p') {
            if (!next(8, value)) return false;
            snprintf(text, sizeof text, (spec + "p").c_str(), reinterpret_cast<void*>(value));
            out += text;
        } else if (kind == 's') {
            std::string string;
            if (!next(8, value)) return false;
            if (!read_string(w, value, string)) return fail(w, p, Fault::out_of_bounds, lane, value, 1), false;
            snprintf(text, sizeof text, (spec + "s").c_str(), string.c_str());
            out += text;
        } else out += format.substr(i - 2, 2);
    }
    return true;
}

void vprintf_op(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    std::string& printed = w->worker->printed;
    for (uint32_t left = m; left; left &= left - 1) {
        const uint32_t lane = std::countr_zero(left);
        std::string out;
        if (!format_lane(w, p, lane, lanes<uint64_t>(r, p->a)[lane], lanes<uint64_t>(r, p->b)[lane], out)) return;
        if (printed.size() + out.size() <= most_text) printed += out;
        if (p->d >= 0) lanes<uint32_t>(r, p->d)[lane] = static_cast<uint32_t>(out.size());
    }
    NEXT;
}

void assertfail(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    const uint32_t lane = std::countr_zero(m);
    std::string said, file, function;
    read_string(w, lanes<uint64_t>(r, p->a)[lane], said);
    read_string(w, lanes<uint64_t>(r, p->b)[lane], file);
    read_string(w, lanes<uint64_t>(r, p[1].a)[lane], function);
    const uint32_t before = w->block->launch->failed->load();
    fail(w, p, Fault::assertion, lane);
    if (before) return;
    snprintf(w->block->launch->report->text, sizeof Report::text, "%s\n%s\n%u\n%s", said.c_str(), file.c_str(),
             lanes<uint32_t>(r, p->c)[lane], function.c_str());
}

REGISTER(text, {"vprintf", vprintf_op}, {"assertfail", assertfail});

}  // namespace

}  // namespace machine
