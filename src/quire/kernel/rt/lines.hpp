// Registers of sixteen words on AVX-512.
#pragma once

#include "types.hpp"

#if defined(__AVX512F__)
namespace quire {

inline void transpose(__m512i (&r)[16]) {
    __m512i s[16];
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; ++h) {
            r[i + 2 * h] = _mm512_unpacklo_epi64(s[i + h], s[i + h + 2]);
            r[i + 2 * h + 1] = _mm512_unpackhi_epi64(s[i + h], s[i + h + 2]);
        }
    for (int i = 0; i < 4; ++i)
        for (int h = 0; h < 2; ++h) {
            s[8 * h + i] = _mm512_shuffle_i32x4(r[8 * h + i], r[8 * h + i + 4], 0x88);
            s[8 * h + i + 4] = _mm512_shuffle_i32x4(r[8 * h + i], r[8 * h + i + 4], 0xdd);
        }
    for (int i = 0; i < 8; ++i) {
        r[i] = _mm512_shuffle_i32x4(s[i], s[8 + i], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(s[i], s[8 + i], 0xdd);
    }
}

// The first n of 16 floats, `step` apart.
inline void put_row(float* to, index_t step, int n, __m512 row) {
    if (step == 1) return _mm512_mask_storeu_ps(to, __mmask16((1u << n) - 1), row);
    alignas(64) float lane[16];
    _mm512_store_ps(lane, row);
    for (int i = 0; i < n; ++i) to[i * step] = lane[i];
}

}  // namespace quire
#endif
