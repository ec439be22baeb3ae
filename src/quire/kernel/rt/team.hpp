// Worker threads that outlive a call, and the barrier between phases.
//
// Waiting: spin, then yield (bounded spinning keeps a loaded machine usable), and between calls
// sleep. A wait that lasts longer than the watchdog's limit marks the call as failed, reports where
// every worker stands, and lets the others leave: a hang becomes an error. The worker that hung may
// wake up much later, so every thread shares in the ownership of the team and of its task.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "claims.hpp"

namespace quire {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

using Clock = std::chrono::steady_clock;

constexpr double AWAKE = 5e-3;  // seconds a worker waits for the next call before it sleeps

struct alignas(64) Place {
    std::atomic<int> phase{-1};    // the phase a worker is in
    std::atomic<int> waiting{0};   // whether it waits at the phase's end
};

struct Hung {};

class Team {
public:
    static std::shared_ptr<Team> start(int size, double limit) {
        std::shared_ptr<Team> team(new Team(size, limit));
        for (int t = 1; t < size; ++t)
            team->threads_.emplace_back([team, t] { team->serve(t); });
        return team;
    }

    // The owner's last word. A fork has no threads to join, and a hung one may never end: both are
    // left alone, with the team that they share.
    void stop() {
        if (pid_ != getpid() || failed_) {
            for (auto& t : threads_) t.detach();
            return;
        }
        {
            std::lock_guard<std::mutex> hold(mutex_);
            stop_ = true;
            epoch_.fetch_add(1);
        }
        wake_.notify_all();
        for (auto& t : threads_) t.join();
    }

    int size() const { return size_; }
    bool is_mine() const { return pid_ == getpid(); }
    const std::string& report() const { return report_; }
    // How often all have met, and what they have claimed since.
    unsigned round() const { return round_.load(std::memory_order_acquire); }
    Claims& claims() { return claims_; }

    // body(worker) on every worker; true if all came through. Workers keep a copy of `body`.
    template <class Body>
    bool run(const Body& body) {
        if (failed_) return false;
        task_ = body;
        if (size_ > 1) {
            {
                std::lock_guard<std::mutex> hold(mutex_);
                epoch_.fetch_add(1, std::memory_order_release);
            }
            if (sleepers_.load() > 0) wake_.notify_all();
        }
        try {
            task_(0);
            barrier(0);
        } catch (const Hung&) {
        }
        return !failed_;
    }

    void enter(int worker, int phase) {
#if defined(QUIRE_PROFILE)
        if (worker == 0) {
            const auto now = Clock::now();
            if (phase > 0) {
                if (times_.size() < std::size_t(phase)) times_.resize(phase);
                times_[phase - 1] += std::chrono::duration<double>(now - entered_).count();
            }
            entered_ = now;
        }
#endif
        places_[worker].phase.store(phase, std::memory_order_relaxed);
    }

    // A sense-reversing barrier on one counter.
    void barrier(int worker) {
        if (size_ == 1) return;
        if (failed_) throw Hung{};
        const unsigned round = round_.load(std::memory_order_acquire);
        places_[worker].waiting.store(1, std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_release);
        } else {
            wait(worker, [&] { return round_.load(std::memory_order_acquire) != round; });
        }
        places_[worker].waiting.store(0, std::memory_order_relaxed);
    }

private:
    Team(int size, double limit)
        : size_(size), limit_(limit), places_(new Place[size]), claims_(size), pid_(getpid()) {}

    template <class Done>
    void wait(int, Done done) {
        for (int spin = 0; spin < 2000; ++spin) {
            if (done()) return;
            relax();
        }
        const auto start = Clock::now();
        for (;;) {
            for (int turn = 0; turn < 64; ++turn) {
                if (done()) return;
                sched_yield();
            }
            if (failed_) throw Hung{};
            if (std::chrono::duration<double>(Clock::now() - start).count() > limit_) {
                fail();
                throw Hung{};
            }
        }
    }

    void fail() {
        std::lock_guard<std::mutex> hold(mutex_);
        if (failed_) return;
        report_ = "a worker did not reach the end of its phase in " + std::to_string(limit_) + " s";
        for (int t = 0; t < size_; ++t)
            report_ += "\n  worker " + std::to_string(t) + ": phase " +
                       std::to_string(places_[t].phase.load()) +
                       (places_[t].waiting.load() ? ", waiting at its end" : ", working");
        failed_ = true;
    }

    void serve(int worker) {
        unsigned seen = 0;
        for (;;) {
            const auto called = [&] { return epoch_.load(std::memory_order_acquire) != seen; };
            for (int spin = 0; spin < 4000 && !called(); ++spin) relax();
            // Between two tokens little else happens: to be woken from sleep takes a millisecond.
            const auto start = Clock::now();
            while (!called() && std::chrono::duration<double>(Clock::now() - start).count() < AWAKE)
                sched_yield();
            if (!called()) {
                std::unique_lock<std::mutex> hold(mutex_);
                sleepers_.fetch_add(1);
                wake_.wait(hold, [&] { return epoch_.load() != seen; });
                sleepers_.fetch_sub(1);
            }
            ++seen;
            if (stop_) return;
            try {
                task_(worker);
                barrier(worker);
            } catch (const Hung&) {
                return;
            }
        }
    }

    const int size_;
    const double limit_;
    std::unique_ptr<Place[]> places_;
    Claims claims_;
    const pid_t pid_;
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    alignas(64) std::atomic<unsigned> epoch_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> failed_{false};
    std::atomic<bool> stop_{false};
    std::function<void(int)> task_;
    std::string report_;
#if defined(QUIRE_PROFILE)
    Clock::time_point entered_;

public:
    std::vector<double> times_;  // seconds in each phase so far, but the last
#endif
};

}  // namespace quire
