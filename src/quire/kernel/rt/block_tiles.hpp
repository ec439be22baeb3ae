// Products of weights in blocks with float vectors on AMX, 32 rows with 16 vectors at a time.
//
// What blocks hold is exact in bf16, so that the sums of tiles.hpp do for it: no product is rounded.
// What a tile gives for a block (the products with the third numbers of the floats, then the second,
// then the first) is multiplied by the scales of its rows and added to the blocks before it: one
// order wherever an element lies and whatever lies beside it.
#pragma once

#include "pairs.hpp"
#include "tiles.hpp"

#if defined(QUIRE_TILES)
namespace quire {

constexpr int BESIDE = 4;            // sets of 16 vectors that blocks are unpacked for at a time
constexpr int PART = 4, VALUES = 6;  // tiles of vectors and of weights; those before hold sums

template <>
inline constexpr index_t FEED<int8_block> = 8;
template <>
inline constexpr index_t FEED<int4_block> = 5;

// Vectors as tiles hold them: of a block's columns and up to 16 vectors a tile for each of the three
// numbers, columns in the order of pairs. An even number of blocks, the last one 0.
template <class B>
class Pieces {
public:
    void hold(const float* x, index_t x_step, index_t as, index_t k) {
        if (kept_.same(x, x_step, as, k)) return;
        blocks_ = (k / SPAN + 1) / 2 * 2;
        lines_.assign((as + SIDE - 1) / SIDE * blocks_ * PIECES * SIDE, Line{});
        for (index_t a = 0; a < as; ++a)
            for (index_t g = 0; g < k / SPAN; ++g) pack(a, g);
    }
    const Line* at(index_t a, index_t g, int piece) const { return &lines_[place(a, g, piece)]; }

private:
    index_t place(index_t a, index_t g, int piece) const {
        return ((a / SIDE * blocks_ + g) * PIECES + piece) * SIDE;
    }
    void pack(index_t a, index_t g) {
        // Of column k the upper half of float k.
        alignas(64) static constexpr std::uint16_t int8s[32] = {
            1,  5,  3,  7,  9,  13, 11, 15, 17, 21, 19, 23, 25, 29, 27, 31,
            33, 37, 35, 39, 41, 45, 43, 47, 49, 53, 51, 55, 57, 61, 59, 63};
        alignas(64) static constexpr std::uint16_t int4s[32] = {
            1,  5,  9,  13, 3,  7,  11, 15, 17, 21, 25, 29, 19, 23, 27, 31,
            33, 37, 41, 45, 35, 39, 43, 47, 49, 53, 57, 61, 51, 55, 59, 63};
        const __m512i order = _mm512_load_si512(B::WIDE == 4 ? int8s : int4s);
        const float* from = kept_.row(a) + g * SPAN;
        __m512i low[PIECES], high[PIECES];
        split(_mm512_loadu_ps(from), low);
        split(_mm512_loadu_ps(from + LANES), high);
        for (int p = 0; p < PIECES; ++p)
            _mm512_store_si512(
                &lines_[place(a, g, p) + a % SIDE],
                _mm512_permutex2var_epi16(low[p], order, high[p]));
    }

    Kept kept_;
    std::vector<Line> lines_;
    index_t blocks_ = 0;
};

// The products of 32 rows with up to BESIDE · 16 vectors, two blocks at a time.
template <class B>
class Products {
public:
    // `most`: vectors of a set.
    void sum(const B* b, index_t blocks, const Pieces<B>& x, index_t a, int sets, int most,
             bool ahead) {
        const index_t twos = (blocks + 1) / 2;
        Prefetcher next(b);
        // What is past the last block is that again: its vectors are 0.
        const auto block = [&](index_t c, int g) -> const B& {
            return b[2 * c + g < blocks ? 2 * c + g : 2 * c];
        };
        const auto unpack = [&](index_t c, int from, int to) __attribute__((always_inline)) {
            for (int i = from; i < to; ++i) {
                const int word = i % WORDS, half = i / WORDS % 2, g = i / WORDS / 2;
                pairs(block(c, g), half, word, at(c, g, half) + word * (SIDE / WORDS));
            }
            if (ahead && to == ALL) next.template fetch<false, 2 * sizeof(B)>();
        };
        const auto add = [&](index_t c, int q, int turn, int from, int to)
                             __attribute__((always_inline)) {
            for (int i = from; i < to; ++i) {
                const int half = i / 2, g = i % 2;
                const __m512 by = (__m512)scales(block(c, g), half).p[0];
                for (int v = 0; v < most; ++v) {
                    float* total = total_[q][half].row[v];
                    _mm512_store_ps(total, _mm512_fmadd_ps(
                        by, _mm512_load_ps(sum_[turn][g][half].row[v]), _mm512_load_ps(total)));
                }
            }
        };
        std::memset(total_, 0, sets * sizeof *total_);
        unpack(0, 0, ALL);
        index_t c_done = -1;
        int q_done = 0, turn = 0;
        for (index_t c = 0; c < twos; ++c)
            for (int q = 0; q < sets; ++q, turn ^= 1) {
                const bool more = q == 0 && c + 1 < twos;
                // Between the products the next blocks are unpacked, and the last sums added up.
                unrolled<2 * PIECES>([&](auto step) {
                    constexpr int g = step / PIECES, p = PIECES - 1 - step % PIECES;
                    if constexpr (p == PIECES - 1)
                        unrolled<2>([](auto half) { tile_zero<g * 2 + half>(); });
                    settled();
                    tile_load<PART + step % 2>(x.at(a + q * SIDE, 2 * c + g, p), 64);
                    unrolled<2>([&](auto half) {
                        if constexpr (p == PIECES - 1) tile_load<VALUES + half>(at(c, g, half), 64);
                        tile_dot<g * 2 + half, PART + step % 2, VALUES + half>();
                    });
                    settled();
                    if (more) unpack(c + 1, ALL * step / (2 * PIECES), ALL * (step + 1) / (2 * PIECES));
                    if (c_done >= 0)
                        add(c_done, q_done, turn ^ 1, 4 * step / (2 * PIECES),
                            4 * (step + 1) / (2 * PIECES));
                });
                unrolled<4>([&](auto t) { tile_store<t>(sum_[turn][t / 2][t % 2].row, 64); });
                c_done = c, q_done = q;
            }
        add(c_done, q_done, turn ^ 1, 0, 4);
    }
    // Those of vector v of set q.
    void take(int q, int v, vec (&product)[2]) const {
        for (int half = 0; half < 2; ++half) product[half] = load16(total_[q][half].row[v]);
    }

private:
    static constexpr int WORDS = SPAN / B::WIDE, ALL = 4 * WORDS;  // of 16 rows; of two blocks
    __m512i* at(index_t c, int g, int half) {
        return reinterpret_cast<__m512i*>(value_[c % 2][g][half]);
    }
    Line value_[2][2][2][SIDE];  // [turn][block][half]
    Sums sum_[2][2][2], total_[BESIDE][2];
};

// As dot, on tiles.
template <class B>
inline void dot_on_tiles(
    const Target& out, const Rows<B>& w, const float* x, index_t x_step, index_t as, index_t k) {
    static thread_local Pieces<B> pieces;
    static thread_local Products<B> products;
    pieces.hold(x, x_step, as, k);
    const int most = as < SIDE ? int(as) : SIDE;
    shape_tiles(most, VALUES);
    w.each([&](const B* b, index_t row) {
        for (index_t a = 0; a < as; a += BESIDE * SIDE) {
            const index_t left = as - a < BESIDE * SIDE ? as - a : BESIDE * SIDE;
            products.sum(b, k / SPAN, pieces, a, int((left + SIDE - 1) / SIDE), most, a == 0);
            for (int c = 0; c < left; ++c) {
                vec product[2];
                products.take(c / SIDE, c % SIDE, product);
                w.put(out, a + c, row, product);
            }
        }
    });
    asm volatile("tilerelease");
}

}  // namespace quire
#endif
