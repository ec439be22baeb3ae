// Products of bf16 rows with float vectors on AMX, 16 rows with 16 vectors at a time.
//
// A float is the sum of three bf16 numbers, so that no product is rounded. Every element is summed
// in one order wherever it lies and whatever lies beside it: 32 along k at a time, products with
// the first of the three numbers apart from those with the others.
#pragma once

#include "weights.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BW__) && \
    defined(__AVX512DQ__) && defined(__linux__)
#define QUIRE_TILES
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

namespace quire {

constexpr int SIDE = 16;       // rows and vectors of a tile
constexpr index_t DEEP = 32;   // along k
constexpr int PIECES = 3;      // bf16 numbers that make up a float

// Linux hands out tile registers on request, for the whole process.
inline bool tiles() {
    constexpr long request = 0x1023, data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    static const bool given = syscall(SYS_arch_prctl, request, data) == 0;
    return given;
}

// The compiler does not know that tile loads read memory.
inline void settled() { asm volatile("" ::: "memory"); }

struct alignas(64) Line {
    std::uint32_t word[16];
};

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

// Vectors as tiles hold them: for 32 along k and 16 vectors, the three pieces, each of 16 lines of
// pairs along k; of one vector alone, each of one line.
class Panels {
public:
    // Keeps what it holds if that is the same, bit by bit: a phase multiplies one set of vectors
    // with many rows.
    void hold(const float* x, index_t x_step, index_t as, index_t k) {
        if (as == as_ && k == k_ && same(x, x_step)) return;
        as_ = as, k_ = k;
        chunks_ = (k + DEEP - 1) / DEEP;
        across_ = as == 1 ? 1 : SIDE;
        copy_.resize(as * k);
        lines_.resize((as + SIDE - 1) / SIDE * chunks_ * PIECES * across_);
        for (index_t a = 0; a < as; ++a)
            std::memcpy(copy_.data() + a * k, x + a * x_step, k * sizeof(float));
        for (index_t a = 0; a < as; a += SIDE)
            for (index_t c = 0; c < chunks_; ++c) pack(a, c);
    }
    const Line* at(index_t a, index_t chunk) const {
        return &lines_[(a / SIDE * chunks_ + chunk) * PIECES * across_];
    }
    int across() const { return across_; }
    index_t chunks() const { return chunks_; }

private:
    bool same(const float* x, index_t x_step) const {
        for (index_t a = 0; a < as_; ++a)
            if (std::memcmp(copy_.data() + a * k_, x + a * x_step, k_ * sizeof(float))) return false;
        return true;
    }

    // The upper halves of 16 floats are their first bf16 numbers. What is no finite number has one.
    static void split(__m512 x, __m512i (&piece)[PIECES]) {
        const __m512i upper = _mm512_set1_epi32(-65536);
        const __mmask16 nan = _mm512_fpclass_ps_mask(x, 0x81), finite = ~_mm512_fpclass_ps_mask(x, 0x99);
        const __m512i quiet = _mm512_maskz_set1_epi32(nan, 0x00400000);
        piece[0] = _mm512_or_si512(_mm512_and_si512(_mm512_castps_si512(x), upper), quiet);
        const __m512 rest = _mm512_maskz_sub_ps(finite, x, _mm512_castsi512_ps(piece[0]));
        piece[1] = _mm512_and_si512(_mm512_castps_si512(rest), upper);
        piece[2] = _mm512_castps_si512(_mm512_sub_ps(rest, _mm512_castsi512_ps(piece[1])));
    }

    void pack(index_t a, index_t chunk) {
        alignas(64) static constexpr std::uint16_t uppers[32] = {
            1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
            33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
        const __m512i order = _mm512_load_si512(uppers);
        const index_t left = k_ - chunk * DEEP;
        const std::uint32_t mask = left >= DEEP ? ~0u : (1u << left) - 1;
        __m512i pairs[PIECES][SIDE] = {};
        for (int n = 0; n < across_ && a + n < as_; ++n) {
            const float* from = &copy_[(a + n) * k_ + chunk * DEEP];
            __m512i low[PIECES], high[PIECES];
            split(_mm512_maskz_loadu_ps(__mmask16(mask), from), low);
            split(_mm512_maskz_loadu_ps(__mmask16(mask >> 16), from + 16), high);
            for (int p = 0; p < PIECES; ++p)
                pairs[p][n] = _mm512_permutex2var_epi16(low[p], order, high[p]);
        }
        Line* to = &lines_[(a / SIDE * chunks_ + chunk) * PIECES * across_];
        for (int p = 0; p < PIECES; ++p) {
            if (across_ > 1) transpose(pairs[p]);
            for (int n = 0; n < across_; ++n) _mm512_store_si512(to + p * across_ + n, pairs[p][n]);
        }
    }

    std::vector<float> copy_;
    std::vector<Line> lines_;
    index_t as_ = 0, k_ = 0, chunks_ = 0;
    int across_ = 0;
};

// Tiles 0 and 1, 2 and 3: sums of 16 rows with the first piece, and with the others. 4: rows.
// 5 to 7: pieces.
inline void shape_tiles(int rows, int across) {
    struct alignas(64) {
        std::uint8_t palette = 1, start = 0, reserved[14] = {};
        std::uint16_t bytes[16] = {};
        std::uint8_t rows[16] = {};
    } shape;
    for (int t = 0; t < 8; ++t) {
        shape.rows[t] = std::uint8_t(t < 5 ? rows : SIDE);
        shape.bytes[t] = std::uint16_t(t == 4 ? 64 : 4 * across);
    }
    settled();
    asm volatile("ldtilecfg %0" ::"m"(shape));
}

// The products of R · 16 rows (or fewer than 16, as the tiles are shaped) with a panel.
template <int R>
inline void sum_tiles(
    float (&sums)[2 * R][SIDE * SIDE], const Weights<bf16>& w, index_t b, int rows,
    const Panels& x, index_t a, index_t k) {
    const index_t step = w.step, next = R * SIDE * step;
    const long apart = step * sizeof(bf16), across = 4 * x.across();
    alignas(64) bf16 edge[SIDE * DEEP];
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (R > 1) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (index_t c = 0; c < x.chunks(); ++c) {
        const bf16* row = w.row(b) + c * DEEP;
        const Line* piece = x.at(a, c);
        const bool whole = (c + 1) * DEEP <= k;
        // The first pass over a block brings the block after it; later passes find theirs in cache.
        if (a == 0)
            for (int r = 0; r < R * SIDE; ++r) __builtin_prefetch(row + next + r * step);
        const auto load_rows = [&](const bf16* from) {
            if (whole) {
                _tile_loadd(4, from, apart);
                return;
            }
            std::memset(edge, 0, sizeof edge);
            for (int r = 0; r < (R > 1 ? SIDE : rows); ++r)
                std::memcpy(edge + r * DEEP, from + r * step, (k - c * DEEP) * sizeof(bf16));
            settled();
            _tile_loadd(4, edge, 64);
        };
        _tile_loadd(5, piece, across);
        _tile_loadd(6, piece + x.across(), across);
        _tile_loadd(7, piece + 2 * x.across(), across);
        load_rows(row);
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (R > 1) {
            load_rows(row + SIDE * step);
            _tile_dpbf16ps(2, 4, 5);
            _tile_dpbf16ps(3, 4, 6);
            _tile_dpbf16ps(3, 4, 7);
        }
    }
    _tile_stored(0, sums[0], across);
    _tile_stored(1, sums[1], across);
    if constexpr (R > 1) {
        _tile_stored(2, sums[2], across);
        _tile_stored(3, sums[3], across);
    }
    settled();
}

// As dot, of rows b … b + rows (R · 16 of them, or fewer than 16).
template <int R>
inline void tile_rows(
    float* out, index_t out_a, index_t out_b, const Weights<bf16>& w, index_t b, int rows,
    const Panels& x, index_t as, index_t k) {
    alignas(64) float sums[2 * R][SIDE * SIDE];
    for (index_t a = 0; a < as; a += SIDE) {
        sum_tiles<R>(sums, w, b, rows, x, a, k);
        for (int r = 0; r < R; ++r) {
            const int n = R > 1 ? SIDE : rows;
            const auto total = [&](int i) {
                return _mm512_add_ps(
                    _mm512_load_ps(sums[2 * r] + SIDE * i), _mm512_load_ps(sums[2 * r + 1] + SIDE * i));
            };
            __m512i column[SIDE];
            const int columns = as == 1 ? 1 : as - a < SIDE ? int(as - a) : SIDE;
            for (int i = 0; i < (as == 1 ? 1 : n); ++i) column[i] = _mm512_castps_si512(total(i));
            if (as > 1) {
                for (int i = n; i < SIDE; ++i) column[i] = _mm512_setzero_si512();
                transpose(column);
            }
            for (int c = 0; c < columns; ++c) {
                float* to = out + (a + c) * out_a + (b + r * SIDE) * out_b;
                if (out_b == 1) {
                    _mm512_mask_storeu_ps(
                        to, __mmask16((1u << n) - 1), _mm512_castsi512_ps(column[c]));
                    continue;
                }
                alignas(64) float lane[SIDE];
                _mm512_store_si512(lane, column[c]);
                for (int i = 0; i < n; ++i) to[i * out_b] = lane[i];
            }
        }
    }
}

__attribute__((noinline)) inline void dot_tiles(
    float* out, index_t out_a, index_t out_b, const Weights<bf16>& w, index_t bs, const float* x,
    index_t x_step, index_t as, index_t k) {
    if (as == 0 || bs == 0) return;
    static thread_local Panels panels;
    panels.hold(x, x_step, as, k);
    index_t b = 0;
    if (bs >= SIDE) shape_tiles(SIDE, panels.across());
    for (; b + 2 * SIDE <= bs; b += 2 * SIDE)
        tile_rows<2>(out, out_a, out_b, w, b, 2 * SIDE, panels, as, k);
    if (b + SIDE <= bs) {
        tile_rows<1>(out, out_a, out_b, w, b, SIDE, panels, as, k);
        b += SIDE;
    }
    if (b < bs) {
        shape_tiles(int(bs - b), panels.across());
        tile_rows<1>(out, out_a, out_b, w, b, int(bs - b), panels, as, k);
    }
    _tile_release();
}

}  // namespace quire
#endif
