// What an emitted kernel is written in, carried out in floats on this machine.
//
// The kernel is a template over its machine `Q`: arrays, indices, scalars, loops and sums all go
// through it, so that the same source can be executed on terms or field elements instead.
#pragma once

#include "attend.hpp"
#include "blocks.hpp"
#include "dot.hpp"
#include "math.hpp"
#include "team.hpp"

namespace quire {

// The units of a segment that holds the work [start, start + cost·units) of a phase's total, and
// those of them that a worker begins with.
struct Share {
    index_t lo, hi;
    index_t start, cost, units, total, align;
};

class Native {
public:
    using real = float;
    using index = index_t;

    Native(Team& team, int worker, void* const* slots, const index_t* lengths,
           const index_t* repeats, char* scratch)
        : team_(team), worker_(worker), slots_(slots), lengths_(lengths), repeats_(repeats),
          scratch_(scratch) {}

    // --- memory ---------------------------------------------------------------------------
    template <class T>
    T* array(int slot) const { return static_cast<T*>(slots_[slot]); }
    template <class T>
    T* scratch(index_t offset) const { return reinterpret_cast<T*>(scratch_ + offset); }
    index_t length(int k) const { return lengths_[k]; }
    index_t repeats(int k) const { return repeats_[k]; }

    template <class T>
    static auto load(const T* p, index_t i) { return quire::load(p, i); }
    template <class T, class V>
    static void store(T* p, index_t i, V v) { quire::store(p, i, v); }

    // --- loops ----------------------------------------------------------------------------
    template <class Body>
    static void each(index_t n, Body body) {
        for (index_t i = 0; i < n; ++i) body(i);
    }
    template <class Body>
    static float sum(index_t n, Body body) {
        float lanes[16] = {};
        index_t i = 0;
        for (; i + 16 <= n; i += 16)
            for (index_t k = 0; k < 16; ++k) lanes[k] += body(i + k);
        for (index_t k = 0; i < n; ++i, ++k) lanes[k] += body(i);
        for (int step = 8; step; step /= 2)
            for (int k = 0; k < step; ++k) lanes[k] += lanes[k + step];
        return lanes[0];
    }
    template <class Body>
    static auto isum(index_t n, Body body) {
        index_t total = 0;
        for (index_t i = 0; i < n; ++i) total += body(i);
        return total;
    }
    template <class Body>
    static auto max(index_t n, Body body) {
        auto best = body(0);
        for (index_t i = 1; i < n; ++i) { const auto v = body(i); best = best < v || v != v ? v : best; }
        return best;
    }
    template <class Body>
    static auto min(index_t n, Body body) {
        auto best = body(0);
        for (index_t i = 1; i < n; ++i) { const auto v = body(i); best = v < best || v != v ? v : best; }
        return best;
    }
    template <class Body>
    static auto prod(index_t n, Body body) {
        auto total = body(0);
        for (index_t i = 1; i < n; ++i) total *= body(i);
        return total;
    }
    template <class Body>
    static bool any(index_t n, Body body) {
        bool found = false;
        for (index_t i = 0; i < n; ++i) found = found || body(i);
        return found;
    }
    template <class Body>
    static bool all(index_t n, Body body) {
        bool found = true;
        for (index_t i = 0; i < n; ++i) found = found && body(i);
        return found;
    }
    // The k largest of body(i) in falling order, the first of equals first; NaN above all.
    template <class Body, class Put>
    static void topk(index_t n, index_t k, bool largest, Body body, Put put) {
        auto above = [&](float a, float b) { return largest ? a > b || (a != a && b == b) : a < b || (a != a && b == b); };
        index_t last = -1;
        float bar = 0;
        for (index_t r = 0; r < k; ++r) {
            index_t best = -1;
            float most = 0;
            for (index_t i = 0; i < n; ++i) {
                const float v = body(i);
                const bool below = last < 0 || above(bar, v) || (!above(v, bar) && i > last);
                if (below && (best < 0 || above(v, most))) { best = i; most = v; }
            }
            put(r, best, most);
            last = best;
            bar = most;
        }
    }

    template <class Body, class Put>
    static void scan_sum(index_t n, Body body, Put put) {
        auto total = body(0);
        put(0, total);
        for (index_t i = 1; i < n; ++i) put(i, total = total + body(i));
    }
    template <class Body, class Put>
    static void scan_prod(index_t n, Body body, Put put) {
        auto total = body(0);
        put(0, total);
        for (index_t i = 1; i < n; ++i) put(i, total = total * body(i));
    }

    // --- scalars --------------------------------------------------------------------------
    static float tofloat(index_t v) { return float(v); }
    static float tofloat(float v) { return v; }
    static float tofloat(bool v) { return v ? 1.0f : 0.0f; }
    static index_t toint(float v) { return index_t(v); }
    static index_t toint(index_t v) { return v; }
    static index_t toint(bool v) { return v; }
    static float exp(float v) { return exp_(v); }
    static float tanh(float v) { return tanh_(v); }
    static float sigmoid(float v) { return sigmoid_(v); }
    static float erf(float v) { return erf_(v); }
    static float log(float v) { return std::log(v); }
    static float sqrt(float v) { return std::sqrt(v); }
    static float rsqrt(float v) { return 1.0f / std::sqrt(v); }
    static float sin(float v) { return std::sin(v); }
    static float cos(float v) { return std::cos(v); }
    static float pow(float a, float b) { return std::pow(a, b); }
    static float floor(float v) { return std::floor(v); }
    static float ceil(float v) { return std::ceil(v); }
    static float round(float v) { return std::nearbyint(v); }
    static float trunc(float v) { return std::trunc(v); }
    template <class T>
    static T abs(T v) { return v < 0 ? -v : v; }
    template <class T>
    static T larger(T a, T b) { return a < b || b != b ? b : a; }
    template <class T>
    static T smaller(T a, T b) { return b < a || b != b ? b : a; }
    static index_t idiv(index_t a, index_t b) { const index_t q = a / b; return q - (a % b != 0 && (a < 0) != (b < 0)); }
    static index_t imod(index_t a, index_t b) { return a - b * idiv(a, b); }
    static float infinity() { return std::numeric_limits<float>::infinity(); }
    static float nan() { return std::numeric_limits<float>::quiet_NaN(); }

    // --- contraction and attention -----------------------------------------------------------
    template <class W>
    static void dot(float* out, index_t at, index_t out_a, index_t out_b, const W* w, index_t w_at,
                    index_t w_step, index_t bs, const float* x, index_t x_at, index_t x_step,
                    index_t as, index_t k) {
        quire::dot(out + at, out_a, out_b, w, w_at, w_step, bs, x + x_at, x_step, as, k);
    }
    // Of vectors that are bf16 in the model.
    template <class W>
    static void dot_bf16(float* out, index_t at, index_t out_a, index_t out_b, const W* w,
                         index_t w_at, index_t w_step, index_t bs, const float* x, index_t x_at,
                         index_t x_step, index_t as, index_t k) {
        quire::dot_bf16(out + at, out_a, out_b, w, w_at, w_step, bs, x + x_at, x_step, as, k);
    }

    template <class K, class V, class Lo, class Hi, class Query, class Key, class Value, class Part,
              class Score>
    void attend(index_t outer, index_t group, index_t block, float* parts, const float* q,
                index_t inner, const K* keys, index_t key_step, const V* values, index_t value_step,
                index_t width, Lo lo, Hi hi, Query query, Key key, Value value, Part part,
                Score score) {
        const Blocks blocks(outer, group, block, lo, hi);
        static thread_local std::vector<index_t> edges;
        blocks.cut(workers(), edges);
        const auto share = [&](int worker) { return Span{edges[worker], edges[worker + 1]}; };
        claim(share, workers(), 1, [&](Span some) {
            blocks.each(some, [&](index_t u, index_t g0, index_t g1, index_t s, index_t) {
                attend_unit(u, g0, g1, s, block, parts, q, inner, keys, key_step, values,
                            value_step, width, lo, hi, query, key, value, part, score);
            });
        });
    }
    static void merge(float* out, index_t at, index_t out_step, const float* parts, index_t part_at,
                      index_t width, index_t block, index_t lo, index_t hi) {
        merge_blocks(out + at, out_step, parts + part_at, width, lo / block,
                     hi > lo ? (hi - 1) / block + 1 : lo / block);
    }

    // --- sharing out -----------------------------------------------------------------------
    Share share(index_t start, index_t cost, index_t units, index_t total, index_t align) const {
        Share s{0, 0, start, cost, units, total, align};
        const Span own = span(s, worker_);
        s.lo = own.lo;
        s.hi = own.hi;
        return s;
    }
    // body(o, r0, r1) for runs of inner units r0 … r1 of each outer one, `chunk` at a time. A worker
    // whose share of the phase ends here helps the others with theirs.
    template <class Body>
    void units(const Share& s, index_t inner, index_t chunk, Body body) {
        const int helped = edge(worker_ + 1, s) <= s.cost * s.units ? workers() : 1;
        claim([&](int worker) { return span(s, worker); }, helped, s.align,
              [&](Span some) { runs(some, inner, chunk, body); });
    }
    template <class T>
    static void prefetch(const T* p, index_t at, index_t n) {
        const Bytes lie = Weights<T>::bytes(at, n);
        const char* c = reinterpret_cast<const char*>(p) + lie.from;
        const index_t size = smaller(lie.size, index_t(AT_START));
        for (index_t i = 0; i < size; i += 64) __builtin_prefetch(c + i, 0, 2);
    }

    // --- phases ----------------------------------------------------------------------------
    void enter() {
        team_.enter(worker_, phase_++);
        round_ = team_.round();
        team_.claims().renew(round_, worker_);
        segment_ = 0;
    }
    // Slots of the next phase, for prefetching before the wait.
    void skip(int used) { slots_ += used; }
    void wait() { team_.barrier(worker_); }

private:
    Team& team_;
    const int worker_;
    void* const* slots_;
    const index_t* lengths_;
    const index_t* repeats_;
    char* scratch_;
    int phase_ = 0, segment_ = 0;
    unsigned round_ = 0;

    // Where the work of the workers before t ends, counted from the segment's start.
    index_t edge(int t, const Share& s) const {
        return index_t(__int128(s.total) * t / team_.size()) - s.start;
    }

    // run(some) until all units are taken of the shares of this worker and the `helped` − 1 after it.
    template <class ShareOf, class Run>
    void claim(ShareOf share, int helped, index_t align, Run run) {
        const int segment = segment_++;
        if (workers() == 1 || segment >= SEGMENTS) return run(share(worker_));
        for (int k = 0; k < helped; ++k) {
            const int owner = (worker_ + k) % workers();
            const Span all = share(owner);
            for (;;) {
                const Span some = team_.claims().take(round_, segment, owner, k == 0, all, align);
                if (some.lo >= some.hi) break;
                run(some);
            }
        }
    }

protected:
    int workers() const { return team_.size(); }
    Span span(const Share& s, int worker) const { return {cut(worker, s), cut(worker + 1, s)}; }
    index_t cut(int t, const Share& s) const {
        const index_t at = edge(t, s);
        if (at <= 0) return 0;
        if (at >= s.cost * s.units) return s.units;
        const index_t u = (at / s.cost + s.align / 2) / s.align * s.align;
        return u < s.units ? u : s.units;
    }
    template <class Body>
    static void runs(Span s, index_t inner, index_t chunk, Body& body) {
        for (index_t u = s.lo; u < s.hi;) {
            const index_t o = u / inner, r = u % inner;
            index_t n = s.hi - u;
            if (n > inner - r) n = inner - r;
            if (n > chunk) n = chunk;
            body(o, r, r + n);
            u += n;
        }
    }
    // Queries g0 … g1 of group u over block s. Neighbours with the same keys read them together.
    template <class K, class V, class Lo, class Hi, class Query, class Key, class Value, class Part,
              class Score>
    static void attend_unit(index_t u, index_t g0, index_t g1, index_t s, index_t block,
                            float* parts, const float* q, index_t inner, const K* keys,
                            index_t key_step, const V* values, index_t value_step, index_t width,
                            Lo lo, Hi hi, Query query, Key key, Value value, Part part,
                            Score score) {
        struct Reads {
            index_t key, value, lo, hi;
            bool operator==(const Reads&) const = default;
        };
        const auto reads = [&](index_t g) {
            const index_t j0 = larger(index_t(lo(u, g)), s * block);
            const index_t j1 = smaller(index_t(hi(u, g)), (s + 1) * block);
            return Reads{key(u, g), value(u, g), j0, larger(j0, j1)};
        };
        for (index_t g = g0; g < g1;) {
            const Reads all = reads(g);
            float* to[TOGETHER];
            const float* from[TOGETHER];
            int n = 0;
            for (; g + n < g1 && n < TOGETHER && reads(g + n) == all; ++n) {
                to[n] = parts + part(u, g + n) + s * (width + 2);
                from[n] = q + query(u, g + n);
            }
            attend_queries(to, from, n, inner, keys + all.key, key_step, values + all.value,
                           value_step, width, all.lo, all.hi,
                           [&](index_t k, index_t j, float d) { return score(u, g + k, j, d); },
                           hi(u, g) > all.hi ? Ahead::keys : Ahead::values);
            g += n;
        }
    }
};

}  // namespace quire
