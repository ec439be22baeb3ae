"""What is stored while a program is lowered: expressions that get a nest and a buffer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch

from quire.capture.program import Op, Program
from quire.errors import MissingRuleError
from quire.kernel import index as ix
from quire.kernel.analysis import (
    canonical,
    free,
    side_by_side,
    unit_stride,
)
from quire.kernel.ir import (
    SPAN,
    AnyNest,
    Buffer,
    Call,
    Expr,
    Fold,
    Nest,
    Num,
    Read,
    Scan,
    Size,
    Soft,
    TopK,
    Var,
    kind,
    rewrite,
    walk,
)
from quire.kernel.lower.attend import attend
from quire.kernel.lower.table import Tensor, as_float, as_kind, c

MANY = 1 << 12
"""Weights from which on a contraction's matrix is held in blocks, where that is asked for."""


class Store:
    """The nests made so far, and what the lowering rules ask for. Large weights are held by
    `scheme`."""

    def __init__(self, program: Program, scheme: str) -> None:
        self.program, self.scheme = program, scheme
        self.nests: list[AnyNest] = []
        self._known: dict[Any, Buffer] = {}
        self._origin: dict[str, str] = {}
        self._names = itertools.count()
        self._here = ""

    def var(self, size: Size, hint: str = "i") -> Var:
        return Var(f"{hint}{next(self._names)}", size)

    def stored(self, value: Tensor, name: str = "") -> Tensor:
        axes, index = self._axes(value.shape)
        kept = self.kept(as_kind(value.at(index), value.dtype), axes)
        return self._as_tensor(value, index, kept)

    def _axes(self, shape: Sequence[Size]) -> tuple[tuple[Var, ...], tuple[Expr, ...]]:
        """A variable for each dim but those of size 1, and the index made of them."""
        index = tuple(ix.ZERO if s == 1 else self.var(s) for s in shape)
        return tuple(i for i in index if isinstance(i, Var)), index

    def _as_tensor(self, like: Tensor, index: tuple[Expr, ...], kept: Expr) -> Tensor:
        places = {i.name: k for k, i in enumerate(index) if isinstance(i, Var)}

        def at(i: tuple[Expr, ...]) -> Expr:
            return ix.substitute(kept, {name: i[k] for name, k in places.items()})

        return Tensor(like.shape, like.dtype, at)

    def topk(self, value: Tensor, dim: int, k: int, largest: bool) -> tuple[Tensor, Tensor]:
        axes, index = self._axes(value.shape)
        over = index[dim] if isinstance(index[dim], Var) else self.var(1)
        rows = tuple(a for a in axes if a is not over)
        body = self._legal(as_float(value.at(index)), axes)
        shape = (*(r.size for r in rows), k)
        out = self._buffer(shape, torch.float32)
        where = self._buffer(shape, torch.int64)
        self.nests.append(TopK(out, where, rows, over, k, body, largest))  # type: ignore[arg-type]
        sizes = tuple(k if d == dim else s for d, s in enumerate(value.shape))

        def reader(buffer: Buffer) -> Callable[[tuple[Expr, ...]], Expr]:
            return lambda i: Read(
                buffer,
                (*(x for d, x in enumerate(i) if d != dim and value.shape[d] != 1), i[dim]),
            )

        return (
            Tensor(sizes, value.dtype, reader(out)),
            Tensor(sizes, torch.int64, reader(where)),
        )

    def scan(self, value: Tensor, dim: int, monoid: str) -> Tensor:
        axes, index = self._axes(value.shape)
        if index[dim] not in axes:
            return value
        body = self._legal(value.at(index), axes)
        out = self._buffer(tuple(a.size for a in axes), self._dtype(body))
        self.nests.append(Scan(out, axes, body, monoid, index[dim]))  # type: ignore[arg-type]
        return self._as_tensor(value, index, Read(out, axes))

    def written(self, target: Tensor, at: Any, value: Tensor, op: Op) -> Tensor:
        axes, index = self._axes(target.shape)
        old = target.at(index)
        changed = {n.name for n in self.program.writes}
        in_place = isinstance(old, Read) and old.buffer.name in changed and old.at == index
        fresh = not in_place
        if fresh:
            buffer = self._buffer(tuple(a.size for a in axes), self._dtype(old))
            self.nests.append(Nest(buffer, axes, axes, self._legal(old, axes)))
        else:
            assert isinstance(old, Read)
            buffer = old.buffer
            if sum(u in self.program.ops for u in op.operands[0].node.users) > 1:
                raise MissingRuleError(
                    "an input is read after it was changed in place", where=str(op.where)
                )
        places, inner = self._axes(value.shape)
        spot = tuple(self._legal(x, places) for x in at(inner))
        if fresh:
            spot = tuple(x for x, s in zip(spot, target.shape, strict=True) if s != 1)
        body = self._legal(as_kind(value.at(inner), target.dtype), places)
        self.nests.append(Nest(buffer, places, spot, body))
        if not fresh:
            return target
        return self._as_tensor(target, index, Read(buffer, axes))

    # --- storing -----------------------------------------------------------------------------

    def kept(self, e: Expr, order: Sequence[Var], *, copy: bool = False) -> Expr:
        """`e`, read from a buffer with a dim for each variable of `order` that is free in it.
        What is stored already is stored again only for a `copy` in that order."""
        if isinstance(e, Num) or (isinstance(e, Read) and _is_plain(e) and not copy):
            return e
        axes = tuple(v for v in order if v in free(e))
        key = (canonical(e, axes), tuple(a.size for a in axes))
        if key not in self._known:
            self._known[key] = self._compute(e, axes)
        return Read(self._known[key], axes)

    def _compute(self, e: Expr, axes: tuple[Var, ...]) -> Buffer:
        if isinstance(e, Fold):
            found = attend(self, e, axes)
            if found is not None:
                return found
        if isinstance(e, Soft):
            e = self._softmax(e, axes)
        fold, over, narrow = None, (), False
        if isinstance(e, Fold):
            fold, over, narrow = e.monoid, e.over, e.narrow
            e = self._factors(e, axes)
        body = self._legal(e, (*axes, *over))
        out = self._buffer(tuple(a.size for a in axes), self._dtype(body))
        self.nests.append(Nest(out, axes, axes, body, fold, over, narrow))
        return out

    def _factors(self, e: Fold, axes: tuple[Var, ...]) -> Expr:
        """The body of a contraction, with factors that do not lie side by side stored."""
        match e:
            case Fold("sum", over, Call("mul", (a, b))) if over and all(
                k in free(a) and k in free(b) for k in over
            ):
                return Call("mul", tuple(self.side_by_side(x, over, axes) for x in (a, b)))
        return e.body

    def side_by_side(self, e: Expr, over: Sequence[Var], order: Sequence[Var]) -> Expr:
        """`e` as a read whose elements along `over` are neighbours, in row-major order: itself, or
        a stored copy with the dims of `order` before them."""
        if isinstance(e, Read) and e.buffer.role == "state" and len(over) == 1:
            packed = self._packed(e, over[0])
            if packed is not None:
                return packed
        if isinstance(e, Read) and side_by_side(e, over):
            return e
        return self.kept(e, [*(v for v in order if v not in over), *over], copy=True)

    def _packed(self, e: Read, k: Var) -> Read | None:
        """A read of weights laid out anew, rows along `k`, where the layout or scheme asks it."""
        b = e.buffer
        dims = [d for d, x in enumerate(e.at) if x == k]
        clean = len(dims) == 1 and all(
            k not in free(x) for d, x in enumerate(e.at) if d not in dims
        )
        if not clean or b.order or len(b.shape) < 2 or not all(isinstance(s, int) for s in b.shape):
            return None
        sizes = [int(s) for s in b.shape]  # type: ignore[arg-type]
        large = b.dtype.is_floating_point and math.prod(sizes) >= MANY
        whole = k.size == sizes[dims[0]] and sizes[dims[0]] % SPAN == 0
        held = self.scheme != "lossless" or b.dtype == torch.bfloat16
        scheme = self.scheme if large and whole and held else ""
        if not scheme and unit_stride(e, k):
            return None
        order = (*(d for d in range(len(sizes)) if d != dims[0]), dims[0])
        new = attrs.evolve(
            b,
            name=f"{b.name}_packed",
            shape=tuple(sizes[d] for d in order),
            stride=None,
            order=order,
            scheme=scheme,  # type: ignore[arg-type]
        )
        return Read(new, tuple(e.at[d] for d in order))

    def _softmax(self, e: Soft, axes: tuple[Var, ...]) -> Expr:
        rows = [v for v in axes if v in free(Fold("max", (e.over,), e.score))]
        score = self._legal(e.score, (*rows, e.over))
        if any(isinstance(x, Call) and x.op in ("tanh", "exp") for x in walk(score)):
            score = self.kept(score, (*rows, e.over))
        most = self.kept(Fold("max", (e.over,), score), rows)
        power = c("exp", c("sub", score, most))
        total = self.kept(Fold("sum", (e.over,), power), rows)
        return c("div", ix.substitute(power, {e.over.name: e.at}), total)

    def _legal(self, e: Expr, order: Sequence[Var]) -> Expr:
        """`e` with every fold and softmax within it stored."""

        def change(x: Expr) -> Expr | None:
            if isinstance(x, Fold | Soft):
                bound = [v for v in free(x) if v not in order]
                if bound:
                    raise MissingRuleError(f"a fold within the fold over {bound}")
                return self.kept(x, order)
            return None

        return rewrite(e, change, ix.call)

    def _dtype(self, e: Expr) -> torch.dtype:
        return {"float": torch.float32, "int": torch.int64, "bool": torch.bool}[kind(e)]

    def _buffer(self, shape: tuple[Size, ...], dtype: torch.dtype) -> Buffer:
        buffer = Buffer(f"t{next(self._names)}", shape, dtype)
        self._origin[buffer.name] = self._here
        return buffer


def _is_plain(e: Read) -> bool:
    """A read of what is stored already, at an index without reads."""
    return not any(isinstance(x, Read) for a in e.at for x in walk(a))
