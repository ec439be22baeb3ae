"""The shard planner against all assignments, its three regimes, and its bytes by the formulas."""

from __future__ import annotations

import itertools
import random
import time

import attrs
import pytest

from quire.cost.collectives import ETHERNET, NVLINK4, TOPOLOGIES, Link, Topology
from quire.errors import BudgetError
from quire.plan.layout import Layout
from quire.plan.shard.choose import choose, orders, reorder_seconds
from quire.plan.shard.cost import _below, _pairs, candidate, candidates, work_share
from quire.plan.shard.plan import ShardPlan, Site


def site(**given: object) -> Site:
    base = Site(
        node="sdpa",
        module="layer",
        q="q",
        k="k",
        v="v",
        left=None,
        right=0,
        rule="",
        leaves=(),
        scale=None,
        dropout=0.0,
        batch=1,
        heads=32,
        kv=8,
        depth=128,
        q_size=8192,
        k_size=8192,
        itemsize=2,
    )
    return attrs.evolve(base, **given)  # type: ignore[arg-type]


def _random(rng: random.Random) -> tuple[list[Site], int, Topology]:
    ranks = rng.choice([2, 4, 6, 8])
    size = rng.choice([97, 1024, 8192])
    sites = [
        site(
            heads=(heads := rng.choice([4, 6, 8, 32])),
            kv=rng.choice([d for d in (1, 2, heads) if heads % d == 0]),
            q_size=size,
            k_size=size,
            right=rng.choice([0, None]),
            left=rng.choice([None, 64]),
            batch=rng.choice([1, 4]),
        )
        for _ in range(rng.randint(1, 3))
    ]
    link = Link("random", 10 ** rng.uniform(-6, -4), 10 ** rng.uniform(8, 12))
    far = Link("far", 3e-5, link.bandwidth / rng.choice([1, 8]))
    return (
        sites,
        ranks,
        Topology("random", rng.choice([1, 4, 8]), link, far, 10 ** rng.uniform(11, 15), 8e10),
    )


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("one_order", [True, False])
def test_equal_to_trying_every_assignment(seed: int, one_order: bool) -> None:
    sites, ranks, topology = _random(random.Random(seed))
    found = choose(sites, ranks, topology, one_order=one_order)
    best = float("inf")
    for path in itertools.product(orders(ranks), repeat=len(sites)):
        if one_order and len(set(path)) > 1:
            continue
        moves = sum(
            reorder_seconds(s, ranks, topology)
            for s, a, b in zip(sites[1:], path, path[1:], strict=False)
            if a != b
        )
        tried = [
            [c for c in candidates(s, ranks, o, topology) if not c.refused]
            for s, o in zip(sites, path, strict=True)
        ]
        for ways in itertools.product(*tried):
            best = min(best, moves + sum(w.seconds for w in ways))
    assert found.seconds == pytest.approx(best, rel=1e-12)


def _explained(one: Site, ranks: int, topology: Topology) -> tuple[str, str]:
    """The way chosen, and what explain says of it: the line of the winner, and why."""
    found = choose([one], ranks, topology)
    plan = ShardPlan(
        ranks, found.orders[0], (one,), found.chosen, found.tried, (), (), (), links=topology.name
    )
    lines = plan.explain().splitlines()
    assert f"({topology.name})" in lines[0]
    # Every candidate is there, with its bytes, exposed milliseconds and memory.
    assert len([x for x in lines if "exposed" in x or "not possible" in x]) == len(found.tried[0])
    (winner,) = [x for x in lines if x.startswith("  →")]
    assert all(word in winner for word in ("MiB forward", "exposed", "held"))
    return found.chosen[0].way, winner + lines[-1]


def test_three_regimes() -> None:
    """Few bytes decide on slow links, evenness on fast ones, the two levels across nodes."""
    fast = Topology("one node", 8, NVLINK4, NVLINK4, 4e14, 8e10)
    way, text = _explained(site(kv=32), 8, fast)
    assert way == "ulysses" and "ulysses:" in text and "ahead" in text
    slow = Topology("two machines", 1, ETHERNET, ETHERNET, 1e13, 8e10)
    few = site(kv=1, heads=32, q_size=1 << 17, k_size=1 << 17)
    way, text = _explained(few, 2, slow)
    assert way == "ring" and "ring:" in text and "hides more" in text
    long = site(heads=32, kv=8, q_size=1 << 17, k_size=1 << 17)
    way, text = _explained(long, 64, TOPOLOGIES["h100"])
    assert way == "hybrid" and "hybrid, Ulysses" in text


@pytest.mark.parametrize("kv", [8, 32])
def test_bytes_are_the_formulas(kv: int) -> None:
    one, ranks, topology = site(kv=kv), 8, TOPOLOGIES["h100"]
    s, h, w = 8192 // 8, 32 * 128, kv * 128
    assert (
        candidate(one, "ulysses", 1, ranks, 1, topology).forward_bytes
        == 2 * s * (2 * h + 2 * w) * 7 // 8
    )
    assert candidate(one, "ring", 8, ranks, 8, topology).forward_bytes == 2 * s * 2 * w * 7
    hybrid = candidate(one, "hybrid", 4, ranks, 4, topology)
    assert hybrid.forward_bytes == 2 * s * ((2 * h + 2 * w) // 2 + 2 * w * 3)


def test_ring_moves_fewer_bytes_iff_ranks_are_fewer_than_groups_plus_one() -> None:
    for ranks, fewer in ((4, True), (5, False), (8, False)):
        one = site(q_size=4000, k_size=4000, heads=40, kv=10)
        ring = candidate(one, "ring", ranks, ranks, 1, TOPOLOGIES["h100"])
        ulysses = candidate(one, "ulysses", 1, ranks, 1, TOPOLOGIES["h100"])
        assert (ring.forward_bytes < ulysses.forward_bytes) is fewer


def test_zigzag_is_even_and_the_plain_order_is_not() -> None:
    one = site(q_size=1024, k_size=1024)
    assert work_share(one, "ring", 8, 8, 8) == pytest.approx(1 / 8, rel=0.01)
    assert work_share(one, "ring", 8, 8, 1) > 1.7 / 8


def test_gathered_keys_are_the_whole_sequence() -> None:
    """A rank's pairs are the same counted against each rank's keys in turn."""
    one = site(q_size=1000, k_size=1000, left=300)
    layout = Layout(1000, 4, 4)
    total = _pairs(one, ((0, 0, 1000),), ((0, 0, 1000),))
    shares = [
        sum(_pairs(one, layout.runs(r), layout.runs(other)) for other in range(4)) / total
        for r in range(4)
    ]
    assert sum(shares) == pytest.approx(1)
    assert work_share(one, "gathered", 1, 4, 4) == pytest.approx(max(shares))


def test_a_thousand_ranks_are_planned_in_seconds() -> None:
    started = time.process_time()
    found = choose([site(q_size=1 << 20, k_size=1 << 20)] * 80, 1024, TOPOLOGIES["h100"])
    assert len(found.tried[0]) == 12
    assert time.process_time() - started < 60


def test_pairs_below_a_diagonal_are_counted() -> None:
    for a, n, b, m, shift in itertools.product((0, 3), (1, 4), (0, 2), (1, 5), (-3, 0, 2)):
        counted = sum(j <= i + shift for i in range(a, a + n) for j in range(b, b + m))
        assert _below(a, n, b, m, shift) == counted


def test_no_way_that_fits_is_an_error() -> None:
    with pytest.raises(BudgetError, match="no way"):
        choose([site()], 8, TOPOLOGIES["h100"], room=10)


def test_dropout_stays_with_ulysses() -> None:
    found = choose([site(dropout=0.1)], 8, TOPOLOGIES["h100"])
    assert found.chosen[0].way == "ulysses"
    assert all("dropout" in c.refused for c in found.tried[0] if c.way != "ulysses")
