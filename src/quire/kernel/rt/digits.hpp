// Products of weights in blocks with float vectors, of integers.
//
// A vector is held as integers of 32 bits, 32 elements at a time over one power of two, each as four
// signed digits of 8 bits: what the machine multiplies with the bytes of weights, and sums up without
// rounding. An element is exact within k · 2^-24 of it, half of what a product of k floats may be off
// by; elements too small for that beside the largest of their 32, or that are no finite numbers, are
// multiplied as floats, afterwards.
#pragma once

#include "kept.hpp"
#include "values.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define QUIRE_DIGITS

namespace quire {

constexpr int DIGITS = 4;

class Digits {
public:
    // 32 elements: digits of four neighbours side by side, those of the lowest value first.
    struct alignas(64) Block {
        std::int8_t digit[2][DIGITS][16];
        std::int32_t offset[DIGITS];  // −ZERO times the sum of a digit
        float unit;
        std::int32_t word(int four, int d) const {
            std::int32_t all;
            std::memcpy(&all, digit[four / 4][d] + four % 4 * 4, sizeof all);
            return all;
        }
    };
    struct Float {
        index_t k;
        float x;
    };

    void hold(const float* x, index_t x_step, index_t as, index_t k, int zero) {
        if (kept_.same(x, x_step, as, k)) return;
        int bits = 18;  // of the smallest integers
        for (index_t n = k / SPAN; n > 1 && bits > 0; n /= 2) --bits;
        blocks_.resize(as * (k / SPAN));
        floats_.resize(as);
        for (index_t a = 0; a < as; ++a) {
            floats_[a].clear();
            for (index_t g = 0; g < k / SPAN; ++g) split(a, g, zero, bits);
        }
    }
    const Block* blocks(index_t a) const { return blocks_.data() + a * (kept_.length() / SPAN); }
    const std::vector<Float>& floats(index_t a) const { return floats_[a]; }

private:
    void split(index_t a, index_t g, int zero, int bits) {
        constexpr int LARGEST = 30;
        const float* x = kept_.row(a) + g * SPAN;
        const __m512 half[2] = {_mm512_loadu_ps(x), _mm512_loadu_ps(x + LANES)};
        const auto size = [](__m512 v) {
            return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
        };
        const int top = _mm512_reduce_max_epi32(_mm512_max_epi32(size(half[0]), size(half[1])));
        const int exponent = (top >> 23) - 126;  // all are less than 2^exponent, and finite
        const bool good = exponent > -96 && exponent <= 128;
        const auto power = [](int n) { return from_bits(std::uint32_t(n + 127) << 23); };
        const __m512 by = _mm512_set1_ps(good ? power(LARGEST - exponent) : 0.0f);
        const __m512i least =
            _mm512_set1_epi32(good ? (exponent - LARGEST + bits + 127) << 23 : -1);
        // A byte that follows another is one more where that is negative.
        const __m512i carry = _mm512_set1_epi32(0x00808080);
        const __m512i bytes =
            _mm512_broadcast_i32x4(_mm_setr_epi32(0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703));
        const __m512i order =
            _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        Block& to = blocks_[a * (kept_.length() / SPAN) + g];
        __m512i sums = {};
        for (int h = 0; h < 2; ++h) {
            const __mmask16 apart = _mm512_cmplt_epu32_mask(size(half[h]), least) &
                                    _mm512_test_epi32_mask(size(half[h]), size(half[h]));
            if (apart)
                for (int i = 0; i < LANES; ++i)
                    if (apart >> i & 1)
                        floats_[a].push_back({g * SPAN + h * LANES + i, x[h * LANES + i]});
            const __m512 scaled = _mm512_maskz_mul_ps(__mmask16(~apart), half[h], by);
            __m512i all = _mm512_add_epi32(_mm512_cvtps_epi32(scaled), carry);
            all = _mm512_shuffle_epi8(_mm512_xor_si512(all, carry), bytes);
            all = _mm512_permutexvar_epi32(order, all);
            _mm512_store_si512(to.digit[h], all);
            sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(char(zero)), all);
        }
        sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_ENUM(0x4e)));
        sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_ENUM(0xb1)));
        _mm512_mask_compressstoreu_epi32(to.offset, 0x1111, _mm512_sub_epi32(__m512i{}, sums));
        to.unit = good ? power(exponent - LARGEST) : 0.0f;
    }

    Kept kept_;
    std::vector<Block> blocks_;
    std::vector<std::vector<Float>> floats_;
};

// Words of four columns: of int8 weights as they lie, of int4 the lower halves of bytes, then the
// upper ones.
template <class B>
inline __m512i four_columns(const B& b, int half, int four) {
    const int word = B::WIDE == 4 ? four : four / 2;
    const __m512i held = _mm512_loadu_si512(b.value + (word * SPAN + half * LANES) * 4);
    if (B::WIDE == 4) return held;
    const __m512i mask = _mm512_set1_epi8(15);
    if (four % 2 == 0) return _mm512_and_si512(held, mask);
#if defined(__GFNI__)
    return _mm512_gf2p8affine_epi64_epi8(held, _mm512_set1_epi64(0x1020408000000000), 0);
#else
    return _mm512_and_si512(_mm512_srli_epi32(held, 4), mask);
#endif
}

// Adds the products of the halves `from` … `to` of a block with C vectors, and asks for the one that
// is `next` meanwhile.
template <int C, bool ahead, int from, int to, class B>
__attribute__((always_inline)) inline void add_block(
    const B& b, const Digits::Block* const (&x)[C], Prefetcher& next, __m512 (&total)[C][2]) {
    constexpr int PARTS = 4, EACH = SPAN / 4 / PARTS;
    __m512i sum[C][DIGITS][2];
    for (int c = 0; c < C; ++c)
        for (int d = 0; d < DIGITS; ++d)
            for (int h = from; h < to; ++h) sum[c][d][h] = _mm512_set1_epi32(x[c]->offset[d]);
    unrolled<SPAN / 4>([&](auto four) __attribute__((always_inline)) {
        if constexpr (ahead && four % EACH == 0) next.fetch<C == 1, sizeof(B), four / EACH, PARTS>();
        __m512i w[2];
        for (int h = from; h < to; ++h) w[h] = four_columns(b, h, four);
        for (int c = 0; c < C; ++c)
            for (int d = 0; d < DIGITS; ++d) {
                const __m512i by = _mm512_set1_epi32(x[c]->word(four, d));
                for (int h = from; h < to; ++h)
                    sum[c][d][h] = _mm512_dpbusd_epi32(sum[c][d][h], w[h], by);
            }
    });
    for (int c = 0; c < C; ++c)
        for (int h = from; h < to; ++h) {
            const auto two = [&](int d) {  // at most 2^30
                return _mm512_cvtepi32_ps(_mm512_add_epi32(
                    _mm512_slli_epi32(sum[c][d + 1][h], 8), sum[c][d][h]));
            };
            const __m512 all = _mm512_fmadd_ps(two(2), _mm512_set1_ps(0x1p16f), two(0));
            const __m512 by = _mm512_mul_ps((__m512)scales(b, h).p[0], _mm512_set1_ps(x[c]->unit));
            total[c][h] = _mm512_fmadd_ps(all, by, total[c][h]);
        }
}

// As dot, on digits.
template <class B>
inline void dot_on_digits(
    const Target& out, const Rows<B>& w, const float* x, index_t x_step, index_t as, index_t k) {
    static thread_local Digits digits;
    digits.hold(x, x_step, as, k, B::ZERO);
    const index_t blocks = k / SPAN;
    Prefetcher next(w.base + w.first / SPAN * w.across);
    w.each([&](const B* b, index_t row) {
        index_t a = 0;
        const auto some = [&](auto many, auto ahead, auto from, auto to) {
            const Digits::Block* xs[many];
            for (int c = 0; c < many; ++c) xs[c] = digits.blocks(a + c);
            __m512 total[many][2] = {};
            for (index_t g = 0; g < blocks; ++g) {
                add_block<many, ahead, from, to>(b[g], xs, next, total);
                for (int c = 0; c < many; ++c) ++xs[c];
            }
            for (int c = 0; c < many; ++c) {
                vec all[2] = {{{(part)total[c][0]}}, {{(part)total[c][1]}}};
                for (const auto& f : digits.floats(a + c))
                    for (int h = 0; h < 2; ++h) {
                        const B& of = b[f.k / SPAN];
                        all[h] += scales(of, h) * values(of, h, int(f.k % SPAN)) * splat(f.x);
                    }
                w.put(out, a + c, row, all);
            }
            a += many;
        };
        constexpr std::integral_constant<int, 0> none;
        constexpr std::integral_constant<int, 1> one;
        constexpr std::integral_constant<int, 2> two;
        constexpr std::true_type ahead;
        constexpr std::false_type here;
        if (as == 1) {  // where units begin or end, half of the rows may be another's
            if (w.first >= row + LANES) return some(one, ahead, one, two);
            if (w.last() < row + LANES) return some(one, ahead, none, one);
            return some(one, ahead, none, two);
        }
        // The first vectors bring the blocks after these; the others find theirs in cache.
        some(two, ahead, none, two);
        while (as - a >= 2) some(two, here, none, two);
        if (as > a) some(one, here, none, two);
    });
}

}  // namespace quire
#endif
