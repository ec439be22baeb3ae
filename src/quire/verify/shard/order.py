"""Where a rank's rows lie in the sequence, for a rank that is not known.

`order = R` of P ranks cuts the sequence into 2R blocks of c rows; member m of R holds the blocks m
and 2R−1−m and shares them evenly among its P/R ranks. Ranks' rows laid end to end are `flat`:
row i of rank r is r·n + i, n rows each.

    place(flat) = m·c + f  if f < c  else  (2R−1−m)·c + f − c,   m, f = divmod(flat, 2c)

`place` is one-to-one onto the padded sequence (lemma `places`). It stays a call of its own, so
that a tensor told by it alone can be read at any place, whatever rank holds it. Sizes are ints, or
a `Length` where they are free.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import attrs

from quire.verify import term as t
from quire.verify.decide import divmod_, prove
from quire.verify.poly import REBUILD, ZERO, Atom, Poly, atom_of, call, poly, substitute, variable
from quire.verify.shard.length import Size, as_poly, number
from quire.verify.value import NotShown, Value, build, require

RANK = "rank"
START = "start"
"""The first of the rows that are run at a time, among a rank's own."""


@attrs.frozen
class Order:
    """`size` rows over `ranks` ranks, zigzag over `ring` of them. Written from the text above,
    apart from the runtime's own table, which is compared with it."""

    size: Size
    ranks: int
    ring: int = 1

    @property
    def step(self) -> int:
        """Rows that a block is a multiple of: the fewest of which two divide evenly among a
        member's ranks."""
        share = self.ranks // self.ring
        return next(c for c in range(1, share + 1) if 2 * c % share == 0)

    @property
    def grain(self) -> int:
        """Rows that the padded sequence is a multiple of."""
        return self.ranks if self.ring == 1 else 2 * self.ring * self.step

    @cached_property
    def grains(self) -> Size:
        """How many of these there are: the fewest that hold the sequence."""
        return -(-self.size // self.grain)

    @property
    def block(self) -> Size:
        """Rows c of a block: the fewest such that 2R blocks hold the sequence and a member's two
        divide evenly. In the plain order one rank's rows."""
        return self.grains if self.ring == 1 else self.step * self.grains

    @property
    def rows(self) -> Size:
        """Rows n of each rank, padding included."""
        return self.grains * (self.grain // self.ranks)

    @property
    def padded(self) -> Size:
        return self.rows * self.ranks

    def at(self, flat: Size) -> Size:
        """The place of one row."""
        if self.ring == 1:
            return flat
        m, f = divmod(flat, 2 * self.block)
        c = self.block
        return m * c + f if f < c else (2 * self.ring - 1 - m) * c + f - c


def ranked(x: Any) -> bool:
    """Whether `x`, a term or polynomial, depends on the rank, or on which of its rows are run."""
    return any(a.kind == "var" and a.name in (RANK, START) for a in x.free)


def place(order: Order, flat: Poly) -> Poly:
    """The place in the sequence of row `flat` of all ranks' rows."""
    if not ranked(flat):
        if order.ring == 1:
            return flat
        c = as_poly(order.block)
        m, f = divmod_(flat, c * 2)
        if prove(c - 1 - f, why="first block of a member"):
            return m * c + f
        if prove(f - c, why="second block of a member"):
            return (poly(2 * order.ring - 1) - m) * c + f - c
    found = call("place", as_poly(order.size), poly(order.ranks), poly(order.ring), flat)
    x = atom_of(found)
    if not x.upper:
        x.lower, x.upper = [ZERO], [as_poly(order.padded) - 1]
    return found


@lru_cache(64)
def _order(size: Poly, ranks: int, ring: int) -> Order:
    return Order(number(size), ranks, ring)


def order_of(x: Atom) -> Order:
    """The order that a call of `place` is of."""
    size, ranks, ring, _ = x.args
    return _order(size, ranks.constant, ring.constant)


def _again(x: Atom, to: Any) -> Poly:
    size, ranks, ring, flat = x.args
    order = _order(substitute(size, to), ranks.constant, ring.constant)
    return place(order, substitute(flat, to))


REBUILD["place"] = _again


@attrs.frozen
class Place:
    """How a rank's tensor lies in the whole one: dim `dim` holds `outer` blocks of the sequence's
    rows, `scale` elements each; `some` of them if they are run in parts (0: all)."""

    dim: int
    order: Order
    outer: int = 1
    scale: int = 1
    some: int = 0

    @property
    def rows(self) -> Size:
        return self.some or self.order.rows

    @property
    def local(self) -> Size:
        return self.outer * self.rows * self.scale

    @property
    def whole(self) -> Size:
        return self.outer * self.order.size * self.scale


class Mesh:
    """One symbolic rank of P: every proof makes its own."""

    def __init__(self, ranks: int, rank: Poly | None = None) -> None:
        self.ranks = ranks
        self.start: Poly | None = None
        self.rank = variable(RANK, [0], [ranks - 1]) if rank is None else rank

    def flat(self, order: Order, row: Poly) -> Poly:
        """Row `row` of this rank, or of its rows that are run, among all ranks' rows. The one row
        of a dim of size 1 is 0."""
        first = self.rank * as_poly(order.rows) + (ZERO if self.start is None else self.start)
        return first + (row if order.rows > 1 else ZERO)

    def seen(self, at: Place, whole: Value, past: Value | None = None) -> Value:
        """This rank's rows of `whole`. What its padding rows hold is not known: it is what `past`,
        a tensor that is known by name only, would hold at places past the end; `past` is `whole`
        itself where that is known by name only."""
        require(whole.shape[at.dim] is as_poly(at.whole), f"{whole.shape[at.dim]} rows")
        size = as_poly(at.order.size)
        shape = list(whole.shape)
        shape[at.dim] = as_poly(at.local)

        def element(idx: list[Poly]) -> Any:
            o, i, e = parts(idx[at.dim], at)
            p = place(at.order, self.flat(at.order, i))
            there = (o * size + p) * at.scale + e
            index = [*idx[: at.dim], there, *idx[at.dim + 1 :]]
            found = whole.at(index)
            if past is not None:
                found = t.ite(t.ge(size - 1 - p), found, past.at(index))
            return found

        return build(shape, whole.dtype, element)

    def element(self, at: Place, local: Value, idx: list[Poly], o: Poly, q: Poly, e: Poly) -> Any:
        """The element of the whole tensor that `local` is this rank's part of, at place `q`.

        Raises NotShown if it is told by more than its place.
        """
        require(local.shape[at.dim] is as_poly(at.local), f"{local.shape[at.dim]} rows of a rank")
        rows = as_poly(at.rows)
        i = variable("i", [0], [rows - 1]) if at.rows > 1 else ZERO
        there = (o * rows + i) * at.scale + e
        found = local.at([*idx[: at.dim], there, *idx[at.dim + 1 :]])
        return self.read(found, at.order, i, q)

    def read(self, found: Any, order: Order, i: Poly, q: Poly) -> Any:
        """`found`, told by the place of row `i` alone, at place `q`."""
        here = atom_of(place(order, self.flat(order, i)))
        moved = t.substitute(found, {here: q})
        if ranked(moved) or (i is not ZERO and atom_of(i) in moved.free):
            raise NotShown("a row that is not told by its place alone")
        return moved


def parts(at: Poly, where: Place) -> tuple[Poly, Poly, Poly]:
    """An index of the dim as block, row and element."""
    rows, e = divmod_(at, where.scale)
    if where.outer == 1:
        return ZERO, rows, e
    o, i = divmod_(rows, as_poly(where.rows))
    return o, i, e


def edges(first: Size, count: Size, block: Size) -> list[Size]:
    """Where in `[first, first + count)` a block begins, from `first`. Within a block places go up
    by one, so that both ends of each piece tell the rest."""
    at, found = -(-first // block) * block - first, []
    while at < count:
        found.append(at)
        at = at + block
    return found
