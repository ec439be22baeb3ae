"""Emitted expressions → terms.

An `int` of C++ is a Python int, an `index_t` a polynomial, a `real` or `bool` a term. Both branches
of a choice are evaluated, each with its condition as a premise for what lies within it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import attrs

from quire.verify import term as t
from quire.verify.decide import Premises, divmod_, maximum, minimum, prove
from quire.verify.kernel.source import (
    Apply,
    Binary,
    Choice,
    Expr,
    Item,
    Lambda,
    Let,
    Name,
    Number,
    Return,
    Unary,
)
from quire.verify.poly import ONE, ZERO, Poly, atom_of, bound, poly, single, variable
from quire.verify.same import same
from quire.verify.term import Term
from quire.verify.term.core import flat
from quire.verify.value import NoMeaning, NotShown, as_bool, as_int, as_real, number

Env = Mapping[str, Any]

LOCAL = re.compile(r"[a-z]+\d+")
"""Names that a source may give."""


@attrs.frozen(eq=False)
class Pointer:
    """An array: a slot of the tables, or bytes of a worker's scratch. `kind` is its C++ type."""

    slot: int
    offset: int
    kind: str
    name: str


@attrs.frozen(eq=False)
class Span:
    """A worker's share [lo, hi) of `units` units: trusted to be disjoint over workers and to cover
    all, if its numbers agree."""

    units: int
    lo: Poly
    hi: Poly


@attrs.frozen(eq=False)
class Lazy:
    """A value that is worked out where it is used."""

    force: Callable[[], Any]


class Memory(Protocol):
    """What loads go to."""

    def load(self, pointer: Pointer, at: Poly, path: Premises) -> Any: ...
    def length(self, k: int) -> Poly: ...
    def inside(self, size: Poly, body: Callable[[Poly], Any]) -> tuple[Poly, Any]: ...


def as_poly(x: Any) -> Poly:
    """An integer value. Raises NoMeaning for a real."""
    if isinstance(x, Poly):
        return x
    if isinstance(x, int) and not isinstance(x, bool):
        return poly(x)
    if isinstance(x, Term) and x.bool:
        return t.ite(x, ONE, ZERO)
    raise NoMeaning(f"{x} is no integer")


def premises_of(c: Term) -> Premises:
    """What a condition says of integers."""
    if c.op == "ge":
        return ((">=", c.args[0]),)
    if c.op == "eq":
        return (("=", c.args[0]),)
    if c.op == "and":
        return tuple(p for part in c.args[0] for p in premises_of(part))
    return ()


def is_int(x: Any) -> bool:
    return isinstance(x, int | Poly)


class Evaluator:
    """Expressions in an environment; loads go to `memory`."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def value(self, e: Expr, env: Env, path: Premises = ()) -> Any:
        match e:
            case Number(float(value)):
                raise NoMeaning(f"the bare float {value}")
            case Number(value):
                return value
            case Name(word):
                return self._name(word, env)
            case Unary(op, of):
                return self._unary(op, self.value(of, env, path))
            case Binary("&&" | "||" as op, a, b):
                left = as_bool(self.value(a, env, path))
                given = left if op == "&&" else t.not_(left)
                right = as_bool(self.value(b, env, (*path, *premises_of(given))))
                return (t.and_ if op == "&&" else t.or_)(left, right)
            case Binary(op, a, b):
                return self._binary(op, self.value(a, env, path), self.value(b, env, path), path)
            case Choice(c, a, b):
                return self._choice(c, a, b, env, path)
            case Item(of, at):
                return self._item(of, at, env, path)
            case Apply():
                return self._call(e, env, path)
        raise NoMeaning(f"{e} is no value")

    def poly(self, e: Expr, env: Env, path: Premises = ()) -> Poly:
        return as_poly(self.value(e, env, path))

    def real(self, e: Expr, env: Env, path: Premises = ()) -> Term:
        return as_real(self.value(e, env, path))

    def number(self, e: Expr, env: Env) -> int:
        """A number known when the source is written."""
        found = self.poly(e, env).constant
        if found is None:
            raise NoMeaning("a number that is not known")
        return found

    def pointer(self, e: Expr, env: Env) -> Pointer:
        found = self.value(e, env)
        if not isinstance(found, Pointer):
            raise NoMeaning(f"{e} is no array")
        return found

    def call(self, f: Expr, env: Env, args: tuple[Any, ...], path: Premises = ()) -> Any:
        """A lambda's result: `const` declarations and one `return`."""
        if not isinstance(f, Lambda) or len(f.params) != len(args):
            raise NoMeaning("a function of other arguments")
        here = {**env, **dict(zip(f.params, args, strict=True))}
        for s in f.body[:-1]:
            if not isinstance(s, Let) or not LOCAL.fullmatch(s.name):
                raise NoMeaning("a function with statements")
            here[s.name] = self.value(s.value, here, path)
        if not f.body or not isinstance(f.body[-1], Return):
            raise NoMeaning("a function without a result")
        return self.value(f.body[-1].value, here, path)

    # --- pieces ------------------------------------------------------------------------------

    def _name(self, word: str, env: Env) -> Any:
        if word in ("true", "false"):
            return t.TRUE if word == "true" else t.FALSE
        if word not in env:
            raise NoMeaning(f"the name {word} is not known here")
        found = env[word]
        return found.force() if isinstance(found, Lazy) else found

    def _unary(self, op: str, x: Any) -> Any:
        if op == "!":
            return t.not_(as_bool(x))
        if is_int(x):
            return -x
        return t.mul((t.const(-1), 1), (as_real(x), 1)) if x is not t.PINF else t.NINF

    def _binary(self, op: str, a: Any, b: Any, path: Premises) -> Any:
        if op in ("<", "<=", ">", ">=", "==", "!="):
            return self._compare(op, a, b)
        if is_int(a) and is_int(b):
            return self._whole(op, a, b, path)
        x, y = as_real(a), as_real(b)
        match op:
            case "+":
                return t.add((1, x), (1, y))
            case "-":
                return t.add((1, x), (-1, y))
            case "*":
                return t.mul((x, 1), (y, 1))
            case "/":
                return t.mul((x, 1), (y, -1))
        raise NoMeaning(f"{op} of reals")

    def _whole(self, op: str, a: Any, b: Any, path: Premises) -> Any:
        if op in ("+", "-", "*"):
            found = a + b if op == "+" else a - b if op == "-" else a * b
            if isinstance(found, int) and abs(found) >= 1 << 31:
                raise NoMeaning(f"{a} {op} {b} is too large for an int")
            return found
        p, n = poly(a), poly(b)
        why = "division of what is not negative"
        if not (prove(p, ">=", path, why) and prove(n - 1, ">=", path, why)):
            raise NotShown(f"({p}) {op} ({n}): C++ rounds to zero, and a sign is not known")
        quotient, rest = divmod_(p, n, path)
        found = quotient if op == "/" else rest
        if isinstance(a, int) and isinstance(b, int):
            return found.constant
        return found

    def _compare(self, op: str, a: Any, b: Any) -> Term:
        if op in (">", ">="):
            a, b, op = b, a, {">": "<", ">=": "<="}[op]
        if is_int(a) and is_int(b):
            p, q = poly(a), poly(b)
            if op == "<":
                return t.ge(q - p - 1)
            if op == "<=":
                return t.ge(q - p)
            return t.eq(p - q) if op == "==" else t.not_(t.eq(p - q))
        word = {"<": "lt", "<=": "le", "==": "eq", "!=": "eq"}[op]
        found = t.compare(word, as_real(a), as_real(b))
        return t.not_(found) if op == "!=" else found

    def _choice(self, c: Expr, a: Expr, b: Expr, env: Env, path: Premises) -> Any:
        condition = as_bool(self.value(c, env, path))
        if condition is t.TRUE:
            return self.value(a, env, path)
        if condition is t.FALSE:
            return self.value(b, env, path)
        x = self.value(a, env, (*path, *premises_of(condition)))
        y = self.value(b, env, (*path, *premises_of(t.not_(condition))))
        if is_int(x) and is_int(y):
            return t.ite(condition, poly(x), poly(y))
        if any(is_int(v) or not v.bool for v in (x, y)):
            x, y = as_real(x), as_real(y)
        return t.ite(condition, x, y)

    def _item(self, of: str, at: Expr | str, env: Env, path: Premises) -> Any:
        table = env.get(of)
        if isinstance(table, Span) and at in ("lo", "hi"):
            return table.lo if at == "lo" else table.hi
        if not isinstance(table, tuple) or isinstance(at, str):
            raise NoMeaning(f"{of} is no table")
        k = self.poly(at, env, path)
        if not (prove(k) and prove(len(table) - 1 - k)):
            raise NotShown(f"the place {k} in a table of {len(table)}")
        found = poly(table[-1])
        for n in reversed(range(len(table) - 1)):
            found = t.ite(t.ge(n - k), poly(table[n]), found)
        return found

    def _call(self, e: Apply, env: Env, path: Premises) -> Any:
        match e:
            case Apply("q.load", (pointer, at)):
                where = self.pointer(pointer, env)
                return self.memory.load(where, self.poly(at, env, path), path)
            case Apply("q.length", (Number(int(k)),)):
                return self.memory.length(k)
            case Apply("real" | "q.tofloat", (x,)):
                if isinstance(x, Number):
                    return t.const(x.value)
                if isinstance(x, Unary) and x.op == "-" and isinstance(x.of, Number):
                    return number(-float(x.of.value))
                return as_real(self.value(x, env, path))
            case Apply("index_t", (x,)):
                return self.poly(x, env, path)
            case Apply("q.toint", (x,)):
                return as_int(self.value(x, env, path))
            case Apply("bool", (x,)):
                return as_bool(self.value(x, env, path))
            case Apply("q.infinity", ()):
                return t.PINF
            case Apply("q.nan", ()):
                return t.NAN
            case Apply("q.sum" | "q.isum" | "q.max" | "q.min" | "q.prod" | "q.any" | "q.all", _):
                return self._fold(e, env, path)
            case Apply("q.share", args):
                return self._share([self.number(a, env) for a in args])
        if not e.what.startswith("q."):
            raise NoMeaning(f"the call {e.what} is not known")
        return self._scalar(e.what[2:], [self.value(a, env, path) for a in e.args], path)

    def _scalar(self, name: str, xs: list[Any], path: Premises) -> Any:
        match name, xs:
            case (("larger" | "smaller"), [a, b]):
                if is_int(a) and is_int(b):
                    return (maximum if name == "larger" else minimum)(a, b)
                word = "max" if name == "larger" else "min"
                return t.extreme(word, as_real(a), as_real(b))
            case "abs", [x]:
                return maximum(x, -x) if is_int(x) else t.fn("abs", as_real(x))
            case "exp", [x]:
                shift_is_largest(as_real(x))
                return t.exp(as_real(x))
            case (("idiv" | "imod"), [a, b]):
                n = as_poly(b)
                if not prove(n - 1, ">=", path, "a divisor is positive"):
                    raise NotShown(f"division by {n}")
                return divmod_(as_poly(a), n, path)[0 if name == "idiv" else 1]
            case "pow", [x, y]:
                return t.fn("pow", as_real(x), as_real(y))
            case _, [x] if name in FUNCTIONS:
                return t.fn(name, as_real(x))
        raise NoMeaning(f"q.{name} of {len(xs)} arguments is not known")

    def _fold(self, e: Apply, env: Env, path: Premises) -> Any:
        n, f = e.args
        size = self.poly(n, env, path)
        word = e.what[2:]
        var, body = self.memory.inside(size, lambda j: self.call(f, env, (j,), path))
        return fold(word, size, var, body, word != "isum" and is_int(body))

    def _share(self, numbers: list[int]) -> Span:
        start, cost, units, total, align = numbers
        if min(cost, units, total, align) < 1 or start < 0 or start + cost * units > total:
            raise NotShown(
                f"shares of [{start}, {start + cost * units}) of {total} do not cover it"
            )
        lo = variable("lo", [0], [units])
        return Span(units, lo, variable("hi", [lo], [units]))


FUNCTIONS = {
    "tanh", "sigmoid", "erf", "log", "sqrt", "rsqrt", "sin", "cos", "floor", "ceil", "round",
    "trunc", "tan", "atan", "asin", "acos", "sinh", "cosh", "log1p", "expm1",
}  # fmt: skip
"""Calls of the machine that are functions of one real, by the name that `meaning` gives them."""


def fold(word: str, size: Poly, var: Poly, body: Any, whole: bool = False) -> Any:
    """A fold of `body` over `0 ≤ var < size`."""
    counted = single(body) if isinstance(body, Poly) else None
    if counted is not None and counted.kind == "val" and counted.args[0].op == "ind":
        body = counted.args[0]  # how often something holds
    if word in ("any", "all"):
        op = "max" if word == "any" else "min"
        found = t.bind(op, size, t.ind(as_bool(body)), var)
        return t.not_(t.compare("eq", found, t.ZERO_))
    if word in ("max", "min", "prod") and not prove(size - 1, why="an extreme of something"):
        raise NotShown(f"{word} over {size} elements, maybe none")
    if word == "prod":
        found = t.named("row", size, as_real(body), atom_of(var), "prod")
    else:
        found = t.bind("sum" if word == "isum" else word, size, as_real(body), var)
    return as_int(found) if word == "isum" or whole else found


def fresh(name: str, size: Poly) -> Poly:
    """A loop's index; the only one of a loop of one."""
    return ZERO if size is ONE else variable(name, [0], [size - 1])


def shift_is_largest(x: Term) -> None:
    """Of `x = f(i) − max_j f(j)`: that the largest is taken over a range that `i` is in. A wrong
    shift cancels in a softmax over the reals, but lets exp overflow."""
    for c, m in t.addends(x):
        if c != -1 or m.op != "max":
            continue
        n, body = m.args[0], m.args[1]
        own, rest = atom_of(bound(m.height, n)), t.add((1, x), (1, m))
        near = {poly(i): None for i in rest.free} | dict.fromkeys(_places(rest))
        within = (i for i in near if prove(i) and prove(n - 1 - i))
        if not any(same(t.substitute(body, {own: i}), rest) for i in within):
            raise NotShown(f"the largest subtracted in exp({t.show(x, 3)}) is of other values")


def _places(x: Term) -> Iterator[Poly]:
    """The indices at which `x` reads tensors."""
    if x.op == "read":
        yield from x.args[1]
    for a in flat(x.args):
        if isinstance(a, Term):
            yield from _places(a)
