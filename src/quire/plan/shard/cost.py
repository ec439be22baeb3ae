"""What each way of doing an attention sends, computes, hides and holds: design §6's formulas.

Bytes are of one rank; forward, and forward plus backward. s local tokens, h and kv the widths of
queries and keys, b bytes an element, B the batch:

    ulysses   bBs·(2h + 2kv)·(P−1)/P       again in backward
    ring      bBs·2kv·(P−1)                again, and fp32 gradients of k and v over P hops
    gathered  bBs·2kv·(P−1)                a reduce-scatter of as many
    hybrid    bBs·[(2h + 2kv)(U−1)/U + 2kv(R−1)]   U × R = P
"""

from __future__ import annotations

import attrs

from quire.cost.collectives import Topology
from quire.plan.layout import Layout
from quire.plan.shard.plan import Candidate, Site, Way

BACKWARD = 2.5
"""Backward attention does five products where forward does two."""

FP32 = 4

MERGE_BYTES = 33
"""Bytes of device memory read and written, for each element of the queries, to merge one hop's out
in fp32, or to add one hop's gradients. Fitted to four published points: benchmarks/scaling.py."""


@attrs.frozen
class _Widths:
    """Elements a token sends to heads (queries and output, keys and values), and plain keys."""

    queries: int
    keys: int
    ring_keys: int


def candidates(site: Site, ranks: int, order: int, topology: Topology) -> tuple[Candidate, ...]:
    """All ways to do the attention at `site` with sequences in `order`, the impossible ones too."""
    ways: list[tuple[Way, int]] = [("ulysses", 1), ("ring", ranks), ("gathered", 1)]
    ways.extend(("hybrid", r) for r in range(2, ranks) if ranks % r == 0)
    if site.plain:
        ways = [("rows", 1)]
    return tuple(candidate(site, way, ring_of, ranks, order, topology) for way, ring_of in ways)


def candidate(
    site: Site, way: Way, ring_of: int, ranks: int, order: int, topology: Topology
) -> Candidate:
    refused = _refused(site, way)
    q, k = Layout(site.q_size, ranks, order), Layout(site.k_size, ranks, order)
    unit = site.itemsize * site.batch
    parts = {"ulysses": ranks, "hybrid": ranks // ring_of}.get(way, 1)
    heads = dealt(site, parts)
    kv = 2 * k.local * heads.ring_keys * unit
    forward = total = 0.0
    whole = (q.local * 2 * heads.queries + k.local * 2 * heads.keys) * unit
    exchange = whole * (parts - 1) / parts
    share = work_share(site, way, ring_of, ranks, order)
    compute = flops_of(site) * share / (topology.attention or topology.flops)
    transfer = exposed = 0.0
    if parts > 1:
        # Three transfers go with no compute to hide them: q, k, v there; out back; so backward.
        forward += exchange
        total += 2 * exchange
        one = topology.all_to_all(whole / 2, parts)
        transfer += 4 * one
        exposed += 4 * one
    if way in ("ring", "hybrid") and ring_of > 1:
        # With Ulysses inside, a member's keys are all of its group's tokens of 1/U of the heads.
        hop = kv if way == "ring" else 2 * k.local * parts * heads.ring_keys * unit
        back = hop // site.itemsize * FP32
        forward += hop * (ring_of - 1)
        total += 2 * hop * (ring_of - 1) + back * ring_of
        fwd, bwd = topology.hop(hop, ring_of, parts), topology.hop(hop + back, ring_of, parts)
        step = compute / ring_of / (1 + BACKWARD)
        transfer += (ring_of - 1) * (fwd + bwd) + topology.hop(back, ring_of, parts)
        both = topology.exposed(fwd, step) + topology.exposed(bwd, BACKWARD * step)
        exposed += (ring_of - 1) * both
        exposed += topology.hop(back, ring_of, parts)
    if way in ("gathered", "rows"):
        forward += kv * (ranks - 1)
        total += 2 * kv * (ranks - 1)
        once = topology.all_gather(kv, ranks)
        transfer += 2 * once
        exposed += 2 * once
    return Candidate(
        way,
        ring_of,
        order,
        round(forward),
        round(total),
        compute,
        transfer,
        exposed,
        _held(way, kv, whole, ranks),
        refused,
        _merge(site, way, ring_of, ranks, order, topology),
    )


def _merge(site: Site, way: Way, ring_of: int, ranks: int, order: int, topology: Topology) -> float:
    """Seconds to join the blocks of all hops, forward and backward; keys at once are one block."""
    hops = {"ring": ring_of, "hybrid": ring_of, "gathered": ranks}.get(way, 1)
    if hops == 1 or not topology.bandwidth:
        return 0.0
    rows = Layout(site.q_size, ranks, order).local
    elements = site.batch * rows * site.heads * site.depth
    return 2 * hops * elements * MERGE_BYTES / topology.bandwidth


def _refused(site: Site, way: Way) -> str:
    if site.dropout and way != "ulysses":
        return "it has dropout, whose random numbers only Ulysses keeps"
    if site.dropout and (site.rule or site.left is not None):
        return "it has dropout and a mask that is neither causal nor full"
    return ""


def dealt(site: Site, parts: int) -> _Widths:
    """Elements per token of q (and out), of k (and v) sent to `parts` ranks by head, and of k in
    a ring. Padding heads, and keys repeated for ranks beyond their number, count."""
    if parts == 1:
        return _Widths(site.heads * site.depth, site.kv * site.depth, site.kv * site.depth)
    each = -(-site.heads // parts)
    group = site.heads // site.kv
    keys = each // group if each % group == 0 else 1 if group % each == 0 else each
    return _Widths(each * parts * site.depth, keys * parts * site.depth, keys * site.depth)


def _held(way: Way, kv: int, whole: int, ranks: int) -> int:
    """Bytes held above q, k, v and out while the attention runs."""
    return {"ulysses": whole, "hybrid": whole + 2 * kv, "ring": 2 * kv}.get(way, kv * ranks)


def flops_of(site: Site) -> float:
    """Forward and backward, of the pairs that the band lets through, on all ranks."""
    pairs = float(_pairs(site, ((0, 0, site.q_size),), ((0, 0, site.k_size),)))
    return 4 * site.batch * site.heads * site.depth * pairs * (1 + BACKWARD)


def work_share(site: Site, way: Way, ring_of: int, ranks: int, order: int) -> float:
    """The busiest rank's share of the pairs of queries and keys. In a ring all wait each hop for
    the one with most to do."""
    total = _pairs(site, ((0, 0, site.q_size),), ((0, 0, site.k_size),)) or 1
    q, k = Layout(site.q_size, ranks, order), Layout(site.k_size, ranks, order)
    if way == "ulysses":
        return -(-site.heads // ranks) / site.heads
    parts = ranks // ring_of if way == "hybrid" else 1
    deal = -(-site.heads // parts) / site.heads
    members = ring_of if way in ("ring", "hybrid") else ranks
    if way in ("ring", "hybrid") and not _countable(members, max(1, 2 * order // members)):
        # As the countable ones show: zigzag is even, any other order of causal work half idle.
        return deal / members * (1 if order >= members or site.right is None else 2)
    mine = [q.pieces(m * parts, parts) for m in range(members)]
    if way in ("gathered", "rows"):
        every = ((0, 0, site.k_size),)  # what all ranks' keys are together
        return max(_pairs(site, runs, every) for runs in mine) / total
    keys = [k.pieces(m * parts, parts) for m in range(members)]
    hops = (
        max(_pairs(site, mine[m], keys[(m - hop) % members]) for m in range(members))
        for hop in range(members)
    )
    return deal * sum(hops) / total


def _countable(members: int, runs: int) -> bool:
    """Whether all hops' pairs of runs can be counted one by one in well under a second."""
    return (members * runs) ** 2 <= 1 << 14


def _pairs(site: Site, q_runs: object, k_runs: object) -> int:
    """Pairs (i, j) of runs with i − left ≤ j ≤ i + right."""
    total = 0
    for _, a, n in q_runs:  # type: ignore[attr-defined]
        for _, b, m in k_runs:  # type: ignore[attr-defined]
            high = n * m if site.right is None else _below(a, n, b, m, site.right)
            low = 0 if site.left is None else _below(a, n, b, m, -site.left - 1)
            total += max(high - low, 0)
    return total


def _below(a: int, n: int, b: int, m: int, shift: int) -> int:
    """Number of (i, j), a ≤ i < a+n and b ≤ j < b+m, with j ≤ i + shift."""
    lo, hi = a + shift - b + 1, a + n - 1 + shift - b + 1
    # Row i has clamp(i + shift − b + 1, 0, m) of them: an arithmetic series between its clamps.
    if hi <= 0:
        return 0
    if lo >= m:
        return n * m
    first, last = max(lo, 0), min(hi, m)
    rows = last - first + 1
    return (first + last) * rows // 2 + (hi - last) * m
