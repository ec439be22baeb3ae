"""Facts about integer expressions: a quick syntactic search first, then the solver.

Everything decided here that a proof rests on is an *obligation*: premises and a goal that the
certificate carries as SMT-LIB text, to be discharged by Z3 and cvc5.
"""

from __future__ import annotations

from typing import Any

import attrs

from quire.verify.poly import REBUILD, ZERO, Atom, Poly, atom_of, call, poly, substitute

Bounds = dict[Atom, tuple[list[Poly], list[Poly]]]


@attrs.frozen
class Obligation:
    """`goal ≥ 0` (or `goal = 0`) wherever the premises hold and atoms keep their bounds.

    `products` are expressions ≥ 0 by the law `product`: of a factor whose sign is an obligation of
    its own, and the distance of an atom from a bound. With them the goal follows linearly.
    """

    goal: Poly
    relation: str
    premises: tuple[tuple[str, Poly], ...] = ()
    why: str = ""
    products: tuple[Poly, ...] = ()


class Log:
    """Obligations in order, each once."""

    def __init__(self) -> None:
        self.items: dict[tuple[Any, ...], Obligation] = {}

    def add(self, obligation: Obligation) -> None:
        key = (obligation.goal, obligation.relation, obligation.premises)
        self.items.setdefault(key, obligation)


LOGS: list[Log] = []
"""Logs that are being kept, innermost last."""

SOLVER: list[Any] = []
"""The function `Obligation → bool` asked when the quick search finds nothing."""

Premises = tuple[tuple[str, Poly], ...]

Steps = tuple[tuple[Poly, Poly], ...]
"""Of a search that found something: each factor that is no number, with the sign that makes it
≥ 0, and its product with the distance of an atom from its bound."""

_known: dict[tuple[Any, ...], Steps | None] = {}


def prove(goal: Poly, relation: str = ">=", premises: Premises = (), why: str = "") -> bool:
    """Whether `goal ≥ 0` (">=") or `goal = 0` ("=") follows. False: not shown."""
    number = goal.constant
    if number is not None:
        holds = number >= 0 if relation == ">=" else number == 0
        if holds or not premises:
            return holds
    key = (goal, relation, premises)
    if key not in _known:
        steps = _quick(goal, premises) if relation == ">=" else None
        if steps is None and SOLVER and SOLVER[-1](Obligation(goal, relation, premises, why)):
            steps = ()
        _known[key] = steps
    steps = _known[key]
    if steps is not None and LOGS:
        known = [w for c, w in steps if prove(c, ">=", premises, "sign of a factor")]
        obligation = Obligation(goal, relation, premises, why, tuple(known))
        for log in LOGS:
            log.add(obligation)
    return steps is not None


def forget() -> None:
    """Drop what was decided before (the quick search's and the solver's answers)."""
    _known.clear()


def _quick(goal: Poly, premises: Premises) -> Steps | None:
    extra: Bounds = {}
    for relation, premise in premises:
        _learn(extra, relation, premise)
    return _nonnegative(goal, extra, 14)


def _learn(extra: Bounds, relation: str, p: Poly) -> None:
    """Bounds of single atoms that follow from `p ≥ 0` or `p = 0`."""
    for x in p.atoms():
        parts = p.split(x)
        if parts is None:
            continue
        c, r = parts[0].constant, parts[1]
        lower, upper = extra.setdefault(x, ([], []))
        if c == 1 or (c == -1 and relation == "="):
            lower.append(-r if c == 1 else r)
        if c == -1 or (c == 1 and relation == "="):
            upper.append(r if c == -1 else -r)


def _nonnegative(p: Poly, extra: Bounds, depth: int) -> Steps | None:
    """How `p ≥ 0` follows by putting bounds in the place of atoms; None: not found."""
    number = p.constant
    if number is not None:
        return () if number >= 0 else None
    if depth == 0:
        return None
    # Bounds of later atoms speak of earlier ones: take out the latest first.
    for x in sorted(p.atoms(), key=lambda x: -x.id):
        parts = p.split(x)
        if parts is None:
            continue
        c, r = parts
        own = extra.get(x, ([], []))
        sign = _sign(c, extra, depth - 1)
        if sign == 0:
            continue
        bounds = (*own[0], *x.lower) if sign > 0 else (*own[1], *x.upper)
        for b in bounds:
            if x in b.free:
                continue
            rest = _nonnegative(c * b + r, extra, depth - 1)
            if rest is not None:
                step = () if c.constant is not None else ((c * sign, p - (c * b + r)),)
                return step + rest
        if bounds:
            return None
    return None


def _sign(c: Poly, extra: Bounds, depth: int) -> int:
    number = c.constant
    if number is not None:
        return (number > 0) - (number < 0)
    if depth <= 0:
        return 0
    if _nonnegative(c, extra, min(depth, 4)) is not None:
        return 1
    if _nonnegative(-c, extra, min(depth, 4)) is not None:
        return -1
    return 0


# --- calls that are simplified where a bound decides them ------------------------------------


def minimum(a: Any, b: Any) -> Poly:
    a, b = poly(a), poly(b)
    if a is b or prove(b - a, why="the smaller of two"):
        return a
    if prove(a - b, why="the smaller of two"):
        return b
    return _bounded(call("min", *sorted((a, b), key=_order)), a, b)


def maximum(a: Any, b: Any) -> Poly:
    a, b = poly(a), poly(b)
    if a is b or prove(a - b, why="the larger of two"):
        return a
    if prove(b - a, why="the larger of two"):
        return b
    return _bounded(call("max", *sorted((a, b), key=_order)), a, b)


def _bounded(p: Poly, a: Poly, b: Poly) -> Poly:
    """A call of min or max with the other bound too, where both arguments share one."""
    x = atom_of(p)
    if x.kind == "min" and not x.lower:
        near = [poly(y) + k for y in sorted(a.free | b.free, key=lambda y: -y.id) for k in (1, 0)]
        for low in [*near, poly(1), ZERO]:
            likely = x not in low.free and quick(a - low) and quick(b - low)
            if likely and prove(a - low, why="bound") and prove(b - low, why="bound"):
                x.lower.append(low)
    if x.kind == "max" and not x.upper:
        near = [poly(y) - k for y in sorted(a.free | b.free, key=lambda y: -y.id) for k in (1, 0)]
        for high in near:
            likely = x not in high.free and quick(high - a) and quick(high - b)
            if likely and prove(high - a, why="bound") and prove(high - b, why="bound"):
                x.upper.append(high)
    return p


def quick(p: Poly, premises: Premises = ()) -> bool:
    """`p ≥ 0` by the syntactic search alone, kept out of the log."""
    extra: Bounds = {}
    for relation, premise in premises:
        _learn(extra, relation, premise)
    return _nonnegative(p, extra, 8) is not None


def _order(p: Poly) -> Any:
    return [([x.id for x in m], c) for m, c in p.terms]


def divmod_(p: Any, n: Any, premises: Premises = ()) -> tuple[Poly, Poly]:
    """Floor quotient and remainder of `p` by `n ≥ 1`.

    Euclid, structurally: where p = q·n + r with 0 ≤ r < n follows (from the premises), these are q
    and r.
    """
    p, n = poly(p), poly(n)
    if n.constant == 1:
        return p, ZERO
    if p.constant is not None and n.constant is not None:
        q, r = divmod(p.constant, n.constant)
        return poly(q), poly(r)
    for q, r in _candidates(p, n):
        if all(prove(x, ">=", premises, "Euclid: remainder") for x in (r, n - 1 - r)):
            return q, r
    if len(n.terms) == 1:
        # Whole multiples go outside, so that (8·i + j) div 8 is i + j div 8.
        whole, rest = _quotients(p, n)[0]
        if whole is not ZERO:
            q, r = divmod_(rest, n, premises)
            return whole + q, r
    q = call("div", p, n)
    return q, p - q * n


def _candidates(p: Poly, n: Poly) -> list[tuple[Poly, Poly]]:
    """`_quotients`, and the whole multiples alone: 48·i + (j − 8·(j div 8)) by 48."""
    found = _quotients(p, n)
    if len(n.terms) == 1 and any(c < 0 for _, c in p.terms):
        exact = _exact(p, n)
        if all(q is not exact[0] for q, _ in found):
            found.append(exact)
    return found


def _exact(p: Poly, n: Poly) -> tuple[Poly, Poly]:
    ((lead, scale),) = n.terms
    q: dict[Any, int] = {}
    for mono, c in p.terms:
        left = list(mono)
        if c % scale == 0 and all(x in left and not left.remove(x) for x in lead):
            q[tuple(left)] = q.get(tuple(left), 0) + c // scale
    quotient = Poly.of(q)
    return quotient, p - quotient * n


def _quotients(p: Poly, n: Poly) -> list[tuple[Poly, Poly]]:
    """Ways to write `p = q·n + r` by dividing monomials."""
    found = []
    for lead, scale in n.terms or (((), 0),):
        q: dict[Any, int] = {}
        for mono, c in p.terms:
            left = list(mono)
            if scale == 0 or any(x not in left or left.remove(x) for x in lead):
                continue
            if c % scale == 0 or (len(n.terms) == 1 and (c // scale)):
                q[tuple(left)] = q.get(tuple(left), 0) + c // scale
        quotient = Poly.of(q)
        found.append((quotient, p - quotient * n))
    # A constant part of more than one divisor, as in (i + 5) div 4.
    more = []
    for whole, r in found:
        for shift in (1, -1):
            more.append((whole + shift, r - shift * n))
    return found + more


def _again(function: Any) -> Any:
    def rebuild(x: Atom, to: Any) -> Poly:
        return function(*(substitute(a, to) for a in x.args))

    return rebuild


REBUILD["min"] = _again(minimum)
REBUILD["max"] = _again(maximum)
REBUILD["div"] = _again(lambda p, n: divmod_(p, n)[0])
