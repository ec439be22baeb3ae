"""Rows that the data puts in order: mixtures of experts that sort tokens by expert.

Each rank sorts its own tokens. A value is *routed* if it holds this rank's rows, in an order the
data chose; `scale` is the number of routed rows a token has. Two kinds are told apart by dtype:
rows, and pointers (integers that name places among this rank's rows).

    sort(keys)         → routed keys, pointers        x[pointers]      → routed rows
    pointers // k      → pointers                     histc(routed)    → this rank's counts
    put(pointers, 0 1 2 …) → the way back             routed[way back] → rows in their own order

Claim: an op on routed rows treats each row by itself, given its expert; so a rank's rows come out
as they would from the sort of all ranks' rows. Counts are of this rank's rows, as the products
that read them are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch

from quire.capture.program import Op, Operand
from quire.flow.registry import flow_of
from quire.flow.relation import Join
from quire.plan.shard.plan import Placed, Step

aten: Any = torch.ops.aten

_SORTS = {aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable}
_COUNTS = {aten.histc.default, aten.bincount.default}


def routed(op: Op, held: Sequence[Placed | None]) -> Step | None:
    """How `op` runs if it routes, or reads what is routed; None if it does neither."""
    name = op.node.name
    first = held[0] if held else None
    if op.target in _SORTS:
        if first is None or op.operands[0].ndim != 1:
            return None
        return Step(name, "local", tuple(attrs.evolve(first, routed=True) for _ in op.outputs))
    source, index = _indexed(op)
    if source is not None and index is not None:
        at, by = held[source.index], held[index.index]
        if by is None or not by.routed or at is None:
            return None
        if at.dim != 0:
            return None
        back = at.routed
        out = attrs.evolve(by, dim=0, routed=not back)
        return Step(name, "local", (out,))
    if not any(p is not None and p.routed for p in held):
        return None
    if op.target is aten.index_put.default:
        by = next(p for p in held if p is not None and p.routed)
        return Step(name, "local", (by,), _cut_values(op, held, by))
    if op.target in _COUNTS:
        return Step(name, "local", (_counts(),))
    return _by_rows(op, held)


def _counts() -> Placed:
    """Numbers about this rank's rows: no dim of them is spread."""
    return Placed(-1, 0, routed=True)


def _indexed(op: Op) -> tuple[Operand | None, Operand | None]:
    """`x` and `i` of `x[i]`, i of one dim."""
    if op.target is aten.index.Tensor:
        indices = op["indices"]
        if len(indices) == 1 and isinstance(indices[0], Operand) and indices[0].ndim == 1:
            return op["self"], indices[0]
    if op.target is aten.index_select.default and op["dim"] == 0:
        return op["self"], op["index"]
    return None, None


def _cut_values(
    op: Op, held: Sequence[Placed | None], by: Placed
) -> tuple[tuple[int, Placed], ...]:
    """Values that count 0, 1, 2 … count this rank's rows: cut to its number of rows."""
    values = op["values"]
    if held[values.index] is not None:
        return ()
    return ((values.index, attrs.evolve(by, dim=0, routed=True)),)


def _by_rows(op: Op, held: Sequence[Placed | None]) -> Step | None:
    """An op on routed rows: any axis that maps dim 0 of them to a dim of the result, or, for the
    products of experts, rows that follow their offsets."""
    spread = next((p for p in held if p is not None and p.dim >= 0 and p.routed), None)
    name = op.node.name
    if spread is None:
        return Step(name, "local", tuple(_counts() for _ in op.outputs))
    if any(p is not None and p.dim == -1 for p in held):
        return Step(name, "local", tuple(spread for _ in op.outputs))
    for axis in flow_of(op).axes:
        if axis.join is not Join.CONCAT or axis.edit is not None:
            continue
        if all(
            p is None or (read is not None and read.dim == p.dim and read.scale == 1 == read.outer)
            for p, read in zip(held, axis.reads, strict=True)
        ):
            outs = tuple(
                None if w is None else attrs.evolve(spread, dim=w.dim) for w in axis.writes
            )
            if all(o is not None for o in outs):
                return Step(name, "local", outs)
    return None
