// Elementary functions without calls or branches, so that loops over them become vector code.
// Errors are a few units in the last place of a float (tests/kernel/test_math.py).
#pragma once

#include <cmath>
#include <limits>

#include "types.hpp"

namespace quire {

// exp(r) near 0, of a float or a vector (Cephes' expf).
template <class T>
inline T exp_near_0(T r) {
    T p = 1.9875691500e-4f - T{};
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * r * r + r + 1.0f;
}

// Results below the least normal float are 0.
// exp by x = n·ln 2 + r and a polynomial in r (Cephes' expf).
inline float exp_(float x) {
    const float inf = std::numeric_limits<float>::infinity();
    const float c = x < -87.33654f ? -87.33654f : (x > 88.72283f ? 88.72283f : x);
    const float shifted = c * 1.44269504088896341f + 12582912.0f;  // 1.5·2^23 rounds
    const float n = shifted - 12582912.0f;
    const float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
    const float p = exp_near_0(r);
    // 2^n in two steps: n may be 128.
    const std::int32_t whole = std::int32_t(n), half = whole / 2;
    const float y = p * from_bits(std::uint32_t(half + 127) << 23) *
                    from_bits(std::uint32_t(whole - half + 127) << 23);
    const float high = x > 88.72283f ? inf : y;
    const float low = x < -87.33654f ? 0.0f : high;
    return x != x ? x : low;
}

inline float sigmoid_(float x) { return 1.0f / (1.0f + exp_(-x)); }

inline float tanh_(float x) {
    const float s = x * x;
    const float small =
        x + x * s * (-0.333333333f + s * (0.133333333f + s * (-0.0539682540f + s * 0.0218694885f)));
    const float large = 1.0f - 2.0f / (exp_(2.0f * x) + 1.0f);
    return (x < 0 ? -x : x) < 0.3f ? small : large;
}

// A rational approximation, the one that Eigen uses for floats.
inline float erf_(float v) {
    const float x = v < -4.0f ? -4.0f : (v > 4.0f ? 4.0f : v), s = x * x;
    float p = -2.72614225801306e-10f;
    p = p * s + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    float q = -1.45660718464996e-05f;
    q = q * s - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    return x * p / q;
}

}  // namespace quire
