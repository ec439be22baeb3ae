"""Whether two scalars are equal: the same normal form, or equal piece by piece where integers and
conditions are equal by the solver."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

from quire.verify import term as t
from quire.verify.decide import prove
from quire.verify.digits import digits
from quire.verify.laws import CLAIMS
from quire.verify.poly import ZERO, Atom, Poly, atom_of, bound, poly, variable
from quire.verify.smt import of_conditions
from quire.verify.solver import z3_says
from quire.verify.term import Term

Facts = tuple[Term, ...]


def same(a: Any, b: Any, facts: Facts = (), depth: int = 60) -> bool:
    """Whether `a = b` wherever `facts` hold. False: not shown.

    `depth` bounds the search that cuts goals into cases and ranges. Structure alone ends by itself,
    and comes first.
    """
    _found.clear()
    return _same(a, b, facts, None) or _same(a, b, facts, depth)


_found: dict[tuple[Any, Any, Facts, int | None], bool] = {}
"""Goals of this search and whether they were shown. What is read again under another bound
variable is the same goal: see `_unused`."""


def _same(a: Any, b: Any, facts: Facts, depth: int | None) -> bool:
    if a is b:
        return True
    if depth == 0:
        return False
    key = a, b, facts, depth
    if key not in _found:
        _found[key] = _shown(a, b, facts, depth if depth is None else depth - 1)
    return _found[key]


def _shown(a: Any, b: Any, facts: Facts, depth: int | None) -> bool:
    if isinstance(a, Poly) and isinstance(b, Poly):
        return same_int(a, b, facts) or _same_calls(a, b, facts, depth)
    if isinstance(a, Poly) or isinstance(b, Poly):
        return False
    if a.bool and b.bool:
        return agree(a, b, facts)
    if _by_structure(a, b, facts, depth):
        return True
    return depth is not None and (_by_ranges(a, b, facts, depth) or _by_cases(a, b, facts, depth))


def same_int(a: Poly, b: Poly, facts: Facts = ()) -> bool:
    if not facts and prove(a - b, why="equal") and prove(b - a, why="equal"):
        return True
    return bool(facts) and agree(t.make("eq", a - b), t.TRUE, facts)


def _same_calls(a: Poly, b: Poly, facts: Facts, depth: int | None) -> bool:
    """Integers that are single values known by terms only."""
    try:
        x, y = atom_of(a), atom_of(b)
    except ValueError:
        return False
    return x.kind == y.kind == "val" and _same(x.args[0], y.args[0], facts, depth)


def agree(a: Term, b: Term, facts: Facts = ()) -> bool:
    """Whether two conditions agree under the facts, by the solver."""
    if a is b:
        return True
    a, b = _shared(a, b, facts)
    text = of_conditions(list(facts), a, b)
    if z3_says(text) != "unsat":
        return False
    for log in CLAIMS:
        log.setdefault(text, "conditions agree")
    return True


def _shared(a: Term, b: Term, facts: Facts) -> tuple[Term, Term]:
    """Opaque conditions of one meaning made one object."""
    opaque = [x for x in _opaque(a)]
    for y in _opaque(b):
        for x in opaque:
            if x is not y and x.op == y.op and _by_structure(x, y, facts, 8):
                b = _replaced(b, y, x)
                break
    return a, b


def _opaque(c: Term) -> list[Term]:
    if c.op == "not":
        return _opaque(c.args[0])
    if c.op in ("and", "or"):
        return [x for part in c.args[0] for x in _opaque(part)]
    return [c] if c.op in ("cmp", "bread") else []


def _replaced(c: Term, old: Term, new: Term) -> Term:
    if c is old:
        return new
    if c.op == "not":
        return t.not_(_replaced(c.args[0], old, new))
    if c.op in ("and", "or"):
        f = t.and_ if c.op == "and" else t.or_
        return f(*(_replaced(x, old, new) for x in c.args[0]))
    return c


def feasible(facts: Facts) -> bool:
    """Whether the facts may hold together (also where the solver cannot say)."""
    return z3_says(of_conditions(list(facts), t.TRUE, t.FALSE)) != "unsat"


# --- piece by piece ---------------------------------------------------------------------------


def _by_structure(a: Term, b: Term, facts: Facts, depth: int | None) -> bool:
    if a.op != b.op:
        return False
    if a.op in t.BINDERS:
        return _binders(a, b, facts, depth) or _by_digits(a, b, facts, depth)
    if a.op == "add":
        return close(a.args[0], b.args[0]) and _matched(
            [(x, c) for x, c in a.args[1]], [(x, c) for x, c in b.args[1]], facts, depth
        )
    if a.op == "mul":
        if not close(a.args[0], b.args[0]):
            return False
        return _products(a, b, facts, depth)
    if a.op in ("max2", "min2"):
        left = [(x, 1) for x in a.args[0]]
        return _matched(left, [(x, 1) for x in b.args[0]], facts, depth)
    if a.op == "const":
        return close(a.args[0], b.args[0])
    if a.op == "ind":
        return agree(a.args[0], b.args[0], facts)
    if a.op == "ite":
        (c, x, y), (d, u, v) = a.args, b.args
        return (
            agree(c, d, facts)
            and _same(x, u, (*facts, c), depth)
            and _same(y, v, (*facts, t.not_(c)), depth)
        )
    return _arguments(a.args, b.args, facts, depth)


def close(a: Fraction | int, b: Fraction | int) -> bool:
    """Whether two constants are one to `CONSTANT_BITS` bits, less what products of them lose."""
    return a == b or abs(a - b) <= abs(a) * Fraction(1, 1 << (t.CONSTANT_BITS - 4))


def _arguments(xs: Any, ys: Any, facts: Facts, depth: int | None) -> bool:
    if len(xs) != len(ys):
        return False
    for x, y in zip(xs, ys, strict=True):
        if isinstance(x, tuple) and isinstance(y, tuple):
            if not _arguments(x, y, facts, depth):
                return False
        elif isinstance(x, Term | Poly):
            if not isinstance(y, Term | Poly) or not _same(x, y, facts, depth):
                return False
        elif x != y:
            return False
    return True


def _binders(a: Term, b: Term, facts: Facts, depth: int | None) -> bool:
    n, m = a.args[0], b.args[0]
    if n is not m and not same_int(n, m, facts):
        return False
    if a.args[2:] != b.args[2:] and not _arguments(a.args[2:], b.args[2:], facts, depth):
        return False
    facts = _touching(facts, a.free | b.free)
    j = _unused(n, a.free.union(b.free, *(f.free for f in facts)))
    left = t.substitute(a.args[1], {atom_of(bound(a.height, n)): j})
    right = t.substitute(b.args[1], {atom_of(bound(b.height, m)): j})
    return _same(left, right, facts, depth)


def _by_digits(a: Term, b: Term, facts: Facts, depth: int | None) -> bool:
    """Σ_{j<n·m} f(j div m, j mod m) against Σ_{h<n} Σ_{l<m} f(h, l): law `sum-digits`."""
    if a.op != "sum" or a.args[0] is b.args[0]:
        return False
    x, y = _in_digits(a), _in_digits(b)
    return (x is not a or y is not b) and _same(x, y, facts, depth)


def _in_digits(a: Term) -> Term:
    """A sum over an index that is used by its quotients, as sums over its digits."""
    size, body = a.args
    j = variable("t", [0], [size - 1])
    body = t.substitute(body, {atom_of(bound(a.height, size)): j})
    parts = [poly(x) for x in body.free if x.kind == "div" and atom_of(j) in x.free]
    to, loops = digits(sorted(parts, key=lambda p: atom_of(p).id), [(atom_of(j), size)])
    if not to:
        return a
    found = t.substitute(body, to)
    for x, n in reversed(loops):
        found = t.bind("sum", n, found, poly(x))
    return found


def _touching(facts: Facts, free: frozenset[Atom]) -> Facts:
    """The facts that speak of these atoms, or of atoms that those speak of."""
    while True:
        kept = tuple(f for f in facts if not f.free.isdisjoint(free))
        wider = free.union(*(f.free for f in kept))
        if wider == free:
            return kept
        free = wider


_names: dict[tuple[int, Poly], Poly] = {}


def _unused(size: Poly, free: frozenset[Atom]) -> Poly:
    """The first variable of range `[0, size)` that is not in `free`: goals that differ only in how
    deep they were met get the same one."""
    for k in itertools.count():
        name = _names.get((k, size))
        if name is None:
            name = _names[k, size] = variable(f"j{k}", [0], [size - 1])
        if atom_of(name) not in free:
            break
    return name


def _matched(xs: list[Any], ys: list[Any], facts: Facts, depth: int | None) -> bool:
    """Whether the items pair up: equal coefficient or power, same term."""
    left = [x for x in xs if not any(x[0] is y[0] and x[1] == y[1] for y in ys)]
    right = [y for y in ys if not any(x[0] is y[0] and x[1] == y[1] for x in xs)]
    if len(left) != len(right):
        return False
    for x, k in left:
        for i, (y, e) in enumerate(right):
            if close(k, e) and _alike(x, y) and _same(x, y, facts, depth):
                del right[i]
                break
        else:
            return False
    return True


def _alike(x: Term, y: Term) -> bool:
    return x.op == y.op or "ite" in (x.op, y.op) or "sum" in (x.op, y.op)


def _products(a: Term, b: Term, facts: Facts, depth: int | None) -> bool:
    xs, ys = list(a.args[1]), list(b.args[1])
    guards_x = [x.args[0] for x, _ in xs if x.op == "ind"]
    guards_y = [y.args[0] for y, _ in ys if y.op == "ind"]
    cx, cy = t.and_(*guards_x), t.and_(*guards_y)
    if cx is not cy and not agree(cx, cy, facts):
        return False
    if guards_x or guards_y:
        facts = (*facts, cx)
    return _matched(
        [i for i in xs if i[0].op != "ind"], [i for i in ys if i[0].op != "ind"], facts, depth
    )


# --- sums over one range against sums over its parts ------------------------------------------


def _by_ranges(a: Term, b: Term, facts: Facts, depth: int | None) -> bool:
    """Σ_{j<n} f(j) against sums over parts of [0, n): the one is split as the other is."""
    left, right = list(t.addends(a)), list(t.addends(b))
    common = [x for x in left if x in right]
    left, right = [x for x in left if x not in common], [x for x in right if x not in common]
    if len(left) < len(right):
        left, right = right, left
    if len(right) != 1 or len(left) < 2:
        return False
    (c, whole), rows = right[0], left
    found = _sum_in(whole)
    if found is None:
        return False
    total, others = found
    n, body = total.args
    rest = list(rows)
    at: Poly = ZERO
    while rest:
        for i, (k, x) in enumerate(rest):
            size = _length(x)
            if size is None:
                continue
            j = variable("t", [0], [size - 1])
            moved = t.substitute(body, {atom_of(bound(total.height, n)): at + j})
            piece = t.mul((t.bind("sum", size, moved, j), 1), *others, (t.const(c), 1))
            given = t.mul((x, 1), (t.const(k), 1))
            if _same(piece, given, facts, depth):
                at = at + size
                del rest[i]
                break
        else:
            return False
    return at is n or same_int(at, n, facts)


def _sum_in(x: Term) -> tuple[Term, list[tuple[Term, int]]] | None:
    if x.op == "sum":
        return x, []
    if x.op == "mul":
        for f, k in x.args[1]:
            if f.op == "sum" and k == 1:
                rest = [(g, e) for g, e in x.args[1] if g is not f]
                return f, [*rest, (t.const(x.args[0]), 1)]
    return None


def _length(x: Term) -> Poly | None:
    found = _sum_in(x)
    return found[0].args[0] if found is not None else None


# --- case by case -----------------------------------------------------------------------------


def _by_cases(a: Term, b: Term, facts: Facts, depth: int | None) -> bool:
    """Both sides of the first condition that decides which value is meant."""
    for x in (a, b):
        c = _condition(x)
        if c is None or c in facts or t.not_(c) in facts:
            continue
        for case in (c, t.not_(c)):
            now = (*facts, case)
            if feasible(now) and not _same(under(a, now), under(b, now), now, depth and depth // 2):
                return False
        return True
    return False


def _condition(x: Term) -> Term | None:
    if x.op == "ite":
        return x.args[0]
    if x.op == "ind":
        return x.args[0]
    if x.op == "mul":
        for f, _ in x.args[1]:
            if f.op in ("ite", "ind"):
                return f.args[0]
    if x.op == "add":
        for f, _ in x.args[1]:
            c = _condition(f)
            if c is not None:
                return c
    return None


def under(x: Term, facts: Facts) -> Term:
    """`x` with the conditions outside binders decided where the facts decide them."""
    if x.op == "ite":
        c = _decided(x.args[0], facts)
        if c is not None:
            return under(x.args[1] if c else x.args[2], facts)
        return x
    if x.op == "ind":
        c = _decided(x.args[0], facts)
        return x if c is None else t.ONE_ if c else t.ZERO_
    if x.op == "mul":
        return t.mul((t.const(x.args[0]), 1), *((under(f, facts), k) for f, k in x.args[1]))
    if x.op == "add":
        return t.add((x.args[0], t.ONE_), *((c, under(f, facts)) for f, c in x.args[1]))
    if x.op == "exp":
        return t.exp(under(x.args[0], facts))
    if x.op == "fn":
        name, *of = x.args
        return t.fn(name, *(under(y, facts) if isinstance(y, Term) else y for y in of))
    return x


def _decided(c: Term, facts: Facts) -> bool | None:
    if agree(c, t.TRUE, facts):
        return True
    if agree(c, t.FALSE, facts):
        return False
    return None


__all__ = ["Fraction", "same"]
