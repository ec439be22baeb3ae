// The units of an attention: groups of queries that share keys, blocks of their keys, and of many
// queries some at a time.
#pragma once

#include <vector>

#include "claims.hpp"

namespace quire {

constexpr index_t TOGETHER = 16;  // queries that one worker takes through a block of keys

// Keys lo(u, g) … hi(u, g) are live for query g of group u.
template <class Lo, class Hi>
class Blocks {
public:
    Blocks(index_t outer, index_t group, index_t block, Lo lo, Hi hi)
        : outer_(outer), group_(group), block_(block),
          chunk_(group > TOGETHER ? TOGETHER / 2 : group), chunks_((group + chunk_ - 1) / chunk_),
          lo_(lo), hi_(hi) {}

    // body(u, g0, g1, s, keys) for `some` of the units, in order: queries g0 … g1 of group u over
    // block s, of which `keys` are live.
    template <class Body>
    void each(Span some, Body body) const {
        index_t before = 0;
        for (index_t u = 0; u < outer_ && before < some.hi; ++u) {
            const Span live = span(u);
            if (live.lo >= live.hi) continue;
            const index_t s0 = live.lo / block_;
            const index_t units = ((live.hi - 1) / block_ + 1 - s0) * chunks_;
            const index_t end = std::min(units, some.hi - before);
            for (index_t i = std::max(some.lo - before, index_t(0)); i < end; ++i) {
                const index_t s = s0 + i / chunks_, g0 = i % chunks_ * chunk_;
                const index_t keys =
                    std::min(live.hi, (s + 1) * block_) - std::max(live.lo, s * block_);
                body(u, g0, std::min(group_, g0 + chunk_), s, keys);
            }
            before += units;
        }
    }
    // Where the share of each of `workers` starts, and where the last one's ends: a unit is in the
    // share of all keys that its middle key falls in.
    void cut(int workers, std::vector<index_t>& edges) const {
        index_t total = 0, before = 0, unit = 0;
        each(all, [&](index_t, index_t, index_t, index_t, index_t keys) { total += keys; });
        edges.clear();
        each(all, [&](index_t, index_t, index_t, index_t, index_t keys) {
            const index_t worker = (2 * before + keys) * workers / (2 * total);
            edges.resize(std::max(index_t(edges.size()), worker + 1), unit);
            before += keys;
            ++unit;
        });
        edges.resize(workers + 1, unit);
    }

    static constexpr Span all{0, index_t(1) << 62};

private:
    Span span(index_t u) const {
        Span live{lo_(u, 0), hi_(u, 0)};
        for (index_t g = 1; g < group_; ++g) {
            live.lo = std::min(live.lo, index_t(lo_(u, g)));
            live.hi = std::max(live.hi, index_t(hi_(u, g)));
        }
        return live;
    }

    const index_t outer_, group_, block_, chunk_, chunks_;
    const Lo lo_;
    const Hi hi_;
};

}  // namespace quire
