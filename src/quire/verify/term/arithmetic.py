"""Sums, products, exponentials and choices in normal form."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from quire.verify.decide import prove, quick
from quire.verify.poly import ZERO, Poly
from quire.verify.term.condition import and_, not_, or_
from quire.verify.term.core import (
    FALSE,
    NAN,
    NINF,
    ONE_,
    PINF,
    REMAKE,
    TRUE,
    ZERO_,
    Term,
    addends,
    const,
    int_of,
    make,
    of_int,
    scaled,
)  # fmt: skip
from quire.verify.term.ranges import merge_ranges


def ind(c: Term) -> Term:
    if c is TRUE:
        return ONE_
    if c is FALSE:
        return ZERO_
    return make("ind", c)


def ite(c: Any, x: Any, y: Any) -> Any:
    """`x` where `c` holds, else `y`: terms, or polynomials."""
    if c is TRUE or x is y:
        return x
    if c is FALSE:
        return y
    if isinstance(x, Poly) and isinstance(y, Poly):
        if c.op == "ge" and _agree_where(c.args[0], x, y):
            return y
        if c.op == "ge" and _agree_where(-c.args[0] - 1, x, y):
            return x
        return int_of(ite(c, of_int(x), of_int(y)))
    one: Any = x
    if one.bool:
        return or_(and_(c, one), and_(not_(c), y))
    if y is ZERO_ and _number(one):
        return mul((one, 1), (ind(c), 1))
    if x is ZERO_ and _number(y):
        return mul((y, 1), (ind(not_(c)), 1))
    negated = not_(c)
    if negated.id < c.id:
        c, x, y = negated, y, x
    return make("ite", c, x, y)


def _number(t: Term) -> bool:
    """Not an infinity, nor what is undefined."""
    return t not in (NINF, PINF, NAN) and t.op != "undef"


def _agree_where(p: Poly, x: Poly, y: Poly) -> bool:
    """Whether `x = y` wherever `p ≥ 0`: one of two cases that goes on as the other."""
    given = ((">=", p),)
    return (
        quick(x - y, given)
        and quick(y - x, given)
        and all(prove(d, ">=", given, "cases that agree") for d in (x - y, y - x))
    )


def add(*items: tuple[Any, Term]) -> Term:
    """Σ coefficient·term."""
    total: dict[Term, Fraction] = {}
    constant = Fraction(0)
    infinite: set[Term] = set()
    for coefficient, term in items:
        coefficient = Fraction(coefficient)
        for c, t in addends(term):
            c = c * coefficient
            if not c:
                continue
            if t is NAN or t.op == "undef":
                return t
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
    kept = merge_ranges(kept)
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
        return t if c == 1 else make("mul", c, ((t, 1),)) if t.op != "mul" else scaled(t, c)
    rest.sort(key=lambda item: item[0].id)
    common = abs(rest[0][1])
    if not constant and common != 1 and all(abs(c) == common for _, c in rest):
        inner = add(*((c / common, t) for t, c in rest))
        return make("mul", common, ((inner, 1),))
    return make("add", constant, tuple(rest))


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
        elif t is NAN or t.op == "undef":
            return t
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
    if x in (PINF, NAN) or x.op == "undef":
        return make("exp", x) if x is PINF else x
    if x is ZERO_:
        return ONE_
    if x.op == "ite":
        c, a, b = x.args
        return ite(c, exp(a), exp(b))
    parts = list(addends(x))
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


def fn(name: str, *args: Any) -> Term:
    """A function of which nothing is known, but of log: log(exp(a)·b) = a + log(b), b > 0."""
    if name == "log" and len(args) == 1:
        return _log(args[0])
    return make("fn", name, *args)


def _log(x: Term) -> Term:
    c, factors = x.args if x.op == "mul" else (Fraction(1), ((x, 1),))
    powers = [(f.args[0], k) for f, k in factors if f.op == "exp"]
    rest = [(f, k) for f, k in factors if f.op != "exp"]
    if not powers or c <= 0 or not all(positive(f) for f, _ in rest):
        return make("fn", "log", x)
    left = mul((const(c), 1), *rest)
    logs = () if left is ONE_ else ((1, make("fn", "log", left)),)
    return add(*((k, a) for a, k in powers), *logs)


REMAKE |= {
    "fn": fn,
    "ind": ind,
    "ite": ite,
    "int": of_int,
    "exp": exp,
    "add": lambda constant, items: add((constant, ONE_), *((c, x) for x, c in items)),
    "mul": lambda coefficient, items: mul((const(coefficient), 1), *items),
}
