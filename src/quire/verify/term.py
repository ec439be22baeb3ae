"""Scalar terms over the reals in one normal form; equal terms are one object.

    add    Σ cᵢ·tᵢ                    mul    Π tᵢ^kᵢ
    sum    Σ_{0≤j<n} body(j)          max    max_{0≤j<n} body(j)       (min likewise)
    read   an element of a tensor     fn     a function known by name only
    ind    1 where a condition holds, else 0

The laws applied on the way are those of `laws.py`, each by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, cast

from quire.verify.decide import divmod_, maximum, minimum, prove
from quire.verify.poly import ONE, REBUILD, ZERO, Atom, Poly, atom_of, bound, call, poly, variable
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


def make(op: str, *args: Any) -> Term:
    key = (op, *args)
    found = _table.get(key)
    if found is None:
        found = Term()
        found.op, found.args, found.id = op, args, len(_table)
        frees, height = [], 0
        for a in _flat(args):
            frees.append(a.free)
            height = max(height, a.height) if isinstance(a, Term) else max(height, _poly_height(a))
        found.free = frozenset().union(*frees)
        if op in BINDERS:
            height += 1
            size, body = args[0], args[1]
            own = atom_of(bound(height, size))
            found.free = size.free | (body.free - {own})
        found.height = height
        found.bool = op in BOOLS
        _table[key] = found
    return found


def _poly_height(p: Poly) -> int:
    return max((a.args[0].height for a in p.free if a.kind == "val"), default=0)


def _flat(args: Iterable[Any]) -> Iterable[Any]:
    for a in args:
        if isinstance(a, Term | Poly):
            yield a
        elif isinstance(a, tuple):
            yield from _flat(a)


BINDERS = {"sum", "max", "min", "row"}

TRUE, FALSE = make("true"), make("false")
NINF, PINF, NAN = make("ninf"), make("pinf"), make("nan")


def const(value: Any) -> Term:
    if isinstance(value, float):
        if math.isnan(value):
            return NAN
        if value in (float("inf"), float("-inf")):
            return PINF if value > 0 else NINF
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
    return call("val", t)


REBUILD["val"] = lambda x, to: _int_again(substitute(x.args[0], to))


def _int_again(t: Term) -> Poly:
    if t.op == "ite" and t.args[1] is t.args[2]:
        t = t.args[1]
    return int_of(t)


def read(name: str, idx: Iterable[Poly], sort: str = "real") -> Term:
    return make("bread" if sort == "bool" else "read", name, tuple(idx))


# --- conditions ------------------------------------------------------------------------------


def ge(p: Any) -> Term:
    """p ≥ 0"""
    p = poly(p)
    if p.constant is not None:
        return TRUE if p.constant >= 0 else FALSE
    if prove(p, why="condition"):
        return TRUE
    if prove(-p - 1, why="condition"):
        return FALSE
    return make("ge", p)


def eq(p: Any) -> Term:
    """p = 0"""
    p = poly(p)
    if p.constant is not None:
        return TRUE if p.constant == 0 else FALSE
    if prove(p - 1, why="condition") or prove(-p - 1, why="condition"):
        return FALSE
    if prove(p, why="condition") and prove(-p, why="condition"):
        return TRUE
    lead = p.terms[-1][1]
    return make("eq", p if lead > 0 else -p)


def not_(c: Term) -> Term:
    if c is TRUE:
        return FALSE
    if c is FALSE:
        return TRUE
    if c.op == "not":
        return c.args[0]
    if c.op == "ge":
        return ge(-c.args[0] - 1)
    if c.op == "and":
        return or_(*(not_(x) for x in c.args[0]))
    if c.op == "or":
        return and_(*(not_(x) for x in c.args[0]))
    return make("not", c)


def and_(*cs: Term) -> Term:
    return _junction("and", TRUE, FALSE, cs)


def or_(*cs: Term) -> Term:
    return _junction("or", FALSE, TRUE, cs)


def _junction(op: str, unit: Term, zero: Term, cs: Iterable[Term]) -> Term:
    found: dict[Term, None] = {}
    for c in cs:
        for x in c.args[0] if c.op == op else (c,):
            if x is zero:
                return zero
            if x is not unit:
                found[x] = None
    for x in found:
        if x.op == "not" and x.args[0] in found:
            return zero
    items = sorted(found, key=lambda t: t.id)
    if not items:
        return unit
    return items[0] if len(items) == 1 else make(op, tuple(items))


def compare(op: str, x: Term, y: Term) -> Term:
    """A comparison of reals: "lt", "le" or "eq"."""
    a, b = number(x), number(y)
    if a is not None and b is not None:
        return TRUE if {"lt": a < b, "le": a <= b, "eq": a == b}[op] else FALSE
    if x.op in ("int", "const") and y.op in ("int", "const"):
        p, q = int_of(x), int_of(y)
        if not any(z.op == "const" and z.args[0].denominator != 1 for z in (x, y)):
            return {"lt": ge(q - p - 1), "le": ge(q - p), "eq": eq(p - q)}[op]
    if x is y:
        return FALSE if op == "lt" else TRUE
    if x is NINF and y.op == "const":
        return FALSE if op == "eq" else TRUE
    if y is NINF and x.op == "const":
        return FALSE
    if op == "eq" and x.id > y.id:
        x, y = y, x
    return make("cmp", op, x, y)


def ind(c: Term) -> Term:
    if c is TRUE:
        return ONE_
    if c is FALSE:
        return ZERO_
    return make("ind", c)


def ite(c: Term, x: Any, y: Any) -> Any:
    """`x` where `c` holds, else `y`: terms, or polynomials."""
    if c is TRUE or x is y:
        return x
    if c is FALSE:
        return y
    if isinstance(x, Poly) and isinstance(y, Poly):
        return int_of(make("ite", c, of_int(x), of_int(y)))
    one: Any = x
    if one.bool:
        return or_(and_(c, one), and_(not_(c), y))
    if y is ZERO_ and one not in (NINF, PINF, NAN):
        return mul((one, 1), (ind(c), 1))
    if x is ZERO_ and y not in (NINF, PINF, NAN):
        return mul((y, 1), (ind(not_(c)), 1))
    negated = not_(c)
    if negated.id < c.id:
        c, x, y = negated, y, x
    return make("ite", c, x, y)


# --- sums and products -----------------------------------------------------------------------


def add(*items: tuple[Any, Term]) -> Term:
    """Σ coefficient·term."""
    total: dict[Term, Fraction] = {}
    constant = Fraction(0)
    infinite: set[Term] = set()
    for coefficient, term in items:
        coefficient = Fraction(coefficient)
        for c, t in _addends(term):
            c = c * coefficient
            if not c:
                continue
            if t is NAN:
                return NAN
            if t in (NINF, PINF):
                infinite.add(t if c > 0 else PINF if t is NINF else NINF)
            elif t.op == "const":
                constant += c * t.args[0]
            elif t.op == "int":
                for mono, k in t.args[0].terms:
                    if mono:
                        whole = make("int", Poly.of({mono: 1}))
                        total[whole] = total.get(whole, Fraction(0)) + c * k
                    else:
                        constant += c * k
            else:
                total[t] = total.get(t, Fraction(0)) + c
    if infinite:
        return infinite.pop() if len(infinite) == 1 else NAN
    kept = [(t, c) for t, c in total.items() if c]
    kept = _merge_ranges(kept)
    whole = ZERO
    rest: list[tuple[Term, Fraction]] = []
    for t, c in kept:
        if t.op == "int" and c.denominator == 1:
            whole = whole + t.args[0] * int(c)
        elif t.op == "const":
            constant += c * t.args[0]
        else:
            rest.append((t, c))
    if whole is not ZERO:
        if not rest and constant.denominator == 1:
            return make("int", whole + int(constant))
        rest.append((make("int", whole), Fraction(1)))
    if not rest:
        return const(constant)
    if not constant and len(rest) == 1:
        t, c = rest[0]
        return t if c == 1 else make("mul", c, ((t, 1),)) if t.op != "mul" else _scaled(t, c)
    rest.sort(key=lambda item: item[0].id)
    common = abs(rest[0][1])
    if not constant and common != 1 and all(abs(c) == common for _, c in rest):
        inner = make("add", Fraction(0), tuple((t, c / common) for t, c in rest))
        return make("mul", common, ((inner, 1),))
    return make("add", constant, tuple(rest))


def _addends(t: Term) -> Iterable[tuple[Fraction, Term]]:
    if t.op == "add":
        yield from ((c, x) for x, c in t.args[1])
        if t.args[0]:
            yield t.args[0], ONE_
    elif t.op == "mul" and t.args[0] != 1:
        c, factors = t.args
        if len(factors) == 1 and factors[0][1] == 1 and factors[0][0].op == "add":
            yield from ((c * k, x) for k, x in _addends(factors[0][0]))
        else:
            yield c, _scaled(t, 1 / c)
    else:
        yield Fraction(1), t


def _scaled(t: Term, c: Fraction) -> Term:
    c, factors = t.args[0] * c, t.args[1]
    if c == 1 and len(factors) == 1 and factors[0][1] == 1:
        return factors[0][0]
    return make("mul", c, factors)


def mul(*items: tuple[Term, int]) -> Term:
    """Π term^power, powers positive or negative."""
    coefficient = Fraction(1)
    total: dict[Term, int] = {}
    stack = list(reversed(items))
    infinite = None
    while stack:
        t, k = stack.pop()
        if k == 0:
            continue
        if t.op == "const" and (t.args[0] or k > 0):
            coefficient *= t.args[0] ** k
        elif t is NAN:
            return NAN
        elif t in (NINF, PINF):
            if k < 0:
                coefficient = Fraction(0)
            else:
                infinite = t
        elif t.op == "mul":
            coefficient *= t.args[0] ** k
            stack.extend((x, e * k) for x, e in t.args[1])
        elif t.op == "ind":
            total[t] = 1
        else:
            have = total.get(t, 0)
            if have * k < 0 and not positive(t):
                key = make("quotient", t, t)
                total[key] = total.get(key, 0) + 1
            total[t] = have + k
    if infinite is not None:
        if not total and coefficient:
            return infinite if coefficient > 0 else (PINF if infinite is NINF else NINF)
        total[infinite] = 1
    if not coefficient:
        return ZERO_
    kept = [(t, k) for t, k in total.items() if k]
    guards = [t for t, _ in kept if t.op == "ind"]
    if guards:
        kept = _under(guards, kept)
        if kept is None:
            return ZERO_
    if not kept:
        return const(coefficient)
    if len(kept) == 1 and kept[0][1] == 1 and coefficient == 1:
        return kept[0][0]
    if len(kept) == 1 and kept[0][1] == 1 and kept[0][0].op in ("add", "int"):
        inner = kept[0][0]
        if inner.op == "int" or all((c * coefficient).denominator == 1 for _, c in inner.args[1]):
            return add((coefficient, inner))
    kept.sort(key=lambda item: item[0].id)
    return make("mul", coefficient, tuple(kept))


def _under(guards: list[Term], kept: list[tuple[Term, int]]) -> list[tuple[Term, int]] | None:
    """Factors simplified under the conditions that guard them; None if these contradict."""
    conditions = and_(*(g.args[0] for g in guards))
    if conditions is FALSE:
        return None
    facts = set(conditions.args[0] if conditions.op == "and" else [conditions])
    out = {ind(c): 1 for c in facts}
    again = []
    for t, k in kept:
        if t.op == "ind":
            continue
        if t.op == "ite" and t.args[0] in facts:
            again.append((t.args[1], k))
        elif t.op == "ite" and not_(t.args[0]) in facts:
            again.append((t.args[2], k))
        else:
            out[t] = k
    if again:
        result = mul(*out.items(), *again)
        return None if result is ZERO_ else [(result, 1)]
    return list(out.items())


def positive(t: Term) -> bool:
    """Whether `t > 0` for all inputs, from what it is."""
    if t.op == "const":
        return t.args[0] > 0
    if t.op == "exp":
        return True
    if t.op == "int":
        return prove(t.args[0] - 1, why="a divisor is not zero")
    if t.op == "sum":
        size, body = t.args
        return positive(body) and prove(size - 1, why="a sum has a term")
    if t.op == "mul":
        return t.args[0] > 0 and all(positive(x) or k % 2 == 0 for x, k in t.args[1])
    if t.op == "add":
        return t.args[0] >= 0 and all(c > 0 and positive(x) for x, c in t.args[1])
    return False


def exp(x: Term) -> Term:
    """exp(Σ cᵢ·tᵢ) = Π exp(cᵢ·tᵢ); exp(−t) = 1/exp(t); exp(−∞) = 0."""
    if x is NINF:
        return ZERO_
    if x in (PINF, NAN):
        return make("exp", x)
    if x is ZERO_:
        return ONE_
    if x.op == "ite":
        c, a, b = x.args
        return ite(c, exp(a), exp(b))
    parts = list(_addends(x))
    if len(parts) > 1:
        return mul(*((exp(add((c, t))), 1) for c, t in parts))
    c, t = parts[0]
    if c < 0:
        return mul((make("exp", add((-c, t))), -1))
    if t.op == "mul" and len(t.args[1]) > 1:
        # A guarded exponent: exp([c]·x) is exp(x) where c holds, else 1.
        guards = [f for f, _ in t.args[1] if f.op == "ind"]
        if guards:
            rest = [(f, k) for f, k in t.args[1] if f.op != "ind"]
            inner = exp(add((c * t.args[0], mul(*rest))))
            return ite(and_(*(g.args[0] for g in guards)), inner, ONE_)
    return make("exp", x)


# --- binders ---------------------------------------------------------------------------------

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


def _named(op: str, size: Poly, body: Term, x: Atom, *more: Any) -> Term:
    height = 1 + body.height
    name = bound(height, size)
    if atom_of(name) is not x:
        body = substitute(body, {x: name})
        if body.height + 1 != height:
            height = body.height + 1
            body = substitute(body, {atom_of(name): bound(height, size)})
    return make(op, size, body, *more)


def _sum(size: Poly, body: Term, x: Atom) -> Term:
    n = size.constant
    if n is not None and n <= 0:
        return ZERO_
    if n == 1:
        return substitute(body, {x: ZERO})
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
    return _named("sum", size, body, x)


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
    return _named(op, size, body, x)


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
                joined = s is not t and _joined(s, t)
                if joined:
                    terms = [u for u in terms if u is not s and u is not t] + [joined]
                    again = True
                    break
            if again:
                break
    if not terms:
        return idle
    if len(terms) == 1:
        return terms[0]
    return make(op + "2", tuple(sorted(terms, key=lambda t: t.id)))


def _joined(s: Term, t: Term) -> Term | None:
    """Ranges [0, n) and [n, n + m) of one body as [0, n + m)."""
    (n, f), (m, g) = s.args[:2], t.args[:2]
    total = n + m
    jf, jg = bound(s.height, n), bound(t.height, m)
    if f.height != g.height and abs(f.height - g.height) > 2:
        return None
    y = variable("t", [0], [total - 1])
    body = substitute(f, {atom_of(jf): y})
    z = variable("t", [0], [m - 1])
    if substitute(body, {atom_of(y): n + z}) is not substitute(g, {atom_of(jg): z}):
        return None
    return bind(s.op, total, body, y)


def _merge_ranges(items: list[tuple[Term, Fraction]]) -> list[tuple[Term, Fraction]]:
    """Σ_{j<n} f(j) + Σ_{j<m} f(n + j) = Σ_{j<n+m} f(j), also under equal factors."""
    groups: dict[Any, list[tuple[Term, Term]]] = {}
    for t, c in items:
        for key, s in _sums_of(t):
            groups.setdefault((c, key), []).append((t, s))
    for (c, key), found in groups.items():
        for s, first in found:
            for t, second in found:
                if s is t:
                    continue
                joined = _joined(first, second)
                if joined is not None:
                    whole = mul((joined, 1), *key)
                    rest = [i for i in items if i[0] is not s and i[0] is not t]
                    again: dict[Term, Fraction] = dict(rest)
                    for k, x in _addends(whole):
                        again[x] = again.get(x, Fraction(0)) + c * k
                    return _merge_ranges([(x, k) for x, k in again.items() if k])
    return items


def _sums_of(t: Term) -> Iterable[tuple[Any, Term]]:
    if t.op == "sum":
        yield (), t
    elif t.op == "mul":
        for x, k in t.args[1]:
            if k == 1 and x.op == "sum":
                yield tuple(f for f in t.args[1] if f[0] is not x), x


# --- replacement and text --------------------------------------------------------------------


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
    if op in BINDERS:
        size = go(args[0])
        old, y = atom_of(bound(t.height, args[0])), bound(t.height, size)
        own = atom_of(y)
        if any(own in p.free for p in to.values()):
            y = variable("t", [0], [size - 1])
        if atom_of(y) is old and old not in to:
            body = go(args[1])
        else:
            body = substitute(args[1], {**{k: v for k, v in to.items() if k is not old}, old: y})
        if op == "row":
            rest = tuple(go(a) if isinstance(a, Term | Poly) else a for a in args[2:])
            return _named("row", size, body, atom_of(y), *rest)
        return bind(op, size, body, y)
    if op == "add":
        return add((args[0], ONE_), *((c, go(x)) for x, c in args[1]))
    if op == "mul":
        return mul((const(args[0]), 1), *((go(x), k) for x, k in args[1]))
    if op in ("and", "or"):
        return (and_ if op == "and" else or_)(*map(go, args[0]))
    if op in ("max2", "min2"):
        return extreme(op[:3], *map(go, args[0]))
    if op in ("read", "bread"):
        return make(op, args[0], tuple(map(go, args[1])))
    if op in REMAKE:
        return REMAKE[op](*(go(a) if isinstance(a, Term | Poly) else a for a in args))
    return make(op, *(_deep(a, go) for a in args))


def _deep(a: Any, go: Callable[[Any], Any]) -> Any:
    if isinstance(a, Term | Poly):
        return go(a)
    return tuple(_deep(x, go) for x in a) if isinstance(a, tuple) else a


REMAKE: dict[str, Any] = {
    "ge": ge, "eq": eq, "not": not_, "cmp": compare, "ind": ind, "ite": ite, "int": of_int,
    "exp": exp,
}  # fmt: skip


def show(t: Any) -> str:
    """A term for people."""
    if isinstance(t, Poly):
        return str(t)
    op, args = t.op, t.args
    if op == "const":
        return str(float(args[0])) if args[0].denominator != 1 else str(args[0])
    if op == "int":
        return f"({args[0]})"
    if op in ("read", "bread"):
        return f"{args[0]}[{', '.join(map(str, args[1]))}]"
    if op == "add":
        head = [] if not args[0] else [str(float(args[0]))]
        return "(" + " + ".join(head + [_times(c, x) for x, c in args[1]]) + ")"
    if op == "mul":
        body = "·".join(show(x) + (f"^{k}" if k != 1 else "") for x, k in args[1])
        return body if args[0] == 1 else f"{float(args[0]):g}·{body}"
    if op in BINDERS:
        name = bound(t.height, args[0])
        return f"{op}[{name} < {args[0]}]({', '.join(map(_show, args[1:]))})"
    return f"{op}({', '.join(map(_show, args))})"


def _times(c: Fraction, x: Term) -> str:
    return show(x) if c == 1 else f"{float(c):g}·{show(x)}"


def _show(a: Any) -> str:
    if isinstance(a, tuple):
        return "[" + ", ".join(map(_show, a)) + "]"
    return show(a) if isinstance(a, Term | Poly) else str(a)


__all__ = ["Term", "divmod_"]
