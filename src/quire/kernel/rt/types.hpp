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

// Weights in blocks of 32 rows by 32 columns. Blocks lie as they are read, those of the same 32 rows
// one after another.
constexpr index_t SPAN = 32;

// Quantised weights with a scale for each row: 8.5 and 4.5 bits a weight. A word holds four columns
// of a row (of int4 weights eight: the next four in the upper halves of its bytes), and the words of
// 32 rows lie side by side, so that a register multiplies 16 rows at once. What is held is the weight
// over its scale, plus ZERO.
struct int8_block {
    static constexpr int ZERO = 128, WIDE = 4;  // columns of a word
    std::uint8_t value[SPAN * SPAN];
    bf16 scale[SPAN];
};

struct int4_block {
    static constexpr int ZERO = 8, WIDE = 8;
    std::uint8_t value[SPAN * SPAN / 2];
    bf16 scale[SPAN];
};
static_assert(sizeof(int8_block) == 1088 && sizeof(int4_block) == 576);

// bf16 weights as they are, in 12.5 bits. Of a number's upper byte, its sign and seven bits of its
// exponent, a block mostly has few values: `upper` holds four bits that look it up. `lower` is the
// other byte. Columns 2n and 2n + 1 of rows 4 · lane + r and 16 + 4 · lane + r lie side by side in
// sixteen bytes from 64 n + 16 lane on, so that a register of lower bytes and one of upper ones make
// two of numbers. Numbers whose upper byte is not in the table are listed.
struct lossless_block {
    static constexpr int HERE = 9;
    struct Odd {
        std::uint8_t row, column;
        bf16 value;
    };
    std::uint8_t lower[SPAN * SPAN], upper[SPAN * SPAN / 2];
    std::uint8_t table[16];
    std::int64_t list;  // where it is, in bytes from here: in the block if there is room
    std::int32_t count;
    Odd odd[HERE];

    const Odd* odds() const {
        return reinterpret_cast<const Odd*>(reinterpret_cast<const char*>(this) + list);
    }
    static constexpr int place(int row, int column) {
        return column / 2 * 64 + row % 16 / 4 * 16 + row / 16 * 8 + row % 4 * 2 + column % 2;
    }
    // By the table, whatever is listed.
    bf16 looked_up(int row, int column) const {
        const int at = place(row, column);
        const int code = upper[at / 128 * 64 + at % 64] >> at / 64 % 2 * 4 & 15;
        return {std::uint16_t(table[code] << 8 | lower[at])};
    }
};
static_assert(sizeof(lossless_block) == 1600);

// The first of the blocks that hold a matrix of K columns.
template <class B, index_t K>
struct Blocked {
    B first;
};
template <index_t K>
using int8 = Blocked<int8_block, K>;
template <index_t K>
using int4 = Blocked<int4_block, K>;
template <index_t K>
using lossless = Blocked<lossless_block, K>;

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
template <class B>
inline float element(const B& b, int row, int column) {
    const std::uint8_t byte = b.value[(column / B::WIDE * SPAN + row) * 4 + column % 4];
    const int held = B::WIDE == 4 ? byte : byte >> column % B::WIDE / 4 * 4 & 15;
    return load(b.scale, row) * float(held - B::ZERO);
}
inline float element(const lossless_block& b, int row, int column) {
    bf16 value = b.looked_up(row, column);
    for (int n = 0; n < b.count; ++n)
        if (b.odds()[n].row == row && b.odds()[n].column == column) value = b.odds()[n].value;
    return load(&value, 0);
}
// Element i, row by row, of a matrix in blocks.
template <class B>
inline float element(const B* blocks, index_t columns, index_t i) {
    const index_t row = i / columns, k = i % columns;
    const B& b = blocks[row / SPAN * (columns / SPAN) + k / SPAN];
    return element(b, int(row % SPAN), int(k % SPAN));
}
template <class B, index_t K>
inline float load(const Blocked<B, K>* p, index_t i) { return element(&p->first, K, i); }
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
