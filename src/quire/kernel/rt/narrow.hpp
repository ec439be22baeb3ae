// Products of bf16 rows with many vectors that are bf16 in the model, on AVX-512 BF16.
//
// Elements are rounded to bf16, as the model's own ops do. Vectors lie in lanes, two elements side by
// side, and are multiplied with two weights of each of some rows at a time. Every element is summed
// in one order whatever lies beside it: two columns at a time, and part by part.
#pragma once

#include <algorithm>

#include "kept.hpp"
#include "lines.hpp"
#include "weights.hpp"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define QUIRE_NARROW

namespace quire {

constexpr index_t WIDE = 16;    // vectors that lie side by side
constexpr index_t DEPTH = 192;  // columns that are worked on at a time
constexpr index_t SOME = 32;    // rows

// Vectors from which this is faster than products that do not round them, of each format.
template <class W>
inline constexpr index_t MANY = 3;
template <>
inline constexpr index_t MANY<bf16> = 9;

// The order in which a format holds 32 columns: pairs are multiplied with pairs.
template <class W>
alignas(64) inline constexpr std::uint16_t PAIRED[32] = {
    0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
    16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

struct alignas(64) Words {
    std::uint32_t of[WIDE];
};

// Vectors, 32 side by side, the last ones 16: two elements of each, then the next two; every 32 elements
// in `order`.
class Columns {
public:
    explicit Columns(const std::uint16_t (&order)[32]) : order_(_mm512_load_si512(order)) {}
    void hold(const float* x, index_t x_step, index_t as, index_t k) {
        if (kept_.same(x, x_step, as, k)) return;
        words_.resize((as + WIDE - 1) / WIDE * twos());
        for (index_t a = 0; a < as; a += WIDE)
            for (index_t i = 0; i < k; i += 2 * WIDE) turn(a, i);
    }
    // How many words lie side by side where vector a is the first.
    int wide(index_t a) const { return count() - a > WIDE ? 2 : 1; }
    const Words* at(index_t a, index_t i) const { return &words_[place(a, i)]; }
    index_t count() const { return kept_.count(); }
    index_t length() const { return kept_.length(); }

private:
    index_t twos() const { return (length() + 1) / 2; }
    index_t place(index_t a, index_t i) const { return a / WIDE * twos() + i / 2 * wide(a); }
    void turn(index_t a, index_t i) {
        const index_t left = length() - i, first = a / (2 * WIDE) * (2 * WIDE);
        const std::uint32_t mask = left >= 2 * WIDE ? ~0u : (1u << left) - 1;
        __m512i line[WIDE] = {};
        for (int c = 0; c < WIDE && a + c < count(); ++c) {
            const float* from = kept_.row(a + c) + i;
            line[c] = _mm512_permutexvar_epi16(
                order_, (__m512i)_mm512_cvtne2ps_pbh(
                            _mm512_maskz_loadu_ps(__mmask16(mask >> 16), from + 16),
                            _mm512_maskz_loadu_ps(__mmask16(mask), from)));
        }
        transpose(line);
        Words* to = &words_[place(first, i) + (a - first) / WIDE];
        const index_t many = std::min(WIDE, (left + 1) / 2);
        for (index_t n = 0; n < many; ++n) _mm512_store_si512(to + n * wide(first), line[n]);
    }

    const __m512i order_;
    Kept kept_;
    std::vector<Words> words_;
};

struct alignas(64) Sixteen {
    float of[WIDE];
};

// Products of some rows, some columns at a time. While they are worked on, those that come next are
// copied to where rows do not meet in the cache, and what follows is asked for, in the order in which
// it lies.
class Narrow {
public:
    Narrow(const Weights<bf16>& w, index_t bs, const Columns& x) : w_(w), bs_(bs), x_(x) {}

    // put(b, rows, sums): [a / 16][row] of the rows from b on.
    template <class Put>
    void run(Put put) {
        static thread_local std::vector<Sixteen> total;
        const index_t k = x_.length(), as = x_.count();
        total.resize((as + WIDE - 1) / WIDE * SOME);
        Part part = first(0);
        take(part, 0, 0);
        while (part.rows > 0) {
            if (part.i == 0) after_ = reinterpret_cast<const char*>(w_.row(part.b + part.rows));
            const index_t end = part.i + part.n;
            const Part next = end < k ? Part{part.b, part.rows, end, std::min(DEPTH, k - end)}
                                      : first(part.b + part.rows);
            const int rows = std::min(part.rows, next.rows);
            const index_t columns = std::min(part.n, next.n) / LINE * LINE;
            for (index_t a = 0; a < as; a += 2 * WIDE) {
                Sixteen* to = &total[a / WIDE * SOME];
                int r = 0;
                const auto some = [&](auto many, auto wide) {
                    for (; r + many <= part.rows; r += many)
                        add<many, wide>(part, r, a, to + r, next,
                                        a == 0 && r + many <= rows ? columns : 0);
                };
                if (x_.wide(a) == 2) {
                    some(constant<8>, constant<2>);
                    some(constant<4>, constant<2>);
                    some(constant<1>, constant<2>);
                } else {
                    some(constant<16>, constant<1>);
                    some(constant<4>, constant<1>);
                    some(constant<1>, constant<1>);
                }
            }
            turn_ ^= 1;
            take(next, rows == part.rows ? rows : 0, columns);
            if (next.i == 0) put(part.b, part.rows, total.data());
            part = next;
        }
    }

private:
    template <int N>
    static constexpr std::integral_constant<int, N> constant{};
    static constexpr index_t LINE = 64 / sizeof(bf16);  // columns
    struct Part {
        index_t b;
        int rows;
        index_t i, n;  // columns
    };

    Part first(index_t b) const {
        const index_t rows = std::min(SOME, bs_ - b);
        return {b, int(rows), 0, rows > 0 ? std::min(DEPTH, x_.length()) : 0};
    }
    // Copies a part but for the columns of rows that are there.
    void take(const Part& p, int rows, index_t columns) {
        for (int r = 0; r < p.rows; ++r) {
            bf16* to = row_[turn_][r];
            const index_t i = r < rows ? columns : 0;
            std::memcpy(to + i, w_.row(p.b + r) + p.i + i, (p.n - i) * sizeof(bf16));
            if (p.n % 2) to[p.n] = bf16{};
        }
    }
    // Adds the products of rows r … r + R and vectors a … a + 16 · V to `total`, and copies as many
    // columns of the rows' next ones. Inlined, its sums are kept in memory.
    template <int R, int V>
    __attribute__((noinline)) void add(const Part& p, int r, index_t a, Sixteen* total,
                                       const Part& next, index_t copied) {
        __m512 sum[R][V];
        for (auto& row : sum)
            for (auto& s : row) s = _mm512_setzero_ps();
        const Words* x = x_.at(a, p.i);
        const bf16(*row)[ROOM] = row_[turn_] + r;
        bf16(*to)[ROOM] = row_[turn_ ^ 1] + r;
        const index_t step = w_.step;
        const bf16* from = w_.row(next.b + r) + next.i;
        const auto two = [&](index_t j) __attribute__((always_inline)) {
            __m512i by[V];
            for (int v = 0; v < V; ++v) by[v] = _mm512_load_si512(x[j / 2 * V + v].of);
            for (int n = 0; n < R; ++n) {
                std::uint32_t both;
                std::memcpy(&both, row[n] + j, sizeof both);
                const __m512i w = _mm512_set1_epi32(int(both));
                for (int v = 0; v < V; ++v)
                    sum[n][v] = _mm512_dpbf16_ps(sum[n][v], (__m512bh)w, (__m512bh)by[v]);
            }
        };
        index_t j = 0;
        for (; j + LINE <= p.n; j += LINE)
            for (int n = 0; n < R; ++n) {
                if (a == 0) __builtin_prefetch(after_, 0, 3), after_ += 64;
                if (j < copied) std::memcpy(to[n] + j, from + n * step + j, 64);
                for (index_t h = 0; h < LINE / R; h += 2) two(j + n * (LINE / R) + h);
            }
        for (; j < p.n; j += 2) two(j);
        for (int n = 0; n < R; ++n)
            for (int v = 0; v < V; ++v) {
                float* at = total[v * SOME + n].of;
                const __m512 old = p.i == 0 ? _mm512_setzero_ps() : _mm512_load_ps(at);
                _mm512_store_ps(at, _mm512_add_ps(old, sum[n][v]));
            }
    }

    static constexpr index_t ROOM = DEPTH + LINE;
    const Weights<bf16> w_;
    const index_t bs_;
    const Columns& x_;
    const char* after_ = nullptr;
    int turn_ = 0;
    alignas(64) bf16 row_[2][SOME][ROOM];
};

// As dot.
__attribute__((noinline)) inline void dot_narrow(
    float* out, index_t out_a, index_t out_b, const Weights<bf16>& w, index_t bs, const float* x,
    index_t x_step, index_t as, index_t k) {
    static thread_local Columns columns(PAIRED<bf16>);
    columns.hold(x, x_step, as, k);
    Narrow(w, bs, columns).run([&](index_t b, int rows, const Sixteen* sums) {
        for (index_t a = 0; a < as; a += WIDE, sums += SOME)
            for (int r = 0; r < rows; r += int(WIDE)) {
                __m512i line[WIDE];
                for (int i = 0; i < WIDE; ++i) line[i] = _mm512_load_si512(sums + r + i);
                transpose(line);
                for (int c = 0; c < WIDE && a + c < as; ++c)
                    put_row(out + (a + c) * out_a + (b + r) * out_b, out_b,
                            std::min(rows - r, int(WIDE)), _mm512_castsi512_ps(line[c]));
            }
    });
}

}  // namespace quire
#endif
