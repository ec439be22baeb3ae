// Products of bf16 rows with float vectors on AMX, 16 rows with 16 vectors at a time.
//
// A float is the sum of three bf16 numbers, so that no product is rounded. Every element is summed
// in one order wherever it lies and whatever lies beside it: 32 along k at a time, products with
// each of the three numbers apart.
#pragma once

#include "kept.hpp"
#include "lines.hpp"
#include "weights.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BW__) && \
    defined(__AVX512DQ__) && defined(__linux__)
#define QUIRE_TILES
#include <sys/syscall.h>
#include <unistd.h>

namespace quire {

constexpr int SIDE = 16;       // rows and vectors of a tile
constexpr index_t DEEP = 32;   // along k
constexpr int PIECES = 3;      // bf16 numbers that make up a float
constexpr index_t AHEAD = 3;   // steps along k that rows are fetched before they are read

// Vectors from which tiles are faster than lanes of floats, of each format.
template <class W>
inline constexpr index_t FEED = 0;
template <>
inline constexpr index_t FEED<bf16> = 3;

// Linux hands out tile registers on request, for the whole process.
inline bool tiles() {
    constexpr long request = 0x1023, data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    static const bool given = syscall(SYS_arch_prctl, request, data) == 0;
    return given;
}

template <class W>
inline bool on_tiles(index_t as) { return FEED<W> > 0 && as >= FEED<W> && tiles(); }

template <int T>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void tile_load(const void* from, long step) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(step), "i"(T));
}
template <int T>
inline void tile_store(void* to, long step) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(step), "i"(T) : "memory");
}
// Tile T += tile A · tile B.
template <int T, int A, int B>
inline void tile_dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(T), "i"(A), "i"(B));
}
// The compiler does not know that tile loads read memory.
inline void settled() { asm volatile("" ::: "memory"); }
struct alignas(64) Line {
    std::uint32_t word[16];
};

// The upper halves of 16 floats are their first bf16 numbers. What is no finite number has one.
inline void split(__m512 x, __m512i (&piece)[PIECES]) {
    const __m512i upper = _mm512_set1_epi32(-65536);
    const __mmask16 nan = _mm512_fpclass_ps_mask(x, 0x81);
    const __mmask16 finite = _knot_mask16(_mm512_fpclass_ps_mask(x, 0x99));
    const __m512i quiet = _mm512_maskz_set1_epi32(nan, 0x00400000);
    piece[0] = _mm512_or_si512(_mm512_and_si512(_mm512_castps_si512(x), upper), quiet);
    const __m512 rest = _mm512_maskz_sub_ps(finite, x, _mm512_castsi512_ps(piece[0]));
    piece[1] = _mm512_and_si512(_mm512_castps_si512(rest), upper);
    piece[2] = _mm512_castps_si512(_mm512_sub_ps(rest, _mm512_castsi512_ps(piece[1])));
}

// Vectors as tiles hold them: of 32 along k and up to 16 vectors a tile for each of the three
// numbers; of five vectors or fewer one tile, the three side by side.
class Panels {
public:
    void hold(const float* x, index_t x_step, index_t as, index_t k) {
        if (kept_.same(x, x_step, as, k)) return;
        chunks_ = (k + DEEP - 1) / DEEP;
        tiles_ = PIECES * as <= SIDE ? 1 : PIECES;
        lines_.resize((as + SIDE - 1) / SIDE * chunks_ * tiles_ * SIDE);
        for (index_t a = 0; a < as; a += SIDE)
            for (index_t c = 0; c < chunks_; ++c) pack(a, c);
    }
    const Line* at(index_t a, index_t chunk) const {
        return lines_.data() + (a / SIDE * chunks_ + chunk) * tiles_ * SIDE;
    }
    bool few() const { return tiles_ == 1; }
    index_t chunks() const { return chunks_; }

private:
    void pack(index_t a, index_t chunk) {
        alignas(64) static constexpr std::uint16_t uppers[32] = {
            1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
            33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
        const __m512i order = _mm512_load_si512(uppers);
        const index_t left = kept_.length() - chunk * DEEP;
        const std::uint32_t mask = left >= DEEP ? ~0u : (1u << left) - 1;
        const int count = kept_.count() - a < SIDE ? int(kept_.count() - a) : SIDE;
        __m512i pairs[PIECES * SIDE] = {};
        for (int n = 0; n < count; ++n) {
            const float* from = kept_.row(a + n) + chunk * DEEP;
            __m512i low[PIECES], high[PIECES];
            split(_mm512_maskz_loadu_ps(__mmask16(mask), from), low);
            split(_mm512_maskz_loadu_ps(__mmask16(mask >> 16), from + 16), high);
            for (int p = 0; p < PIECES; ++p)
                pairs[few() ? p * count + n : p * SIDE + n] =
                    _mm512_permutex2var_epi16(low[p], order, high[p]);
        }
        Line* to = lines_.data() + (a / SIDE * chunks_ + chunk) * tiles_ * SIDE;
        for (int t = 0; t < tiles_; ++t) {
            __m512i(&side)[SIDE] = reinterpret_cast<__m512i(&)[SIDE]>(pairs[t * SIDE]);
            transpose(side);
            for (int n = 0; n < SIDE; ++n) _mm512_store_si512(to + t * SIDE + n, side[n]);
        }
    }

    Kept kept_;
    std::vector<Line> lines_;
    index_t chunks_ = 0;
    int tiles_ = 0;
};

constexpr int ROW = 6, PIECE = 7;  // tiles; those before them hold sums

// The tiles before `whole` with `rows` rows, the others with 16.
inline void shape_tiles(int rows, int whole = PIECE) {
    struct alignas(64) {
        std::uint8_t palette = 1, start = 0, reserved[14] = {};
        std::uint16_t bytes[16] = {};
        std::uint8_t rows[16] = {};
    } shape;
    for (int t = 0; t < 8; ++t) {
        shape.rows[t] = std::uint8_t(t < whole ? rows : SIDE);
        shape.bytes[t] = 64;
    }
    settled();
    asm volatile("ldtilecfg %0" ::"m"(shape));
}

struct alignas(64) Sums {
    float row[SIDE][SIDE];
};

// The products of R · 16 rows (or fewer than 16, as the tiles are shaped) with a panel.
template <int R, bool few>
inline void sum_tiles(
    Sums* sums, const Weights<bf16>& w, index_t b, int rows, const Panels& x, index_t a,
    index_t k) {
    constexpr int TILES = few ? 1 : PIECES;
    const index_t step = w.step, next = R * SIDE * step;
    alignas(64) bf16 edge[SIDE * DEEP];
    unrolled<R * TILES>([](auto t) { tile_zero<t>(); });
    for (index_t c = 0; c < x.chunks(); ++c) {
        const bf16* row = w.row(b) + c * DEEP;
        const Line* piece = x.at(a, c);
        const bool whole = (c + 1) * DEEP <= k;
        // The first pass over a block brings what follows; later passes find theirs in cache.
        const index_t ahead = AHEAD * DEEP + (c + AHEAD < x.chunks() ? 0 : next - x.chunks() * DEEP);
        if (a == 0)
            for (int r = 0; r < R * SIDE; ++r) __builtin_prefetch(row + ahead + r * step);
        const auto load_rows = [&](int r) {
            const bf16* from = row + r * SIDE * step;
            if (whole) return tile_load<ROW>(from, step * long(sizeof(bf16)));
            std::memset(edge, 0, sizeof edge);
            for (int i = 0; i < (R > 1 ? SIDE : rows); ++i)
                std::memcpy(edge + i * DEEP, from + i * step, (k - c * DEEP) * sizeof(bf16));
            settled();
            tile_load<ROW>(edge, 64);
            settled();
        };
        unrolled<TILES>([&](auto p) {
            tile_load<PIECE>(piece + p * SIDE, 64);
            unrolled<R>([&](auto i) {
                // Back and forth, so that the last rows of a pass are the first of the next.
                constexpr int r = p % 2 ? R - 1 - i : i;
                if (p == 0 || i > 0) load_rows(r);
                tile_dot<r * TILES + p, ROW, PIECE>();
            });
        });
    }
    unrolled<R * TILES>([&](auto t) { tile_store<t>(sums + t, 64); });
}

// As dot, of rows b … b + rows (R · 16 of them, or fewer than 16).
template <int R, bool few>
inline void tile_rows(
    float* out, index_t out_a, index_t out_b, const Weights<bf16>& w, index_t b, int rows,
    const Panels& x, index_t as, index_t k) {
    Sums sums[R * (few ? 1 : PIECES)];
    const int n = R > 1 ? SIDE : rows;
    for (index_t a = 0; a < as; a += SIDE) {
        sum_tiles<R, few>(sums, w, b, rows, x, a, k);
        const int count = as - a < SIDE ? int(as - a) : SIDE;
        for (int r = 0; r < R; ++r) {
            const auto total = [](__m512 first, __m512 second, __m512 third) {
                return _mm512_add_ps(first, _mm512_add_ps(second, third));
            };
            __m512i side[SIDE] = {};
            const Sums* of = sums + r * (few ? 1 : PIECES);
            for (int i = 0; i < n; ++i) {
                const auto line = [&](int p) { return _mm512_load_ps(of[p].row[i]); };
                side[i] = _mm512_castps_si512(few ? line(0) : total(line(0), line(1), line(2)));
            }
            transpose(side);
            for (int c = 0; c < count; ++c) {
                const auto part = [&](int p) { return _mm512_castsi512_ps(side[p * count + c]); };
                const __m512 found = few ? total(part(0), part(1), part(2)) : part(0);
                put_row(out + (a + c) * out_a + (b + r * SIDE) * out_b, out_b, n, found);
            }
        }
    }
}

template <bool few>
inline void dot_panels(
    float* out, index_t out_a, index_t out_b, const Weights<bf16>& w, index_t bs, const Panels& x,
    index_t as, index_t k) {
    constexpr int MOST = few ? 4 : 2;
    index_t b = 0;
    if (bs >= SIDE) shape_tiles(SIDE);
    for (; b + MOST * SIDE <= bs; b += MOST * SIDE)
        tile_rows<MOST, few>(out, out_a, out_b, w, b, MOST * SIDE, x, as, k);
    for (; b + SIDE <= bs; b += SIDE)
        tile_rows<1, few>(out, out_a, out_b, w, b, SIDE, x, as, k);
    if (b < bs) {
        shape_tiles(int(bs - b));
        tile_rows<1, few>(out, out_a, out_b, w, b, int(bs - b), x, as, k);
    }
    asm volatile("tilerelease");
}

__attribute__((noinline)) inline void dot_on_tiles(
    float* out, index_t out_a, index_t out_b, const Weights<bf16>& w, index_t bs, const float* x,
    index_t x_step, index_t as, index_t k) {
    if (as == 0 || bs == 0) return;
    static thread_local Panels panels;
    panels.hold(x, x_step, as, k);
    if (panels.few()) dot_panels<true>(out, out_a, out_b, w, bs, panels, as, k);
    else dot_panels<false>(out, out_a, out_b, w, bs, panels, as, k);
}

}  // namespace quire
#else
namespace quire {

template <class>
inline bool on_tiles(index_t) { return false; }

}  // namespace quire
#endif
