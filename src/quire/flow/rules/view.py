"""Ops that move or rename dims without computing: views, slices, joins, repeats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from quire.capture.program import Op, Operand, Size
from quire.flow.registry import rule
from quire.flow.relation import Edit, Flow, Part, Span, span
from quire.flow.rules.common import (
    aten,
    broadcast,
    divide,
    equal,
    make_axis,
    make_flow,
    mapped,
    others,
    plain,
    resize,
    wrap,
    wraps,
)


@attrs.frozen
class Factor:
    """A factor that an input dim and an output dim of a view have in common."""

    size: Size
    source: Span
    result: Span


class _Side:
    """One shape, walked from an end; the factors taken from the current dim are remembered."""

    def __init__(self, shape: Sequence[Size]) -> None:
        self.dims = [(d, s) for d, s in enumerate(shape) if s != 1]
        self.left: Size = 1
        self.taken: Size = 1
        self.next()

    def next(self) -> None:
        """Step to the next dim from the back."""
        self.at = self.dims.pop() if self.dims else None
        self.left, self.taken = (self.at[1] if self.at else 1), 1


def factors(source: Sequence[Size], result: Sequence[Size]) -> list[Factor]:
    """The factors that two shapes of one number of elements have in common, in row-major order.

    `[6, 4] -> [2, 12]` has 2, 3 and 4: the first dim of the input holds 2 and 3, the second of
    the output 3 and 4. Where neither of two dims divides the other (`[2, 3] -> [3, 2]`), what is
    left between the factors found from the back and from the front has none.
    """
    if any(s == 0 for s in (*source, *result)):
        same = len(source) == len(result) and all(map(equal, source, result))
        return [Factor(s, span(d), span(d)) for d, s in enumerate(source)] if same else []
    back, stuck = _from_back(source, result)
    if not stuck:
        return back[::-1]
    return [*_from_front(source, result), *back[::-1]]


def _from_back(source: Sequence[Size], result: Sequence[Size]) -> tuple[list[Factor], bool]:
    """The factors from the last on, and whether two dims were met that do not match."""
    a, b = _Side(source), _Side(result)
    found: list[Factor] = []
    while a.at is not None and b.at is not None:
        if divide(a.left, b.left) is not None:
            size = b.left
        elif divide(b.left, a.left) is not None:
            size = a.left
        else:
            # Both dims end with the greatest common divisor, and no further.
            size = _gcd(a.left, b.left)
            if size != 1:
                found.append(_factor(size, a, b))
            return found, True
        found.append(_factor(size, a, b))
        for side in (a, b):
            rest = divide(side.left, size)
            assert rest is not None
            side.left, side.taken = rest, plain(side.taken * size)
            if rest == 1:
                side.next()
    return found, a.at is not b.at


def _factor(size: Size, a: _Side, b: _Side) -> Factor:
    spans = []
    for side in (a, b):
        assert side.at is not None
        outer = divide(side.left, size)
        assert outer is not None
        spans.append(Span(side.at[0], scale=side.taken, outer=outer))
    return Factor(size, spans[0], spans[1])


def _from_front(source: Sequence[Size], result: Sequence[Size]) -> list[Factor]:
    """The factors from the first dim on, up to two dims that do not match."""
    a, b = (
        [(d, s) for d, s in enumerate(source) if s != 1],
        [(d, s) for d, s in enumerate(result) if s != 1],
    )
    found: list[Factor] = []
    left: list[Size] = [a[0][1], b[0][1]]
    before: list[Size] = [1, 1]
    while True:
        size = _gcd(left[0], left[1])
        if size == 1:
            return found
        rest = [divide(n, size) for n in left]
        assert rest[0] is not None and rest[1] is not None
        found.append(
            Factor(
                size,
                Span(a[0][0], scale=rest[0], outer=before[0]),
                Span(b[0][0], scale=rest[1], outer=before[1]),
            )
        )
        if rest[0] != 1 and rest[1] != 1:
            return found
        for k, side in enumerate((a, b)):
            before[k], left[k] = plain(before[k] * size), rest[k] or 1
            if left[k] == 1:
                side.pop(0)
                if not side:
                    return found
                before[k], left[k] = 1, side[0][1]


def _gcd(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return math.gcd(a, b)
    return b if divide(a, b) is not None else a if divide(b, a) is not None else 1


def reshaping(op: Op, source: Operand, edit: Edit | None) -> Flow:
    axes = [
        make_axis(op, f.size, {source.index: f.source}, {0: f.result}, edit=edit)
        for f in factors(source.shape, op.out.shape)
    ]
    why = "no factor of this dim is known to be one of an input dim"
    reasons = {d: "size 1" for d, s in enumerate(op.out.shape) if s == 1}
    return make_flow(op, axes, why=why, reasons=reasons)


@rule(*aten("view _unsafe_view"))
def view(op: Op) -> Flow:
    return reshaping(op, op["self"], resize("size"))


@rule(*aten("reshape view_copy _reshape_copy"))
def reshape(op: Op) -> Flow:
    return reshaping(op, op["self"], resize("shape" if "shape" in op.arguments else "size"))


@rule(*aten("flatten.using_ints ravel unsqueeze"))
def renamed(op: Op) -> Flow:
    """Views that need no size: a dim of size 1 more, or several dims become one."""
    return reshaping(op, op["self"], None)


@rule(*aten("squeeze squeeze.dim squeeze.dims"))
def squeeze(op: Op) -> Flow:
    """Only dims of size 1 go, and a part of one unit has one more of them: the edit names those
    that the whole has. `squeeze.dim` can name no dim that stays, so that one has no axis.
    """
    source: Operand = op["self"]
    given = wraps(op.get("dim"), source.ndim)
    gone = [d for d in given if source.ndim and source.shape[d] == 1]
    found = reshaping(op, source, lambda part: {"dim": gone})
    if op.target not in aten("squeeze.dim"):
        return found
    stays = set(given) - set(gone)
    axes = [
        attrs.evolve(axis, edit=None)
        for axis in found.axes
        if not any(read is not None and read.dim in stays for read in axis.reads)
    ]
    return make_flow(op, axes, why="a part of one unit would lose this dim")


@rule(*aten("unflatten.int"))
def unflatten(op: Op) -> Flow:
    dim, ndim = wrap(op["dim"], op["self"].ndim), op["self"].ndim
    count = op.out.ndim - ndim + 1

    def edit(part: Part) -> Mapping[str, Any]:
        return {"sizes": list(part.shapes[0][dim : dim + count])}

    return reshaping(op, op["self"], edit)


@rule(*aten("view.dtype"))
def view_dtype(op: Op) -> Flow:
    source: Operand = op["self"]
    same = op.out.dtype.itemsize == source.info.dtype.itemsize
    dims = range(source.ndim if same else source.ndim - 1)
    return make_flow(op, mapped(op, {d: d for d in dims}, source), why="elements change size")


@rule(*aten("expand expand_copy"))
def expand(op: Op) -> Flow:
    source: Operand = op["self"]
    axes, reasons = [], {}
    for dim, size in enumerate(op.out.shape):
        found = broadcast(source, op.out.shape, dim)
        if isinstance(found, str):
            reasons[dim] = found
            continue
        reads = {} if found is None else {0: found}
        axes.append(make_axis(op, size, reads, {0: span(dim)}, edit=resize("size")))
    return make_flow(op, axes, reasons=reasons)


@rule(*aten("expand_as"))
def expand_as(op: Op) -> Flow:
    source, like = op.operands
    axes = []
    for dim, size in enumerate(op.out.shape):
        found = broadcast(source, op.out.shape, dim)
        if not isinstance(found, str):
            reads = {like.index: span(dim)} | ({} if found is None else {0: found})
            axes.append(make_axis(op, size, reads, {0: span(dim)}))
    return make_flow(op, axes)


def permuted(op: Op, order: Sequence[int]) -> Flow:
    """Output dim i is input dim `order[i]`."""
    return make_flow(op, mapped(op, {d: i for i, d in enumerate(order)}, op["self"]))


@rule(*aten("permute permute_copy"))
def permute(op: Op) -> Flow:
    return permuted(op, wraps(op["dims"], op["self"].ndim))


@rule(*aten("transpose.int transpose_copy.int swapaxes swapdims t numpy_T mT"))
def transpose(op: Op) -> Flow:
    ndim = op["self"].ndim
    order = list(range(ndim))
    given = [v for k, v in op.arguments.items() if k != "self"]
    one, two = (wraps(given, ndim)) if given else (ndim - 2, ndim - 1)
    if op.target in aten("numpy_T"):
        return permuted(op, order[::-1])
    if ndim > 1:
        order[one], order[two] = two, one
    return permuted(op, order)


@rule(*aten("movedim.int movedim.intlist"))
def movedim(op: Op) -> Flow:
    ndim = op["self"].ndim
    source, target = wraps(op["source"], ndim), wraps(op["destination"], ndim)
    rest = iter(d for d in range(ndim) if d not in source)
    order = [source[target.index(i)] if i in target else next(rest) for i in range(ndim)]
    return permuted(op, order)


@rule(*aten("select.int select_copy.int"))
def select(op: Op) -> Flow:
    source: Operand = op["self"]
    dim = wrap(op["dim"], source.ndim)
    return make_flow(op, mapped(op, without(source.ndim, dim), source))


def without(ndim: int, dim: int) -> dict[int, int]:
    """Input dim to output dim where the op removes `dim`."""
    return {d: d - (d > dim) for d in range(ndim) if d != dim}


@rule(*aten("diagonal diagonal_copy"))
def diagonal(op: Op) -> Flow:
    source: Operand = op["self"]
    pair = wraps((op["dim1"], op["dim2"]), source.ndim)
    kept = [d for d in range(source.ndim) if d not in pair]
    return make_flow(
        op, mapped(op, {d: i for i, d in enumerate(kept)}, source), why="reads a diagonal"
    )


@rule(*aten("flip"))
def flip(op: Op) -> Flow:
    source: Operand = op["self"]
    dims = wraps(op["dims"], source.ndim)
    return make_flow(op, mapped(op, others(source.ndim, *dims), source), why="read backwards")
