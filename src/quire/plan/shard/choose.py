"""The shard planner: one order for the sequences, one way for each attention.

For each order of the sequences (plain, or zigzag over a factor of the mesh dim) each attention
takes its fastest way that can be taken and fits; the order with the least total wins. Attentions
do not bear on one another but through the order, so that this is exact: `tests/plan/shard`
compares it with all assignments. A change of order between layers costs an all-to-all of the
hidden state and its gradient, `reorder_seconds`; the dynamic programme over layers takes one where
it pays.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from quire.cost.collectives import Topology
from quire.errors import BudgetError
from quire.plan.shard.cost import candidates
from quire.plan.shard.plan import Candidate, Site, Way


@attrs.frozen
class Choice:
    """An order for each attention's layer, its ways, and predicted seconds with reorderings."""

    orders: tuple[int, ...]
    chosen: tuple[Candidate, ...]
    tried: tuple[tuple[Candidate, ...], ...]
    seconds: float


def orders(ranks: int) -> list[int]:
    return [r for r in range(1, ranks + 1) if ranks % r == 0]


def reorder_seconds(site: Site, ranks: int, topology: Topology) -> float:
    """Price of changing the order before a layer: the hidden state forward, its gradient back."""
    rows = -(-site.q_size // ranks)
    nbytes = rows * site.batch * site.heads * site.depth * site.itemsize
    return 2 * topology.all_to_all(nbytes, ranks)


def choose(
    sites: Sequence[Site],
    ranks: int,
    topology: Topology,
    *,
    room: int | None = None,
    ways: Sequence[Way] | None = None,
    one_order: bool = True,
) -> Choice:
    """The fastest order and ways. `room` are bytes an attention may hold; with `one_order` false
    the order may change between layers.

    Raises BudgetError if an attention has no way that can be taken.
    """
    table: dict[tuple[Site, int], tuple[Candidate, tuple[Candidate, ...]]] = {}
    for site in sites:
        like = attrs.evolve(site, node="", module="", q="", k="", v="", leaves=())
        for order in orders(ranks):
            if (like, order) not in table:
                tried = candidates(like, ranks, order, topology)
                if ways is not None:
                    tried = tuple(_asked(c, ways) for c in tried)
                if room is not None:
                    tried = tuple(_within(c, room) for c in tried)
                table[like, order] = _best(site, tried), tried
    keys = [attrs.evolve(s, node="", module="", q="", k="", v="", leaves=()) for s in sites]

    def total(path: Sequence[int]) -> float:
        ways = sum(table[k, o][0].seconds for k, o in zip(keys, path, strict=True))
        moves = sum(
            reorder_seconds(s, ranks, topology)
            for s, a, b in zip(sites[1:], path, path[1:], strict=False)
            if a != b
        )
        return ways + moves

    if one_order or len(sites) < 2:
        path = min(
            ([order] * len(sites) for order in orders(ranks)), key=lambda p: (total(p), p[:1])
        )
    else:
        path = _cheapest(sites, keys, table, ranks, topology)
    chosen = tuple(table[k, o][0] for k, o in zip(keys, path, strict=True))
    tried = tuple(table[k, o][1] for k, o in zip(keys, path, strict=True))
    return Choice(tuple(path), chosen, tried, total(path))


def _cheapest(
    sites: Sequence[Site],
    keys: Sequence[Site],
    table: dict[tuple[Site, int], tuple[Candidate, tuple[Candidate, ...]]],
    ranks: int,
    topology: Topology,
) -> list[int]:
    """Least sum over layers: best(layer, order) = min over the order before + price of a change."""
    best = {o: (table[keys[0], o][0].seconds, [o]) for o in orders(ranks)}
    for site, key in zip(sites[1:], keys[1:], strict=True):
        move = reorder_seconds(site, ranks, topology)
        best = {
            o: min(
                (t + (move if p[-1] != o else 0) + table[key, o][0].seconds, [*p, o])
                for t, p in best.values()
            )
            for o in orders(ranks)
        }
    return min(best.values())[1]


def _asked(c: Candidate, ways: Sequence[Way]) -> Candidate:
    if c.refused or c.way in ways or c.way == "rows":
        return c
    return attrs.evolve(c, refused="it was not asked for")


def _within(c: Candidate, room: int) -> Candidate:
    if c.refused or c.held <= room:
        return c
    return attrs.evolve(c, refused=f"it holds {c.held} bytes, {room} are left")


def _best(site: Site, tried: Sequence[Candidate]) -> Candidate:
    able = [c for c in tried if not c.refused]
    if not able:
        raise BudgetError(
            "no plan fits: an attention has no way that can be taken",
            best=None,
            binding=tuple(f"{c.way}: {c.refused}" for c in tried),
            where=site.module,
            fix="more memory, more devices, or no attention dropout",
        )
    return min(able, key=lambda c: (c.seconds, c.total_bytes, c.way))
