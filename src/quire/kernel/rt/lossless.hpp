// bf16 weights in blocks that hold them in 12.5 bits (types.hpp), as numbers again.
#pragma once

#include "values.hpp"

namespace quire {

inline vec scales(const lossless_block&, int) { return splat(1.0f); }

// Sixteen words, each two bf16 numbers of a row.
struct words {
    upart p[PARTS];
    vec even() const { return parts_of([&](int k) { return (part)(p[k] << 16); }); }
    vec odd() const { return parts_of([&](int k) { return (part)(p[k] & 0xffff0000u); }); }
};

// Columns 2n and 2n + 1 of 32 rows by the table, whatever is listed.
__attribute__((always_inline)) inline void look_up(const lossless_block& b, int n, words (&to)[2]) {
    const std::uint8_t *lower = b.lower + n * 64, *upper = b.upper + n / 2 * 64;
#if defined(__AVX512BW__)
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b.table)));
    const __m512i two = _mm512_loadu_si512(upper);
    const __m512i code = _mm512_and_si512(
        n % 2 ? _mm512_srli_epi16(two, 4) : two, _mm512_set1_epi8(15));
    const __m512i high = _mm512_shuffle_epi8(table, code), low = _mm512_loadu_si512(lower);
    to[0].p[0] = (upart)_mm512_unpacklo_epi8(low, high);
    to[1].p[0] = (upart)_mm512_unpackhi_epi8(low, high);
#elif defined(__AVX2__)
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(b.table)));
    for (int k = 0; k < PARTS; ++k) {
        const __m256i two = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(upper) + k);
        const __m256i code = _mm256_and_si256(
            n % 2 ? _mm256_srli_epi16(two, 4) : two, _mm256_set1_epi8(15));
        const __m256i high = _mm256_shuffle_epi8(table, code);
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lower) + k);
        to[0].p[k] = (upart)_mm256_unpacklo_epi8(low, high);
        to[1].p[k] = (upart)_mm256_unpackhi_epi8(low, high);
    }
#else
    for (int row = 0; row < SPAN; ++row) {
        const std::uint32_t left = b.looked_up(row, 2 * n).bits;
        const std::uint32_t right = b.looked_up(row, 2 * n + 1).bits;
        const int r = row % LANES, size = LANES / PARTS;
        to[row / LANES].p[r / size][r % size] = left | right << 16;
    }
#endif
}

__attribute__((noinline)) inline void unpack(const lossless_block& b, Twos& to) {
    for (int n = 0; n < TWOS; ++n) {
        words two[2];
        look_up(b, n, two);
        for (int h = 0; h < 2; ++h) std::memcpy(to.of[h][n], &two[h], sizeof two[h]);
    }
    for (int i = 0; i < b.count; ++i) {
        const lossless_block::Odd& odd = b.odds()[i];
        std::uint32_t& word = to.of[odd.row / LANES][odd.column / 2][odd.row % LANES];
        const int shift = odd.column % 2 * 16;
        word = (word & ~(0xffffu << shift)) | std::uint32_t(odd.value.bits) << shift;
    }
}

// Adds the products of some blocks of 32 rows with C vectors, even columns and odd ones apart.
template <int C>
inline void sum_floats(
    const lossless_block* b, index_t blocks, const float* const (&x)[C], bool ahead,
    vec (&total)[C][2]) {
    Prefetcher next(b);
    for (index_t g = 0; g < blocks; ++g) {
        vec sums[C][2][2] = {};
        const auto add = [&](auto n, auto two) __attribute__((always_inline)) {
            constexpr int parts = 8, every = TWOS / parts;  // in which a block is asked for
            if constexpr (n % every == 0)
                if (ahead) next.fetch<C == 1, sizeof(lossless_block), n / every, parts>();
            words w[2];
            two(n, w);
            for (int h = 0; h < 2; ++h) {
                const vec even = w[h].even(), odd = w[h].odd();
                for (int c = 0; c < C; ++c) {
                    sums[c][h][0] += even * splat(x[c][g * SPAN + 2 * n]);
                    sums[c][h][1] += odd * splat(x[c][g * SPAN + 2 * n + 1]);
                }
            }
        };
        if (b[g].count == 0) {
            unrolled<TWOS>([&](auto n) __attribute__((always_inline)) {
                add(n, [&](int k, words (&w)[2]) __attribute__((always_inline)) {
                    look_up(b[g], k, w);
                });
            });
        } else {
            Twos held;
            unpack(b[g], held);
            unrolled<TWOS>([&](auto n) __attribute__((always_inline)) {
                add(n, [&](int k, words (&w)[2]) __attribute__((always_inline)) {
                    for (int h = 0; h < 2; ++h) std::memcpy(&w[h], held.of[h][k], sizeof w[h]);
                });
            });
        }
        for (int c = 0; c < C; ++c)
            for (int h = 0; h < 2; ++h) total[c][h] += sums[c][h][0] + sums[c][h][1];
    }
}

}  // namespace quire
