"""`Program` → nests of the loop IR.

Every node becomes a function from an index to an expression; views, casts and pointwise ops are
written into whatever reads them. What is stored:

- sums, maxima and other folds, but for scores that only a softmax reads;
- softmaxes, but for weights that only a product with values reads (that becomes an `Attend`);
- pointwise results that several ops read;
- what a contraction reads, unless it already lies side by side in memory.

Equal expressions are stored once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import sympy
import torch
from torch import fx

from quire.capture.program import Op, Operand, Program
from quire.errors import MissingRuleError
from quire.kernel import index as ix
from quire.kernel.analysis import (
    canonical,
    free,
    mapped,
    plain_call,
    side_by_side,
    unit_stride,
)
from quire.kernel.ir import (
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
    reads,
    rewrite,
    walk,
)
from quire.kernel.lower import contraction, pointwise, reduce, view  # noqa: F401  (fill the table)
from quire.kernel.lower.attend import attend
from quire.kernel.lower.table import RULES, Tensor, as_float, as_kind, aten, c

QUANTISED = 1 << 12
"""Weights from which on a contraction's matrix is quantised, where that is asked for."""

LARGE_BODY = 1
"""Operators in a pointwise expression from which on it is stored when several ops read it."""

_SCORES = {
    aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.add.Tensor,
    aten.tanh.default, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf,
    aten.masked_fill.Scalar, aten.masked_fill.Tensor,
    aten.sub.Tensor,
}  # fmt: skip
_VIEWS = {
    target
    for target, function in RULES.items()
    if function in (view.reshape, view.transpose, view.permute, view.expand, view.t)
}
_SOFTMAX = {aten.softmax.int, aten._softmax.default}
_PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.mm.default}


@attrs.frozen
class Lowered:
    """The nests of a program in order, and what its inputs, weights and outputs are called."""

    nests: tuple[AnyNest, ...]
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    origin: Mapping[str, str]
    """For each buffer computed, the node it was made for and its place in the model."""


def lower(program: Program, scheme: str = "") -> Lowered:
    """The loop nests that compute `program`, large weights held by `scheme`.

    Raises MissingRuleError for an op without a rule.
    """
    return _Builder(program, scheme).run()


class _Builder:
    def __init__(self, program: Program, scheme: str) -> None:
        self.program, self.scheme = program, scheme
        self.nests: list[AnyNest] = []
        self._values: dict[fx.Node, Any] = {}
        self._known: dict[Any, Buffer] = {}
        self._origin: dict[str, str] = {}
        self._names = itertools.count()
        self._here = ""
        self._renames: dict[Buffer, Buffer] = {}

    # --- what rules ask for ------------------------------------------------------------------

    def tensor(self, value: Any) -> Tensor:
        if isinstance(value, Operand):
            held = self._values[value.node]
            return held[0] if isinstance(held, tuple) else held
        if isinstance(value, sympy.Expr):
            return Tensor((), torch.int64, lambda _: ix.of_size(value))
        dtype = {bool: torch.bool, int: torch.int64}.get(type(value), torch.float32)
        return Tensor((), dtype, lambda _: Num(value))

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
        fold, over = None, ()
        if isinstance(e, Fold):
            fold, over = e.monoid, e.over
            e = self._factors(e, axes)
        body = self._legal(e, (*axes, *over))
        out = self._buffer(tuple(a.size for a in axes), self._dtype(body))
        self.nests.append(Nest(out, axes, axes, body, fold, over))
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
        large = b.dtype.is_floating_point and math.prod(sizes) >= QUANTISED
        scheme = self.scheme if large and sizes[dims[0]] % 32 == 0 else ""
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

    # --- the walk ----------------------------------------------------------------------------

    def run(self) -> Lowered:
        inputs = [self._input(item) for item in self.program.inputs]
        for node in self.program.graph.nodes:
            if node in self._values or node.op != "call_function" or node in self.program.sizes:
                continue
            op = self.program.ops.get(node)
            if op is None:
                self._values[node] = self._values[node.args[0]][node.args[1]]
                continue
            self._here = f"{node.name} {op.where.module}"
            made = self._rule(op)
            outs = made if isinstance(made, tuple) else (made,)
            outs = tuple(self._decide(node, t) for t in outs)
            self._values[node] = outs if isinstance(made, tuple) else outs[0]
        for node, value in self.program.writes.items():
            self._write_back(node, value)
        outputs = tuple(
            self._output(k, node)
            for k, node in enumerate(self.program.outputs)
            if isinstance(node, fx.Node) and node in self.program.infos
        )
        return Lowered(
            tuple(prune(self.nests)), tuple(b for b in inputs if b), outputs, self._origin
        )

    def _rule(self, op: Op) -> Any:
        function = RULES.get(op.target)
        if function is None:
            raise MissingRuleError(
                f"no lowering rule for {op.target}",
                where=str(op.where),
                allowed="the ops in quire.kernel.lower.table.RULES",
                fix="add a rule in quire/kernel/lower, or quire.chunk the model",
            )
        try:
            return function(self, op)
        except NotImplementedError as error:
            raise MissingRuleError(
                f"{op.target}: {error} cannot be fused", where=str(op.where)
            ) from error

    def _input(self, item: Any) -> Buffer | None:
        info = self.program.info(item.node)
        state = self.program.state.get(item.target)
        if item.kind == "constant" and state is not None and state.numel() == 1:
            value = state.item()
            self._values[item.node] = Tensor(info.shape, info.dtype, lambda _: Num(value))
            return None
        role = "input" if item.kind == "user" else "state"
        stride = None if state is None else tuple(state.stride())
        buffer = Buffer(item.node.name, info.shape, info.dtype, role, item.target, stride)
        self._values[item.node] = Tensor(
            info.shape, info.dtype, lambda index: Read(buffer, tuple(index))
        )
        return buffer

    def _decide(self, node: fx.Node, value: Tensor) -> Tensor:
        """`value`, stored if it has to be."""
        _, index = self._axes(value.shape)
        e = value.at(index)
        if any(isinstance(x, Soft) for x in walk(e)):
            return value if _leads_to(node, _VIEWS, _PRODUCTS) else self.stored(value)
        if any(isinstance(x, Fold) for x in walk(e)):
            lazy = _leads_to(node, _SCORES | _VIEWS, _SOFTMAX)
            return value if lazy else self.stored(value)
        if kind(e) == "float" and _uses(node) > 1 and _work(e) >= LARGE_BODY:
            return self.stored(value)
        return value

    def _write_back(self, node: fx.Node, value: fx.Node) -> None:
        """The new value of an input that the model changes in place."""
        target = self._values[node]
        axes, index = self._axes(target.shape)
        new, old = self._values[value].at(index), target.at(index)
        if new != old:
            body = self._legal(new, axes)
            self.nests.append(Nest(old.buffer, axes, old.at, body))

    def _output(self, k: int, node: fx.Node) -> Buffer:
        value = self._values[node]
        value = value[0] if isinstance(value, tuple) else value
        axes, index = self._axes(value.shape)
        e = self._legal(as_kind(value.at(index), value.dtype), axes)
        for old, new in self._renames.items():
            e = _swapped(e, old, new)
        shape = tuple(a.size for a in axes)
        name = f"out{k}"
        out = Buffer(name, shape, self._dtype(e), "output", name)
        self._origin[name] = node.name
        if isinstance(e, Read) and e.buffer.role == "temp" and e.at == axes:
            self.nests = [_renamed(n, e.buffer, out) for n in self.nests]
            self._renames[e.buffer] = out
        else:
            self.nests.append(Nest(out, axes, axes, e))
        return out


def _is_plain(e: Read) -> bool:
    """A read of what is stored already, at an index without reads."""
    return not any(isinstance(x, Read) for a in e.at for x in walk(a))


def _work(e: Expr) -> int:
    """Real operators in `e`, where it reads what the kernel computes at all."""
    seen = list(walk(e))
    computed = any(isinstance(x, Read) and x.buffer.role != "state" for x in seen)
    if not computed:
        return 0
    return sum(
        isinstance(x, Call) and x.op not in ("tofloat", "select") and kind(x) == "float"
        for x in seen
    ) + sum(
        isinstance(x, Read) and any(isinstance(y, Read) for a in x.at for y in walk(a))
        for x in seen
    )


def _uses(node: fx.Node) -> int:
    """How many ops read `node`, seen through views."""
    return sum(_uses(u) if u.target in _VIEWS else 1 for u in node.users)


def _leads_to(node: fx.Node, through: set[Any], goals: set[Any]) -> bool:
    """Whether the only reader of `node`, seen through ops of `through`, is one of `goals`."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.target in goals:
            return True
        if node.target not in through:
            return False
    return False


def _swapped(e: Expr, old: Buffer, new: Buffer) -> Expr:
    def swap(x: Expr) -> Expr | None:
        if isinstance(x, Read) and x.buffer == old:
            return Read(new, tuple(rewrite(a, swap, plain_call) for a in x.at))
        return None

    return rewrite(e, swap, plain_call)


def _renamed(nest: AnyNest, old: Buffer, new: Buffer) -> AnyNest:
    return mapped(nest, lambda e: _swapped(e, old, new), lambda b: new if b == old else b)


def prune(nests: Sequence[AnyNest]) -> list[AnyNest]:
    """Without nests that nothing reads."""
    needed: set[Buffer] = set()
    kept: list[AnyNest] = []
    for nest in reversed(nests):
        if any(b in needed or b.role in ("output", "input") for b in nest.outs):
            kept.append(nest)
            needed |= {r.buffer for r in reads(nest)}
    return kept[::-1]
