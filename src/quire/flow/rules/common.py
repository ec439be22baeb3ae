"""What every family of rules uses: sizes that may be symbolic, and ways to write axes down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch

from quire.capture.program import Op, Operand, Size
from quire.flow.relation import Axis, Edit, Flow, Join, Part, Span, span

Reads = Mapping[int, Span]
"""Spans by operand index; operands not named are read whole."""

Writes = Mapping[int, Span]
"""Spans by output index; outputs not named are not split."""


def aten(names: str) -> tuple[Any, ...]:
    """The overloads of a blank-separated list such as `"add.Tensor relu"` (`.default` implied)."""
    found = []
    for name in names.split():
        packet, _, overload = name.partition(".")
        found.append(getattr(getattr(torch.ops.aten, packet), overload or "default"))
    return tuple(found)


def equal(a: Any, b: Any) -> bool:
    """Whether two sizes are the same for all values of their symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return a == b or sympy.expand(a - b) == 0


def divide(a: Any, b: Any) -> Size | None:
    """`a / b` if it is a whole number for all values of their symbols, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    ratio = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    whole = ratio.as_numer_denom()[1] == 1 and ratio.is_integer
    return plain(ratio) if whole else None


def plain(size: Any) -> Size:
    """A sympy number as an int; anything else unchanged."""
    return int(size) if isinstance(size, sympy.Integer) else size


def product(sizes: Iterable[Any]) -> Size:
    total: Any = 1
    for size in sizes:
        total = total * size
    return plain(total)


def wrap(dim: int, ndim: int) -> int:
    """`dim` counted from the front; a 0-dim tensor takes 0 and -1."""
    return dim + max(ndim, 1) if dim < 0 else dim


def wraps(dims: Any, ndim: int) -> tuple[int, ...]:
    """`dims` (an int, a list, or None for all) counted from the front."""
    if dims is None:
        return tuple(range(ndim))
    return tuple(wrap(d, ndim) for d in ([dims] if isinstance(dims, int) else dims))


def others(ndim: int, *dims: int) -> dict[int, int]:
    """Input dim to the same output dim, but for `dims`."""
    return {d: d for d in range(ndim) if d not in dims}


def per_dim(value: Any, count: int) -> list[Any]:
    """An argument such as `padding`, spelled out for each of `count` dims."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    return items * count if len(items) == 1 else items


def make_axis(
    op: Op,
    size: Size,
    reads: Reads,
    writes: Writes,
    *,
    join: Join = Join.CONCAT,
    init: int | None = None,
    edit: Edit | None = None,
) -> Axis:
    """An `Axis`, its spans given by the indices of the operands and outputs they belong to."""
    return Axis(
        size=size,
        reads=tuple(reads.get(i) for i in range(len(op.operands))),
        writes=tuple(writes.get(i) for i in range(len(op.outputs))),
        join=join,
        init=init,
        edit=edit,
    )


def make_flow(
    op: Op,
    axes: Iterable[Axis],
    *,
    why: str = "the op needs all of it",
    reasons: Mapping[int, str] | None = None,
    flops: Size = 0,
    pointwise: bool = False,
) -> Flow:
    """A `Flow` whose `opaque` names every dim of the first output that no axis writes.

    `reasons` are for single dims, `why` for the others. Axes whose units hold no element (a tensor
    repeated 0 times) are left out.
    """
    axes = tuple(axis for axis in axes if not _void(axis))
    written = {axis.writes[0].dim for axis in axes if axis.writes and axis.writes[0] is not None}
    ndim = op.outputs[0].ndim if op.outputs else 0
    said = reasons or {}
    opaque = {d: said.get(d, why) for d in range(ndim) if d not in written}
    return Flow(axes=axes, flops=flops, opaque=opaque, pointwise=pointwise)


def _void(axis: Axis) -> bool:
    spans = (s for s in (*axis.reads, *axis.writes) if s is not None)
    return any(s.outer == 0 or s.scale == 0 for s in spans)


def nothing(op: Op, why: str, *, flops: Size = 0) -> Flow:
    """The flow of an op that cannot be split."""
    return make_flow(op, (), why=why, flops=flops)


def numel(op: Op) -> Size:
    """Elements of the first output."""
    return op.outputs[0].numel if op.outputs else 0


def mapped(
    op: Op, pairs: Mapping[int, int], source: Operand, *, edit: Edit | None = None
) -> list[Axis]:
    """One axis for each pair `dim of source: dim of every output`, with nothing else read."""
    return [
        make_axis(
            op,
            source.shape[i],
            {source.index: span(i)},
            {k: span(o) for k in range(len(op.outputs))},
            edit=edit,
        )
        for i, o in pairs.items()
    ]


def broadcast(operand: Operand, shape: Sequence[Size], dim: int) -> Span | str | None:
    """How `operand`, broadcast to `shape`, reads dim `dim` of it.

    Its span, None if it reads the same for all, or a text saying why that is not known.
    """
    own = dim - (len(shape) - operand.ndim)
    if own < 0:
        return None
    size = operand.shape[own]
    if equal(size, shape[dim]):
        return span(own)
    if size == 1:
        return None
    return f"operand {operand.index} has size {size} where the output has {shape[dim]}"


def resize(name: str) -> Edit:
    """An edit for ops that take the shape of their output as argument `name`."""

    def edit(part: Part) -> Mapping[str, Any]:
        return {name: list(part.shapes[0])}

    return edit


def replaced(items: Sequence[Any], at: int, value: Any) -> list[Any]:
    """`items` as a list, with `value` at one place."""
    return [value if i == at else item for i, item in enumerate(items)]
