"""Sums over the ranks of what each rank has summed over its own rows, and extremes likewise.

    Σ_r Σ_{i<n} f(place(r·n + i)) = Σ_{q<S} f(q)    if f is 0 at places from S on

by lemma `places`: ranks' rows are the padded sequence, each place once. What does not depend on
the rank is taken P times in a sum, and once in an extreme, whose padding must be −∞ (or ∞).
"""

from __future__ import annotations

from collections.abc import Callable

from quire.verify import term as t
from quire.verify.decide import divmod_
from quire.verify.poly import ZERO, Atom, Poly, atom_of, bound, variable
from quire.verify.shard.length import as_poly, number
from quire.verify.shard.order import Mesh, Order, order_of, ranked
from quire.verify.term import Term
from quire.verify.value import NotShown


def sum_ranks(x: Term, mesh: Mesh) -> Term:
    """Σ_r x(r). Raises NotShown for what is no sum over rows."""
    if not ranked(x):
        return t.mul((t.const(mesh.ranks), 1), (x, 1))
    if x.op == "add":
        return t.add(*((c, sum_ranks(y, mesh)) for c, y in t.addends(x)))
    if x.op == "mul":
        factors = x.args[1]
        own = [f for f in factors if ranked(f[0])]
        rest = [f for f in factors if not ranked(f[0])]
        if len(own) == 1 and own[0][1] == 1 and (rest or x.args[0] != 1):
            return t.mul((t.const(x.args[0]), 1), *rest, (sum_ranks(own[0][0], mesh), 1))
    if x.op == "sum":
        return _rows(x, mesh, sum_ranks)
    return _row(x, "sum", mesh)


def extreme_ranks(op: str, x: Term, mesh: Mesh) -> Term:
    """max_r x(r), or min_r ("max", "min"). Raises NotShown for what is no extreme over rows."""
    if not ranked(x):
        return x
    if x.op == op + "2":
        return t.extreme(op, *(extreme_ranks(op, y, mesh) for y in x.args[0]))
    if x.op == op:
        return _rows(x, mesh, lambda y, mesh: extreme_ranks(op, y, mesh))
    return _row(x, op, mesh)


def _row(x: Term, op: str, mesh: Mesh) -> Term:
    """Of one row on each rank."""
    for order in _orders(x, atom_of(mesh.rank)):
        if order.rows == 1 and _silent(x, op, order, ZERO, mesh):
            return _whole(x, op, order, ZERO, ZERO, 1, mesh)
    raise NotShown(f"a {op} over ranks of what is no {op} over rows: {x}"[:300])


def _rows(x: Term, mesh: Mesh, inner: Callable[[Term, Mesh], Term]) -> Term:
    size, body = x.args
    j = variable("t", [0], [size - 1])
    body = t.substitute(body, {atom_of(bound(x.height, size)): j})
    # With one row on each rank it is the rank that tells the place.
    alone = [o for o in _orders(body, atom_of(mesh.rank)) if o.rows == 1]
    orders = _orders(body, atom_of(j)) or alone
    if not orders:
        return t.bind(x.op, size, inner(body, mesh), j)
    for order in orders:
        outer, left = divmod(number(size), order.rows)
        if type(outer) is not int or type(left) is not int or left or not outer:
            continue
        o = variable("o", [0], [outer - 1]) if outer > 1 else ZERO
        rows = as_poly(order.rows)
        i = variable("i", [0], [rows - 1]) if order.rows > 1 else ZERO
        here = t.substitute(body, {atom_of(j): o * rows + i})
        if _silent(here, x.op, order, i, mesh):
            return _whole(here, x.op, order, o, i, outer, mesh)
    raise NotShown(f"a {x.op} over ranks whose padding counts, or of rows out of order: {x}"[:400])


def _orders(body: Term, j: Atom) -> list[Order]:
    """The orders of the rows that `body` reads by `j`."""
    found = {}
    for a in body.free:
        if a.kind == "place" and j in a.free:
            found[order_of(a)] = None
    return sorted(found, key=lambda o: (str(o.size), o.ring))


_IDLE = {"sum": t.ZERO_, "max": t.NINF, "min": t.PINF}


def _silent(here: Term, op: str, order: Order, i: Poly, mesh: Mesh) -> bool:
    """Whether rows past the end of the sequence add nothing."""
    size, padded = as_poly(order.size), as_poly(order.padded)
    if padded is size:
        return True
    past = variable("past", [size], [padded - 1])
    return mesh.read(here, order, i, past) is _IDLE[op]


def _whole(here: Term, op: str, order: Order, o: Poly, i: Poly, outer: int, mesh: Mesh) -> Term:
    size = as_poly(order.size)
    every = size * outer
    k = variable("t", [0], [every - 1])
    block, q = divmod_(k, size) if outer > 1 else (ZERO, k)
    if outer == 1:
        return t.bind(op, every, mesh.read(here, order, i, q), k)
    # At a place that is any first: that it lies in the sequence is known of it by its range.
    any_ = variable("q", [0], [size - 1])
    moved = mesh.read(here, order, i, any_)
    moved = t.substitute(moved, {atom_of(o): block, atom_of(any_): q})
    return t.bind(op, every, moved, k)
