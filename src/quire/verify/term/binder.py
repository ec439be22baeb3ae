"""Sums and extremes over a range."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, cast

from quire.verify.decide import maximum, minimum, prove
from quire.verify.poly import ONE, ZERO, Atom, Poly, atom_of, variable
from quire.verify.term.arithmetic import ind, ite, mul
from quire.verify.term.condition import and_
from quire.verify.term.core import (
    NINF,
    PINF,
    REMAKE,
    ZERO_,
    Term,
    const,
    int_of,
    make,
    named,
    of_int,
    substitute,
)  # fmt: skip
from quire.verify.term.order import reordered, undone
from quire.verify.term.ranges import joined

Body = Callable[[Poly], Term]


def bind(op: str, size: Poly, body: Body | Term, var: Poly | None = None) -> Term:
    """`op` over `0 ≤ j < size` of `body(j)`."""
    if var is None:
        var = variable("t", [0], [size - 1])
        body = cast(Body, body)(var)
    body = cast(Term, body)
    if op == "sum":
        return _sum(size, body, atom_of(var))
    return _extreme(op, size, body, atom_of(var))


def _sum(size: Poly, body: Term, x: Atom) -> Term:
    n = size.constant
    if n is not None and n <= 0:
        return ZERO_
    if n == 1:
        return substitute(body, {x: ZERO})
    body = reordered(size, body, x)
    if x not in body.free:
        return mul((of_int(size), 1), (body, 1))
    if body.op in {"mul", "ind"}:
        c, factors = body.args if body.op == "mul" else (Fraction(1), ((body, 1),))
        out = [(t, k) for t, k in factors if x not in t.free]
        inside = [(t, k) for t, k in factors if x in t.free]
        for t, _ in inside:
            if t.op == "ind":
                narrow = _narrowed(size, t.args[0], x)
                if narrow is not None:
                    lo, count, left = narrow
                    rest = [(f, k) for f, k in inside if f is not t]
                    kept = mul(*rest, (ind(left), 1), *out, (const(c), 1))
                    y = variable("t", [0], [count - 1])
                    return _sum(count, substitute(kept, {x: lo + y}), atom_of(y))
        if out or c != 1:
            inner = _sum(size, mul(*inside), x)
            return mul((const(c), 1), *out, (inner, 1))
    return named("sum", size, body, x)


def _narrowed(size: Poly, c: Term, x: Atom) -> tuple[Poly, Poly, Term] | None:
    """`(lo, count, rest)`: the range in which a guard can hold, and what is left of the guard."""
    parts = c.args[0] if c.op == "and" else (c,)
    for part in parts:
        left = and_(*(p for p in parts if p is not part))
        if part.op == "eq":
            split = part.args[0].split(x)
            if split is not None and split[0].constant in (1, -1) and x not in split[1].free:
                at = -split[1] * cast(int, split[0].constant)
                if prove(at, why="guard: range") and prove(size - 1 - at, why="guard: range"):
                    return at, ONE, left
        if part.op != "ge":
            continue
        split = part.args[0].split(x)
        if split is None or x in split[1].free:
            continue
        k, r = split[0].constant, split[1]
        if k == -1:
            count = r + 1
            if prove(size - count, why="guard: range") and prove(count, why="guard: range"):
                return ZERO, count, left
        elif k == 1:
            lo = -r
            if prove(lo, why="guard: range") and prove(size - lo, why="guard: range"):
                return lo, size - lo, left
    return None


def _extreme(op: str, size: Poly, body: Term, x: Atom) -> Term:
    n = size.constant
    if n is not None and n <= 0:
        return NINF if op == "max" else PINF
    if n == 1:
        return substitute(body, {x: ZERO})
    if x not in body.free:
        return body
    if body.op == "ite" and body.args[2 if op == "max" else 1] is NINF:
        narrow = _narrowed(size, body.args[0], x)
        if narrow is not None:
            lo, count, left = narrow
            y = variable("t", [0], [count - 1])
            inner = substitute(ite(left, body.args[1], NINF), {x: lo + y})
            return _extreme(op, count, inner, atom_of(y))
    return named(op, size, body, x)


def extreme(op: str, *items: Term) -> Term:
    """The largest ("max") or smallest ("min") of terms; adjacent ranges are joined."""
    idle = NINF if op == "max" else PINF
    found: dict[Term, None] = {}
    for t in items:
        for x in t.args[0] if t.op == op + "2" else (t,):
            if x is not idle:
                found[x] = None
    if all(t.op in ("int", "const") for t in found) and len(found) == 2:
        p, q = (t for t in found)
        if all(t.op == "int" or t.args[0].denominator == 1 for t in (p, q)):
            return of_int((maximum if op == "max" else minimum)(int_of(p), int_of(q)))
    terms = list(found)
    again = True
    while again:
        again = False
        ranged = [t for t in terms if t.op == op]
        for s in ranged:
            for t in ranged:
                one = s is not t and joined(s, t)
                if one:
                    terms = [u for u in terms if u is not s and u is not t] + [one]
                    again = True
                    break
            if again:
                break
    if not terms:
        return idle
    if len(terms) == 1:
        return terms[0]
    return make(op + "2", tuple(sorted(terms, key=lambda t: t.id)))


def row(size: Poly, body: Term, var: Poly, name: str, *more: Any) -> Term:
    """A function `name` of the whole row of `body`; the first in order is an extreme."""
    if name == "order.values" and more[0] is ZERO:
        return bind("max" if more[1] == "True" else "min", size, body, var)
    return undone(named("row", size, body, atom_of(var), name, *more))


REMAKE |= {
    "row": row,
    "sum": partial(bind, "sum"),
    "max": partial(bind, "max"),
    "min": partial(bind, "min"),
    "max2": lambda items: extreme("max", *items),
    "min2": lambda items: extreme("min", *items),
}
