"""The loop IR: scalar expressions, and nests of loops that store them. All of it frozen data.

A tensor is a function from indices to a scalar expression. A `Nest` computes one buffer:

    map      for axes: out[at] = value
    fold     for axes: out[at] = ⊕ over `over` of value          sum, max, min, prod
    scan     as a fold, but every prefix is stored
    top-k    the k largest over `over`, and where they were
    attend   softmax-weighted sums over keys, in one pass (online softmax)

Gather and scatter need no nest of their own: a `Read` inside an index of `value`, or of `at`.
Arithmetic is over the reals: casts between float dtypes leave no trace but in what a buffer holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import attrs
import sympy
import torch

Size = int | sympy.Expr
Kind = Literal["int", "float", "bool"]


@attrs.frozen(cache_hash=True)
class Num:
    """A literal: 2 indexes, 2.0 multiplies, and neither stands for the other."""

    value: int | float | bool = attrs.field(eq=lambda v: (type(v), v))


@attrs.frozen(cache_hash=True)
class Var:
    """A loop's index, `0 <= name < size`."""

    name: str
    size: Size


@attrs.frozen(cache_hash=True)
class Length:
    """A runtime length, an integer expression over the program's length symbols."""

    size: sympy.Expr


@attrs.frozen(cache_hash=True)
class Read:
    buffer: Buffer
    at: tuple[Expr, ...]


@attrs.frozen(cache_hash=True)
class Call:
    """A scalar operator. `select` evaluates only the branch taken."""

    op: str
    args: tuple[Expr, ...]


@attrs.frozen(cache_hash=True)
class Fold:
    """⊕ over the axes of `body`; an expression until a nest of its own computes it. `narrow`: it is
    of products of numbers that are bf16 in the graph, however they are held."""

    monoid: str
    over: tuple[Var, ...]
    body: Expr
    narrow: bool = False


@attrs.frozen(cache_hash=True)
class Soft:
    """The softmax of `score` over `over`, at `at`."""

    over: Var
    score: Expr
    at: Expr


Expr = Num | Var | Length | Read | Call | Fold | Soft


SPAN = 32
"""Rows and columns of a block of weights."""
BLOCKS = {"int8": 1088, "int4": 576, "lossless": 1600}
"""Bytes of a block of each scheme."""
ALONE = {"int8": 16, "int4": 16, "lossless": 32}
"""Rows of a block that can be read without the others."""


def blocks(rows: int, columns: int) -> int:
    """That hold a matrix: the last ones may have rows to spare."""
    return -(-rows // SPAN) * (columns // SPAN)


@attrs.frozen(cache_hash=True)
class Buffer:
    """Storage of one tensor, dense and row-major unless `stride` says otherwise.

    `role`: `temp` lives in the arena, `private` in each thread's scratch, `state` are weights,
    `input` and `output` the caller's tensors. `target` names the weight, input or output.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype
    role: Literal["temp", "private", "state", "input", "output"] = "temp"
    target: str = ""
    stride: tuple[Size, ...] | None = None
    order: tuple[int, ...] = ()
    """A weight that is packed: its dims in this order, dense."""
    scheme: Literal["", "int8", "int4", "lossless"] = ""
    """How a packed weight's rows are held."""

    @property
    def strides(self) -> tuple[Size, ...]:
        if self.stride is not None:
            return self.stride
        result: list[Size] = []
        step: Size = 1
        for size in reversed(self.shape):
            result.insert(0, step)
            step = step * size
        return tuple(result)

    @property
    def kind(self) -> Kind:
        if self.dtype == torch.bool:
            return "bool"
        return "float" if self.dtype.is_floating_point else "int"


@attrs.frozen
class Nest:
    """`for axes: out[at] = fold over `over` of value` (a map where `fold` is None). `narrow`: as
    of a `Fold`."""

    out: Buffer
    axes: tuple[Var, ...]
    at: tuple[Expr, ...]
    value: Expr
    fold: str | None = None
    over: tuple[Var, ...] = ()
    narrow: bool = False

    @property
    def outs(self) -> tuple[Buffer, ...]:
        return (self.out,)


@attrs.frozen
class Scan:
    """out[axes] = fold of value over `over` up to and including its index (`over` is in axes)."""

    out: Buffer
    axes: tuple[Var, ...]
    value: Expr
    fold: str
    over: Var

    @property
    def outs(self) -> tuple[Buffer, ...]:
        return (self.out,)


@attrs.frozen
class TopK:
    """The `k` largest of value over `over`, in falling order; the first of equals comes first."""

    out: Buffer
    where: Buffer
    axes: tuple[Var, ...]
    over: Var
    k: int
    value: Expr
    largest: bool = True

    @property
    def outs(self) -> tuple[Buffer, ...]:
        return (self.out, self.where)


DOT = "dot"
"""In `Attend.score`: Call(DOT, ()) stands for the sum over `inner` of query · key."""


@attrs.frozen
class Attend:
    """out[rows, width] = Σ_j w_j · value_j, w the softmax over live keys lo <= j < hi of score.

    `parts` holds, for each block of keys, the running maximum, the sum of exponentials and the
    unscaled sum; a `Nest` after it joins the blocks in order.
    """

    parts: Buffer
    rows: tuple[Var, ...]
    width: Var
    key: Var
    inner: Var
    query: Expr
    keys: Expr
    values: Expr
    score: Expr
    live: Expr
    lo: Expr
    hi: Expr
    block: int

    @property
    def axes(self) -> tuple[Var, ...]:
        return (*self.rows, self.width)

    @property
    def outs(self) -> tuple[Buffer, ...]:
        return (self.parts,)


@attrs.frozen
class Merge:
    """The blocks of an `Attend` joined in order: out[rows, width]."""

    out: Buffer
    parts: Buffer
    rows: tuple[Var, ...]
    width: Var
    key: Var
    lo: Expr
    hi: Expr
    block: int

    @property
    def axes(self) -> tuple[Var, ...]:
        return (*self.rows, self.width)

    @property
    def outs(self) -> tuple[Buffer, ...]:
        return (self.out,)


AnyNest = Nest | Scan | TopK | Attend | Merge

BOOLEAN = {"lt", "le", "eq", "ne", "and", "or", "not", "isfinite"}
INTEGER = {"toint", "idiv", "imod"}
FLOATING = {
    "tofloat", "div", "exp", "log", "tanh", "sigmoid", "rsqrt", "sqrt", "sin", "cos", "erf",
    "pow", "recip", "floor", "ceil", "round", "trunc", "log1p", "expm1", "tan", "atan", "asin",
    "acos", "sinh", "cosh", "softplus", DOT,
}  # fmt: skip


def kind(e: Expr) -> Kind:
    """Whether an expression is an integer, a real or a truth value."""
    match e:
        case Num(value):
            return "bool" if value is True or value is False else _number(value)
        case Var() | Length():
            return "int"
        case Read(buffer, _):
            return buffer.kind
        case Fold(_, _, body):
            return kind(body)
        case Soft():
            return "float"
        case Call(op, args):
            if op in BOOLEAN:
                return "bool"
            if op in INTEGER:
                return "int"
            if op in FLOATING:
                return "float"
            kinds = {kind(a) for a in (args[1:] if op == "select" else args)}
            return "float" if "float" in kinds else "int" if "int" in kinds else "bool"
    raise TypeError(e)


def _number(value: float) -> Kind:
    return "float" if isinstance(value, float) else "int"


def children(e: Expr) -> tuple[Expr, ...]:
    match e:
        case Read(_, at):
            return at
        case Call(_, args):
            return args
        case Fold(_, _, body):
            return (body,)
        case Soft(_, score, at):
            return (score, at)
    return ()


def walk(e: Expr) -> Iterator[Expr]:
    """Every distinct expression within `e`, itself first."""
    seen: set[Expr] = set()
    stack = [e]
    while stack:
        top = stack.pop()
        if top in seen:
            continue
        seen.add(top)
        yield top
        stack.extend(children(top))


def rewrite(e: Expr, change: Callable[[Expr], Expr | None], call: Callable[..., Any]) -> Expr:
    """`e` with each expression that `change` gives another for replaced; operators around a
    change are made anew by `call(op, args)`."""
    memo: dict[Expr, Expr] = {}

    def go(x: Expr) -> Expr:
        if x in memo:
            return memo[x]
        new = change(x)
        if new is None:
            parts = children(x)
            done = tuple(go(p) for p in parts)
            if all(a is b for a, b in zip(parts, done, strict=True)):
                new = x
            elif isinstance(x, Read):
                new = Read(x.buffer, done)
            elif isinstance(x, Call):
                new = call(x.op, done)
            elif isinstance(x, Fold):
                new = attrs.evolve(x, body=done[0])
            else:
                new = attrs.evolve(x, score=done[0], at=done[1])
        memo[x] = new
        return new

    return go(e)


def expressions(nest: AnyNest) -> tuple[Expr, ...]:
    """All expressions that a nest evaluates."""
    match nest:
        case Nest():
            return (*nest.at, nest.value)
        case Attend():
            return (
                nest.query, nest.keys, nest.values, nest.score, nest.live, nest.lo, nest.hi,
            )  # fmt: skip
        case Merge():
            blocks = Var(nest.key.name, nest.parts.shape[-2])
            return (Read(nest.parts, (*nest.rows, blocks, nest.width)), nest.lo, nest.hi)
    return (nest.value,)


def reads(nest: AnyNest) -> tuple[Read, ...]:
    """Every distinct read of a nest, in a stable order."""
    found: dict[Read, None] = {}
    for e in expressions(nest):
        for x in walk(e):
            if isinstance(x, Read):
                found[x] = None
    return tuple(found)
