// Sixteen floats at a time on any instruction set: one register of AVX-512, two of AVX, or four of
// SSE or NEON. Sums keep 16 lanes everywhere.
#pragma once

#include "types.hpp"

namespace quire {

constexpr index_t LANES = 16;
#if defined(__AVX512F__)
constexpr int PARTS = 1;
#elif defined(__AVX__)
constexpr int PARTS = 2;
#else
constexpr int PARTS = 4;
#endif
typedef float part __attribute__((vector_size(64 / PARTS)));
typedef float part_u __attribute__((vector_size(64 / PARTS), aligned(4)));
typedef std::uint32_t upart __attribute__((vector_size(64 / PARTS)));
typedef std::int32_t spart __attribute__((vector_size(64 / PARTS)));
typedef std::uint16_t hpart_u __attribute__((vector_size(32 / PARTS), aligned(2)));

// A struct, because compilers split vectors that are wider than a register badly.
struct vec {
    part p[PARTS];
};

template <class F>
inline vec parts_of(F f) {
    vec out;
    for (int k = 0; k < PARTS; ++k) out.p[k] = f(k);
    return out;
}

inline vec operator+(vec a, vec b) { return parts_of([&](int k) { return a.p[k] + b.p[k]; }); }
inline vec operator*(vec a, vec b) { return parts_of([&](int k) { return a.p[k] * b.p[k]; }); }
inline vec& operator+=(vec& a, vec b) { return a = a + b; }
inline vec splat(float x) {
    return parts_of([&](int) { return x - part{}; });  // not +: −0 + 0 is 0
}
inline vec larger(vec a, vec b) {
    return parts_of([&](int k) { return a.p[k] > b.p[k] ? a.p[k] : b.p[k]; });
}

inline vec load16(const float* p) {
    constexpr int N = LANES / PARTS;
    return parts_of([&](int k) -> part { return *reinterpret_cast<const part_u*>(p + N * k); });
}

inline void store16(float* p, vec v) {
    constexpr int N = LANES / PARTS;
    for (int k = 0; k < PARTS; ++k) *reinterpret_cast<part_u*>(p + N * k) = v.p[k];
}

inline vec load16(const bf16* p) {
#if defined(__AVX512F__)
    // The compiler makes four instructions of the conversion at the end.
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {{(part)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)}};
#elif defined(__AVX2__)
    const auto* half = reinterpret_cast<const __m128i*>(p);
    return parts_of([&](int k) {
        return (part)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(half + k)), 16);
    });
#elif defined(__SSE2__)
    const auto* half = reinterpret_cast<const __m128i*>(p);
    const __m128i zero = _mm_setzero_si128();
    const __m128i a = _mm_loadu_si128(half), b = _mm_loadu_si128(half + 1);
    return {{(part)_mm_unpacklo_epi16(zero, a), (part)_mm_unpackhi_epi16(zero, a),
             (part)_mm_unpacklo_epi16(zero, b), (part)_mm_unpackhi_epi16(zero, b)}};
#else
    constexpr int N = LANES / PARTS;
    return parts_of([&](int k) {
        const auto& half = *reinterpret_cast<const hpart_u*>(p + N * k);
        return (part)(__builtin_convertvector(half, upart) << 16);
    });
#endif
}

// Elements of other types, and of those without instructions here.
template <class T>
inline vec load16(const T* p) {
    float out[LANES];
    for (int i = 0; i < LANES; ++i) out[i] = float(load(p, i));
    return load16(out);
}

#if defined(__AVX512F__)
inline vec load16(const fp16* p) {
    return {{(part)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}};
}
#elif defined(__F16C__)
inline vec load16(const fp16* p) {
    const auto* half = reinterpret_cast<const __m128i*>(p);
    return parts_of([&](int k) { return (part)_mm256_cvtph_ps(_mm_loadu_si128(half + k)); });
}
#endif

// The first n < 16 elements, zeros behind them.
template <class T>
inline vec load_part(const T* p, index_t n) {
    float out[LANES] = {};
    for (index_t i = 0; i < n; ++i) out[i] = load(p, i);
    return load16(out);
}

// The sum of the lanes, always in the same order.
inline float sum16(vec v) {
#if defined(__AVX512F__)
    const __m512 all = (__m512)v.p[0];
    const __m256 low = _mm512_castps512_ps256(all);
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1));
    const __m256 eight = _mm256_add_ps(low, high);
#elif defined(__AVX__)
    const __m256 eight = (__m256)(v.p[0] + v.p[1]);
#endif
#if defined(__AVX__)
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
    const part four = (v.p[0] + v.p[2]) + (v.p[1] + v.p[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
#endif
}

// The sums of four vectors, each in the order of sum16: pairs share their shuffles.
__attribute__((always_inline)) inline void sum16(const vec (&v)[4], float* out) {
#if defined(__AVX512F__)
    const auto halves = [](vec a, vec b) {
        const __m512 x = (__m512)a.p[0], y = (__m512)b.p[0];
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
    float lane[LANES];
    store16(lane, v);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; ++i)
            lane[i] = lane[i + step] > lane[i] ? lane[i + step] : lane[i];
    return lane[0];
}

}  // namespace quire
