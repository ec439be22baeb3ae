"""Programs to prove: captured once for a whole test session."""

from __future__ import annotations

from functools import cache
from typing import Any

import attrs
from torch import nn

from quire.capture.export import from_exported
from quire.capture.program import Program
from quire.capture.training import export_training
from quire.plan.shard.flow import Placer
from quire.plan.shard.lengths import free_plan
from quire.plan.shard.memory import regions_of
from quire.plan.shard.plan import ShardPlan
from quire.plan.shard.stretch import find_stretches
from quire.shard_proof import task
from quire.sharding import built, names_of, plan_shards, topology_of
from quire.verify.shard.task import Task
from tests.shard_models import build
from tests.shard_small import captured as small


def in_parts(program: Program, ranks: int, ways: Any, parts: int, rows: int | None) -> ShardPlan:
    """A plan with ops on rows in parts, whatever the memory."""
    plan = plan_shards(program, ranks, topology_of(None, "cpu"), ways=ways)
    if parts == 1:
        return plan
    placer = Placer(program, plan.sites, ranks, plan.order)
    spreading = placer.run()
    paths = {
        n.name: tuple(p for p, _ in n.meta.get("nn_module_stack", {}).values() if p)
        for n in program.graph.nodes
    }
    home = set(regions_of(plan.sites, paths).values()) - {""}
    inside = {n: next((p for p in paths[n.name] if p in home), "") for n in program.graph.nodes}
    found = find_stretches(program, spreading.steps, spreading.places, inside)
    assert found
    made = [one.on(rows or -(-placer.rows(one.size) // parts), placer.on_rows) for one in found]
    return attrs.evolve(plan, stretches=tuple(made))


@cache
def captured(family: str, size: int, packed: bool = False) -> tuple[nn.Module, Program]:
    model, batch = build(family, size, packed=packed)
    return model, from_exported(export_training(model, (), batch))


def sharded(
    family: str,
    size: int,
    ranks: int,
    way: Any = None,
    *,
    packed: bool = False,
    parts: int = 1,
    rows: int | None = None,
) -> Task:
    """The task of proving `family` at `size` tokens over `ranks` ranks, ops on rows in `parts`
    parts (or on `rows` rows at a time)."""
    model, program = captured(family, size, packed)
    ways = None if way is None else [way]
    plan = in_parts(program, ranks, ways, parts, rows)
    made = built(model, program, plan)
    return task(program, plan, made.functions, names_of(model, program))


def ranged(ranks: int, way: Any, low: int, high: int, *, parts: int = 1) -> Task:
    """The task of proving the small decoder over `ranks` ranks at every length from `low` to
    `high`; `parts` as above, of the rows at the longest."""
    model, program = small(max(high, 64))
    ends = [dict.fromkeys((s.name for s in program.symbols), n) for n in (high, low)]
    plan = in_parts(program.at(ends[0]), ranks, None if way is None else [way], parts, None)
    general = free_plan(program, plan, *ends)
    made = built(model, program, general)
    ranges = [(s.name, low, high) for s in program.symbols]
    return task(program, general, made.functions, names_of(model, program), ranges=ranges)
