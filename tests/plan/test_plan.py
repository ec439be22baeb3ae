"""Plans as data: JSON both ways, hashes, text."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.plan.plan import Holding, Moment, Placed, Plan, Region

names = st.text("abcxyz_.0é\"'\\\n", max_size=8)
counts = st.integers(0, 1 << 50)
times = st.floats(0, 1e6)
pairs = st.lists(st.tuples(names, names), max_size=2).map(tuple)
placed = st.builds(Placed, names, st.sampled_from(["out", "slot", "fresh"]), counts, st.booleans())
holdings = st.builds(Holding, names, names, counts)
moments = st.builds(
    Moment, names, names, counts, times, st.lists(holdings, max_size=2).map(tuple), names
)


def some(items: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(items, max_size=2).map(tuple)


def regions_of(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(
        Region,
        name=names,
        seed=names,
        axis=counts,
        steps=some(names),
        size=counts,
        part=st.integers(1, 1 << 40),
        label=names,
        places=some(placed),
        reuse=pairs,
        inner=some(inner),
        peak_bytes=counts,
        seconds=times,
    )


regions = regions_of(st.builds(Region, names, names, counts, some(names), counts, st.integers(1)))
plans = st.builds(
    Plan,
    program=names,
    budget=st.none() | counts,
    baseline_bytes=counts,
    peak_bytes=counts,
    baseline_seconds=times,
    seconds=times,
    order=some(names),
    regions=some(regions),
    overwrites=pairs,
    lengths=some(st.tuples(names, counts)),
    rewrites=some(names),
    before=some(moments),
    after=some(moments),
)


@settings(deadline=None, max_examples=15)
@given(plans)
def test_json_both_ways(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.to_json() == plan.to_json()
    assert Plan.from_json(plan.to_json(indent=1)) == plan


def plan(**changed: object) -> Plan:
    region = Region("r0", "add", 0, ("mul", "add"), 37, 8, "dim 1 of add", "layers.0")
    made = Plan("abc", 1 << 20, 2 << 20, 1 << 20, 1.0, 1.5, ("mul", "add"), (region,))
    return attrs.evolve(made, **changed)


def test_json_has_every_field() -> None:
    assert set(json.loads(plan().to_json())) == {a.name for a in attrs.fields(Plan)}


def test_frozen_and_hashable() -> None:
    assert len({plan(), plan(), plan(budget=None)}) == 2
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        plan().budget = 3  # type: ignore[misc]


def test_slowdown_and_parts() -> None:
    assert plan().predicted_slowdown == 1.5
    assert plan(baseline_seconds=0.0).predicted_slowdown == 1.0
    (region,) = plan().regions
    assert region.parts == 5
    assert attrs.evolve(region, part=37).parts == 1


def test_explain_says_what_is_split() -> None:
    inner = Region("r1", "mul", 1, ("mul",), 64, 16, "dim 2 of mul", "layers.0")
    nested = attrs.evolve(plan().regions[0], inner=(inner,))
    text = plan(regions=(nested,), rewrites=("fewer ops",)).explain().splitlines()
    assert text[0].startswith("peak 1.0 MiB, baseline 2.0 MiB (-50%), budget 1.0 MiB")
    assert "fewer ops" in text[1]
    assert text[2] == "r0: dim 1 of add, 37 in 5 parts of 8 (concat), 2 ops at layers.0"
    assert text[3] == "  r1: dim 2 of mul, 64 in 4 parts of 16 (concat), 1 ops at layers.0"
    assert "budget none" in plan(budget=None).explain()
