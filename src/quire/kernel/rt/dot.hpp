// Products of weight rows with vectors: out[a][b] = Σ_k w[b][k] · x[a][k].
//
// Every element is summed the same way whatever the block it falls into: 16 lanes over k, then the
// lanes in a fixed order; on AMX, where there are vectors enough, as tiles.hpp and groups.hpp say.
// Rows of weights stream from memory once; while a block of rows is worked on, those after it are
// prefetched (`ahead`), also past the last one given: rows are given in units, and the next unit
// follows.
#pragma once

#include "groups.hpp"
#include "vec.hpp"
#include "weights.hpp"

namespace quire {

constexpr int ROWS = 4, COLUMNS = 6;  // 24 sums, and room for what they are made of
constexpr int MANY = 8;               // rows of int4 weights, whose products bind, with one vector

// Fetches rows that lie one after another, in the order in which they lie, at distances from those
// that are worked on: twice from memory, one soon after the other, since a processor that is busy
// drops some of such requests, and once from L2. The first distance is as far as the first rows of a
// phase were fetched before it began, and as eight long int4 rows reach. All are constants:
// instructions that work them out cost as much again as the requests, in loops that bind. (Measured:
// int8 rows of 576 at 22 GB/s with distances that depend on the length of a row, at 32 with these.)
class Prefetcher {
public:
    static constexpr int FAR = AT_START, AGAIN = FAR - 18 * 64, NEAR = 2048;  // bytes

    explicit Prefetcher(const void* first) : line_(static_cast<const char*>(first)) {}
    // The next `bytes`, or one of the `parts` in which they are asked for in turn: fewer at a time
    // wait for one another. Inline: a call that only prefetches is taken for one without effect.
    template <int bytes, int part = 0, int parts = 1>
    __attribute__((always_inline)) void fetch() {
        constexpr bool last = part + 1 == parts;
        constexpr int from = bytes * part / parts / 64 * 64;
        constexpr int to = last ? bytes : bytes * (part + 1) / parts / 64 * 64;
#pragma GCC unroll 1  // all at once, more are dropped
        for (int n = from; n < to; n += 64) {
            __builtin_prefetch(line_ + n + FAR, 0, 2);
            __builtin_prefetch(line_ + n + AGAIN, 0, 2);
            __builtin_prefetch(line_ + n + NEAR, 0, 3);
        }
        if (last) line_ += bytes;
    }

private:
    const char* line_;
};

// Products of the rows b, b + apart, … (R of them) with the vectors x, added to acc.
template <int R, int C, class W>
inline void dot_block(
    const Weights<W>& w, index_t b, index_t, const float* const (&x)[C], index_t k,
    vec (&acc)[R][C], bool ahead) {
    const W* row[R];
    for (int r = 0; r < R; ++r) row[r] = w.row(b + r);
    const index_t next = w.row(b + R) - w.row(b);
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
                for (std::size_t line = 0; line < sizeof(W) / 2; ++line) {
                    const W* at = row[r] + next + i + line * 64 / sizeof(W);
                    __builtin_prefetch(at + next, 0, 2);
                    __builtin_prefetch(at, 0, 3);
                }
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

// Those of group g of a block: a load from its byte g is a shift of the words by 8·g bits.
inline void weights(const int4_block& b, index_t g, vec& low, vec& high) {
#if defined(__AVX512F__)
    const __m512 table = _mm512_mul_ps(
        _mm512_set1_ps(b.by(g)),
        _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7));
    const __m512i words = _mm512_loadu_si512(b.value + g);  // looked up by the lower four bits
    low = {{(part)_mm512_permutexvar_ps(words, table)}};
    high = {{(part)_mm512_permutexvar_ps(_mm512_srli_epi32(words, 4), table)}};
#elif defined(__AVX2__)
    const vec by = splat(b.by(g));
    const __m256i mask = _mm256_set1_epi32(15), eight = _mm256_set1_epi32(8);
    const auto words = [&](int k) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b.value + g) + k);
    };
    const auto floats = [&](__m256i nibbles) {
        return (part)_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(nibbles, mask), eight));
    };
    low = by * parts_of([&](int k) { return floats(words(k)); });
    high = by * parts_of([&](int k) { return floats(_mm256_srli_epi32(words(k), 4)); });
#else
    float even[LANES], odd[LANES];
    for (int i = 0; i < LANES; ++i) {
        even[i] = float((b.value[4 * i + g] & 15) - 8);
        odd[i] = float((b.value[4 * i + g] >> 4) - 8);
    }
    const vec by = splat(b.by(g));
    low = by * load16(even);
    high = by * load16(odd);
#endif
}

// One group of each of R rows, by the 32 elements of x from i.
template <int R, int C, class Group>
__attribute__((always_inline)) inline void dot_group(
    Group group, const float* const (&x)[C], index_t i, vec (&acc)[R][C]) {
    vec xs[C][2], low[R], high[R];
    for (int c = 0; c < C; ++c)
        for (int h = 0; h < 2; ++h) xs[c][h] = held(load16(x[c] + i + h * 16));
    for (int r = 0; r < R; ++r) group(r, low[r], high[r]);
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] += low[r] * xs[c][0];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] += high[r] * xs[c][1];
}

template <int R, int C>
inline void dot_block(
    const Weights<int8_group>& w, index_t b, index_t, const float* const (&x)[C], index_t k,
    vec (&acc)[R][C], bool ahead) {
    constexpr index_t SIZE = sizeof(int8_group), OFTEN = 4;
    const int8_group* row[R];
    for (int r = 0; r < R; ++r) row[r] = w.row(b + r);
    const index_t groups = k / 32;
    Prefetcher rows(row[0]);
    for (index_t g = 0; g < groups; ++g) {
        if (ahead && g % OFTEN == 0) rows.template fetch<R * OFTEN * SIZE>();
        dot_group(
            [&](int r, vec& low, vec& high) { weights(row[r][g], low, high); }, x, g * 32, acc);
    }
}

template <int R, int C>
__attribute__((always_inline)) inline void dot_block(
    const Weights<int4_block>& w, index_t b, index_t apart, const float* const (&x)[C], index_t k,
    vec (&acc)[R][C], bool ahead) {
    constexpr index_t SIZE = sizeof(int4_block);
    const index_t first = w.group(b), between = apart * w.step / 128, groups = k / 32;
    const int4_block* block[R];
    block[0] = w.base + first / 4;
    for (int r = 1; r < R; ++r) block[r] = block[r - 1] + between;
    // Of R · apart rows that lie together this is one in `apart`: it asks for as many.
    const index_t row = between * SIZE / apart;
    const char* own = reinterpret_cast<const char*>(block[0]) + b % apart * (R - 1) * row;
    Prefetcher rows(own);
    index_t g = 0, q = first % 4;
    const auto group = [&](index_t q) __attribute__((always_inline)) {
        dot_group(
            [&](int r, vec& low, vec& high) { weights(*block[r], q, low, high); }, x, g * 32, acc);
        ++g;
    };
    const auto quarter = [&](auto q) __attribute__((always_inline)) {
        if (ahead) rows.template fetch<R * SIZE, q, 4>();
        group(q);
    };
    while (g < groups) {
        if (q == 0 && g + 4 <= groups) {
            unrolled<4>(quarter);
        } else {  // a row starts or ends within a block
            for (; q < 4 && g < groups; ++q) group(q);
            q = 0;
        }
        for (int r = 0; r < R; ++r) ++block[r];
    }
}

template <int R, int C, class W>
inline void dot_tile(
    float* out, index_t out_a, index_t out_b, const Weights<W>& w, index_t b, index_t apart,
    const float* x, index_t x_step, index_t a, index_t k, bool ahead) {
    vec acc[R][C] = {};
    const float* xs[C];
    for (int c = 0; c < C; ++c) xs[c] = x + (a + c) * x_step;
    dot_block<R, C>(w, b, apart, xs, k, acc, ahead);
    for (int c = 0; c < C; ++c)
        for (int q = 0; q < R; q += 4) {
            vec column[4] = {};
            float sums[4];
            for (int r = q; r < R && r < q + 4; ++r) column[r - q] = acc[r][c];
            sum16(column, sums);
            for (int r = q; r < R && r < q + 4; ++r)
                out[(a + c) * out_a + (b + r * apart) * out_b] = sums[r - q];
        }
}

template <int R, class W>
inline void dot_rows(
    float* out, index_t out_a, index_t out_b, const Weights<W>& w, index_t b, index_t apart,
    const float* x, index_t x_step, index_t as, index_t k) {
    index_t a = 0;
    const auto tile = [&](auto many) {
        // The first pass over a block brings those after it; later passes find theirs in cache.
        dot_tile<R, many>(out, out_a, out_b, w, b, apart, x, x_step, a, k, a == 0);
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
        if (as >= FEED<W> && tiles())
            return dot_on_tiles(out, out_a, out_b, weights, bs, x, x_step, as, k);
#endif
    const index_t apart = weights.apart();
    index_t b = 0;
    const auto rows = [&](auto many, index_t apart) {
        for (index_t s = 0; s < apart; ++s)
            dot_rows<many>(out, out_a, out_b, weights, b + s, apart, x, x_step, as, k);
        b += many * apart;
    };
    if constexpr (std::is_same_v<W, int4_block>)
        for (; as == 1 && bs - b >= MANY * apart; b += MANY * apart)
            for (index_t s = 0; s < apart; ++s)
                dot_tile<MANY, 1>(
                    out, out_a, out_b, weights, b + s, apart, x, x_step, 0, k, true);
    while (bs - b >= ROWS * apart) rows(std::integral_constant<int, ROWS>{}, apart);
    while (b < bs) rows(std::integral_constant<int, 1>{}, 1);
}

}  // namespace quire
