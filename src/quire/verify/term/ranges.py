"""Adjacent ranges of one body, joined."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from quire.verify.poly import atom_of, bound, variable
from quire.verify.term.core import REMAKE, Term, addends, substitute


def joined(s: Term, t: Term) -> Term | None:
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
    return REMAKE[s.op](total, body, y)


def merge_ranges(items: list[tuple[Term, Fraction]]) -> list[tuple[Term, Fraction]]:
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
                one = joined(first, second)
                if one is not None:
                    whole = REMAKE["mul"](1, ((one, 1), *key))
                    rest = [i for i in items if i[0] is not s and i[0] is not t]
                    again: dict[Term, Fraction] = dict(rest)
                    for k, x in addends(whole):
                        again[x] = again.get(x, Fraction(0)) + c * k
                    return merge_ranges([(x, k) for x, k in again.items() if k])
    return items


def _sums_of(t: Term) -> Iterable[tuple[Any, Term]]:
    if t.op == "sum":
        yield (), t
    elif t.op == "mul":
        for x, k in t.args[1]:
            if k == 1 and x.op == "sum":
                yield tuple(f for f in t.args[1] if f[0] is not x), x
