// Products of weights in blocks (types.hpp) with float vectors: out[a][b] = Σ_k w[b][k] · x[a][k].
//
// 16 rows at a time, each in a lane of its own: the products of a block are summed up, multiplied by
// the scales of its rows and added to those of the blocks before it. Every element is summed in one
// order whatever lies beside it: of quantised weights as integers where the machine multiplies them
// (digits.hpp), on AMX where there are vectors enough (block_tiles.hpp), else of floats.
#pragma once

#include "block_tiles.hpp"
#include "digits.hpp"
#include "lossless.hpp"
#include "narrow_blocks.hpp"
#include "values.hpp"

namespace quire {

// Adds the products of some blocks of 32 rows with C vectors.
template <int C, class B>
inline void sum_floats(
    const B* b, index_t blocks, const float* const (&x)[C], bool ahead, vec (&total)[C][2]) {
    Prefetcher next(b);
    for (index_t g = 0; g < blocks; ++g) {
        if (ahead) next.fetch<C == 1, sizeof(B)>();
        vec sums[C][2] = {};
        for (int word = 0; word < SPAN; word += B::WIDE)
            unrolled<B::WIDE>([&](auto k) __attribute__((always_inline)) {
                for (int h = 0; h < 2; ++h) {
                    const vec w = values(b[g], h, word + k);
                    for (int c = 0; c < C; ++c)
                        sums[c][h] += w * splat(x[c][g * SPAN + word + k]);
                }
            });
        for (int h = 0; h < 2; ++h) {
            const vec by = scales(b[g], h);
            for (int c = 0; c < C; ++c) total[c][h] += by * sums[c][h];
        }
    }
}

// As dot, on floats.
template <class B>
inline void dot_on_floats(
    const Target& out, const Rows<B>& w, const float* x, index_t x_step, index_t as, index_t k) {
    w.each([&](const B* b, index_t row) {
        index_t a = 0;
        const auto some = [&](auto many) {
            const float* xs[many];
            for (int c = 0; c < many; ++c) xs[c] = x + (a + c) * x_step;
            vec total[many][2] = {};
            sum_floats<many>(b, k / SPAN, xs, a == 0, total);
            for (int c = 0; c < many; ++c) w.put(out, a + c, row, total[c]);
            a += many;
        };
        while (as - a >= 4) some(std::integral_constant<int, 4>{});
        if (as - a >= 2) some(std::integral_constant<int, 2>{});
        if (as > a) some(std::integral_constant<int, 1>{});
    });
}

// The same for every number of columns.
template <class B>
__attribute__((noinline)) inline void dot_blocks(
    const Target& out, const Rows<B>& w, const float* x, index_t x_step, index_t as, index_t k) {
    if (as == 0 || w.count == 0) return;
#if defined(QUIRE_TILES)
    if constexpr (FEED<B> > 0)
        if (on_tiles<B>(as)) return dot_on_tiles(out, w, x, x_step, as, k);
#endif
#if defined(QUIRE_DIGITS)
    if constexpr (requires { B::ZERO; }) return dot_on_digits(out, w, x, x_step, as, k);
#endif
    dot_on_floats(out, w, x, x_step, as, k);
}

// As dot_blocks, of vectors that are bf16 in the model.
template <class B>
inline void dot_blocks_bf16(
    const Target& out, const Rows<B>& w, const float* x, index_t x_step, index_t as, index_t k) {
#if defined(QUIRE_NARROW)
    if (as >= MANY<B> && !on_tiles<B>(as) && w.count > 0) {
        static thread_local NarrowBlocks<B> narrow;
        return narrow.dot(out, w, x, x_step, as, k);
    }
#endif
    dot_blocks(out, w, x, x_step, as, k);
}

}  // namespace quire
