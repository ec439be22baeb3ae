// What weights in blocks hold as pairs of bf16 numbers, which are exact.
#pragma once

#include "values.hpp"

#if defined(__AVX512BW__)
namespace quire {

// Words of 16 rows as pairs of columns: those of the lower half and of the upper.
// Columns k and k + 2 are a pair, so that shifts of words are all that it takes.
inline void pairs(const int4_block& b, int half, int word, __m512i* to) {
    // Looked up by five bits, of which the fifth does not matter.
    alignas(64) static constexpr std::uint16_t table[32] = {
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,  // -8 ... -1
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,  // 0 ... 7
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
    const __m512i held = _mm512_loadu_si512(b.value + (word * SPAN + half * LANES) * 4);
    for (int i = 0; i < 4; ++i)
        _mm512_store_si512(
            to + i, _mm512_permutexvar_epi16(
                        _mm512_srli_epi32(held, 4 * i), _mm512_load_si512(table)));
}
inline void pairs(const int8_block& b, int half, int word, __m512i* to) {
    const __m512i held = _mm512_xor_si512(
        _mm512_loadu_si512(b.value + (word * SPAN + half * LANES) * 4), _mm512_set1_epi8(-128));
    const auto column = [&](int k) {
        const __m512i at_top = k < 3 ? _mm512_slli_epi32(held, 24 - 8 * k) : held;
        return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32(at_top, 24)));
    };
    for (int i = 0; i < 2; ++i)
        _mm512_store_si512(
            to + i, _mm512_or_si512(_mm512_srli_epi32(column(i), 16), column(i + 2)));
}

template <class B>
inline void unpack(const B& b, Twos& to) {
    for (int h = 0; h < 2; ++h)
        for (int word = 0; word < SPAN / B::WIDE; ++word)
            pairs(b, h, word, reinterpret_cast<__m512i*>(to.of[h][word * (B::WIDE / 2)]));
}

}  // namespace quire
#endif
