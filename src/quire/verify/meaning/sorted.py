"""Rows put in the order of a sort and back, as experts' tokens are.

With π the order that a sort of keys κ gives (place j holds row π(j)), ρ its inverse, and c(g) the
number of rows whose key is at most g:

    π(ρ(n)) = n = ρ(π(n))     Σ_j f(π(j)) = Σ_n f(n)     #{g : c(g) ≤ j} = κ(π(j)) for keys ≥ 0

The first two are laws of the normal form (`term/order.py`), the last is read off here.
"""

from __future__ import annotations

from typing import Any

from quire.verify import term as t
from quire.verify.decide import prove
from quire.verify.meaning.opaque import opaque
from quire.verify.meaning.table import means
from quire.verify.poly import ONE, Poly, atom_of, bound, single, substitute, variable
from quire.verify.term.order import order_of
from quire.verify.value import Value, build, same_size, spread


@means("histc")
def histc(self: Value, bins: Any = 100, min: Any = 0, max: Any = 0) -> Any:
    """How often each whole number below `bins` occurs; another count is known by name only."""
    names = [variable("t", [0], [s - 1]) for s in self.shape]
    element = self.real(names)
    if element.op not in ("int", "const") or (min, max) != (0, bins - 1):
        given = {"self": self, "bins": bins, "min": min, "max": max}
        return opaque("aten.histc.default", given, [([bins], self.dtype)])

    def count(idx: list[Poly]) -> Any:
        found = t.ind(t.eq(t.int_of(element) - idx[0]))
        for size, name in zip(reversed(self.shape), reversed(names), strict=True):
            found = t.bind("sum", size, found, name)
        return found

    return build([bins], self.dtype, count)


@means("index_put")
def index_put(self: Value, indices: Any, values: Value, accumulate: bool = False) -> Any:
    """Row j of `values` put at place π(j), for an order π of all rows: row n is the ρ(n)-th of
    them. Otherwise which of several writers comes last is not known."""
    (by, *more) = indices
    if not accumulate and not more and by is not None and by.kind == "int" and by.ndim == 1:
        rows = by.shape[0]
        j = variable("t", [0], [rows - 1])
        order = order_of(by.int([j]), j, rows)
        if order is not None and same_size(rows, self.shape[0], "all rows are written"):

            def element(idx: list[Poly]) -> Any:
                own = (order.size, order.body, order.var, "order.places", idx[0], order.way)
                return values.at(spread([t.int_of(t.row(*own)), *idx[1:]], values.shape))

            return build(self.shape, self.dtype, element)
    given = {"self": self, "indices": indices, "values": values, "accumulate": accumulate}
    return opaque("aten.index_put.default", given, [(self.shape, self.dtype)])


def group_at(row: Poly, rows: Poly, groups: Poly, ends: Value) -> Poly | None:
    """The group that row `row` of `rows` lies in, where group g ends before `ends[g]`: the key at
    that place, if `ends` counts keys. None: not known."""
    g = variable("t", [0], [groups - 1])
    found = _counted(ends.int([g]), g)
    if found is None:
        return None
    size, key, n = found
    inside = same_size(size, rows, "as many keys as rows") and all(
        prove(x, why="a key is a group") for x in (key, groups - 1 - key, row, rows - 1 - row)
    )
    if not inside:
        return None
    at = t.row(size, t.of_int(key), n, "order.indices", row, "False")
    return substitute(key, {atom_of(n): t.int_of(at)})


def _counted(end: Poly, g: Poly) -> tuple[Poly, Poly, Poly] | None:
    """`(N, key(n), n)` of Σ_{h ≤ g} Σ_{n < N} [key(n) = h]."""
    x = single(end)
    term = x.args[0] if x is not None and x.kind == "val" else t.TRUE
    if term.op == "trunc":  # of a sum of whole numbers
        term = term.args[0]
    if term.op != "sum" or term.args[0] is not g + ONE:
        return None
    h, inner = bound(term.height, term.args[0]), term.args[1]
    if inner.op != "sum" or inner.args[1].op != "ind" or inner.args[1].args[0].op != "eq":
        return None
    n = variable("n", [0], [inner.args[0] - 1])
    body = t.substitute(inner.args[1], {atom_of(bound(inner.height, inner.args[0])): n})
    if body.op != "ind" or body.args[0].op != "eq":
        return None
    split = body.args[0].args[0].split(atom_of(h))
    sign = None if split is None else split[0].constant
    if split is None or sign is None or abs(sign) != 1:
        return None
    if not {atom_of(h), atom_of(g)}.isdisjoint(inner.args[0].free | split[1].free):
        return None
    return inner.args[0], split[1] * -sign, n


__all__ = ["group_at"]
