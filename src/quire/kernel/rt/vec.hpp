// Sixteen floats at a time, on any instruction set: the compiler's vector types become one
// AVX-512 register, two of AVX2, or four of SSE. Sums keep 16 lanes everywhere.
#pragma once

#include "types.hpp"

namespace quire {

constexpr index_t LANES = 16;
typedef float vec __attribute__((vector_size(64), aligned(64)));
typedef float vec_u __attribute__((vector_size(64), aligned(4)));
typedef std::uint32_t uvec __attribute__((vector_size(64)));
typedef std::int32_t ivec __attribute__((vector_size(64)));
typedef std::uint16_t hvec_u __attribute__((vector_size(32), aligned(2)));
typedef std::int8_t bvec_u __attribute__((vector_size(16), aligned(1)));

inline vec splat(float x) { return x - vec{}; }  // not +: −0 + 0 is 0

inline vec load16(const float* p) { return *reinterpret_cast<const vec_u*>(p); }

inline vec load16(const bf16* p) {
#if defined(__AVX512F__)
    // The compiler makes four instructions of the conversion below.
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
    const uvec wide = __builtin_convertvector(*reinterpret_cast<const hvec_u*>(p), uvec);
    return (vec)(wide << 16);
#endif
}

inline vec load16(const fp16* p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
    vec out;
    const auto* half = reinterpret_cast<const __m128i*>(p);
    _mm256_storeu_ps(reinterpret_cast<float*>(&out), _mm256_cvtph_ps(_mm_loadu_si128(half)));
    _mm256_storeu_ps(
        reinterpret_cast<float*>(&out) + 8, _mm256_cvtph_ps(_mm_loadu_si128(half + 1)));
    return out;
#else
    vec out;
    for (int i = 0; i < 16; ++i) out[i] = load(p, i);
    return out;
#endif
}

inline vec load16(const std::int8_t* p) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#else
    const ivec wide = __builtin_convertvector(*reinterpret_cast<const bvec_u*>(p), ivec);
    return __builtin_convertvector(wide, vec);
#endif
}

// The first n < 16 elements, zeros behind them.
template <class T>
inline vec load_part(const T* p, index_t n) {
    vec out = {};
    for (index_t i = 0; i < n; ++i) out[i] = load(p, i);
    return out;
}

// The sum of the lanes, always in the same order.
inline float sum16(vec v) {
#if defined(__AVX512F__)
    const __m256 low = _mm512_castps512_ps256((__m512)v);
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v), 1));
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
    float part[16];
    std::memcpy(part, &v, sizeof part);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; ++i) part[i] += part[i + step];
    return part[0];
#endif
}

// The sums of four vectors, each in the order of sum16: pairs share their shuffles.
__attribute__((always_inline)) inline void sum16(const vec (&v)[4], float* out) {
#if defined(__AVX512F__)
    const auto halves = [](vec a, vec b) {
        const __m512 x = (__m512)a, y = (__m512)b;
        return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
    };
    const __m512 ab = halves(v[0], v[1]), cd = halves(v[2], v[3]);
    const __m512 four =
        _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
    const __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xb1));
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one)));
#else
    for (int i = 0; i < 4; ++i) out[i] = sum16(v[i]);
#endif
}

// The largest lane that is a number.
inline float max16(vec v) {
    float part[16];
    std::memcpy(part, &v, sizeof part);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; ++i) part[i] = part[i + step] > part[i] ? part[i + step] : part[i];
    return part[0];
}

// `v` in a register, where the compiler would load it again at each use.
inline vec held(vec v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#endif
    return v;
}

}  // namespace quire
