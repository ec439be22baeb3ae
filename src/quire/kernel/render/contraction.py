"""Contractions as calls of the vector kernel."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from quire.kernel import index as ix
from quire.kernel.analysis import address, free, side_by_side, weights_of
from quire.kernel.ir import Call, Expr, Nest, Read, Var
from quire.kernel.render.printer import Env, Lines, Names, Printer, nested


@attrs.frozen
class Row:
    """Elements `start + t·step` for t < count along the flattened element axes."""

    axes: tuple[Var, ...]
    start: str
    step: int
    count: str


@attrs.frozen
class DotPlan:
    """out[a, row] = Σ_k w[row, k] · x[a, k]; `column` is the axis a, if there is one."""

    w: Read
    x: Read
    row: Var
    column: Var | None


def dot_plan(nest: Nest, elements: Sequence[Var]) -> DotPlan | None:
    """How to run a contraction with the vector kernel, its rows along `elements`."""
    if nest.fold != "sum" or not isinstance(nest.value, Call) or nest.value.op != "mul":
        return None
    a, b = nest.value.args
    if not (isinstance(a, Read) and isinstance(b, Read)):
        return None
    w = weights_of(nest) or b
    x = a if w is b else b
    if x.buffer.kind != "float" or x.buffer.dtype.itemsize != 4 or w.buffer.kind != "float":
        return None
    if x.buffer.scheme or not (side_by_side(w, nest.over) and side_by_side(x, nest.over)):
        return None
    out = Read(nest.out, nest.at)
    if elements and len(elements) != 1:
        return None
    rows = [
        v
        for v in (elements or nest.axes[::-1])
        if isinstance(v.size, int)
        and factor(w, v) is not None
        and factor(out, v) is not None
        and v not in free(x)
    ]
    if not rows:
        return None
    columns = [
        v
        for v in nest.axes
        if v is not rows[0]
        and v not in elements
        and v not in free(w)
        and factor(x, v) is not None
        and factor(out, v) is not None
    ]
    columns.sort(key=lambda v: v.size if isinstance(v.size, int) else 1 << 30)
    return DotPlan(w, x, rows[0], columns[-1] if columns else None)


def factor(read: Read, v: Var) -> int | None:
    """How far apart the elements along `v` lie; None where that is no constant."""
    terms = ix._terms(address(read))
    by = terms.get(v)
    if by is None or any(t != v and v in free(t) for t in terms):
        return None
    return by


def dot(names: Names, nest: Nest, plan: DotPlan, row: Row) -> Lines:
    out = Read(nest.out, nest.at)
    others = [a for a in nest.axes if a not in (plan.row, plan.column)]
    zero: dict[str, Expr] = {v.name: ix.ZERO for v in nest.over}
    if plan.column is not None:
        zero[plan.column.name] = ix.ZERO
    column = plan.column
    depth = " * ".join(names.size(v.size) for v in nest.over)

    def call(env: Env) -> Lines:
        p = Printer(names, {**env, plan.row.name: f"({row.start})"})

        def at(read: Read) -> str:
            return p.text(ix.substitute(address(read), zero))

        steps = {
            "out_a": factor(out, column) if column else 0,
            "out_b": (factor(out, plan.row) or 0) * row.step,
            "w": (factor(plan.w, plan.row) or 0) * row.step,
            "x": factor(plan.x, column) if column else 0,
        }
        held = plan.w.buffer
        narrow = nest.narrow and (held.dtype == torch.bfloat16 or held.scheme)
        hook = "dot_bf16" if narrow else "dot"
        return [
            f"q.{hook}({names.buffer(nest.out)}, {at(out)}, {steps['out_a']}, {steps['out_b']}, "
            f"{names.buffer(held)}, {at(plan.w)}, {steps['w']}, {row.count}, "
            f"{names.buffer(plan.x.buffer)}, {at(plan.x)}, {steps['x']}, "
            f"{names.size(column.size) if column else 1}, {depth});"
        ]

    return nested(names, others, {}, call)
