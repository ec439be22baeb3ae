// Rows of weights, by how they are stored.
#pragma once

#include <utility>

#include "types.hpp"

namespace quire {

#if defined(__CLZERO__)
constexpr bool AMD = true;
#else
constexpr bool AMD = false;
#endif
constexpr int AT_START = AMD ? 6144 : 24576;  // bytes of a worker's share fetched before a phase

// fn of the constants 0 … N − 1.
template <int N, class F>
inline void unrolled(F fn) {
    [&]<int... i>(std::integer_sequence<int, i...>) {
        (fn(std::integral_constant<int, i>{}), ...);
    }(std::make_integer_sequence<int, N>{});
}

// Where elements [i, i + n) of an array lie, in bytes.
struct Bytes {
    index_t from, size;
};

// Rows of weights, the first at element `at`, each `step` elements after the one before.
template <class W>
struct Weights {
    const W* base;
    index_t at, step;
    const W* row(index_t b) const { return base + at + b * step; }
    static constexpr Bytes bytes(index_t i, index_t n) {
        return {i * index_t(sizeof(W)), n * index_t(sizeof(W))};
    }
};

// Of weights in blocks all that lies beside the rows.
template <class B, index_t K>
struct Weights<Blocked<B, K>> {
    static constexpr Bytes bytes(index_t i, index_t n) {
        constexpr index_t rows = SPAN * K, size = K / SPAN * index_t(sizeof(B));
        return {i / rows * size, ((i + n + rows - 1) / rows - i / rows) * size};
    }
};

// Fetches what lies one after another, in that order, at distances from what is worked on. The first
// is as far as the first rows of a phase were fetched before it began. All are constants:
// instructions that work them out cost as much again as the requests.
//
// Intel's cores have many more requests under way to L2 than to L1, and drop some when they are busy:
// a line is asked for twice from memory, one soon after the other, and once from L2. AMD's do best
// with one request, to L1 and not far ahead. What is read `once` goes past their other caches, which
// keep what the next token finds there.
class Prefetcher {
public:
    static constexpr int FAR = AT_START, AGAIN = FAR - 18 * 64, NEAR = 2048;  // bytes

    explicit Prefetcher(const void* first) : line_(static_cast<const char*>(first)) {}
    // The next `bytes`, or one of the `parts` in which they are asked for in turn: fewer at a time
    // wait for one another. Inline: a call that only prefetches is taken for one without effect.
    template <bool once, int bytes, int part = 0, int parts = 1>
    __attribute__((always_inline)) void fetch() {
        constexpr int from = bytes / 64 * part / parts * 64;
        constexpr int to = bytes / 64 * (part + 1) / parts * 64;
#pragma GCC unroll 1  // all at once, more are dropped
        for (int n = from; n < to; n += 64) {
            __builtin_prefetch(line_ + n + FAR, 0, !AMD ? 2 : once ? 0 : 3);
            if (AMD) continue;
            __builtin_prefetch(line_ + n + AGAIN, 0, 2);
            __builtin_prefetch(line_ + n + NEAR, 0, 3);
        }
        if (part + 1 == parts) line_ += bytes;
    }

private:
    const char* line_;
};

}  // namespace quire
