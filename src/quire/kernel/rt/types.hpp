// Storage formats of tensors and their conversion to and from float.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace quire {

using index_t = std::int64_t;

inline float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint32_t to_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

struct bf16 {
    std::uint16_t bits;
};

struct fp16 {
    std::uint16_t bits;
};

// Weights in groups of 32 along the row with a scale each: 8.5 and 4.5 bits a weight. The scale of
// an int8 group is a bf16. Four int4 groups lie together: word l of 16 holds the weights l, l + 16,
// … l + 112 of 128 from its lowest nibble up, offset by 8, so that a register of words gives eight
// vectors of weights by shifts alone. The scale of group g is the float at byte 62 + 2g, whose lower
// half are the values or the scale before it: so a kernel that has no instruction to spare
// broadcasts it as it lies.
struct int8_group {
    static constexpr index_t size = 32;
    std::int8_t value[32];
    bf16 scale;
    float by() const { return from_bits(std::uint32_t(scale.bits) << 16); }
};

struct int4_block {
    static constexpr index_t size = 128;
    std::uint8_t value[64];
    std::uint16_t scale[4];
    float by(index_t group) const {
        float word;
        std::memcpy(&word, reinterpret_cast<const char*>(this) + 62 + 2 * group, sizeof word);
        return word;
    }
};
static_assert(sizeof(int8_group) == 34 && sizeof(int4_block) == 72);

inline float half_to_float(std::uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#else
    const std::uint32_t sign = std::uint32_t(h & 0x8000u) << 16;
    const std::uint32_t exponent = (h >> 10) & 31u, fraction = h & 0x3ffu;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {
        const float tiny = float(fraction) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -tiny : tiny;
    }
    return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
#endif
}

// Round to nearest, ties to even.
inline std::uint16_t float_to_half(float f) {
#if defined(__F16C__)
    return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);
#else
    const std::uint32_t bits = to_bits(f), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return std::uint16_t(sign | 0x7e00u);
    if (rest >= 0x477ff000u) return std::uint16_t(sign | 0x7c00u);
    if (rest < 0x38800000u) {
        const float scaled = from_bits(rest) + 0.5f;  // the last bit is now 2^-24
        return std::uint16_t(sign | (to_bits(scaled) - 0x3f000000u));
    }
    const std::uint32_t odd = rest >> 13 & 1u;
    return std::uint16_t(sign | ((rest - 0x38000000u + 0xfffu + odd) >> 13));
#endif
}

inline float load(const float* p, index_t i) { return p[i]; }
inline float load(const double* p, index_t i) { return float(p[i]); }
inline float load(const bf16* p, index_t i) { return from_bits(std::uint32_t(p[i].bits) << 16); }
inline float load(const fp16* p, index_t i) { return half_to_float(p[i].bits); }
inline float load(const int8_group* p, index_t i) {
    const int8_group& g = p[i / 32];
    return g.by() * float(g.value[i % 32]);
}
inline float load(const int4_block* p, index_t i) {
    const int4_block& b = p[i / 128];
    const index_t k = i % 128, g = k / 32;
    return b.by(g) * float((b.value[k % 16 * 4 + g] >> k / 16 % 2 * 4 & 15) - 8);
}
inline index_t load(const std::int64_t* p, index_t i) { return p[i]; }
inline index_t load(const std::int32_t* p, index_t i) { return p[i]; }
inline index_t load(const std::int16_t* p, index_t i) { return p[i]; }
inline index_t load(const std::int8_t* p, index_t i) { return p[i]; }
inline index_t load(const std::uint8_t* p, index_t i) { return p[i]; }
inline bool load(const bool* p, index_t i) { return p[i]; }

inline void store(float* p, index_t i, float v) { p[i] = v; }
inline void store(double* p, index_t i, float v) { p[i] = v; }
inline void store(bf16* p, index_t i, float v) {
    const std::uint32_t bits = to_bits(v);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    p[i].bits = nan ? 0x7fc0u : std::uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline void store(fp16* p, index_t i, float v) { p[i].bits = float_to_half(v); }
inline void store(std::int64_t* p, index_t i, index_t v) { p[i] = v; }
inline void store(std::int32_t* p, index_t i, index_t v) { p[i] = std::int32_t(v); }
inline void store(bool* p, index_t i, bool v) { p[i] = v; }

}  // namespace quire
