// Rows of weights, by how they are stored.
#pragma once

#include <utility>

#include "types.hpp"

namespace quire {

constexpr int AT_START = 24576;  // bytes of a worker's share that are fetched before a phase begins

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
    index_t apart() const { return 1; }
    static constexpr Bytes bytes(index_t i, index_t n) {
        return {i * index_t(sizeof(W)), n * index_t(sizeof(W))};
    }
};

template <>
struct Weights<int8_group> {
    const int8_group* base;
    index_t at, step;
    const int8_group* row(index_t b) const { return base + (at + b * step) / 32; }
    index_t apart() const { return 1; }
    static constexpr Bytes bytes(index_t i, index_t n) { return {i / 32 * 34, n / 32 * 34}; }
};

template <>
struct Weights<int4_block> {
    const int4_block* base;
    index_t at, step;
    // The group that row b starts with, counted through all blocks.
    index_t group(index_t b) const { return (at + b * step) / 32; }
    // From a row to the next that starts at the same group of a block.
    index_t apart() const { return step % 128 == 0 ? 1 : step % 64 == 0 ? 2 : 4; }
    static constexpr Bytes bytes(index_t i, index_t n) {
        return {i / 128 * 72, (i + n + 127) / 128 * 72 - i / 128 * 72};
    }
};

}  // namespace quire
