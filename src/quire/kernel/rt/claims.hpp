// Units of work, claimed while a phase runs.
//
// Every worker has a share of each segment's units, cut beforehand, so that it reads weights from
// one end to the other. It claims them from the front, three quarters of what is left at a time. A
// worker that has done its own claims from the back of another's, half of what is left. A core that
// another program slows down for a moment so holds up nobody. Who does a unit does not change what
// comes out.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>

#include "types.hpp"

namespace quire {

struct Span {
    index_t lo, hi;
};

constexpr int SEGMENTS = 8;  // of a phase; of those beyond, every worker does its own share

class Claims {
public:
    explicit Claims(int workers) : workers_(workers), lines_(new Line[2 * workers]) {}

    // On entering the phase after `round` barriers: nothing is taken in the next one yet. (What was
    // counted there belongs to the phase before, and all have left that.)
    void renew(unsigned round, int worker) {
        for (auto& count : line(round + 1, worker).taken) count.store(0, std::memory_order_relaxed);
    }

    // The next units of `all`, the share of `owner`, in multiples of `align`: from the front for the
    // owner, from the back for others. Empty once all are taken.
    Span take(unsigned round, int segment, int owner, bool front, Span all, index_t align) {
        auto& count = line(round, owner).taken[segment];
        const index_t piece = align * (1 + ((all.hi - all.lo) >> 31));  // counts are of 32 bits
        const index_t pieces = (all.hi - all.lo + piece - 1) / piece;
        std::uint64_t taken = count.load(std::memory_order_relaxed);
        for (;;) {
            const index_t first = index_t(taken >> 32);
            const index_t last = pieces - index_t(taken & 0xffffffffu);
            if (first >= last) return {all.hi, all.hi};
            const index_t left = last - first, some = left - left / (front ? 4 : 2);
            const index_t n = std::min(left, some + some % 2);  // tiles work on two pieces at a time
            const index_t from = front ? first : last - n;
            if (count.compare_exchange_weak(
                    taken, taken + (std::uint64_t(n) << (front ? 32 : 0)),
                    std::memory_order_relaxed))
                return {all.lo + from * piece, std::min(all.hi, all.lo + (from + n) * piece)};
        }
    }

private:
    struct alignas(64) Line {
        std::atomic<std::uint64_t> taken[SEGMENTS]{};  // pieces from the front, pieces from the back
    };
    Line& line(unsigned round, int worker) { return lines_[round % 2 * workers_ + worker]; }

    const int workers_;
    std::unique_ptr<Line[]> lines_;
};

}  // namespace quire
