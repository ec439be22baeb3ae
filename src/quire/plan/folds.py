"""Sums worth taking part by part in the graph: the heads of an attention, through its projections.

Queries, keys and values of all heads at once are three tensors as large as the model's state; one
head's are small. The output projection sums over heads.
"""

from __future__ import annotations

from torch import fx

from quire.cost.model import Model
from quire.flow.propagate import Spread, Storage
from quire.flow.relation import Join

MOST = 64
"""Most units that a sum is unrolled into."""


def head_folds(model: Model) -> list[Spread]:
    """A spread for each sum over a merged dim (heads · width) that comes from an attention."""
    storage = model.storage
    found = []
    for step in storage.steps:
        for index, axis in enumerate(storage.flows[step].axes):
            if axis.join is not Join.SUM:
                continue
            spread = _grown(storage, step, index, _grain(storage, step, index))
            if spread is not None and any(model.kinds[s] == "attention" for s in spread.steps):
                found.append(spread)
                break
    return found


def _grain(storage: Storage, step: fx.Node, index: int) -> int:
    """Units of the axis that lie together in what the step reads: the inner size of a merge."""
    axis = storage.flows[step].axes[index]
    for operand in storage.program.ops[step].operands:
        read, view = axis.reads[operand.index], storage.flows.get(operand.node)
        if read is None or view is None or storage.base[operand.node] is operand.node:
            continue
        for own in view.axes:
            write = own.writes[0]
            if (
                write is not None
                and write.dim == read.dim
                and write.outer == 1
                and write.scale != 1
            ):
                return int(write.scale)
    return 0


def _grown(storage: Storage, seed: fx.Node, index: int, grain: int) -> Spread | None:
    size = int(storage.flows[seed].axes[index].size)
    if grain < 2 or size % grain or not 2 <= size // grain <= MOST:
        return None
    spread = Spread(storage, seed, index, grain)
    spread.grow_alone()
    return spread
