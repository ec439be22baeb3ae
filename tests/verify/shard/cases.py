"""Programs to prove: captured once for a whole test session."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from quire.capture.export import from_exported
from quire.capture.program import Program
from quire.capture.training import export_training
from quire.shard_proof import task
from quire.sharding import built, names_of, plan_shards, topology_of
from quire.verify.shard.task import Task
from tests.shard_models import build


@cache
def captured(family: str, size: int, packed: bool = False) -> tuple[nn.Module, Program]:
    model, batch = build(family, size, packed=packed)
    return model, from_exported(export_training(model, (), batch))


def sharded(family: str, size: int, ranks: int, way: Any = None, *, packed: bool = False) -> Task:
    """The task of proving `family` at `size` tokens over `ranks` ranks."""
    model, program = captured(family, size, packed)
    ways = None if way is None else [way]
    plan = plan_shards(program, ranks, topology_of(None, "cpu"), ways=ways)
    made = built(model, program, plan)
    return task(program, plan, made.functions, names_of(model, program))
