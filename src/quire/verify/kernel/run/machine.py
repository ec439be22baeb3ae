"""Parsed statements carried out on numbers.

A loop whose body writes once, and does not read what it writes, is run at once: its index is a
tensor with a dim of its own in front. Any other goes one by one. Both branches of a choice are
evaluated, each with the mask of where it counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from quire.verify.field_ops import Unsupported
from quire.verify.kernel.run import hooks
from quire.verify.kernel.run.cells import Array, Cells, WrongRun
from quire.verify.kernel.run.numbers import Numbers, as_tensor
from quire.verify.kernel.source import (
    Apply,
    Binary,
    Choice,
    Do,
    Expr,
    If,
    Item,
    Lambda,
    Let,
    Name,
    Number,
    Return,
    Statement,
    Table,
    Unary,
    walk,
)

Env = Mapping[str, Any]
WRITES = {
    "q.store", "q.dot", "q.dot_bf16", "q.merge", "q.topk", "q.scan_sum", "q.scan_prod", "q.attend",
}  # fmt: skip


@attrs.frozen
class Share:
    """Units [lo, hi) of one worker."""

    lo: int
    hi: int


class Worker:
    """Number `number` of `workers`, with scratch of its own. `arrays` are behind the kernel's
    pointers. Raises Unsupported after `ends` of the monotonic clock."""

    def __init__(
        self, numbers: Numbers, arrays: Sequence[Array], lengths: Sequence[int], scratch: int,
        number: int, workers: int, ends: float,
    ) -> None:  # fmt: skip
        self.numbers, self.arrays, self.lengths = numbers, arrays, lengths
        self.number, self.workers, self.ends = number, workers, ends
        self.scratch = Cells.of(scratch)
        self._base = 0
        self._settles: Sequence[bool] = ()

    def call(self, body: Sequence[Statement], base: int, settles: Sequence[bool] = ()) -> None:
        """A phase, its pointers counted from `base`. `settles`: which scratch arrays stand for a
        tensor of the graph."""
        self._base, self._settles = base, settles
        self.run(body, {}, 0)

    # --- statements --------------------------------------------------------------------------

    def run(self, body: Sequence[Statement], env: Env, depth: int) -> None:
        """`depth`: the dims that indices of loops have taken."""
        env = dict(env)
        if time.monotonic() > self.ends:
            raise Unsupported("a run that takes too long")
        for s in body:
            match s:
                case Let(name, value):
                    env[name] = self.value(value, env, depth)
                case Table(name, values):
                    env[name] = torch.tensor(values)
                case Do(Apply("q.each", (n, Lambda((word,), inner)))):
                    self._each(self.whole(n, env), word, inner, env, depth)
                case Do(Apply("q.units", (share, inner, chunk, Lambda(words, inside)))):
                    span = self.value(share, env, depth)
                    for run in _runs(span, self.whole(inner, env), self.whole(chunk, env)):
                        self.run(inside, {**env, **dict(zip(words, run, strict=True))}, depth)
                case Do(Apply("q.store", (to, at, value))):
                    array = self.array(to, env)
                    found = self.value(value, env, depth)
                    if array.dtype.is_floating_point:
                        found = self.real(found)
                        found = self.numbers.stored(found) if array.settles else found
                    array.store(self.index(self.value(at, env, depth)), as_tensor(found))
                case Do(Apply(what, args)) if what in hooks.STATEMENTS:
                    hooks.STATEMENTS[what](self, args, env, depth)
                case Do(Apply("q.prefetch", _)) | If():
                    pass
                case _:
                    raise Unsupported(f"the statement {s}")

    def _each(self, n: int, word: str, body: Sequence[Statement], env: Env, depth: int) -> None:
        if n > 0 and at_once(body):
            index = torch.arange(n).view(n, *[1] * depth)
            self.run(body, {**env, word: index}, depth + 1)
            return
        for i in range(n):
            self.run(body, {**env, word: i}, depth)

    # --- values ------------------------------------------------------------------------------

    def whole(self, e: Expr, env: Env) -> int:
        """A number that is the same for all elements."""
        found = self.value(e, env, 0)
        if isinstance(found, Tensor) and found.numel() == 1:
            found = int(found)
        if not isinstance(found, int):
            raise Unsupported("a loop whose count differs from element to element")
        return found

    def array(self, e: Expr, env: Env) -> Array:
        found = self.value(e, env, 0)
        if not isinstance(found, Array):
            raise Unsupported(f"{e} is no array")
        return found

    def index(self, x: Any) -> Tensor:
        x = as_tensor(x)
        if x.is_floating_point():
            raise Unsupported("a float for an index")
        return x.long()

    def real(self, x: Any) -> Tensor:
        x = as_tensor(x)
        return x if x.is_floating_point() else self.numbers.of_int(x.long())

    def apply(
        self, f: Expr, env: Env, args: Sequence[Any], depth: int, mask: Tensor | None = None
    ) -> Any:
        """A lambda's result."""
        if not isinstance(f, Lambda) or len(f.params) != len(args):
            raise Unsupported("a function of other arguments")
        here = {**env, **dict(zip(f.params, args, strict=True))}
        for s in f.body:
            if isinstance(s, Return):
                return self.value(s.value, here, depth, mask)
            if isinstance(s, Let):
                here[s.name] = self.value(s.value, here, depth, mask)
        raise Unsupported("a function without a result")

    def value(self, e: Expr, env: Env, depth: int, mask: Tensor | None = None) -> Any:
        match e:
            case Number(value):
                return value
            case Name("true" | "false" as word):
                return word == "true"
            case Name(word):
                if word not in env:
                    raise Unsupported(f"the name {word}")
                return env[word]
            case Unary("!", of):
                return ~as_tensor(self.value(of, env, depth, mask)).bool()
            case Unary(_, of):
                x = self.value(of, env, depth, mask)
                real = isinstance(x, Tensor) and x.is_floating_point()
                return self.numbers.neg(x) if real else -x
            case Binary("&&" | "||" as op, a, b):
                left = as_tensor(self.value(a, env, depth, mask)).bool()
                more = left if op == "&&" else ~left
                right = as_tensor(self.value(b, env, depth, _both(mask, more))).bool()
                return left & right if op == "&&" else left | right
            case Binary(op, a, b):
                left, right = (self.value(x, env, depth, mask) for x in (a, b))
                return self._binary(op, left, right)
            case Choice(c, a, b):
                return self._choice(c, a, b, env, depth, mask)
            case Item(of, "lo" | "hi" as end):
                return getattr(env[of], end)
            case Item(of, at) if not isinstance(at, str):
                return env[of][self.index(self.value(at, env, depth, mask))]
            case Apply(what, args, kind):
                return self._call(what, args, kind, env, depth, mask)
        raise Unsupported(f"the expression {e}")

    def _binary(self, op: str, a: Any, b: Any) -> Any:
        reals = any(isinstance(x, Tensor) and x.is_floating_point() for x in (a, b))
        if op in ("<", "<=", ">", ">=", "==", "!="):
            if reals:
                a, b = (self.numbers.rank(self.real(x)) for x in (a, b))
            return as_tensor(_COMPARE[op](a, b))
        if reals:
            x, y = self.real(a), self.real(b)
            if op == "-":
                return self.numbers.add(x, self.numbers.neg(y))
            return {"+": self.numbers.add, "*": self.numbers.mul, "/": self.numbers.div}[op](x, y)
        if op in ("/", "%"):
            return _divided(op, a, b)
        return a + b if op == "+" else a - b if op == "-" else a * b

    def _choice(self, c: Expr, a: Expr, b: Expr, env: Env, depth: int, mask: Tensor | None) -> Any:
        which = as_tensor(self.value(c, env, depth, mask)).bool()
        if which.numel() == 1:
            return self.value(a if bool(which) else b, env, depth, mask)
        x = self.value(a, env, depth, _both(mask, which))
        y = self.value(b, env, depth, _both(mask, ~which))
        if any(isinstance(v, Tensor) and v.is_floating_point() for v in (x, y)):
            x, y = self.real(x), self.real(y)
        return torch.where(which, as_tensor(x), as_tensor(y))

    # --- calls -------------------------------------------------------------------------------

    def _call(
        self, what: str, args: Sequence[Expr], kind: str, env: Env, depth: int, mask: Tensor | None
    ) -> Any:
        match what, args:
            case "q.load", (pointer, at):
                array = self.array(pointer, env)
                return array.load(self.index(self.value(at, env, depth, mask)), mask)
            case "q.array", (slot,):
                return self.arrays[self._base + self.whole(slot, env)]
            case "q.scratch", (offset,):
                return self._scratch(self.whole(offset, env), kind, len(
                    [x for x in env.values() if isinstance(x, Array) and x.cells is self.scratch]
                ))  # fmt: skip
            case "q.length", (Number(int(k)),):
                return self.lengths[k]
            case (("real" | "q.tofloat"), (Number(x),)):
                return self.numbers.const(x)
            case (("real" | "q.tofloat"), (Unary("-", Number(x)),)):
                return self.numbers.const(-x)
            case (("real" | "q.tofloat"), (x,)):
                return self.real(self.value(x, env, depth, mask))
            case "index_t", (x,):
                found = self.value(x, env, depth, mask)
                return found if isinstance(found, int) else self.index(found)
            case "q.toint", (x,):
                found = as_tensor(self.value(x, env, depth, mask))
                return self.numbers.to_int(found) if found.is_floating_point() else found.long()
            case "bool", (x,):
                found = as_tensor(self.value(x, env, depth, mask))
                return self.numbers.rank(found) != self.numbers.rank(self.numbers.const(0)) \
                    if found.is_floating_point() else found != 0  # fmt: skip
            case "q.infinity", ():
                return self.numbers.const(float("inf"))
            case "q.nan", ():
                return self.numbers.const(float("nan"))
            case "q.share", _:
                return self._share(*(self.whole(a, env) for a in args))
            case _ if what in hooks.FOLDS:
                return self._fold(what, args, env, depth, mask)
        return self._scalar(what.removeprefix("q."), [
            self.value(a, env, depth, mask) for a in args
        ])  # fmt: skip

    def _scratch(self, offset: int, kind: str, number: int) -> Array:
        step = Array("", self.scratch, 0, 1, 0, kind).dtype.itemsize
        size = (len(self.scratch.values) - offset) // step
        if offset < 0 or size < 0:
            raise WrongRun("scratch outside of a worker's")
        settles = number < len(self._settles) and self._settles[number]
        return Array(f"scratch {offset}", self.scratch, offset, step, size, kind, settles)

    def _scalar(self, name: str, xs: list[Any]) -> Any:
        reals = any(isinstance(x, Tensor) and x.is_floating_point() for x in xs)
        if name in ("larger", "smaller"):
            if reals:
                a, b = (self.real(x) for x in xs)
                a, b = torch.broadcast_tensors(a, b)
                return self.numbers.choose("max" if name == "larger" else "min", a, b)
            if all(isinstance(x, int) for x in xs):
                return max(xs) if name == "larger" else min(xs)
            pick = torch.maximum if name == "larger" else torch.minimum
            return pick(*(self.index(x) for x in xs))
        if name == "abs":
            x = xs[0]
            return self.numbers.choose("max", x, self.numbers.neg(x)) if reals else abs(x)
        if name in ("idiv", "imod"):
            a, b = (self.index(x) for x in xs)
            b = torch.where(b == 0, torch.ones_like(b), b)
            return a // b if name == "idiv" else a % b
        return self.numbers.function(name, *torch.broadcast_tensors(*(self.real(x) for x in xs)))

    def _fold(
        self, what: str, args: Sequence[Expr], env: Env, depth: int, mask: Tensor | None
    ) -> Any:
        n = self.whole(args[0], env)
        index = torch.arange(n).view(n, *[1] * depth)
        body = as_tensor(self.apply(args[1], env, (index,), depth + 1, mask))
        body = body[(None,) * (depth + 1 - body.dim())]
        return hooks.FOLDS[what](self, body.expand(n, *body.shape[1:]))

    def _share(self, start: int, cost: int, units: int, total: int, align: int) -> Share:
        """As rt/native.hpp cuts them."""

        def cut(w: int) -> int:
            edge = total * w // self.workers - start
            if edge <= 0:
                return 0
            if edge >= cost * units:
                return units
            return min(units, (edge // cost + align // 2) // align * align)

        return Share(cut(self.number), cut(self.number + 1))


def _runs(share: Share, inner: int, chunk: int) -> Iterator[tuple[int, int, int]]:
    at = share.lo
    while at < share.hi:
        rest = at % inner
        n = min(share.hi - at, inner - rest, chunk)
        yield at // inner, rest, rest + n
        at += n


def _both(mask: Tensor | None, more: Tensor) -> Tensor:
    return more if mask is None else mask & more


_COMPARE: dict[str, Any] = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
}  # fmt: skip


def _divided(op: str, a: Any, b: Any) -> Any:
    """C++ rounds to zero. What divides by 0 is in no branch that counts."""
    if isinstance(a, int) and isinstance(b, int):
        q = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) if b else 0
        return q if op == "/" else a - q * b
    x, y = as_tensor(a).long(), as_tensor(b).long()
    y = torch.where(y == 0, torch.ones_like(y), y)
    return torch.div(x, y, rounding_mode="trunc") if op == "/" else torch.fmod(x, y)


def at_once(body: Sequence[Statement]) -> bool:
    """Whether a loop over `body` may run as tensors: one statement writes, and reads nothing that
    it writes."""
    writes, reads, written = 0, list[Expr](), list[Expr]()
    for x in walk(tuple(body)):
        if not isinstance(x, Apply):
            continue
        reads += [x.args[k] for k in READS.get(x.what, ())]
        if x.what in WRITES:
            writes += x.what not in CONTAINERS
            written.append(x.args[3 if x.what == "q.attend" else 0])
    return writes == 1 and not _words(reads) & _words(written)


def _words(of: Sequence[Expr]) -> set[str]:
    return {x.word for x in of if isinstance(x, Name)}


READS = {"q.load": (0,), "q.dot": (4, 8), "q.dot_bf16": (4, 8), "q.merge": (3,)}
"""The arguments that are arrays it reads."""
CONTAINERS = {"q.topk", "q.scan_sum", "q.scan_prod"}
"""Their stores are counted."""
