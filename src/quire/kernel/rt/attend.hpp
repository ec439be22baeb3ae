// One block of keys for the queries that share them: running maximum, sum of exponentials and
// weighted sum of values, and the joining of blocks in their order (online softmax, FlashAttention).
#pragma once

#include <limits>

#include "math.hpp"
#include "vec.hpp"

namespace quire {

constexpr int BLOCK_MAX = 512;

template <class T>
inline float dot_row(const float* q, const T* k, index_t n) {
    vec acc = {};
    index_t i = 0;
    for (; i + 16 <= n; i += 16) acc += load16(q + i) * load16(k + i);
    if (i < n) acc += load_part(q + i, n - i) * load_part(k + i, n - i);
    return sum16(acc);
}

// part[0]: maximum, part[1]: Σ exp(s − max), part[2 …]: Σ exp(s − max) · value, over keys
// j0 <= j < j1. `score(j, q·k)` is the score, −inf where the key is not live.
template <class K, class V, class Score>
inline void attend_block(
    float* part, const float* q, index_t inner, const K* keys, index_t key_step, const V* values,
    index_t value_step, index_t width, index_t j0, index_t j1, Score score) {
    float s[BLOCK_MAX];
    const index_t n = j1 - j0;
    float most = -std::numeric_limits<float>::infinity();
    for (index_t j = 0; j < n; ++j) {
        s[j] = score(j0 + j, dot_row(q, keys + (j0 + j) * key_step, inner));
        most = s[j] > most ? s[j] : most;
    }
    part[0] = most;
    if (!(most > -std::numeric_limits<float>::infinity())) {
        part[1] = 0;
        for (index_t i = 0; i < width; ++i) part[2 + i] = 0;
        return;
    }
    for (index_t j = 0; j < n; ++j) s[j] = exp_(s[j] - most);
    float lanes[16] = {};
    for (index_t j = 0; j < n; ++j) lanes[j % 16] += s[j];
    float total = 0;
    for (float lane : lanes) total += lane;
    part[1] = total;
    index_t i = 0;
    for (; i + 64 <= width; i += 64) {
        vec acc[4] = {};
        for (index_t j = 0; j < n; ++j) {
            const V* v = values + (j0 + j) * value_step + i;
            const vec p = splat(s[j]);
            for (int c = 0; c < 4; ++c) acc[c] += p * load16(v + 16 * c);
        }
        for (int c = 0; c < 4; ++c) *reinterpret_cast<vec_u*>(part + 2 + i + 16 * c) = acc[c];
    }
    for (; i < width; i += 16) {
        const index_t rest = width - i < 16 ? width - i : 16;
        vec acc = {};
        for (index_t j = 0; j < n; ++j) {
            const V* v = values + (j0 + j) * value_step + i;
            acc += splat(s[j]) * (rest == 16 ? load16(v) : load_part(v, rest));
        }
        for (index_t c = 0; c < rest; ++c) part[2 + i + c] = acc[c];
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
    for (index_t s = s0; s < s1; ++s) {
        const float* part = parts + s * step;
        const float scale = exp_(part[0] - most);
        total += scale * part[1];
        if (out_step == 1)
            for (index_t i = 0; i < width; ++i) out[i] += scale * part[2 + i];
        else
            for (index_t i = 0; i < width; ++i) out[i * out_step] += scale * part[2 + i];
    }
    const float by = 1.0f / total;
    for (index_t i = 0; i < width; ++i) out[i * out_step] *= by;
}

}  // namespace quire
