// Products of weights in blocks with many vectors that are bf16 in the model, on AVX-512 BF16.
//
// Elements are rounded to bf16, as in narrow.hpp; what blocks hold is exact. 32 rows lie in lanes and
// are multiplied with eight vectors at a time: the products of a block are multiplied by the scales
// of its rows and added to those of the blocks before it, one order whatever lies beside.
#pragma once

#include "lossless.hpp"
#include "narrow.hpp"
#include "pairs.hpp"

#if defined(QUIRE_NARROW)
namespace quire {

constexpr index_t EIGHT = 8;

template <>
alignas(64) inline constexpr std::uint16_t PAIRED<int8_block>[32] = {
    0,  2,  1,  3,  4,  6,  5,  7,  8,  10, 9,  11, 12, 14, 13, 15,
    16, 18, 17, 19, 20, 22, 21, 23, 24, 26, 25, 27, 28, 30, 29, 31};
template <>
alignas(64) inline constexpr std::uint16_t PAIRED<int4_block>[32] = {
    0,  2,  4,  6,  1,  3,  5,  7,  8,  10, 12, 14, 9,  11, 13, 15,
    16, 18, 20, 22, 17, 19, 21, 23, 24, 26, 28, 30, 25, 27, 29, 31};

// As dot.
template <class B>
class NarrowBlocks {
public:
    void dot(const Target& out, const Rows<B>& w, const float* x, index_t x_step, index_t as,
             index_t k) {
        columns_.hold(x, x_step, as, k);
        total_.resize((as + EIGHT - 1) / EIGHT * EIGHT);
        w.each([&](const B* b, index_t row) {
            for (auto& t : total_) t[0] = t[1] = _mm512_setzero_ps();
            for (index_t g = 0; g < k / SPAN; ++g) {
                // The block in the rows that follow, in the order in which it lies.
                const char* after = reinterpret_cast<const char*>(b + k / SPAN + g);
                for (index_t n = 0; n < index_t(sizeof(B)); n += 64)
                    __builtin_prefetch(after + n, 0, 3);
                unpack(b[g], held_);
                for (index_t a = 0; a < as; a += EIGHT)
                    if (as - a > EIGHT / 2) add<EIGHT>(b[g], a, g);
                    else add<EIGHT / 2>(b[g], a, g);
            }
            for (index_t a = 0; a < as; ++a)
                w.put(out, a, row, {{{(part)total_[a][0]}}, {{(part)total_[a][1]}}});
        });
    }

private:
    // Adds the products of block g with C vectors from a on.
    template <int C>
    __attribute__((noinline)) void add(const B& b, index_t a, index_t g) {
        const index_t first = a / (2 * WIDE) * (2 * WIDE);
        const int wide = columns_.wide(first);
        const Words* x = columns_.at(first, g * SPAN) + (a - first) / WIDE;
        const std::uint32_t* from = x->of + a % WIDE;
        __m512 sum[C][2];
        for (auto& s : sum) s[0] = s[1] = _mm512_setzero_ps();
        for (int n = 0; n < TWOS; ++n, from += wide * WIDE)
            for (int c = 0; c < C; ++c) {
                const __m512i by = _mm512_set1_epi32(int(from[c]));
                for (int h = 0; h < 2; ++h)
                    sum[c][h] = _mm512_dpbf16_ps(
                        sum[c][h], (__m512bh)_mm512_load_si512(held_.of[h][n]), (__m512bh)by);
            }
        for (int h = 0; h < 2; ++h) {
            const __m512 by = (__m512)scales(b, h).p[0];
            for (int c = 0; c < C; ++c)
                total_[a + c][h] = _mm512_fmadd_ps(by, sum[c][h], total_[a + c][h]);
        }
    }

    struct alignas(64) Total {
        __m512 half[2];
        __m512& operator[](int h) { return half[h]; }
    };
    Columns columns_{PAIRED<B>};
    std::vector<Total> total_;
    Twos held_;
};

}  // namespace quire
#endif
