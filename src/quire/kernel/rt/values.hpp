// What weights in blocks (types.hpp) are, 16 rows at a time.
#pragma once

#include "vec.hpp"
#include "weights.hpp"

namespace quire {

// Where products go: out[a·out_a + b·out_b].
struct Target {
    float* out;
    index_t out_a, out_b;
};

// Rows `first`, first + apart, … of a matrix in blocks, `across` of them beside one another.
template <class B>
struct Rows {
    const B* base;
    index_t across, first, apart, count;

    index_t last() const { return first + (count - 1) * apart; }
    // fn(the first of the blocks, their first row) for all that hold such rows.
    template <class F>
    void each(F fn) const {
        for (index_t r = first / SPAN * SPAN; r <= last(); r += SPAN)
            fn(base + r / SPAN * across, r);
    }
    // Stores products of vector a with the rows of the blocks from row r on.
    void put(const Target& to, index_t a, index_t r, const vec (&product)[2]) const {
        float* out = to.out + a * to.out_a;
        if (apart == 1 && to.out_b == 1 && first <= r && r + SPAN <= first + count)
            for (int h = 0; h < 2; ++h) store16(out + r - first + h * LANES, product[h]);
        else {
            float sums[SPAN];
            for (int h = 0; h < 2; ++h) store16(sums + h * LANES, product[h]);
            index_t b = r > first ? (r - first + apart - 1) / apart : 0;
            for (; b < count && first + b * apart < r + SPAN; ++b)
                out[b * to.out_b] = sums[first + b * apart - r];
        }
    }
};

constexpr int TWOS = SPAN / 2;  // pairs of columns of a block

// A block as pairs of bf16 numbers: of two columns, for the lower and the upper 16 rows.
struct alignas(64) Twos {
    std::uint32_t of[2][TWOS][LANES];
};

// The scales of the lower or the upper 16 rows.
template <class B>
inline vec scales(const B& b, int half) { return load16(b.scale + half * LANES); }

// Their weights in column k, before they are multiplied by the scales.
template <class B>
__attribute__((always_inline)) inline vec values(const B& b, int half, int k) {
    const std::uint8_t* words = b.value + (k / B::WIDE * SPAN + half * LANES) * 4;
    const int shift = k % 4 * 8 + k % B::WIDE / 4 * 4;
    return parts_of([&](int n) __attribute__((always_inline)) {
        upart word;
        std::memcpy(&word, words + n * sizeof word, sizeof word);
        word >>= shift;
#if defined(__AVX512F__)
        if constexpr (B::WIDE == 8)  // looked up by the lower four bits
            return (part)_mm512_permutexvar_ps(
                (__m512i)word,
                _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7));
#endif
        return __builtin_convertvector((spart)(word & (2 * B::ZERO - 1)) - B::ZERO, part);
    });
}

}  // namespace quire
