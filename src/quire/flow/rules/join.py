"""Ops that cut a tensor into several, or put several together: slice, split, cat, repeat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from quire.capture.program import Op, Operand, Size
from quire.flow.registry import rule
from quire.flow.relation import Axis, Edit, Flow, Join, Part, Span, span
from quire.flow.rules.common import (
    aten,
    equal,
    make_axis,
    make_flow,
    mapped,
    nothing,
    others,
    replaced,
    wrap,
)


@rule(*aten("slice.Tensor slice_copy.Tensor"))
def slice_(op: Op) -> Flow:
    source: Operand = op["self"]
    dim = wrap(op["dim"], source.ndim)
    axes = mapped(op, others(source.ndim, dim), source)
    start = first_index(op, source.shape[dim], op.out.shape[dim])
    if start is None:
        why = f"whether start {op['start']} lies within size {source.shape[dim]} is not known"
        return make_flow(op, axes, reasons={dim: why})
    step = op["step"]
    # out[i] reads in[start + step·i]: a part ends right behind the last index it reads.
    read = Span(dim, scale=step, lo=start, hi=start - step + 1)

    def edit(part: Part) -> Mapping[str, Any]:
        return {"start": 0, "end": step * part.length - step + 1 if step != 1 else part.length}

    axes.append(make_axis(op, op.out.shape[dim], {0: read}, {0: span(dim)}, edit=edit))
    return make_flow(op, axes)


def first_index(op: Op, size: Size, kept: Size) -> Size | None:
    """Where the slice `op` of a dim of `size` starts, `kept` elements long; None if not known."""
    start = 0 if op["start"] is None else op["start"]
    if isinstance(start, int) and start >= 0:
        return start
    if isinstance(start, int) and isinstance(size, int):
        return max(size + start, 0)
    if isinstance(start, sympy.Expr) and start.is_nonnegative:
        return start
    # Counted from the end, and not cut off at 0: then and only then is the rest this long.
    if isinstance(start, int) and op["step"] == 1 and equal(kept, -start):
        return size + start
    return None


@rule(*aten("slice_scatter"))
def slice_scatter(op: Op) -> Flow:
    source, other = op["self"], op["src"]
    dim = wrap(op["dim"], source.ndim)
    axes = [
        make_axis(op, n, {source.index: span(d), other.index: span(d)}, {0: span(d)})
        for d, n in enumerate(source.shape)
        if d != dim
    ]
    start = first_index(op, source.shape[dim], other.shape[dim])
    if start is not None and op["step"] == 1:
        part = Span(dim, lo=start, hi=start)
        reads = {source.index: part, other.index: span(dim)}
        axes.append(
            make_axis(
                op, other.shape[dim], reads, {0: part},
                join=Join.WITHIN, init=source.index, edit=_all_of_it,
            )
        )  # fmt: skip
    return make_flow(op, axes, why="only a part of this dim is written")


def _all_of_it(part: Part) -> Mapping[str, Any]:
    return {"start": 0, "end": part.length}


@rule(*aten("select_scatter"))
def select_scatter(op: Op) -> Flow:
    source, other = op["self"], op["src"]
    dim = wrap(op["dim"], source.ndim)
    axes = [
        make_axis(op, n, {source.index: span(d), other.index: span(d - (d > dim))}, {0: span(d)})
        for d, n in enumerate(source.shape)
        if d != dim
    ]
    return make_flow(op, axes, why="only one index of this dim is written")


@rule(
    *aten("""
    split.Tensor split.sizes split split_with_sizes chunk split_copy.Tensor split_with_sizes_copy
    unsafe_split.Tensor unsafe_split_with_sizes unsafe_chunk
""")
)
def split(op: Op) -> Flow:
    source: Operand = op["self"]
    dim = wrap(op["dim"], source.ndim)
    axes = mapped(op, others(source.ndim, dim), source)
    size, count = op.out.shape[dim], len(op.outputs)
    if not all(equal(size, out.shape[dim]) for out in op.outputs):
        return make_flow(op, axes, why="its pieces differ in size")
    writes = {k: span(dim) for k in range(count)}
    names = {"split_size", "split_sizes"} & set(op.arguments)

    def edit(part: Part) -> Mapping[str, Any]:
        sizes = [part.length] * count
        return {n: sizes if isinstance(part.op[n], list) else part.length for n in names}

    axes.append(make_axis(op, size, {0: Span(dim, outer=count)}, writes, edit=edit))
    return make_flow(op, axes)


@rule(*aten("unbind.int unbind_copy.int"))
def unbind(op: Op) -> Flow:
    source: Operand = op["self"]
    dim = wrap(op["dim"], source.ndim)
    pairs = {d: d - (d > dim) for d in range(source.ndim) if d != dim}
    return make_flow(op, mapped(op, pairs, source))


@rule(*aten("cat concat"))
def cat(op: Op) -> Flow:
    # A 1-dim tensor without elements is left out, whatever the shapes of the others.
    operands = [o for o in op.operands if o.shape != (0,)] or list(op.operands)
    dim = wrap(op["dim"], op.out.ndim)
    axes, reasons = together(op, operands, others(op.out.ndim, dim))
    size = operands[0].shape[dim]
    if len(operands) == len(op.operands) and all(equal(o.shape[dim], size) for o in operands):
        reads = {o.index: span(dim) for o in operands}
        axes.append(make_axis(op, size, reads, {0: Span(dim, outer=len(operands))}))
    return make_flow(op, axes, why="its pieces differ in size", reasons=reasons)


@rule(*aten("stack"))
def stack(op: Op) -> Flow:
    dim = wrap(op["dim"], op.out.ndim)
    pairs = {d - (d > dim): d for d in range(op.out.ndim) if d != dim}
    axes, reasons = together(op, list(op.operands), pairs)
    return make_flow(op, axes, why="its indices are the operands", reasons=reasons)


def together(
    op: Op, operands: list[Operand], pairs: Mapping[int, int]
) -> tuple[list[Axis], dict[int, str]]:
    """An axis that all `operands` read alike for each pair of input and output dim."""
    axes: list[Axis] = []
    reasons: dict[int, str] = {}
    for source, result in pairs.items():
        if all(equal(o.shape[source], op.out.shape[result]) for o in operands):
            reads = {o.index: span(source) for o in operands}
            axes.append(make_axis(op, op.out.shape[result], reads, {0: span(result)}))
        else:
            reasons[result] = "the operands' sizes are not known to be equal"
    return axes, reasons


@rule(*aten("repeat"))
def repeat(op: Op) -> Flow:
    source: Operand = op["self"]
    new = len(op["repeats"]) - source.ndim
    axes: list[Axis] = []
    for dim, count in enumerate(op["repeats"]):
        size = source.shape[dim - new] if dim >= new else 1
        if dim >= new:
            reads, writes = {0: span(dim - new)}, {0: Span(dim, outer=count)}
            axes.append(make_axis(op, size, reads, writes))
        if count != 1:
            edit = fewer_repeats(dim)
            axes.append(make_axis(op, count, {}, {0: span(dim, scale=size)}, edit=edit))
    return make_flow(op, axes)


def fewer_repeats(dim: int) -> Edit:
    def edit(part: Part) -> Mapping[str, Any]:
        return {"repeats": replaced(part.op["repeats"], dim, part.length)}

    return edit


@rule(*aten("repeat_interleave.self_int"))
def repeat_interleave(op: Op) -> Flow:
    source: Operand = op["self"]
    if op["dim"] is None and source.ndim != 1:
        return nothing(op, "it flattens its operand first")
    dim = wrap(op["dim"] or 0, source.ndim)

    def edit(part: Part) -> Mapping[str, Any]:
        given = part.op["output_size"]
        return {} if given is None else {"output_size": part.shapes[0][dim]}

    axes = mapped(op, others(source.ndim, dim), source)
    writes = {0: span(dim, scale=op["repeats"])}
    axes.append(make_axis(op, source.shape[dim], {0: span(dim)}, writes, edit=edit))
    return make_flow(op, axes)


@rule(*aten("repeat_interleave.self_Tensor"))
def repeat_interleave_tensor(op: Op) -> Flow:
    source: Operand = op["self"]
    if op["dim"] is None:
        return nothing(op, "how often each element is repeated depends on the data")
    dims = others(source.ndim, wrap(op["dim"], source.ndim))
    return make_flow(op, mapped(op, dims, source), why="the repeats depend on the data")
