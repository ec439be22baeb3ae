// Products of int8 and int4 rows with float vectors on AMX, 32 rows with 16 vectors at a time.
//
// The values of a group are exact in bf16, so that the sums of tiles.hpp do for them: no product is
// rounded. What a tile gives for a group (the products with the third numbers of the floats, then
// the second, then the first) is multiplied by the group's scale and added to the groups before it:
// one order wherever an element lies and whatever lies beside it.
#pragma once

#include "tiles.hpp"

#if defined(QUIRE_TILES)
namespace quire {

constexpr int BESIDE = 4;            // sets of 16 vectors that rows are unpacked for at a time
constexpr int VALUES = 4, PART = 6;  // tiles of rows and of vectors; those before hold sums
constexpr index_t FETCH = 4;         // pairs of groups that rows are fetched before they are read

template <>
inline constexpr index_t FEED<int8_group> = 5;
template <>
inline constexpr index_t FEED<int4_block> = 6;

// Where two groups of the first of some rows lie: values and scales.
struct Pair {
    const char *one, *two, *by_one, *by_two;
    bool beside;  // int4 in one block, the second after the first
};

// Rows that all start at the same group of a block.
template <class W>
struct Groups;

template <>
struct Groups<int8_group> {
    static constexpr index_t SIZE = sizeof(int8_group), OFTEN = 1;
    const char* base;
    index_t next;  // bytes from a row to the next
    Groups(const Weights<int8_group>& w, index_t b)
        : base(reinterpret_cast<const char*>(w.row(b))), next(w.step / 32 * SIZE) {}

    Pair pair(index_t g, index_t then) const {
        const char *one = base + g * SIZE, *two = base + then * SIZE;
        return {one, two, one + 30, two + 30, false};
    }
    static __m512 scale(const char* p) {
        std::int32_t word;  // its upper half
        std::memcpy(&word, p, sizeof word);
        return _mm512_castsi512_ps(
            _mm512_and_si512(_mm512_set1_epi32(word), _mm512_set1_epi32(-65536)));
    }
    // The values l and l + 16 as the pair l.
    static __m512i values(const char* p) {
        const auto half = [](const char* from) {
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
            return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
        };
        return _mm512_or_si512(_mm512_srli_epi32(half(p), 16), half(p + 16));
    }
    static void values(const Pair& p, index_t at, __m512i& one, __m512i& two) {
        one = values(p.one + at);
        two = values(p.two + at);
    }
};

template <>
struct Groups<int4_block> {
    static constexpr index_t SIZE = sizeof(int4_block) / 4, OFTEN = 2;
    const char* base;
    index_t first, next;
    Groups(const Weights<int4_block>& w, index_t b)
        : base(reinterpret_cast<const char*>(w.base + w.group(b) / 4)), first(w.group(b) % 4),
          next(w.step / 128 * index_t(sizeof(int4_block))) {}

    Pair pair(index_t g, index_t then) const {
        const auto block = [&](index_t g) { return base + (first + g) / 4 * 4 * SIZE; };
        const index_t q = (first + g) % 4, r = (first + then) % 4;
        return {block(g) + q, block(then) + r, block(g) + 62 + 2 * q, block(then) + 62 + 2 * r,
                then > g && q < 3};
    }
    static __m512 scale(const char* p) {
        float by;
        std::memcpy(&by, p, sizeof by);
        return _mm512_set1_ps(by);
    }
    // Of the words `low` and `high` the lowest four bits of the lower and of the upper half: looked
    // up by five, of which the fifth does not matter.
    static __m512i values(__m512i low, __m512i high) {
        alignas(64) static constexpr std::uint16_t table[32] = {
            0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,  // -8 ... -1
            0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,  // 0 ... 7
            0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
            0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
        const __m512i lower = _mm512_set1_epi32(0xffff);
        const __m512i index = _mm512_ternarylogic_epi32(lower, low, high, 0xca);
        return _mm512_permutexvar_epi16(index, _mm512_load_si512(table));
    }
    // A load from byte g is a shift of the words to group g (dot.hpp).
    static void values(const Pair& p, index_t at, __m512i& one, __m512i& two) {
        const __m512i w = _mm512_loadu_si512(p.one + at);
        one = values(w, _mm512_slli_epi32(w, 12));
        if (p.beside) {
            two = values(_mm512_srli_epi32(w, 8), _mm512_slli_epi32(w, 4));
        } else {
            const __m512i v = _mm512_loadu_si512(p.two + at);
            two = values(v, _mm512_slli_epi32(v, 12));
        }
    }
};

// The products of `rows` rows, R · 16 or fewer than 16, with up to BESIDE · 16 vectors, two groups
// at a time.
template <class W, int R>
class Block {
    static constexpr int N = R * SIDE;

public:
    void sum(const Groups<W>& w, int rows, const Panels<true>& x, index_t a, int panels, index_t k) {
        const index_t groups = k / 32, pairs = (groups + 1) / 2;
        // What is past the last row or group is that again: its sums are not used, its vectors 0.
        const auto place = [&](int r) { return (R > 1 || r < rows ? r : rows - 1) * w.next; };
        const auto pair = [&](index_t c) {
            return w.pair(2 * c, 2 * c + 1 < groups ? 2 * c + 1 : 2 * c);
        };
        const auto unpack = [&](index_t c, int from, int to) __attribute__((always_inline)) {
            const Pair p = pair(c);
            const index_t far = c + FETCH < pairs ? 2 * FETCH * w.SIZE
                                                  : N * w.next - 2 * (pairs - FETCH) * w.SIZE;
            const bool fetch = c % w.OFTEN == 0;
            for (int r = from; r < to; ++r) {
                const index_t at = place(r);
                if (fetch) __builtin_prefetch(p.one + at + far);
                __m512i one, two;
                w.values(p, at, one, two);
                _mm512_store_si512(value_[c % 2][0] + r, one);
                _mm512_store_si512(value_[c % 2][1] + r, two);
            }
        };
        const auto add = [&](index_t c, int q, int turn, int from, int to)
                             __attribute__((always_inline)) {
            const Pair p = pair(c);
            const auto& sums = sum_[turn];
            for (int r = from; r < to; ++r) {
                const index_t at = place(r);
                float* total = total_[q].row[r];
                __m512 sum = _mm512_load_ps(total);
                sum = _mm512_fmadd_ps(w.scale(p.by_one + at), _mm512_load_ps(sums[0].row[r]), sum);
                sum = _mm512_fmadd_ps(w.scale(p.by_two + at), _mm512_load_ps(sums[1].row[r]), sum);
                _mm512_store_ps(total, sum);
            }
        };
        std::memset(total_, 0, panels * sizeof *total_);
        unpack(0, 0, N);
        index_t c_done = -1;
        int q_done = 0, turn = 0;
        for (index_t c = 0; c < pairs; ++c)
            for (int q = 0; q < panels; ++q, turn ^= 1) {
                const bool more = q == 0 && c + 1 < pairs;
                // Between the products the rows of the next pair are unpacked, and the last sums
                // are added up.
                unrolled<2 * PIECES>([&](auto step) {
                    constexpr int h = step / PIECES, p = PIECES - 1 - step % PIECES;
                    constexpr int from = N * step / (2 * PIECES), to = N * (step + 1) / (2 * PIECES);
                    if constexpr (p == PIECES - 1)
                        unrolled<R>([](auto r) { tile_zero<h * R + r>(); });
                    settled();
                    tile_load<PART + step % 2>(x.at(a + q * SIDE, 2 * c + h) + p * SIDE, 64);
                    unrolled<R>([&](auto r) {
                        if constexpr (p == PIECES - 1)
                            tile_load<VALUES + r>(value_[c % 2][h] + r * SIDE, 64);
                        tile_dot<h * R + r, VALUES + r, PART + step % 2>();
                    });
                    settled();
                    if (more) unpack(c + 1, from, to);
                    if (c_done >= 0) add(c_done, q_done, turn ^ 1, from, to);
                });
                unrolled<2 * R>([&](auto t) {
                    tile_store<t>(sum_[turn][t / R].row[t % R * SIDE], 64);
                });
                c_done = c, q_done = q;
            }
        add(c_done, q_done, turn ^ 1, 0, N);
    }
    // The sums of up to 16 rows from r on with vector set q, a row for each vector.
    void take(int q, int r, __m512i (&side)[SIDE]) const {
        for (int i = 0; i < SIDE; ++i) side[i] = _mm512_load_si512(total_[q].row[r + i]);
        transpose(side);
    }

private:
    struct alignas(64) Rows {
        float row[N][SIDE];
    };
    Line value_[2][2][N];
    Rows sum_[2][2], total_[BESIDE];
};

// As dot, of rows b … b + rows.
template <class W, int R>
inline void group_rows(
    float* out, index_t out_a, index_t out_b, const Weights<W>& w, index_t b, int rows,
    const Panels<true>& x, index_t as, index_t k) {
    static thread_local Block<W, R> block;
    const Groups<W> groups(w, b);
    for (index_t a = 0; a < as; a += BESIDE * SIDE) {
        const index_t left = as - a < BESIDE * SIDE ? as - a : BESIDE * SIDE;
        const int panels = int((left + SIDE - 1) / SIDE);
        block.sum(groups, rows, x, a, panels, k);
        for (int q = 0; q < panels; ++q)
            for (int r = 0; r < rows; r += SIDE) {
                __m512i side[SIDE];
                block.take(q, r, side);
                const int count = left - q * SIDE < SIDE ? int(left - q * SIDE) : SIDE;
                const int n = rows - r < SIDE ? rows - r : SIDE;
                for (int c = 0; c < count; ++c)
                    put_row(out + (a + q * SIDE + c) * out_a + (b + r) * out_b, out_b, n,
                            _mm512_castsi512_ps(side[c]));
            }
    }
}

template <class W>
__attribute__((noinline)) inline void dot_on_tiles(
    float* out, index_t out_a, index_t out_b, const Weights<W>& w, index_t bs, const float* x,
    index_t x_step, index_t as, index_t k) {
    if (as == 0 || bs == 0) return;
    static thread_local Panels<true> panels;
    panels.hold(x, x_step, as, k);
    shape_tiles(SIDE);
    const index_t apart = w.apart();
    for (index_t s = 0; s < apart; ++s) {
        const Weights<W> rows{w.base, w.at + s * w.step, apart * w.step};
        const index_t count = (bs - s + apart - 1) / apart;
        const auto take = [&](auto many, index_t b, int n) {
            group_rows<W, many>(
                out + s * out_b, out_a, apart * out_b, rows, b, n, panels, as, k);
        };
        index_t b = 0;
        for (; b + 2 * SIDE <= count; b += 2 * SIDE)
            take(std::integral_constant<int, 2>{}, b, 2 * SIDE);
        for (; b < count; b += SIDE)
            take(std::integral_constant<int, 1>{}, b, count - b < SIDE ? int(count - b) : SIDE);
    }
    asm volatile("tilerelease");
}

}  // namespace quire
#endif
