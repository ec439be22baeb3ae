"""Ops that may run in parts of the rows, and the choice of that with recompute and offload."""

from __future__ import annotations

import collections
import itertools
import math
import random

import attrs
import pytest
import torch
from torch import nn

from quire.capture.export import from_exported
from quire.capture.program import Program
from quire.capture.training import export_training
from quire.cost.collectives import TOPOLOGIES
from quire.errors import BudgetError
from quire.plan.shard.keep import Region, Row, _one, choices
from quire.plan.shard.plan import ShardPlan
from quire.sharding import plan_shards
from tests.shard_models import build
from tests.verify.shard.cases import captured

CPU = TOPOLOGIES["cpu"]


def _least(program: Program, ranks: int) -> ShardPlan:
    """The plan for little more than the least memory there is one for."""
    found = plan_shards(program, ranks, CPU)
    low, high = 0, found.memory.peak
    while high - low > high // 200:
        half = (low + high) // 2
        try:
            found, high = plan_shards(program, ranks, CPU, budget=half), half
        except BudgetError:
            low = half
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_what_lies_between_attentions_goes_in_parts(family: str) -> None:
    _, program = captured(family, 37)
    plan = _least(program, 4)
    assert plan.memory.parts > 1
    assert f"ops on rows in {plan.memory.parts} parts" in plan.explain()
    attentions = {site.node for site in plan.sites}
    whole = {step.node: step for step in plan.steps}
    for one in plan.stretches:
        assert one.rows == -(-10 // plan.memory.parts)
        assert not attentions & set(one.nodes)
        for step in one.steps:
            before = whole[step.node]
            assert (step.kind, step.out) == ("local", before.out)
            assert not (before.gathers or before.cuts or before.fills)
    # The wide tensors of the feed-forward layers are among them.
    wide = {n.name for n in program.ops if 48 in program.info(n).shape[-1:] or
            4 * 32 in program.info(n).shape[-1:]}  # fmt: skip
    assert wide & {n for one in plan.stretches for n in one.nodes}


def test_shapes_are_those_of_a_part() -> None:
    """GPT-2's products lay the batch's rows end to end: the sizes in its views change."""
    _, program = captured("gpt2", 37)
    plan = _least(program, 4)
    rows = plan.stretches[0].rows
    changed = [dict(s.changed).get("size") for one in plan.stretches for s in one.steps]
    assert any(size is not None and (2 * rows in size or rows in size) for size in changed)
    assert not any(size is not None and (20 in size or 10 in size) for size in changed)


class Mixer(nn.Module):
    """What is between the attentions reads other rows."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (self.out(y) - self.out(y).mean(1, keepdim=True)).exp().sin()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Mixer(), Mixer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)).square().mean()


def test_a_sum_over_rows_ends_a_stretch() -> None:
    program = from_exported(export_training(Two(), (torch.randn(1, 12, 8),)))
    plan = _least(program, 4)
    means = {n.name for n, op in program.ops.items() if "mean" in str(op.target)}
    assert means
    assert not means & {n for one in plan.stretches for n in one.nodes}


def _random_regions(rng: random.Random) -> tuple[Region, ...]:
    kinds = [
        Region(
            "", rng.randint(10, 40) * 10**9, rng.randint(1, 9) * 10**9, rng.uniform(0.1, 3),
            rowwise=rng.randint(0, 9) * 10**9, edge=rng.randint(0, 3) * 10**9,
            again=rng.uniform(0, 1), passing=rng.randint(0, 20) * 10**9,
        )
        for _ in range(rng.randint(1, 2))
    ]  # fmt: skip
    made = [attrs.evolve(rng.choice(kinds), module=str(k)) for k in range(rng.randint(1, 5))]
    return tuple(r.in_parts(rng.choice([1, 4])) if len(kinds) == 1 else r for r in made)


@pytest.mark.parametrize("seed", range(50))
def test_choices_against_all_assignments(seed: int) -> None:
    """Of at most two kinds in a group of equal layers, three in the largest, as the planner has
    it."""
    rng = random.Random(seed)
    regions, host = _random_regions(rng), rng.choice([0, 30e9, 1e12])
    alike = collections.Counter(attrs.evolve(r, module="") for r in regions)
    largest = sorted(alike, key=lambda like: alike[like])[-1]
    room = rng.randint(5, 150) * 10**9
    best = math.inf
    for hows in itertools.product(
        ("keep", "recompute", "offload", "recompute with borders offloaded"), repeat=len(regions)
    ):
        groups: dict[Region, set[str]] = {}
        for region, how in zip(regions, hows, strict=True):
            groups.setdefault(attrs.evolve(region, module=""), set()).add(how)
        if any(len(used) > (3 if like == largest else 2) for like, used in groups.items()):
            continue
        row = sum((_one(r, h) for r, h in zip(regions, hows, strict=True)), Row())
        if row.host <= host and row.held <= room:
            best = min(best, row.seconds)
    found = choices(regions, host).fastest(room)
    assert (math.inf if found is None else found.seconds) == pytest.approx(best)
    if found is not None:
        assert found.held <= room and found.host <= host


def test_parts_are_charged_what_they_cost() -> None:
    region = Region("a", 100, 5, 3.0, rowwise=60, edge=10, again=1.0)
    split = region.in_parts(4)
    assert (split.kept, split.part, split.extra) == (50, 15, 1.0)
    keep, again = _one(split, "keep"), _one(split, "recompute")
    assert (keep.seconds, keep.still, keep.back) == (1.0, 50, 15)
    assert (again.seconds, again.still, again.back) == (4.0, 5, 65)
    assert region.in_parts(1) is region


def test_a_budget_that_holds_everything_splits_nothing() -> None:
    model, batch = build("llama", 37)
    program = from_exported(export_training(model, (), batch))
    plan = plan_shards(program, 4, CPU, budget=10**12)
    assert plan.memory.parts == 1 and plan.stretches == () and plan.memory.extra_seconds == 0
