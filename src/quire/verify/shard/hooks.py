"""`ranks.…`: collectives and rank-local ops, by what `runtime/collectives.py` says they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quire.verify import term as t
from quire.verify.decide import divmod_
from quire.verify.meaning.loss import MEAN, SUM, summed
from quire.verify.poly import ZERO, Poly, poly, variable
from quire.verify.shard.length import Ratio, Size, as_poly
from quire.verify.shard.order import Mesh, Order, Place, place
from quire.verify.shard.sums import extreme_ranks, sum_ranks
from quire.verify.shard.tensor import Local
from quire.verify.term.core import flat
from quire.verify.value import NoMeaning, NotShown, Value, build, convert, cut, number, require


def filled(fill: float, kind: str) -> Any:
    return convert(number(float(fill)) if kind == "real" else poly(int(fill)), kind)


class Ranks:
    """The functions of `ranks` for one symbolic rank. `orders` keeps those asked for."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.orders: dict[Order, None] = {}

    def order(self, size: Size, ranks: int, ring: int, group: Any) -> Order:
        self.over(group, "a collective")
        require(ranks == self.mesh.ranks, f"{ranks} ranks, and not {self.mesh.ranks}")
        require(ranks % ring == 0, f"a ring of {ring} among {ranks} ranks")
        found = Order(size, ranks, ring)
        self.orders[found] = None
        return found

    def local_rows(self, size: Size, ranks: int, ring: int) -> Size:
        return self.order(size, ranks, ring, "GROUP").rows

    def over(self, group: Any, what: str) -> None:
        require(group == "GROUP", f"{what} over other ranks than all of the mesh dim")
        require(self.mesh.start is None, f"{what} of some of a rank's rows")

    def my_rows(
        self, x: Local, dim: int, outer: int, size: Size, ranks: int, ring: int, group: Any,
        fill: float | None,
    ) -> Local:  # fmt: skip
        value = x.value
        at = Place(dim % value.ndim, self.order(size, ranks, ring, group), outer)
        rows = self.mesh.seen(at, value)
        if fill is not None:
            return Local(self._inside(rows, at, lambda _: filled(fill, value.kind)))

        def last(idx: list[Poly]) -> Any:
            o = divmod_(idx[at.dim], as_poly(at.order.rows))[0] if outer > 1 else ZERO
            there = o * as_poly(size) + as_poly(size) - 1
            return value.at([*idx[: at.dim], there, *idx[at.dim + 1 :]])

        return Local(self._inside(rows, at, last))

    def fill_rows(
        self, x: Local, dim: int, outer: int, size: Size, ranks: int, ring: int, group: Any,
        fill: float,
    ) -> Local:  # fmt: skip
        value = x.value
        at = Place(dim % value.ndim, self.order(size, ranks, ring, group), outer)
        require(value.shape[at.dim] is as_poly(at.local), "rows of another number")
        return Local(self._inside(value, at, lambda _: filled(fill, value.kind)))

    def _inside(self, value: Value, at: Place, fill: Callable[[list[Poly]], Any]) -> Value:
        def element(idx: list[Poly]) -> Any:
            own = as_poly(at.order.rows)
            rows = divmod_(idx[at.dim], own)[1] if at.outer > 1 else idx[at.dim]
            p = place(at.order, self.mesh.flat(at.order, rows))
            inside = t.ge(as_poly(at.order.size) - 1 - p)
            return t.ite(inside, value.at(idx), fill(idx))

        return build(value.shape, value.dtype, element)

    def gather_rows(
        self, x: Local, dim: int, outer: int, size: Size, ranks: int, ring: int, group: Any
    ) -> Local:
        value = x.value
        at = Place(dim % value.ndim, self.order(size, ranks, ring, group), outer)
        return Local(self.gathered(value, at))

    def gathered(self, value: Value, at: Place) -> Value:
        """The whole tensor, if its elements are told by their places alone."""

        def element(idx: list[Poly]) -> Any:
            size = as_poly(at.order.size)
            o, q = divmod_(idx[at.dim], size) if at.outer > 1 else (ZERO, idx[at.dim])
            return self.mesh.element(at, value, idx, o, q, ZERO)

        shape = list(value.shape)
        shape[at.dim] = as_poly(at.whole)
        return build(shape, value.dtype, element)

    def fixed_rows(
        self, x: Local, dim: int, first: Size, count: Size, size: Size, ranks: int, ring: int,
        group: Any,
    ) -> Local:  # fmt: skip
        value = x.value
        at = Place(dim % value.ndim, self.order(size, ranks, ring, group))
        require(first >= 0 and first + count <= size, f"rows {first} … {first + count} of {size}")

        def element(idx: list[Poly]) -> Any:
            return self.mesh.element(at, value, idx, ZERO, idx[at.dim] + as_poly(first), ZERO)

        shape = list(value.shape)
        shape[at.dim] = as_poly(count)
        return Local(build(shape, value.dtype, element))

    def sum_ranks(self, x: Local, group: Any) -> Local:
        return self.join_sum(x, 1.0, group)

    def join_sum(self, x: Local, scale: float | Ratio, group: Any) -> Local:
        self.over(group, "a sum")
        value = x.value
        if value.kind == "bool":
            raise NoMeaning("a sum of truth values")
        by = scale.term if isinstance(scale, Ratio) else t.const(scale)
        joined = build(
            value.shape,
            value.dtype,
            lambda idx: t.mul((sum_ranks(value.real(idx), self.mesh), 1), (by, 1)),
        )
        return Local(joined)

    def max_ranks(self, x: Local, group: Any, largest: bool = True) -> Local:
        self.over(group, "an extreme")
        value = x.value
        if value.kind != "real":
            raise NoMeaning("an extreme over ranks of other than real numbers")
        op = "max" if largest else "min"
        joined = build(
            value.shape,
            value.dtype,
            lambda idx: extreme_ranks(op, value.real(idx), self.mesh),
        )
        return Local(joined)

    def cross_entropy(
        self, scores: Local, target: Local, weight: Local | None, reduction: int, ignore_index: int,
        label_smoothing: float, group: Any,
    ) -> Local:  # fmt: skip
        self.over(group, "a loss")
        own = None if weight is None else weight.value
        if reduction not in (MEAN, SUM):
            raise NoMeaning("cross entropy of each row")
        parts = summed(scores.value, target.value, own, ignore_index, label_smoothing)
        total, count = (sum_ranks(x, self.mesh) for x in parts)
        found = total if reduction == SUM else t.mul((total, 1), (count, -1))
        return Local(build([], scores.dtype, lambda _: found))

    def cross_entropy_in_parts(
        self, rows: Local, make_scores: Callable[[Local], Local], parts: int, target: Local,
        weight: Local | None, reduction: int, ignore_index: int, label_smoothing: float, group: Any,
    ) -> Local:  # fmt: skip
        """The scores of all rows at once are those of its parts, if each row's are its own."""
        x = rows.value
        every = rows.flatten(0, -2)
        made = make_scores(every)
        require(made.value.ndim == 2 and made.shape[0] == every.shape[0], "scores of other rows")
        _by_rows(every, make_scores)
        require(parts >= 1, f"{parts} parts")
        known = Local(build(made.value.shape, x.dtype, made.value.at))
        goals = target.flatten(0, -1)
        return self.cross_entropy(
            known, goals, weight, reduction, ignore_index, label_smoothing, group
        )

    def __getattr__(self, name: str) -> Any:
        raise NoMeaning(f"ranks.{name}")


def _by_rows(like: Local, make: Callable[[Local], Local]) -> None:
    """Shows that each row of `make(x)` is of that row of x alone."""
    probe = make(Local(cut("rows of scores", like.value.shape, like.dtype))).value
    row = variable("row", [0], [like.value.shape[0] - 1])
    element = probe.at([row, *[variable("c", [0], [s - 1]) for s in probe.shape[1:]]])
    for at in _reads(element, "rows of scores"):
        if at[0] is not row:
            raise NotShown("scores of a row that read another row")


def _reads(x: Any, name: str) -> list[Any]:
    found, seen, stack = [], set(), [x]
    while stack:
        y = stack.pop()
        if id(y) in seen or isinstance(y, Poly):
            if isinstance(y, Poly) and id(y) not in seen:
                stack += [a for atom in y.free for a in atom.args]
            seen.add(id(y))
            continue
        seen.add(id(y))
        if not isinstance(y, t.Term):
            continue
        if y.op in ("read", "bread") and y.args[0] == name:
            found.append(y.args[1])
        stack += flat(y.args)
    return found
