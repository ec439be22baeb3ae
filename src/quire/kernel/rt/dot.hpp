// Products of weight rows with vectors: out[a][b] = Σ_k w[b][k] · x[a][k].
//
// Every element is summed the same way whatever the block it falls into: 16 lanes over k, then the
// lanes in a fixed order. Rows of weights stream from memory once; while a block of rows is worked
// on, the block after it is prefetched (of quantised ones, which are small, the second after it).
#pragma once

#include "vec.hpp"

namespace quire {

constexpr int ROWS = 4, COLUMNS = 6;  // 24 sums, and room for what they are made of

template <class W>
struct Weights {
    const W* base;
    index_t step;  // elements from row to row
    const W* row(index_t b) const { return base + b * step; }
    static constexpr index_t bytes(index_t k) { return k * index_t(sizeof(W)); }
};

template <>
struct Weights<int8_group> {
    const int8_group* base;
    index_t step;
    const int8_group* row(index_t b) const { return base + b * step / 32; }
    static constexpr index_t bytes(index_t k) { return k / 32 * 34; }
};

template <>
struct Weights<int4_group> {
    const int4_group* base;
    index_t step;
    const int4_group* row(index_t b) const { return base + b * step / 32; }
    static constexpr index_t bytes(index_t k) { return k / 32 * 18; }
};

template <int R, int C, class W>
inline void dot_block(
    const Weights<W>& w, index_t b, const float* const (&x)[C], index_t k, vec (&acc)[R][C],
    bool ahead) {
    const W* row[R];
    for (int r = 0; r < R; ++r) row[r] = w.row(b + r);
    const index_t next = (w.row(b + R) - w.row(b));
    const auto step = [&](index_t i) {
        vec xs[C];
        for (int c = 0; c < C; ++c) xs[c] = load16(x[c] + i);
        for (int r = 0; r < R; ++r) {
            const vec ws = load16(row[r] + i);
            for (int c = 0; c < C; ++c) acc[r][c] += ws * xs[c];
        }
    };
    index_t i = 0;
    for (; i + 32 <= k; i += 32) {
        if (ahead)
            for (int r = 0; r < R; ++r)
                for (std::size_t line = 0; line < sizeof(W) / 2; ++line)
                    __builtin_prefetch(row[r] + next + i + line * 64 / sizeof(W));
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
}

// The 32 weights of a group in the order of their vectors.
inline void weights(const int8_group& g, vec& low, vec& high) {
#if defined(__AVX512F__)
    // One instruction, the load within it: a mask on the word that the scale is the upper half of.
    std::int32_t word;
    std::memcpy(&word, g.value + 30, sizeof word);
    const __m512i top = _mm512_and_si512(_mm512_set1_epi32(word), _mm512_set1_epi32(-65536));
    const vec by = {{(part)top}};
#else
    const vec by = splat(g.by());
#endif
    low = by * load16(g.value);
    high = by * load16(g.value + 16);
}

inline void weights(const int4_group& g, vec& low, vec& high) {
#if defined(__AVX512F__)
    const __m512 table = _mm512_mul_ps(
        _mm512_set1_ps(g.by()),
        _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7));
    const __m512i wide =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(g.value)));
    low = {{(part)_mm512_permutexvar_ps(wide, table)}};  // by the lower four bits
    high = {{(part)_mm512_permutexvar_ps(_mm512_srli_epi32(wide, 4), table)}};
#elif defined(__AVX2__)
    const vec by = splat(g.by());
    const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(g.value));
    const __m128i mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    low = by * floats(_mm_sub_epi8(_mm_and_si128(pairs, mask), eight));
    high = by * floats(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(pairs, 4), mask), eight));
#else
    float a[LANES], b[LANES];
    for (int i = 0; i < LANES; ++i) {
        a[i] = float((g.value[i] & 15) - 8);
        b[i] = float((g.value[i] >> 4) - 8);
    }
    const vec by = splat(g.by());
    low = by * load16(a);
    high = by * load16(b);
#endif
}

template <int R, int C, class G>
inline void dot_groups(
    const Weights<G>& w, index_t b, const float* const (&x)[C], index_t k, vec (&acc)[R][C],
    bool ahead) {
    constexpr index_t NEAR = sizeof(G) > 32 ? 1 : 2;  // groups in a cache line
    const G* row[R];
    for (int r = 0; r < R; ++r) row[r] = w.row(b + r);
    const index_t next = w.row(b + R) - w.row(b), groups = k / 32;
    for (index_t g = 0; g < groups; ++g) {
        vec xs[C][2];
        for (int c = 0; c < C; ++c)
            for (int h = 0; h < 2; ++h) xs[c][h] = held(load16(x[c] + g * 32 + h * 16));
        if (ahead && g % NEAR == 0)
            for (int r = 0; r < R; ++r) __builtin_prefetch(row[r] + 2 * next + g);
        for (int r = 0; r < R; ++r) {
            vec low, high;
            weights(row[r][g], low, high);
            for (int c = 0; c < C; ++c) {
                acc[r][c] += low * xs[c][0];
                acc[r][c] += high * xs[c][1];
            }
        }
    }
}

template <int R, int C>
inline void dot_block(
    const Weights<int8_group>& w, index_t b, const float* const (&x)[C], index_t k,
    vec (&acc)[R][C], bool ahead) {
    dot_groups(w, b, x, k, acc, ahead);
}

template <int R, int C>
inline void dot_block(
    const Weights<int4_group>& w, index_t b, const float* const (&x)[C], index_t k,
    vec (&acc)[R][C], bool ahead) {
    dot_groups(w, b, x, k, acc, ahead);
}

template <int R, int C, class W>
inline void dot_tile(
    float* out, index_t out_a, index_t out_b, const Weights<W>& w, index_t b, const float* x,
    index_t x_step, index_t a, index_t k, bool ahead) {
    vec acc[R][C] = {};
    const float* xs[C];
    for (int c = 0; c < C; ++c) xs[c] = x + (a + c) * x_step;
    dot_block<R, C>(w, b, xs, k, acc, ahead);
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
    // The first pass over a block brings the block after it; later passes find theirs in cache.
    if (as == 1) return dot_tile<R, 1>(out, out_a, out_b, w, b, x, x_step, 0, k, true);
    for (; a + COLUMNS <= as; a += COLUMNS)
        dot_tile<R, COLUMNS>(out, out_a, out_b, w, b, x, x_step, a, k, a == 0);
    if (as - a >= 4) {
        dot_tile<R, 4>(out, out_a, out_b, w, b, x, x_step, a, k, a == 0);
        a += 4;
    }
    if (as - a >= 2) {
        dot_tile<R, 2>(out, out_a, out_b, w, b, x, x_step, a, k, a == 0);
        a += 2;
    }
    if (a < as) dot_tile<R, 1>(out, out_a, out_b, w, b, x, x_step, a, k, a == 0);
}

// out[a·out_a + b·out_b] for a < as, b < bs.
template <class W>
inline void dot(
    float* out, index_t out_a, index_t out_b, const W* w, index_t w_step, index_t bs,
    const float* x, index_t x_step, index_t as, index_t k) {
    const Weights<W> weights{w, w_step};
    index_t b = 0;
    for (; b + ROWS <= bs; b += ROWS)
        dot_rows<ROWS>(out, out_a, out_b, weights, b, x, x_step, as, k);
    for (; b < bs; ++b) dot_rows<1>(out, out_a, out_b, weights, b, x, x_step, as, k);
}

}  // namespace quire
