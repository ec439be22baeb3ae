"""Indices written as digits: loops and sums split so that no quotient of an index is left."""

from __future__ import annotations

from collections.abc import Sequence

from quire.verify.decide import divmod_
from quire.verify.poly import ONE, ZERO, Atom, Poly, atom_of, poly, variable
from quire.verify.poly import substitute as substitute_poly

Loop = tuple[Atom, Poly]
"""A loop's index, and how often it runs."""


def digits(at: Sequence[Poly], loops: Sequence[Loop]) -> tuple[dict[Atom, Poly], tuple[Loop, ...]]:
    """Loops split so that no quotient of one index by a number is left in `at`: how each old index
    is written in the new ones, and the new loops."""
    to: dict[Atom, Poly] = {}
    now = list(loops)
    places = list(at)
    while True:
        found = _quotient(places, now)
        if found is None:
            return to, tuple(now)
        x, n, size = found
        parts = variable("h", [0], [size - 1]), variable("l", [0], [n - 1])
        one = {x: parts[0] * n + parts[1]}
        to = {y: substitute_poly(p, one) for y, p in to.items()} | one
        places = [substitute_poly(p, one) for p in places]
        k = [y for y, _ in now].index(x)
        now[k : k + 1] = [(atom_of(parts[0]), size), (atom_of(parts[1]), n)]


def _quotient(at: Sequence[Poly], loops: Sequence[Loop]) -> tuple[Atom, Poly, Poly] | None:
    """A loop's index of which a quotient takes a part: c·x in (… + c·x) div n, split at n/c."""
    sizes = dict(loops)
    for p in at:
        for x in sorted(p.free, key=lambda y: y.id):
            n = x.args[1].constant if x.kind == "div" else None
            if n is None:
                continue
            for y in x.args[0].atoms():
                parts = x.args[0].split(y)
                c = parts[0].constant if parts and y in sizes else None
                if not c or n % abs(c) or n == abs(c):
                    continue
                by = poly(n // abs(c))
                size, rest = divmod_(sizes[y], by)
                if rest is ZERO and size is not ONE:
                    return y, by, size
    return None
