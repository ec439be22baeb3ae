// Products of weight rows with vectors: out[a][b] = Σ_k w[b][k] · x[a][k].
//
// Every element is summed the same way whatever the block it falls into: 16 lanes over k, then the
// lanes in a fixed order; where there are vectors enough, on AMX as tiles.hpp says, and of vectors that
// are bf16 in the model, on AVX-512 BF16 as narrow.hpp does. Weights in blocks have products of their
// own (dot_blocks.hpp).
// Rows of weights stream from memory once, as one stream: with one vector they are read one after
// another; with several, while some rows are worked on together, those after them are prefetched in
// the order in which they lie (`ahead`), also past the last one given: rows are given in units, and
// the next unit follows.
#pragma once

#include "dot_blocks.hpp"
#include "tiles.hpp"
#include "vec.hpp"

namespace quire {

constexpr int ROWS = 4, COLUMNS = 6;  // 24 sums, and room for what they are made of

// Products of the rows b … b + R with the vectors x.
template <int R, int C, class W>
inline void dot_block(
    const Weights<W>& w, index_t b, const float* const (&x)[C], index_t k, vec (*sums)[C],
    bool ahead) {
    const W* row[R];
    for (int r = 0; r < R; ++r) row[r] = w.row(b + r);
    vec acc[R][C] = {};
    const auto step = [&](index_t i) {
        vec xs[C];
        for (int c = 0; c < C; ++c) xs[c] = load16(x[c] + i);
        for (int r = 0; r < R; ++r) {
            const vec ws = load16(row[r] + i);
            for (int c = 0; c < C; ++c) acc[r][c] += ws * xs[c];
        }
    };
    constexpr int bytes = R * 32 * int(sizeof(W));
    Prefetcher one(row[0]);
    const char* after = reinterpret_cast<const char*>(w.row(b + R));
    index_t i = 0;
    for (; i + 32 <= k; i += 32) {
        if (R == 1 && ahead) one.template fetch<C == 1, bytes>();
        if (R > 1 && ahead)
            for (int n = 0; n < bytes; n += 64) __builtin_prefetch(after + n, 0, 3);
        after += bytes;
        step(i);
        step(i + 16);
    }
    if (i + 16 <= k) {
        step(i);
        i += 16;
    }
    if (i < k)
        for (int r = 0; r < R; ++r) {
            const vec ws = load_part(row[r] + i, k - i);
            for (int c = 0; c < C; ++c) acc[r][c] += ws * load_part(x[c] + i, k - i);
        }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) sums[r][c] = acc[r][c];
}

template <int R, int C, class W>
inline void dot_tile(
    float* out, index_t out_a, index_t out_b, const Weights<W>& w, index_t b, const float* x,
    index_t x_step, index_t a, index_t k, bool ahead) {
    vec acc[R][C];
    const float* xs[C];
    for (int c = 0; c < C; ++c) xs[c] = x + (a + c) * x_step;
    constexpr int together = C == 1 ? 1 : R;
    for (int r = 0; r < R; r += together)
        dot_block<together>(w, b + r, xs, k, acc + r, ahead);
    for (int c = 0; c < C; ++c) {
        vec column[4] = {};
        float sums[4];
        for (int r = 0; r < R; ++r) column[r] = acc[r][c];
        sum16(column, sums);
        for (int r = 0; r < R; ++r) out[(a + c) * out_a + (b + r) * out_b] = sums[r];
    }
}

template <int R, class W>
inline void dot_rows(
    float* out, index_t out_a, index_t out_b, const Weights<W>& w, index_t b, const float* x,
    index_t x_step, index_t as, index_t k) {
    index_t a = 0;
    const auto tile = [&](auto many) {
        // The first pass over a block brings those after it; later passes find theirs in cache.
        dot_tile<R, many>(out, out_a, out_b, w, b, x, x_step, a, k, a == 0);
        a += many;
    };
    while (as - a >= COLUMNS) tile(std::integral_constant<int, COLUMNS>{});
    if (as - a >= 4) tile(std::integral_constant<int, 4>{});
    if (as - a >= 2) tile(std::integral_constant<int, 2>{});
    if (as - a >= 1) tile(std::integral_constant<int, 1>{});
}

// out[a·out_a + b·out_b] for a < as, b < bs.
template <class W>
inline void dot(
    float* out, index_t out_a, index_t out_b, const W* w, index_t w_at, index_t w_step, index_t bs,
    const float* x, index_t x_step, index_t as, index_t k) {
    const Weights<W> weights{w, w_at, w_step};
#if defined(QUIRE_TILES)
    if constexpr (FEED<W> > 0)
        if (on_tiles<W>(as))
            return dot_on_tiles(out, out_a, out_b, weights, bs, x, x_step, as, k);
#endif
    index_t b = 0;
    for (; bs - b >= ROWS; b += ROWS)
        dot_rows<ROWS>(out, out_a, out_b, weights, b, x, x_step, as, k);
    for (; b < bs; ++b) dot_rows<1>(out, out_a, out_b, weights, b, x, x_step, as, k);
}

template <class B, index_t K>
inline void dot(
    float* out, index_t out_a, index_t out_b, const Blocked<B, K>* w, index_t w_at, index_t w_step,
    index_t bs, const float* x, index_t x_step, index_t as, index_t k) {
    const Rows<B> rows{&w->first, K / SPAN, w_at / K, w_step / K, bs};
    dot_blocks(Target{out, out_a, out_b}, rows, x, x_step, as, k);
}

// As dot, of vectors that are bf16 in the model.
inline void dot_bf16(
    float* out, index_t out_a, index_t out_b, const bf16* w, index_t w_at, index_t w_step,
    index_t bs, const float* x, index_t x_step, index_t as, index_t k) {
#if defined(QUIRE_NARROW)
    if (as >= MANY<bf16> && !on_tiles<bf16>(as))
        return dot_narrow(out, out_a, out_b, {w, w_at, w_step}, bs, x, x_step, as, k);
#endif
    dot(out, out_a, out_b, w, w_at, w_step, bs, x, x_step, as, k);
}

template <class B, index_t K>
inline void dot_bf16(
    float* out, index_t out_a, index_t out_b, const Blocked<B, K>* w, index_t w_at, index_t w_step,
    index_t bs, const float* x, index_t x_step, index_t as, index_t k) {
    const Rows<B> rows{&w->first, K / SPAN, w_at / K, w_step / K, bs};
    dot_blocks_bf16(Target{out, out_a, out_b}, rows, x, x_step, as, k);
}

}  // namespace quire
