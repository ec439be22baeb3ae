"""Conditions: what holds of integers, and of reals as far as is known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quire.verify.decide import prove
from quire.verify.poly import poly
from quire.verify.term.core import FALSE, NINF, REMAKE, TRUE, Term, int_of, make, number


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


REMAKE |= {
    "ge": ge,
    "eq": eq,
    "not": not_,
    "cmp": compare,
    "and": lambda items: and_(*items),
    "or": lambda items: or_(*items),
}
