"""Integers of a rank's text where lengths are free.

A `Length` stands where the text, the runtime or a plan has an int. What is asked of it is answered
if it follows for every length of the range, and raises NotShown else: no branch is taken that one
of the lengths would not take.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from quire.verify import term as t
from quire.verify.decide import divmod_, prove, quick
from quire.verify.poly import Atom, Poly, poly
from quire.verify.value import NotShown


@attrs.frozen
class Ratio:
    """A quotient of two integers, a real number."""

    term: t.Term


class Length:
    """An integer that is no number: a polynomial of lengths."""

    __slots__ = ("poly",)

    def __init__(self, known: Poly) -> None:
        self.poly = known

    def __repr__(self) -> str:
        return str(self.poly)

    def __hash__(self) -> int:
        return hash(self.poly)

    def __add__(self, other: Any) -> Any:
        return _joined(other, lambda p: self.poly + p)

    def __sub__(self, other: Any) -> Any:
        return _joined(other, lambda p: self.poly - p)

    def __rsub__(self, other: Any) -> Any:
        return _joined(other, lambda p: p - self.poly)

    def __mul__(self, other: Any) -> Any:
        return _joined(other, lambda p: self.poly * p)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Any:
        return number(-self.poly)

    def __divmod__(self, other: Any) -> Any:
        return _divided(self.poly, as_poly(other))

    def __rdivmod__(self, other: Any) -> Any:
        return _divided(as_poly(other), self.poly)

    def __floordiv__(self, other: Any) -> Any:
        return divmod(self, other)[0]

    def __rfloordiv__(self, other: Any) -> Any:
        return divmod(other, self)[0]

    def __mod__(self, other: Any) -> Any:
        return divmod(self, other)[1]

    def __rmod__(self, other: Any) -> Any:
        return divmod(other, self)[1]

    def __truediv__(self, other: Any) -> Ratio:
        return _ratio(self.poly, as_poly(other))

    def __rtruediv__(self, other: Any) -> Ratio:
        return _ratio(as_poly(other), self.poly)

    def __lt__(self, other: Any) -> bool:
        return _less(self.poly, as_poly(other))

    def __gt__(self, other: Any) -> bool:
        return _less(as_poly(other), self.poly)

    def __le__(self, other: Any) -> bool:
        return not self > other

    def __ge__(self, other: Any) -> bool:
        return not self < other

    def __bool__(self) -> bool:
        return self != 0

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, int | Length):
            return NotImplemented
        gap = self.poly - as_poly(other)
        if gap.constant is not None:
            return gap.constant == 0
        for first in (quick, lambda _: True):
            for apart in (gap - 1, -gap - 1):
                if first(apart) and prove(apart, why="another size"):
                    return False
        if prove(gap, why="one size") and prove(-gap, why="one size"):
            return True
        raise NotShown(f"whether {self} is {other} at every length")


Size = Any
"""An int, or a Length."""


def number(p: Poly) -> Any:
    """`p` as an int, or a Length."""
    return Length(p) if p.constant is None else p.constant


def as_poly(x: Any) -> Poly:
    """An int or a Length as a polynomial."""
    return x.poly if isinstance(x, Length) else poly(x)


def _joined(other: Any, by: Any) -> Any:
    if not isinstance(other, int | Length):
        return NotImplemented
    return number(by(as_poly(other)))


def _less(a: Poly, b: Poly) -> bool:
    """Whether `a < b`. Raises NotShown where that differs, or is not known."""
    cases = ((b - a - 1, True), (a - b, False))
    for first in (quick, lambda _: True):
        for known, answer in cases:
            if first(known) and prove(known, why="which size is less"):
                return answer
    raise NotShown(f"whether {a} < {b} at every length")


def _ratio(a: Poly, b: Poly) -> Ratio:
    return Ratio(t.mul((t.of_int(a), 1), (t.of_int(b), -1)))


def _divided(p: Poly, n: Poly) -> tuple[Any, Any]:
    """Floor quotient and remainder. Of what is no multiple of `n`, by where it lies: for
    4·m − 3 ≤ s ≤ 4·m, −s div 4 is −m."""
    if not prove(n - 1, why="a divisor is not zero"):
        raise NotShown(f"a division by {n}")
    for near in (p, *_ends(p)):
        for q in _quotients(near, n):
            r = p - q * n
            if all(prove(x, why="Euclid: remainder") for x in (r, n - 1 - r)):
                return number(q), number(r)
    q, r = divmod_(p, n)
    return number(q), number(r)


def _quotients(p: Poly, n: Poly) -> list[Poly]:
    k = n.constant
    if k is None:
        q = divmod_(p, n)[0]
        if not q.free <= p.free:
            return []
    elif _whole(p, k):
        q = Poly.of({m: c // k for m, c in p.terms})
    else:
        return []
    return [q, q - 1, q + 1]


def _whole(p: Poly, k: int) -> bool:
    """Whether `k` divides all of `p` but its constant."""
    return all(c % k == 0 for m, c in p.terms if m)


def _ends(p: Poly) -> Iterator[Poly]:
    """What `p` is at the ends of the ranges of its last atoms, where these are no numbers."""
    x = max(p.atoms(), key=lambda x: x.id, default=None)
    parts = None if x is None else p.split(x)
    if x is not None and parts is not None:
        for end in _ends_of(x):
            there = parts[0] * end + parts[1]
            yield there
            yield from _ends(there)


def _ends_of(x: Atom) -> Iterator[Poly]:
    if x.kind != "div":
        yield from (b for b in (*x.upper, *x.lower) if b.constant is None)
        return
    p, n = x.args
    if n.constant:
        for end in _ends(p):
            if _whole(end, n.constant):
                yield Poly.of({m: c // n.constant for m, c in end.terms})


__all__ = ["Length", "Ratio", "Size", "as_poly", "number"]
