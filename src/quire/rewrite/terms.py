"""Scalar terms over a tensor's indices: affine integers, conditions, and piecewise values.

An index function says what a tensor holds at index `(i0, i1, …)` for every length in range. All
here is exact: a question that cannot be decided has the answer None, or raises `Unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import gcd
from typing import Literal

import attrs
import sympy

from quire.capture.program import Size, Symbol

Key = int | sympy.Expr
"""What a coefficient stands before: dim `k` of the tensor's index, or a length."""


class Unknown(Exception):
    """The value lies outside what these terms can say."""


@attrs.frozen
class Affine:
    """`const + Σ coefficient · key`, an integer."""

    const: int
    terms: tuple[tuple[Key, int], ...] = ()

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.const + other, self.terms)
        sums = dict(self.terms)
        for key, factor in other.terms:
            sums[key] = sums.get(key, 0) + factor
        return _affine(self.const + other.const, sums)

    def __mul__(self, factor: int) -> Affine:
        return _affine(self.const * factor, {k: c * factor for k, c in self.terms})

    def __neg__(self) -> Affine:
        return self * -1

    def __sub__(self, other: Affine | int) -> Affine:
        return self + (-other)

    @property
    def is_const(self) -> bool:
        return not self.terms

    def reads(self, dim: int) -> bool:
        return any(key == dim for key, _ in self.terms if isinstance(key, int))

    def substitute(self, at: Mapping[int, Affine]) -> Affine:
        """Each index variable in `at` replaced by its affine term."""
        result = Affine(self.const)
        for key, factor in self.terms:
            known = at.get(key) if isinstance(key, int) else None
            result = result + (Affine(0, ((key, 1),)) if known is None else known) * factor
        return result


def _affine(const: int, terms: Mapping[Key, int]) -> Affine:
    kept = [(k, c) for k, c in terms.items() if c]
    return Affine(const, tuple(sorted(kept, key=lambda t: (not isinstance(t[0], int), str(t[0])))))


def index(dim: int) -> Affine:
    """The index variable of dim `dim`."""
    return Affine(0, ((dim, 1),))


def of_size(size: Size) -> Affine:
    """A size as an affine term; a part that is not affine (`s // 2`) stands as a key of its own."""
    if isinstance(size, int):
        return Affine(size)
    const, terms = 0, {}
    for part, factor in sympy.expand(size).as_coefficients_dict().items():
        if not factor.is_Integer:
            raise Unknown(f"the size {size} is not an integer combination of lengths")
        if part == 1:
            const = int(factor)
        else:
            terms[part] = int(factor)
    return _affine(const, terms)


@attrs.frozen
class Atom:
    """`expr >= 0`, `expr == 0` or `expr != 0`."""

    op: Literal[">=", "==", "!="]
    expr: Affine


@attrs.frozen
class Both:
    """The conjunction or disjunction of conditions."""

    op: Literal["and", "or"]
    parts: frozenset[Cond]


Cond = bool | Atom | Both


@attrs.frozen
class If:
    """`then` where `cond` holds, else `other`."""

    cond: Cond
    then: Value
    other: Value


Value = Affine | float | If
"""What a tensor holds at an index. Floats are already rounded to the tensor's dtype."""

MAX_LEAVES = 64


@attrs.frozen
class Box:
    """The indices of a tensor, `0 <= i_d < shape[d]`, and the ranges of the lengths."""

    shape: tuple[Size, ...]
    lengths: Mapping[sympy.Expr, tuple[int, int | None]]

    def min(self, expr: Affine) -> int | None:
        """The least value of `expr` over the box and all lengths, or a bound below it; None if
        there is none, or none is known."""
        low = Affine(expr.const)
        for key, factor in expr.terms:
            if not isinstance(key, int):
                low = low + Affine(0, ((key, factor),))
            elif factor < 0:
                low = low + (of_size(self.shape[key]) - 1) * factor
        total = low.const
        for key, factor in low.terms:
            lo, hi = self.lengths.get(key, (None, None))  # type: ignore[arg-type]
            end = lo if factor > 0 else hi
            if end is None:
                return None
            total += end * factor
        return total

    def max(self, expr: Affine) -> int | None:
        low = self.min(-expr)
        return None if low is None else -low

    def atom(self, op: Literal[">=", "==", "!="], expr: Affine) -> Cond:
        """The condition `expr op 0`, decided where the box decides it."""
        if op == "!=":
            return negate(self.atom("==", expr))
        factor = gcd(*(c for _, c in expr.terms))
        low, high = self.min(expr), self.max(expr)
        if op == ">=":
            if low is not None and low >= 0:
                return True
            if high is not None and high < 0:
                return False
            if factor > 1:
                expr = Affine(expr.const // factor, tuple((k, c // factor) for k, c in expr.terms))
            return Atom(">=", expr)
        if low == high == 0:
            return True
        if (low is not None and low > 0) or (high is not None and high < 0):
            return False
        if factor > 1 and expr.const % factor:
            return False
        if factor > 1:
            expr = Affine(expr.const // factor, tuple((k, c // factor) for k, c in expr.terms))
        return Atom("==", expr if expr.terms[0][1] > 0 else -expr)


def box_lengths(symbols: Iterable[Symbol]) -> dict[sympy.Expr, tuple[int, int | None]]:
    return {s.name: (s.lo, s.hi) for s in symbols}


def negate(cond: Cond) -> Cond:
    if isinstance(cond, bool):
        return not cond
    if isinstance(cond, Both):
        parts = frozenset(negate(p) for p in cond.parts)
        return Both("or" if cond.op == "and" else "and", parts)
    if cond.op == ">=":
        return Atom(">=", -cond.expr - 1)
    return Atom("!=" if cond.op == "==" else "==", cond.expr)


def both(op: Literal["and", "or"], conds: Iterable[Cond]) -> Cond:
    """The conjunction or disjunction, flattened; of comparisons that differ by a constant only
    the decisive one is kept."""
    neutral = op == "and"
    parts: set[Cond] = set()
    for cond in conds:
        if isinstance(cond, Both) and cond.op == op:
            parts |= cond.parts
        elif cond is (not neutral):
            return cond
        elif cond is not neutral:
            parts.add(cond)
    if any(negate(p) in parts for p in parts):
        return not neutral
    tightest: dict[tuple[tuple[Key, int], ...], Atom] = {}
    for part in [p for p in parts if isinstance(p, Atom) and p.op == ">="]:
        rival = tightest.setdefault(part.expr.terms, part)
        if rival is not part:
            keep_new = (part.expr.const < rival.expr.const) == (op == "and")
            parts.discard(rival if keep_new else part)
            tightest[part.expr.terms] = part if keep_new else rival
    if not parts:
        return neutral
    return next(iter(parts)) if len(parts) == 1 else Both(op, frozenset(parts))


def choose(cond: Cond, then: Value, other: Value) -> Value:
    if cond is True or then == other:
        return then
    return other if cond is False else If(cond, then, other)


def choose_cond(cond: Cond, then: Cond, other: Cond) -> Cond:
    if then == other:
        return then
    return both("or", [both("and", [cond, then]), both("and", [negate(cond), other])])


def leaves(value: Value) -> list[Affine | float]:
    if isinstance(value, If):
        return leaves(value.then) + leaves(value.other)
    return [value]


def substitute(value: Value, at: Mapping[int, Affine], box: Box) -> Value:
    """`value` with its index variables replaced; `box` is that of the new indices."""
    if isinstance(value, If):
        then, other = substitute(value.then, at, box), substitute(value.other, at, box)
        return choose(substitute_cond(value.cond, at, box), then, other)
    return value.substitute(at) if isinstance(value, Affine) else value


def substitute_cond(cond: Cond, at: Mapping[int, Affine], box: Box) -> Cond:
    if isinstance(cond, bool):
        return cond
    if isinstance(cond, Both):
        return both(cond.op, [substitute_cond(p, at, box) for p in cond.parts])
    return box.atom(cond.op, cond.expr.substitute(at))


def combine(
    function: Callable[[Affine | float, Affine | float], Value], a: Value, b: Value
) -> Value:
    """`function` of two values, case by case."""
    if len(leaves(a)) * len(leaves(b)) > MAX_LEAVES:
        raise Unknown("too many cases")
    if isinstance(a, If):
        return choose(a.cond, combine(function, a.then, b), combine(function, a.other, b))
    if isinstance(b, If):
        if_same = combine(function, a, b.then)
        return choose(b.cond, if_same, combine(function, a, b.other))
    return function(a, b)


def compare(function: Callable[[Affine | float, Affine | float], Cond], a: Value, b: Value) -> Cond:
    """A comparison of two values, case by case."""
    if len(leaves(a)) * len(leaves(b)) > MAX_LEAVES:
        raise Unknown("too many cases")
    if isinstance(a, If):
        return choose_cond(a.cond, compare(function, a.then, b), compare(function, a.other, b))
    if isinstance(b, If):
        return choose_cond(b.cond, compare(function, a, b.then), compare(function, a, b.other))
    return function(a, b)
