"""Ops that make a tensor from nothing but sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from quire.capture.program import Op, Operand
from quire.flow.registry import rule
from quire.flow.relation import Axis, Edit, Flow, Part, span
from quire.flow.rules.common import aten, make_axis, make_flow, mapped, nothing, numel, resize


def filled(op: Op, edit: Edit) -> Flow:
    """Equal elements (or none that matter): every dim splits, and nothing is read."""
    axes = [make_axis(op, n, {}, {0: span(d)}, edit=edit) for d, n in enumerate(op.out.shape)]
    return make_flow(op, axes)


@rule(
    *aten("""
    full zeros ones empty.memory_format new_full new_zeros new_ones new_empty
""")
)
def full(op: Op) -> Flow:
    return filled(op, resize("size"))


@rule(*aten("new_empty_strided empty_strided empty_permuted"))
def strided(op: Op) -> Flow:
    return nothing(op, "its strides are given for the whole")


@rule(*aten("full_like zeros_like ones_like empty_like"))
def like(op: Op) -> Flow:
    source: Operand = op["self"]
    return make_flow(op, mapped(op, {d: d for d in range(source.ndim)}, source))


@rule(*aten("scalar_tensor"))
def scalar(op: Op) -> Flow:
    return make_flow(op, ())


@rule(*aten("arange arange.start arange.start_step"))
def arange(op: Op) -> Flow:
    """`end` alone becomes `start` and `end`: the edit is for the op's longer overload."""
    start, step, end = op.get("start", 0), op.get("step", 1), op["end"]
    if not all(is_whole(v) for v in (start, step, end)):
        return nothing(op, "steps that are not whole numbers round differently in parts")
    edit = numbered("step" in op.arguments, start, step)
    return make_flow(op, [make_axis(op, op.out.shape[0], {}, {0: span(0)}, edit=edit)])


def is_whole(value: Any) -> bool:
    return value.is_integer is True if isinstance(value, sympy.Expr) else isinstance(value, int)


def numbered(steps: bool, start: Any, step: Any) -> Edit:
    def edit(part: Part) -> Mapping[str, Any]:
        if not steps:
            return {"start": start + part.lo, "end": start + part.hi}
        return {"start": start + step * part.lo, "end": start + step * part.hi}

    return edit


@rule(*aten("tril triu"))
def triangle(op: Op) -> Flow:
    """out[i, j] is in[i, j] or 0 by the sign of j − i − diagonal: rows and columns shift it."""
    source: Operand = op["self"]
    rows, columns = source.ndim - 2, source.ndim - 1
    axes: list[Axis] = []
    for dim, size in enumerate(source.shape):
        sign = {rows: 1, columns: -1}.get(dim, 0)
        edit = shifted(sign) if sign else None
        axes.append(make_axis(op, size, {0: span(dim)}, {0: span(dim)}, edit=edit))
    return make_flow(op, axes, flops=numel(op))


def shifted(sign: int) -> Edit:
    def edit(part: Part) -> Mapping[str, Any]:
        return {"diagonal": part.op["diagonal"] + sign * part.lo}

    return edit


@rule(*aten("eye eye.m linspace logspace"))
def pattern(op: Op) -> Flow:
    return nothing(op, "no argument moves its first index", flops=sympy.Integer(0))
