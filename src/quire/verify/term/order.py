"""The order that a sort of keys gives, and its inverse.

    order.indices(j)  the row that is put at place j        order.places(n)  the place of row n

Both are one-to-one on all rows: laws `sort-order` and `sort-sum`.
"""

from __future__ import annotations

from typing import Any

import attrs

from quire.verify.poly import Atom, Poly, atom_of, bound, poly, single, variable
from quire.verify.term.core import Term, of_int, substitute

INVERSE = {"order.indices": "order.places", "order.places": "order.indices"}


@attrs.frozen(eq=False)
class Order:
    """The order of `size` keys, `body` the key of row `var`, in direction `way`."""

    size: Poly
    body: Term
    var: Poly
    way: str


def undone(x: Term) -> Term:
    """`x`, a function of a row, without an order upon its inverse, or the other way about."""
    size, body, name, *more = x.args
    inner = single(more[0]) if name in INVERSE and isinstance(more[0], Poly) else None
    if inner is None or inner.kind != "val" or inner.args[0].op != "row":
        return x
    y = inner.args[0]
    if y.args[0] is not size or y.args[2] != INVERSE[name] or y.args[4:] != tuple(more[1:]):
        return x
    own, name_ = atom_of(bound(y.height, size)), bound(x.height, size)
    return of_int(y.args[3]) if substitute(y.args[1], {own: name_}) is body else x


def order_of(index: Poly, j: Poly, rows: Poly) -> Order | None:
    """The order that `index` is, as a function of `j`, the place among all `rows`."""
    x = single(index)
    if x is None or x.kind != "val" or x.args[0].op != "row":
        return None
    size, body, name, *more = x.args[0].args
    if name != "order.indices" or size is not rows or more[0] is not j or len(more) != 2:
        return None
    own = bound(x.args[0].height, size)
    return None if atom_of(j) in body.free else Order(size, body, own, more[1])


def reordered(size: Poly, body: Term, x: Atom) -> Term:
    """Σ_j f(π(j)) as Σ_n f(n), for the order π of all `size` rows."""
    for a in body.free:
        if a.kind != "val" or x not in a.free or order_of(poly(a), poly(x), size) is None:
            continue
        if all(v in body.free for v in a.free if v.kind == "var"):  # one order for the whole body
            moved: Any = _without(body, a, variable("t", [0], [size - 1]), poly(x))
            if moved is not None:
                return moved
    return body


def _without(body: Term, a: Atom, y: Poly, x: Poly) -> Term | None:
    """`body` with `x` for `a`, if it reads `x` by `a` alone."""
    moved = substitute(body, {a: y})
    return None if atom_of(x) in moved.free else substitute(moved, {atom_of(y): x})
