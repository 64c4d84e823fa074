// context.h: switch from one stack to another, the whole machinery of a fiber
// x86-64: push the registers that a function must preserve, swap the stack pointer, pop, return (under 3 ns).
// Elsewhere, or with -DLUCE_UCONTEXT: makecontext enters a stack the first time; from then on _setjmp and _longjmp,
// which save no signal mask, switch without a system call.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && !defined(LUCE_UCONTEXT)

struct Context {
    void* stack_pointer;
};

extern "C" void luce_switch_stack(void** from, void* to);

asm(R"(
    .text
    .p2align 4
    .globl luce_switch_stack
    .hidden luce_switch_stack
    .type luce_switch_stack, @function
luce_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size luce_switch_stack, .-luce_switch_stack
)");

inline void switch_context(Context& from, Context& to) { luce_switch_stack(&from.stack_pointer, to.stack_pointer); }

// The first switch to `context` calls body() on this stack; `top` is 16-byte aligned, and body never returns.
inline void prepare_context(Context& context, std::byte* bottom, std::byte* top, void (*body)()) {
    (void)bottom;
    auto slot = reinterpret_cast<uintptr_t*>(top) - 2;  // so that body starts with the alignment of a called function
    slot[0] = reinterpret_cast<uintptr_t>(body);
    slot[1] = 0;
    for (int saved = 1; saved <= 6; ++saved) slot[-saved] = 0;
    context.stack_pointer = slot - 6;
}

#else

#include <setjmp.h>
#include <ucontext.h>

struct Context {
    ucontext_t entry;
    jmp_buf place;
    bool entered = true;
};

inline void switch_context(Context& from, Context& to) {
    if (_setjmp(from.place) != 0) return;
    if (to.entered) _longjmp(to.place, 1);
    to.entered = true;
    setcontext(&to.entry);
}

inline void prepare_context(Context& context, std::byte* bottom, std::byte* top, void (*body)()) {
    getcontext(&context.entry);
    context.entry.uc_stack.ss_sp = bottom;
    context.entry.uc_stack.ss_size = static_cast<size_t>(top - bottom);
    context.entry.uc_link = nullptr;
    makecontext(&context.entry, body, 0);
    context.entered = false;
}

#endif
