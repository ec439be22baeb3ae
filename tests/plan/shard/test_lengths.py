"""Buckets of lengths, and plans whose lengths are free: at every length that length's own plan."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.capture.program import Program
from quire.errors import CaptureError
from quire.plan.shard.flow import Placer
from quire.plan.shard.lengths import bucket, free_plan, plan_at
from quire.plan.shard.plan import ShardPlan
from quire.plan.shard.sites import find_sites
from quire.shard_proof import hooks, task
from quire.sharding import built, names_of
from quire.verify.shard.prove import prove_task
from tests.shard_small import captured
from tests.verify.shard.cases import in_parts


@given(st.integers(2, 1 << 21))
def test_lengths_of_a_bucket_are_close_and_share_it(size: int) -> None:
    found = bucket(size)
    assert size in found
    assert bucket(found[0]) == bucket(found[-1]) == found
    assert found[-1] <= 1.25 * found[0]
    assert bucket(found[-1] + 1)[0] == found[-1] + 1


def planned(
    way: Any, parts: int = 1, shortest: int = 5, rows: int | None = None
) -> tuple[Program, ShardPlan, Any]:
    """For 4 ranks and the lengths up to 16."""
    _, program = captured()
    (symbol,) = program.symbols
    longest = {symbol.name: 16}
    plan = in_parts(program.at(longest), 4, [way], parts, rows)
    return program, free_plan(program, plan, longest, {symbol.name: shortest}), symbol.name


@pytest.mark.parametrize("way", ["ulysses", "ring", "gathered", "hybrid"])
def test_at_each_length_the_plan_is_that_lengths(way: Any) -> None:
    program, free, symbol = planned(way)
    for size in range(5, 17):
        there = program.at({symbol: size})
        sites = find_sites(there)
        own = Placer(there, sites, 4, free.order).run()
        found = plan_at(free, {symbol: size})
        assert found.sites == sites
        for a, b in zip(found.steps, own.steps.values(), strict=True):
            # Where no rank has padding there is nothing to fill.
            fills = b.fills or (a.fills if size % 8 in (0, 4) else ())
            assert attrs.evolve(a, sent=0) == attrs.evolve(b, sent=0, fills=fills)


@pytest.mark.parametrize(("size", "parts"), [(5, 1), (8, 2), (13, 2), (16, 1)])
def test_one_text_is_right_at_every_length(size: int, parts: int) -> None:
    """Run exactly, forward and backward, on four ranks, and given its length as it is run."""
    model, _ = captured()
    program, free, symbol = planned("ring", parts)
    made = built(model, program, free)
    root = next(f for f in made.functions if f.module == "").source
    assert root.startswith("def forward(self, ids, labels, length):")
    assert "local = ranks.local_rows(length, 4, 4)" in root
    layer = next(f for f in made.functions if f.module == "layers.0").source
    assert ("ranks.in_parts(rows, local, 2, " in layer) == (parts > 1)
    there, names = program.at({symbol: size}), names_of(model, program)
    goal = task(there, plan_at(free, {symbol: size}), made.functions, names, lengths=(size,))
    found = prove_task(goal, hooks(), exact=True)
    (run,) = [c for c in found.claims if c.kind == "exact run"]
    assert run.text.startswith("equal"), (run.text, found.reason)
    wrong = prove_task(attrs.evolve(goal, lengths=(size - 1,)), hooks(), exact=True)
    assert wrong.verdict != "proved"


def test_lengths_with_fewer_rows_than_a_part_are_refused() -> None:
    """Three rows at a time: of 9 tokens a rank has four, in zigzag, of 8 it has two."""
    assert planned("ring", 2, 9, rows=3)
    with pytest.raises(CaptureError, match=r"layers\.0"):
        planned("ring", 2, 8, rows=3)
