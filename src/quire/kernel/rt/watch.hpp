// The machine of native.hpp with every access to memory watched.
//
// Workers take turns: one runs up to its barrier, then the next. What is checked, byte by byte:
// between two barriers no byte is written by one worker and touched by another; nothing is read
// that was not written before, nor as another buffer than it was written as; nothing outside of a
// buffer; only weights are prefetched; all workers meet the same barriers; outputs are written.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>

#include "native.hpp"

namespace quire {

enum class Role { weight, input, temp, output };

// A buffer: `bytes` from `offset` on of a block of memory.
struct Buffer {
    const char* name;
    Role role;
    int block;
    index_t offset, bytes;
};

class Watcher {
public:
    struct Cell {
        int wrote = -1, read = -1;       // the last epochs
        short writer = -1, reader = -1;  // workers; reader −2: several
        short buffer = -1;
    };

    Watcher(std::vector<Buffer> buffers, std::vector<index_t> sizes, int workers)
        : buffers_(std::move(buffers)), epochs_(std::size_t(workers), 0),
          done_(std::size_t(workers), false) {
        for (const index_t n : sizes) {
            memory_.emplace_back(new (std::align_val_t(64)) char[std::size_t(n)]());
            cells_.emplace_back(std::size_t(n));
        }
        for (std::size_t b = 0; b < buffers_.size(); ++b)
            if (buffers_[b].role == Role::weight || buffers_[b].role == Role::input)
                for (index_t i = 0; i < buffers_[b].bytes; ++i) {
                    cell(int(b), i).wrote = 0;
                    cell(int(b), i).buffer = short(b);
                }
    }

    char* data(int buffer) { return memory_[buffers_[buffer].block].get() + buffers_[buffer].offset; }
    const Buffer& buffer(int b) const { return buffers_[b]; }
    const std::map<std::string, int>& found() const { return found_; }

    // Calls are apart from each other: everything before one is seen in it.
    void begin() {
        for (auto& e : epochs_) e = base_ + 1;
        std::fill(done_.begin(), done_.end(), false);
        turn_ = 0;
    }
    void end() {
        for (std::size_t w = 1; w < epochs_.size(); ++w)
            if (epochs_[w] != epochs_[0]) report("workers meet different barriers", -1);
        base_ = *std::max_element(epochs_.begin(), epochs_.end());
        for (std::size_t b = 0; b < buffers_.size(); ++b)
            if (buffers_[b].role == Role::output)
                for (index_t i = 0; i < buffers_[b].bytes; ++i)
                    if (cell(int(b), i).wrote < 0) report("never written", int(b));
    }

    void take(int worker) {
        std::unique_lock<std::mutex> hold(mutex_);
        moved_.wait(hold, [&] { return turn_ == worker; });
    }
    void pass(int worker, bool last) {
        {
            std::lock_guard<std::mutex> hold(mutex_);
            ++epochs_[worker];
            done_[worker] = last;
            const int n = int(epochs_.size());
            for (int k = 1; k <= n; ++k)
                if (!done_[(worker + k) % n]) {
                    turn_ = (worker + k) % n;
                    break;
                }
        }
        moved_.notify_all();
    }

    bool touch(int b, index_t at, index_t n, bool writes, int worker) {
        if (at < 0 || at + n > buffers_[b].bytes) {
            report(writes ? "written outside" : "read outside", b);
            return false;
        }
        const int now = epochs_[worker];
        for (index_t i = at; i < at + n; ++i) {
            Cell& c = cell(b, i);
            if (c.wrote == now && c.writer != worker)
                report(writes ? "two workers write" : "read while another writes", b);
            if (writes) {
                if (buffers_[b].role == Role::weight) report("a weight is written", b);
                if (c.read == now && c.reader != worker) report("written while another reads", b);
                c.wrote = now;
                c.writer = short(worker);
                c.buffer = short(b);
            } else {
                if (c.wrote < 0) report("read before it is written", b);
                else if (c.buffer != b) report("read after another buffer took its place", b);
                c.reader = c.read == now && c.reader != worker ? short(-2) : short(worker);
                c.read = now;
            }
        }
        return true;
    }
    void report(const std::string& what, int b) {
        ++found_[what + (b < 0 ? "" : std::string(": ") + buffers_[b].name)];
    }

private:
    Cell& cell(int b, index_t i) { return cells_[buffers_[b].block][buffers_[b].offset + i]; }

    struct Free {
        void operator()(char* p) const { operator delete[](p, std::align_val_t(64)); }
    };
    std::vector<Buffer> buffers_;
    std::vector<std::unique_ptr<char[], Free>> memory_;
    std::vector<std::vector<Cell>> cells_;
    std::map<std::string, int> found_;
    std::vector<int> epochs_;
    std::vector<bool> done_;
    int base_ = 0, turn_ = 0;
    std::mutex mutex_;
    std::condition_variable moved_;
};

// A buffer's elements; −1: a worker's own scratch.
template <class T>
struct Watched {
    T* p;
    int buffer;
};

class Watch : public Native {
public:
    Watch(Team& team, int worker, Watcher& watcher, const int* slots, const index_t* lengths,
          const index_t* repeats, char* scratch, index_t scratch_size)
        : Native(team, worker, nullptr, lengths, repeats, scratch), watcher_(watcher),
          worker_(worker), slots_(slots), scratch_(scratch),
          scratch_size_(scratch_size) {
        watcher_.take(worker);
    }
    ~Watch() { watcher_.pass(worker_, true); }

    template <class T>
    Watched<T> array(int slot) const {
        return {reinterpret_cast<T*>(watcher_.data(slots_[slot])), slots_[slot]};
    }
    template <class T>
    Watched<T> scratch(index_t offset) const {
        return {reinterpret_cast<T*>(scratch_ + offset), -1};
    }

    template <class T>
    auto load(const Watched<T>& a, index_t i) const {
        using Element = std::remove_const_t<T>;
        return touch(a, i, 1, false) ? quire::load(a.p, i) : quire::load(&zero<Element>, 0);
    }
    template <class T, class V>
    void store(const Watched<T>& a, index_t i, V v) const {
        if (touch(a, i, 1, true)) quire::store(a.p, i, v);
    }

    template <class O, class W, class X>
    void dot(const Watched<O>& out, index_t at, index_t out_a, index_t out_b,
             const Watched<W>& w, index_t w_at, index_t w_step, index_t bs, const Watched<X>& x,
             index_t x_at, index_t x_step, index_t as, index_t k) const {
        if (touch_dot(out, at, out_a, out_b, w, w_at, w_step, bs, x, x_at, x_step, as, k))
            Native::dot(out.p, at, out_a, out_b, w.p, w_at, w_step, bs, x.p, x_at, x_step, as, k);
    }
    template <class O, class W, class X>
    void dot_bf16(const Watched<O>& out, index_t at, index_t out_a, index_t out_b,
                  const Watched<W>& w, index_t w_at, index_t w_step, index_t bs,
                  const Watched<X>& x, index_t x_at, index_t x_step, index_t as, index_t k) const {
        if (touch_dot(out, at, out_a, out_b, w, w_at, w_step, bs, x, x_at, x_step, as, k))
            Native::dot_bf16(
                out.p, at, out_a, out_b, w.p, w_at, w_step, bs, x.p, x_at, x_step, as, k);
    }

    template <class P, class Q, class K, class V, class Lo, class Hi, class Query, class Key,
              class Value, class Part, class Score>
    void attend(index_t outer, index_t group, index_t block, const Watched<P>& parts,
                const Watched<Q>& q, index_t inner, const Watched<K>& keys, index_t key_step,
                const Watched<V>& values, index_t value_step, index_t width, Lo lo, Hi hi,
                Query query, Key key, Value value, Part part, Score score) const {
        index_t unit = 0;
        const Blocks blocks(outer, group, block, lo, hi);
        blocks.each(blocks.all, [&](index_t u, index_t g0, index_t g1, index_t s, index_t) {
            if (unit++ % workers() != worker_) return;
            bool good = true;
            for (index_t g = g0; g < g1; ++g) {
                const index_t j0 = larger(index_t(lo(u, g)), s * block);
                const index_t j1 = smaller(index_t(hi(u, g)), (s + 1) * block);
                good &= touch(parts, part(u, g) + s * (width + 2), width + 2, true);
                good &= touch(q, query(u, g), inner, false);
                for (index_t j = j0; j < j1; ++j) {
                    good &= touch(keys, key(u, g) + j * key_step, inner, false);
                    good &= touch(values, value(u, g) + j * value_step, width, false);
                }
            }
            if (good)
                attend_unit(u, g0, g1, s, block, parts.p, q.p, inner, keys.p, key_step, values.p,
                            value_step, width, lo, hi, query, key, value, part, score);
        });
    }
    template <class O, class P>
    void merge(const Watched<O>& out, index_t at, index_t out_step, const Watched<P>& parts,
               index_t part_at, index_t width, index_t block, index_t lo, index_t hi) const {
        const index_t s0 = lo / block, s1 = hi > lo ? (hi - 1) / block + 1 : s0;
        bool good = true;
        for (index_t s = s0; s < s1; ++s)
            good &= touch(parts, part_at + s * (width + 2), width + 2, false);
        for (index_t i = 0; i < width; ++i) good &= touch(out, at + i * out_step, 1, true);
        if (good) Native::merge(out.p, at, out_step, parts.p, part_at, width, block, lo, hi);
    }
    // Every worker may do every unit: they are dealt out in turn.
    template <class Body>
    void units(const Share& s, index_t inner, index_t chunk, Body body) const {
        const index_t hi = span(s, workers() - 1).hi;
        for (index_t u = span(s, 0).lo + worker_ * s.align; u < hi; u += workers() * s.align)
            runs({u, smaller(u + s.align, hi)}, inner, chunk, body);
    }
    template <class T>
    void prefetch(const Watched<T>& a, index_t, index_t) const {
        if (a.buffer < 0 || watcher_.buffer(a.buffer).role != Role::weight)
            watcher_.report("prefetched although it changes", a.buffer);
    }

    void enter() {}
    void skip(int used) { slots_ += used; }
    void wait() {
        watcher_.pass(worker_, false);
        watcher_.take(worker_);
    }

private:
    template <class T>
    static constexpr T zero{};

    template <class T>
    bool touch(const Watched<T>& a, index_t i, index_t n, bool writes) const {
        using Element = std::remove_const_t<T>;
        const auto [from, size] = Weights<Element>::bytes(i, n);
        // Quantised weights are touched in whole rows of blocks.
        const index_t bytes = size ? size : index_t(sizeof(Element));
        if (a.buffer >= 0) return watcher_.touch(a.buffer, from, bytes, writes, worker_);
        const index_t at = reinterpret_cast<const char*>(a.p) - scratch_ + from;
        if (at >= 0 && at + bytes <= scratch_size_) return true;
        watcher_.report("outside of scratch", -1);
        return false;
    }

    template <class O, class W, class X>
    bool touch_dot(const Watched<O>& out, index_t at, index_t out_a, index_t out_b,
                   const Watched<W>& w, index_t w_at, index_t w_step, index_t bs,
                   const Watched<X>& x, index_t x_at, index_t x_step, index_t as,
                   index_t k) const {
        bool good = true;
        for (index_t b = 0; b < bs; ++b) good &= touch(w, w_at + b * w_step, k, false);
        for (index_t a = 0; a < as; ++a) {
            good &= touch(x, x_at + a * x_step, k, false);
            for (index_t b = 0; b < bs; ++b) good &= touch(out, at + a * out_a + b * out_b, 1, true);
        }
        return good;
    }

    Watcher& watcher_;
    const int worker_;
    const int* slots_;
    char* scratch_;
    const index_t scratch_size_;
};

}  // namespace quire
