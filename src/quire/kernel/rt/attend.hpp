// One block of keys for the queries that share them: maximum, sum of exponentials and weighted sum
// of values, and the joining of blocks in their order (online softmax, FlashAttention).
#pragma once

#include <limits>

#include "math.hpp"
#include "vec.hpp"

namespace quire {

constexpr int BLOCK_MAX = 512;

#if defined(__AVX512F__)
constexpr int QUERIES = 4, TILE = 4;  // as many sums as there are registers for
#else
constexpr int QUERIES = 2, TILE = 2;
#endif

// s[g][j + t] = q[g]·k[t] for N keys. Each is summed the same way whatever its neighbours are.
template <int N, int G, class K>
inline void scores(
    float (&s)[G][BLOCK_MAX], index_t j, const float* const (&q)[G], index_t inner, const K* key,
    index_t step) {
    vec acc[G][4];
    for (int g = 0; g < G; ++g)
        for (int t = 0; t < 4; ++t) acc[g][t] = vec{};
    const auto add = [&](auto load_key, auto load_query) {
        vec k[N];
        for (int t = 0; t < N; ++t) k[t] = load_key(key + t * step);
        for (int g = 0; g < G; ++g) {
            const vec x = load_query(q[g]);
            for (int t = 0; t < N; ++t) acc[g][t] += x * k[t];
        }
    };
    index_t i = 0;
    for (; i + 16 <= inner; i += 16) {
        const auto load = [i](auto p) { return load16(p + i); };
        add(load, load);
    }
    if (i < inner) {
        const auto load = [i, inner](auto p) { return load_part(p + i, inner - i); };
        add(load, load);
    }
    for (int g = 0; g < G; ++g)
        if constexpr (N == 4) {
            sum16(acc[g], s[g] + j);
        } else {
            float sums[4];
            sum16(acc[g], sums);
            for (int t = 0; t < N; ++t) s[g][j + t] = sums[t];
        }
}

// exp_ of lanes that are 0, less, or NaN, to the same bits in half the instructions: no overflow,
// and the rounded n stands in the low bits of `shifted`.
inline part exp_below(part x) {
    const part least = -87.33654f - part{}, c = x < least ? least : x;
    const part shifted = c * 1.44269504088896341f + 12582912.0f;
    const part n = shifted - 12582912.0f;
    const part r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
    const part y = exp_near_0(r) * (part)(((upart)shifted << 23) + 0x3f800000u);
    return x < least ? part{} : y;
}
inline vec exp_below(vec x) {
    return parts_of([&](int k) { return exp_below(x.p[k]); });
}

// The scores s[j], j < n, become exp(s − max), zeros up to a whole vector behind them; into part[0]
// their maximum, into part[1] their sum.
inline void exponentials(float* part, float* s, index_t n) {
    const float dead = -std::numeric_limits<float>::infinity();
    index_t end = n;
    for (; end % LANES; ++end) s[end] = dead;
    vec lanes = splat(dead);
    for (index_t j = 0; j < end; j += LANES) lanes = larger(load16(s + j), lanes);
    const float most = part[0] = max16(lanes);
    vec total = {};
    for (index_t j = 0; j < end; j += LANES) {
        // Without a live key all are 0.
        const vec power = most > dead ? exp_below(load16(s + j) + splat(-most)) : vec{};
        store16(s + j, power);
        total += power;
    }
    part[1] = sum16(total);
}

enum class Ahead { nothing, values, keys };  // keys: values too

constexpr index_t SOON = 16;  // rows

// Rows are asked for twice: into L2 while the other kind is read, and shortly before they are read
// themselves, since a busy processor drops such requests. Inline: a call that only prefetches is
// taken for one without effect.
template <int hint, class T>
__attribute__((always_inline)) inline void prefetch_row(const T* p, index_t n) {
    const char* c = reinterpret_cast<const char*>(p);
    for (index_t b = 0; b < n * index_t(sizeof(T)); b += 64) __builtin_prefetch(c + b, 0, hint);
}

// part[g][2 + i + c] = Σ_j s[g][j] · value_j[i + c] for c < 16·T, `rest` of the last 16.
template <int T, int G, class V, class Bring>
inline void weighted(
    float* const (&part)[G], const float (&s)[G][BLOCK_MAX], const V* values, index_t step,
    index_t n, index_t i, index_t rest, Bring bring) {
    vec acc[G][T];
    for (int g = 0; g < G; ++g)
        for (int c = 0; c < T; ++c) acc[g][c] = vec{};
    for (index_t j = 0; j < n; ++j) {
        const V* value = values + j * step + i;
        prefetch_row<3>(value + SOON * step, LANES * T);
        bring(j);
        vec v[T];
        for (int c = 0; c < T; ++c)
            v[c] = rest == LANES ? load16(value + 16 * c) : load_part(value + 16 * c, rest);
        for (int g = 0; g < G; ++g) {
            const vec p = splat(s[g][j]);
            for (int c = 0; c < T; ++c) acc[g][c] += p * v[c];
        }
    }
    for (int g = 0; g < G; ++g)
        for (int c = 0; c < T; ++c) {
            float* out = part[g] + 2 + i + 16 * c;
            if (rest == LANES) {
                store16(out, acc[g][c]);
            } else {
                float lane[LANES];
                store16(lane, acc[g][c]);
                for (index_t e = 0; e < rest; ++e) out[e] = lane[e];
            }
        }
}

// G queries over keys j0 <= j < j1, which are read once for all of them. Of each query,
// part[0]: maximum, part[1]: Σ exp(s − max), part[2 …]: Σ exp(s − max) · value.
// `score(g, j, q·k)` is the score, −inf where the key is not live. `ahead` says what to
// bring: values while keys are read, and while values are read the keys of the next block.
template <int G, class K, class V, class Score>
inline void attend_block(
    float* const (&part)[G], const float* const (&q)[G], index_t inner, const K* keys,
    index_t key_step, const V* values, index_t value_step, index_t width, index_t j0, index_t j1,
    Score score, Ahead ahead) {
    alignas(64) float s[G][BLOCK_MAX];
    const index_t n = j1 - j0;
    keys += j0 * key_step;
    values += j0 * value_step;
    index_t j = 0;
    for (; j + 4 <= n; j += 4) {
        if (ahead != Ahead::nothing)
            for (int t = 0; t < 4; ++t) {
                prefetch_row<2>(values + (j + t) * value_step, width);
                prefetch_row<3>(keys + (j + SOON + t) * key_step, inner);
            }
        scores<4>(s, j, q, inner, keys + j * key_step, key_step);
    }
    for (; j < n; ++j) {
        if (ahead != Ahead::nothing) prefetch_row<2>(values + j * value_step, width);
        scores<1>(s, j, q, inner, keys + j * key_step, key_step);
    }
    for (int g = 0; g < G; ++g) {
        for (j = 0; j < n; ++j) s[g][j] = score(g, j0 + j, s[g][j]);
        exponentials(part[g], s[g], n);
    }
    const auto none = [](index_t) {};
    const auto next = [&](index_t at) { prefetch_row<2>(keys + (n + at) * key_step, inner); };
    index_t i = 0;
    for (; i + 16 * TILE <= width; i += 16 * TILE)
        if (ahead == Ahead::keys && i == 0)
            weighted<TILE>(part, s, values, value_step, n, i, LANES, next);
        else
            weighted<TILE>(part, s, values, value_step, n, i, LANES, none);
    for (; i < width; i += 16)
        weighted<1>(part, s, values, value_step, n, i, width - i < LANES ? width - i : LANES, none);
}

// As many queries together as there are; each gets the same bits as alone.
template <class K, class V, class Score>
inline void attend_queries(
    float* const* part, const float* const* q, int count, index_t inner, const K* keys,
    index_t key_step, const V* values, index_t value_step, index_t width, index_t j0, index_t j1,
    Score score, Ahead ahead) {
    for (int g0 = 0; g0 < count;) {
        const auto run = [&](auto size) {
            constexpr int G = decltype(size)::value;
            float* out[G];
            const float* in[G];
            for (int g = 0; g < G; ++g) out[g] = part[g0 + g], in[g] = q[g0 + g];
            attend_block<G>(
                out, in, inner, keys, key_step, values, value_step, width, j0, j1,
                [&](int g, index_t j, float d) { return score(g0 + g, j, d); },
                g0 == 0 ? ahead : Ahead::nothing);
            g0 += G;
        };
        const int left = count - g0;
        if (QUERIES >= 4 && left >= 4) run(std::integral_constant<int, QUERIES>{});
        else if (QUERIES >= 3 && left == 3) run(std::integral_constant<int, 3>{});
        else if (left >= 2) run(std::integral_constant<int, 2>{});
        else run(std::integral_constant<int, 1>{});
    }
}

// Blocks s0 <= s < s1 of one row joined; zeros if no key is live.
inline void merge_blocks(
    float* out, index_t out_step, const float* parts, index_t width, index_t s0, index_t s1) {
    const index_t step = width + 2;
    float most = -std::numeric_limits<float>::infinity();
    for (index_t s = s0; s < s1; ++s) most = parts[s * step] > most ? parts[s * step] : most;
    float total = 0;
    for (index_t i = 0; i < width; ++i) out[i * out_step] = 0;
    if (!(most > -std::numeric_limits<float>::infinity())) return;
    for (index_t first = s0; first < s1; first += LANES) {
        const index_t n = s1 - first < LANES ? s1 - first : LANES;
        float scales[LANES] = {};
        for (index_t k = 0; k < n; ++k) scales[k] = parts[(first + k) * step];
        store16(scales, exp_below(load16(scales) + splat(-most)));
        for (index_t k = 0; k < n; ++k) {
            const float* part = parts + (first + k) * step;
            const float scale = scales[k];
            total += scale * part[1];
            if (out_step == 1)
                for (index_t i = 0; i < width; ++i) out[i] += scale * part[2 + i];
            else
                for (index_t i = 0; i < width; ++i) out[i * out_step] += scale * part[2 + i];
        }
    }
    const float by = 1.0f / total;
    for (index_t i = 0; i < width; ++i) out[i * out_step] *= by;
}

}  // namespace quire
