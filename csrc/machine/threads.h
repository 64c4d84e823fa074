// threads.h: a pool of OS threads
#pragma once

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "blocks.h"

namespace machine {

// OS threads that are kept from launch to launch. The calling thread is one of them.
class Threads {
public:
    static Threads& get(uint32_t count) {
        static Threads* threads = nullptr;
        // After a fork, the child process has this object but not the threads.
        if (!threads || threads->process_ != getpid()) threads = new Threads;
        threads->grow(count);
        return *threads;
    }

    // The caller works too. At the end it waits only for the threads that have begun, because a short launch is over
    // before a sleeping thread wakes up. With `all`, each thread has its own work, so the caller waits for each.
    void run(uint32_t count, bool all, const std::function<void(uint32_t)>& work) {
        work_ = &work;
        for (uint32_t i = 1; i < count; ++i) {
            states_[i]->store(posted, std::memory_order_release);
            states_[i]->notify_one();
        }
        work(0);
        for (uint32_t i = 1; i < count; ++i) {
            uint32_t expected = posted;
            if (!all && states_[i]->compare_exchange_strong(expected, idle, std::memory_order_acq_rel)) continue;
            for (uint32_t spins = 0; states_[i]->load(std::memory_order_acquire) != idle; ++spins)
                if (spins > 2000) sched_yield();
        }
    }

    BlockPool& pool(uint32_t i) { return *pools_[i]; }

private:
    Threads() : process_(getpid()) { grow(1); }

    enum : uint32_t { idle, posted, working };

    void grow(uint32_t count) {
        while (pools_.size() < count) {
            const auto i = static_cast<uint32_t>(pools_.size());
            pools_.push_back(std::make_unique<BlockPool>());
            states_.push_back(std::make_unique<std::atomic<uint32_t>>(idle));
            if (i == 0) continue;
            std::thread([this, i, state = states_[i].get()] {
                sigset_t all;
                sigfillset(&all);
                pthread_sigmask(SIG_BLOCK, &all, nullptr);  // Python's own threads handle the signals
                for (;;) {
                    for (int spins = 0; state->load(std::memory_order_relaxed) == idle && spins < 1000; ++spins)
#if defined(__x86_64__)
                        __builtin_ia32_pause();
#else
                        ;
#endif
                    state->wait(idle, std::memory_order_acquire);
                    uint32_t expected = posted;
                    if (!state->compare_exchange_strong(expected, working, std::memory_order_acq_rel)) continue;
                    (*work_)(i);
                    state->store(idle, std::memory_order_release);
                }
            }).detach();
        }
    }

    pid_t process_;
    std::vector<std::unique_ptr<BlockPool>> pools_;
    std::vector<std::unique_ptr<std::atomic<uint32_t>>> states_;
    const std::function<void(uint32_t)>* work_ = nullptr;
};

}  // namespace machine
