"""Terms as objects: equal terms are one object. How a term is read, replaced in, and built again.

The laws of each op are in the files beside this one, which enter their constructors in `REMAKE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

from quire.verify.poly import REBUILD, Atom, Poly, atom_of, bound, call, poly, variable
from quire.verify.poly import substitute as substitute_poly

_table: dict[Any, Term] = {}


class Term:
    """`op` with `args`: terms, polynomials, fractions and words. `free` are the atoms in it,
    `height` the depth of nested binders."""

    __slots__ = ("args", "bool", "free", "height", "id", "op")

    op: str
    args: tuple[Any, ...]
    free: frozenset[Atom]
    height: int
    bool: bool
    id: int

    def __repr__(self) -> str:
        return show(self)


BOOLS = {"ge", "eq", "not", "and", "or", "cmp", "true", "false", "bread"}
BINDERS = {"sum", "max", "min", "row"}


def make(op: str, *args: Any) -> Term:
    key = (op, *args)
    found = _table.get(key)
    if found is None:
        found = Term()
        found.op, found.args, found.id = op, args, len(_table)
        frees, height = [], 0
        for a in flat(args):
            frees.append(a.free)
            height = max(height, _height(a))
        found.free = frozenset().union(*frees)
        if op in BINDERS:
            height += 1
            size, body = args[0], args[1]
            own = atom_of(bound(height, size))
            found.free = size.free.union(body.free - {own}, *(a.free for a in flat(args[2:])))
        found.height = height
        found.bool = op in BOOLS
        _table[key] = found
    return found


def _height(x: Term | Poly) -> int:
    if isinstance(x, Term):
        return x.height
    return max((a.args[0].height for a in x.free if a.kind == "val"), default=0)


def flat(args: Iterable[Any]) -> Iterable[Any]:
    for a in args:
        if isinstance(a, Term | Poly):
            yield a
        elif isinstance(a, tuple):
            yield from flat(a)


TRUE, FALSE = make("true"), make("false")
NINF, PINF, NAN = make("ninf"), make("pinf"), make("nan")

CONSTANT_BITS = 44
"""Floats of a program are taken to this many bits: axiom `constants`."""


def const(value: Any) -> Term:
    if isinstance(value, float):
        if math.isnan(value):
            return NAN
        if value in (float("inf"), float("-inf")):
            return PINF if value > 0 else NINF
        mantissa, exponent = math.frexp(value)
        bits = round(mantissa * (1 << CONSTANT_BITS))
        return make("const", Fraction(bits) * Fraction(2) ** (exponent - CONSTANT_BITS))
    return make("const", Fraction(value))


ZERO_, ONE_ = const(0), const(1)


def number(t: Term) -> Fraction | None:
    return t.args[0] if t.op == "const" else None


def of_int(p: Poly) -> Term:
    """The real number that the integer `p` is."""
    if p.constant is not None:
        return const(p.constant)
    return make("int", p)


def int_of(t: Term, name: str = "val") -> Poly:
    """An integer that is known by a term only."""
    if t.op == "int":
        return t.args[0]
    if t.op == "const" and t.args[0].denominator == 1:
        return poly(int(t.args[0]))
    found = call("val", t)
    if t.op == "read" and t.args[0] in RANGES:
        x = atom_of(found)
        low, high = RANGES[t.args[0]]
        x.lower, x.upper = [poly(low)], [poly(high)]
    elif t.op == "row" and t.args[2] in PLACES:
        x = atom_of(found)
        x.lower, x.upper = [poly(0)], [t.args[0] - 1]
    return found


RANGES: dict[str, tuple[Any, Any]] = {}
"""Tensors of integers by name, and between which values their elements lie (axiom `in-range`)."""

PLACES = {"order.indices", "order.places", "topk.indices"}
"""Functions of a row that give places in it."""


def _int_again(t: Term) -> Poly:
    if t.op == "ite" and t.args[1] is t.args[2]:
        t = t.args[1]
    return int_of(t)


REBUILD["val"] = lambda x, to: _int_again(substitute(x.args[0], to))


def read(name: str, idx: Iterable[Poly], sort: str = "real") -> Term:
    return make("bread" if sort == "bool" else "read", name, tuple(idx))


def addends(t: Term) -> Iterable[tuple[Fraction, Term]]:
    if t.op == "add":
        yield from ((c, x) for x, c in t.args[1])
        if t.args[0]:
            yield t.args[0], ONE_
    elif t.op == "mul" and t.args[0] != 1:
        c, factors = t.args
        if len(factors) == 1 and factors[0][1] == 1 and factors[0][0].op == "add":
            yield from ((c * k, x) for k, x in addends(factors[0][0]))
        else:
            yield c, scaled(t, 1 / c)
    else:
        yield Fraction(1), t


def scaled(t: Term, c: Fraction) -> Term:
    c, factors = t.args[0] * c, t.args[1]
    if c == 1 and len(factors) == 1 and factors[0][1] == 1:
        return factors[0][0]
    return make("mul", c, factors)


# --- replacement -----------------------------------------------------------------------------

REMAKE: dict[str, Callable[..., Any]] = {}
"""What builds an op in normal form from the arguments of a term of that op; else `make` does. For
a binder: from size, body, the variable bound, and what else the term holds."""


def substitute(t: Any, to: Mapping[Atom, Poly], memo: dict[Any, Any] | None = None) -> Any:
    """`t` with atoms replaced, built anew so that it is in normal form again."""
    if isinstance(t, Poly):
        return substitute_poly(t, to)
    if t.free.isdisjoint(to):
        return t
    memo = {} if memo is None else memo
    found = memo.get(t)
    if found is None:
        found = memo[t] = _substitute(t, to, memo)
    return found


def _substitute(t: Term, to: Mapping[Atom, Poly], memo: dict[Any, Any]) -> Any:
    def go(x: Any) -> Any:
        return substitute(x, to, memo)

    op, args = t.op, t.args
    if op not in BINDERS:
        found = [_deep(a, go) for a in args]
        return REMAKE[op](*found) if op in REMAKE else make(op, *found)
    size = go(args[0])
    old, y = atom_of(bound(t.height, args[0])), bound(t.height, size)
    own = atom_of(y)
    if any(own in p.free for p in to.values()):
        y = variable("t", [0], [size - 1])
    if atom_of(y) is old and old not in to:
        body = go(args[1])
    else:
        body = substitute(args[1], {**{k: v for k, v in to.items() if k is not old}, old: y})
    return REMAKE[op](size, body, y, *(_deep(a, go) for a in args[2:]))


def _deep(a: Any, go: Callable[[Any], Any]) -> Any:
    if isinstance(a, Term | Poly):
        return go(a)
    return tuple(_deep(x, go) for x in a) if isinstance(a, tuple) else a


def named(op: str, size: Poly, body: Term, x: Atom, *more: Any) -> Term:
    """The binder `op` over `x`, under the name that its height gives it."""
    least = max([_height(a) for a in flat(more)], default=0)
    height = 1 + max(body.height, least)
    name = bound(height, size)
    if atom_of(name) is not x:
        body = substitute(body, {x: name})
        if 1 + max(body.height, least) != height:
            height = 1 + max(body.height, least)
            body = substitute(body, {atom_of(name): bound(height, size)})
    return make(op, size, body, *more)


def show(t: Any, depth: int = 9) -> str:
    """A term for people: what lies deeper than `depth` is left out."""
    if isinstance(t, Poly):
        return str(t)
    op, args = t.op, t.args
    if op == "const":
        return str(float(args[0])) if args[0].denominator != 1 else str(args[0])
    if op == "int":
        return f"({args[0]})"
    if op in ("read", "bread"):
        return f"{args[0]}[{', '.join(map(str, args[1]))}]"
    if not depth:
        return "…"

    def inner(a: Any) -> str:
        if isinstance(a, tuple):
            return "[" + ", ".join(map(inner, a)) + "]"
        return show(a, depth - 1) if isinstance(a, Term | Poly) else str(a)

    if op == "add":
        head = [] if not args[0] else [str(float(args[0]))]
        words = [inner(x) if c == 1 else f"{float(c):g}·{inner(x)}" for x, c in args[1]]
        return "(" + " + ".join(head + words) + ")"
    if op == "mul":
        body = "·".join(inner(x) + (f"^{k}" if k != 1 else "") for x, k in args[1])
        return body if args[0] == 1 else f"{float(args[0]):g}·{body}"
    if op in BINDERS:
        name = bound(t.height, args[0])
        return f"{op}[{name} < {args[0]}]({', '.join(map(inner, args[1:]))})"
    return f"{op}({', '.join(map(inner, args))})"
