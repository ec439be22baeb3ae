"""Ops that only move elements: views, joins, and reads by index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from quire.capture.program import Op, Operand
from quire.kernel import index as ix
from quire.kernel.ir import Expr, Num, Size
from quire.kernel.lower.table import Lowering, NotLoweredError, Tensor, as_kind, c, rule

Index = tuple[Expr, ...]


def moved(low: Lowering, op: Op, place: Callable[[Index], Sequence[Expr]]) -> Tensor:
    """The tensor whose element at i is the operand's at `place(i)`."""
    source = low.tensor(op.operands[0])
    return Tensor(
        op.out.shape, op.out.dtype, lambda i: as_kind(source.at(tuple(place(i))), op.out.dtype)
    )


@rule(
    "view.default _unsafe_view.default reshape.default flatten.using_ints unflatten.int "
    "squeeze.default squeeze.dim squeeze.dims unsqueeze.default alias.default clone.default "
    "contiguous.default detach.default _to_copy.default to.dtype to.dtype_layout to.device "
    "type_as.default lift_fresh_copy.default dropout.default view.dtype"
)
def reshape(low: Lowering, op: Op) -> Tensor:
    """All that keep the elements in row-major order."""
    old, new = op.operands[0].shape, op.out.shape
    if old == new:
        return moved(low, op, lambda i: i)
    return moved(low, op, lambda i: ix.reindex(i, new, old))


@rule("transpose.int")
def transpose(low: Lowering, op: Op) -> Tensor:
    a, b = op["dim0"] % op.out.ndim, op["dim1"] % op.out.ndim
    order = list(range(op.out.ndim))
    order[a], order[b] = order[b], order[a]
    return moved(low, op, lambda i: [i[k] for k in order])


@rule("t.default")
def t(low: Lowering, op: Op) -> Tensor:
    return moved(low, op, lambda i: i[::-1])


@rule("permute.default")
def permute(low: Lowering, op: Op) -> Tensor:
    order = [d % op.out.ndim for d in op["dims"]]
    back = [order.index(k) for k in range(len(order))]
    return moved(low, op, lambda i: [i[k] for k in back])


@rule("expand.default broadcast_to.default expand_as.default")
def expand(low: Lowering, op: Op) -> Tensor:
    source = low.tensor(op.operands[0])
    return Tensor(op.out.shape, op.out.dtype, source.broadcast)


def _start(value: Any, size: Size) -> Size:
    value = 0 if value is None else value
    return value + size if isinstance(value, int) and value < 0 else value


@rule("slice.Tensor")
def slice_(low: Lowering, op: Op) -> Tensor:
    dim = op["dim"] % op.out.ndim
    size = op.operands[0].shape[dim]
    start, step = ix.of_size(_start(op["start"], size)), op["step"]
    return moved(
        low, op, lambda i: (*i[:dim], ix.add(ix.mul(i[dim], Num(step)), start), *i[dim + 1 :])
    )


@rule("select.int")
def select(low: Lowering, op: Op) -> Tensor:
    dim = op["dim"] % (op.out.ndim + 1)
    at = ix.of_size(_start(op["index"], op.operands[0].shape[dim]))
    return moved(low, op, lambda i: (*i[:dim], at, *i[dim:]))


@rule("narrow.default")
def narrow(low: Lowering, op: Op) -> Tensor:
    dim = op["dim"] % op.out.ndim
    start = ix.of_size(_start(op["start"], op.operands[0].shape[dim]))
    return moved(low, op, lambda i: (*i[:dim], ix.add(i[dim], start), *i[dim + 1 :]))


@rule("split.Tensor split_with_sizes.default chunk.default unbind.int")
def split(low: Lowering, op: Op) -> tuple[Tensor, ...]:
    source = low.tensor(op["self"])
    dim = op["dim"] % source.ndim
    gone = len(op.outputs[0].shape) < source.ndim
    parts, start = [], 0
    for info in op.outputs:

        def at(i: Index, start: Any = start) -> Expr:
            here = ix.of_size(start) if gone else ix.add(i[dim], ix.of_size(start))
            return source.at((*i[:dim], here, *i[dim if gone else dim + 1 :]))

        parts.append(Tensor(info.shape, info.dtype, at))
        start = start + (1 if gone else info.shape[dim])
    return tuple(parts)


@rule("cat.default")
def cat(low: Lowering, op: Op) -> Tensor:
    parts = [low.tensor(o) for o in op["tensors"] if o.info.numel != 0]
    dim = op["dim"] % op.out.ndim

    def at(i: Index) -> Expr:
        ends, end = [], 0
        for part in parts:
            end = end + part.shape[dim]
            ends.append(end)
        result: Expr | None = None
        for part, end in zip(reversed(parts), reversed(ends), strict=True):
            start = end - part.shape[dim]
            back = ix.of_size(-start) if isinstance(start, int) else c("neg", ix.of_size(start))
            # Only read where the index lies within the part: made for that range, then moved.
            own = low.var(part.shape[dim])
            inner = as_kind(part.at((*i[:dim], own, *i[dim + 1 :])), op.out.dtype)
            value = ix.substitute(inner, {own.name: ix.add(i[dim], back)})
            test = c("lt", i[dim], ix.of_size(end))
            result = value if result is None else c("select", test, value, result)
        assert result is not None
        return result

    return Tensor(op.out.shape, op.out.dtype, at)


@rule("stack.default")
def stack(low: Lowering, op: Op) -> Tensor:
    parts = [low.tensor(o) for o in op["tensors"]]
    dim = op["dim"] % op.out.ndim

    def at(i: Index) -> Expr:
        rest = (*i[:dim], *i[dim + 1 :])
        result = parts[-1].at(rest)
        for k in range(len(parts) - 2, -1, -1):
            result = c("select", c("eq", i[dim], Num(k)), parts[k].at(rest), result)
        return result

    return Tensor(op.out.shape, op.out.dtype, at)


@rule("repeat.default")
def repeat(low: Lowering, op: Op) -> Tensor:
    shape = op.operands[0].shape
    extra = op.out.ndim - len(shape)
    return moved(low, op, lambda i: [ix.mod(i[extra + k], size) for k, size in enumerate(shape)])


@rule("repeat_interleave.self_int")
def repeat_interleave(low: Lowering, op: Op) -> Tensor:
    times, dim = op["repeats"], op["dim"]
    if dim is None:
        shape = op.operands[0].shape
        return moved(low, op, lambda i: ix.unflatten(ix.div(i[0], times), shape))
    dim %= op.out.ndim
    return moved(low, op, lambda i: (*i[:dim], ix.div(i[dim], times), *i[dim + 1 :]))


@rule("flip.default")
def flip(low: Lowering, op: Op) -> Tensor:
    dims = {d % op.out.ndim for d in op["dims"]}
    shape = op.out.shape

    def place(i: Index) -> list[Expr]:
        return [
            ix.add(ix.of_size(shape[k]), ix.mul(x, Num(-1)), Num(-1)) if k in dims else x
            for k, x in enumerate(i)
        ]

    return moved(low, op, place)


@rule("roll.default")
def roll(low: Lowering, op: Op) -> Tensor:
    shape = op.out.shape
    shifts = dict(zip((d % op.out.ndim for d in op["dims"]), op["shifts"], strict=True))

    def place(i: Index) -> list[Expr]:
        return [
            ix.mod(ix.add(x, ix.of_size(shape[k] - shifts[k] % shape[k])), shape[k])
            if k in shifts
            else x
            for k, x in enumerate(i)
        ]

    return moved(low, op, place)


@rule("constant_pad_nd.default pad.default")
def pad(low: Lowering, op: Op) -> Tensor:
    """Constants around a tensor, or less of it where an amount is negative."""
    source, amounts = low.tensor(op["self"]), op["pad"]
    if op.get("mode", "constant") != "constant":
        raise NotLoweredError(f"padding by {op['mode']}")
    fill = as_kind(Num(op["value"] or 0), op.out.dtype)
    before = {source.ndim - 1 - k // 2: amounts[k] for k in range(0, len(amounts), 2)}

    def at(i: Index) -> Expr:
        inside: Expr = Num(True)
        place = list(i)
        for d, lead in before.items():
            place[d] = ix.add(i[d], Num(-lead))
            inside = c("and", inside, c("le", Num(0), place[d]))
            inside = c("and", inside, c("lt", place[d], ix.of_size(source.shape[d])))
        return c("select", inside, source.at(tuple(place)), fill)

    return Tensor(op.out.shape, op.out.dtype, at)


@rule("diff.default")
def diff(low: Lowering, op: Op) -> Tensor:
    """Differences of neighbours, once (`n` = 1)."""
    source, dim = low.tensor(op["self"]), op["dim"] % op.out.ndim
    if op["n"] != 1 or op["append"] is not None:
        raise NotLoweredError("n other than 1, or an appended part")
    first = None if op["prepend"] is None else low.tensor(op["prepend"])
    lead = 0 if first is None else first.shape[dim]

    def joined(i: Index) -> Expr:
        own = low.var(source.shape[dim])
        inner = source.at((*i[:dim], own, *i[dim + 1 :]))
        here = ix.add(i[dim], c("neg", ix.of_size(lead)))
        value = ix.substitute(inner, {own.name: here})
        if first is None:
            return value
        before = low.var(lead)
        head = ix.substitute(first.at((*i[:dim], before, *i[dim + 1 :])), {before.name: i[dim]})
        return c("select", c("lt", i[dim], ix.of_size(lead)), head, value)

    def at(i: Index) -> Expr:
        after = joined((*i[:dim], ix.add(i[dim], Num(1)), *i[dim + 1 :]))
        if op.out.dtype == torch.bool:
            return c("ne", after, joined(i))
        return c("sub", after, joined(i))

    return Tensor(op.out.shape, op.out.dtype, at)


@rule("pixel_shuffle.default")
def pixel_shuffle(low: Lowering, op: Op) -> Tensor:
    r = op["upscale_factor"]

    def place(i: Index) -> Index:
        *lead, ch, y, x = i
        inner = ix.add(ix.mul(ix.mod(y, r), Num(r)), ix.mod(x, r))
        return (*lead, ix.add(ix.mul(ch, Num(r * r)), inner), ix.div(y, r), ix.div(x, r))

    return moved(low, op, place)


@rule("embedding.default")
def embedding(low: Lowering, op: Op) -> Tensor:
    weight, ids = low.tensor(op["weight"]), low.tensor(op["indices"])
    return Tensor(op.out.shape, op.out.dtype, lambda i: weight.at((ids.at(i[: ids.ndim]), i[-1])))


def _wrapped(e: Expr, size: Size) -> Expr:
    """A read index, negative ones counted from the end."""
    low_end, _ = ix.bound(e)
    if low_end is not None and low_end >= 0:
        return e
    return c("select", c("lt", e, Num(0)), ix.add(e, ix.of_size(size)), e)


@rule("index.Tensor")
def index(low: Lowering, op: Op) -> Tensor:
    source = low.tensor(op["self"])
    given: list[Operand | None] = [*op["indices"]]
    given += [None] * (source.ndim - len(given))
    at = [d for d, g in enumerate(given) if g is not None]
    tensors = {d: low.tensor(given[d]) for d in at}
    width = max(t.ndim for t in tensors.values())
    together = at == list(range(at[0], at[-1] + 1))
    first = at[0] if together else 0

    def element(i: Index) -> Expr:
        chosen = i[first : first + width]
        rest = iter((*i[:first], *i[first + width :]))
        place = []
        for d in range(source.ndim):
            if d in tensors:
                place.append(_wrapped(tensors[d].broadcast(chosen), source.shape[d]))
            else:
                place.append(next(rest))
        return source.at(tuple(place))

    return Tensor(op.out.shape, op.out.dtype, element)


@rule("index_select.default")
def index_select(low: Lowering, op: Op) -> Tensor:
    ids = low.tensor(op["index"])
    dim = op["dim"] % op.out.ndim
    return moved(low, op, lambda i: (*i[:dim], ids.at((i[dim],)), *i[dim + 1 :]))


@rule("gather.default")
def gather(low: Lowering, op: Op) -> Tensor:
    ids = low.tensor(op["index"])
    dim = op["dim"] % op.out.ndim
    return moved(low, op, lambda i: (*i[:dim], ids.at(i), *i[dim + 1 :]))


@rule("scatter.src")
def scatter(low: Lowering, op: Op) -> Tensor:
    """A write into a tensor at given places along one dim."""
    ids = low.tensor(op["index"])
    dim = op["dim"] % op.out.ndim

    def place(i: Index) -> Index:
        return (*i[:dim], ids.at(i), *i[dim + 1 :])

    return low.written(
        low.tensor(op["self"]), place, Tensor(ids.shape, op.out.dtype, low.tensor(op["src"]).at), op
    )


@rule(
    "arange.default arange.start arange.start_step zeros.default ones.default full.default "
    "zeros_like.default ones_like.default full_like.default new_zeros.default new_ones.default "
    "new_full.default scalar_tensor.default empty_like.default empty.memory_format "
    "new_empty.default"
)
def create(low: Lowering, op: Op) -> Tensor:
    name = op.target._schema.name.removeprefix("aten::")
    dtype = op.out.dtype
    if name == "arange":
        start, step = low.tensor(op.get("start", 0)), low.tensor(op.get("step", 1))

        def at(i: Index) -> Expr:
            first, by = start.at(()), step.at(())
            return as_kind(c("add", c("mul", as_kind(i[0], _of(by, dtype)), by), first), dtype)

        return Tensor(op.out.shape, dtype, at)
    if name == "scalar_tensor":
        value = low.tensor(op["s"]).at(())
    elif "full" in name:
        value = low.tensor(op["fill_value"]).at(())
    else:
        value = Num(1 if "ones" in name else 0)
    return Tensor(op.out.shape, dtype, lambda i: as_kind(value, dtype))


def _of(e: Expr, dtype: Any) -> Any:
    return dtype


@rule("tril.default triu.default")
def triangle(low: Lowering, op: Op) -> Tensor:
    source, diagonal = low.tensor(op["self"]), Num(op["diagonal"])
    lower = "tril" in op.target._schema.name

    def at(i: Index) -> Expr:
        edge = ix.add(i[-2], diagonal)
        keep = c("le", i[-1], edge) if lower else c("le", edge, i[-1])
        return c("select", keep, source.at(i), as_kind(Num(0), op.out.dtype))

    return Tensor(op.out.shape, op.out.dtype, at)
