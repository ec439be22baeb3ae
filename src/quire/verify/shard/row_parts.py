"""`ranks.in_parts`: ops run on some of a rank's rows at a time.

    given this rank's rows start … start + some of tensors, for a `start` that is any,
    the function gives the same rows of others   ⟹   joined, it gives all of this rank's rows

The function is run once, on rows from a `start` that is not known. What it makes is compared with
the model's tensors by the statements within it, as elsewhere; its results must be such tensors.
Every row lies in a part, and is taken from one: `runtime/row_parts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from torch import fx

from quire.verify.poly import variable
from quire.verify.shard.hooks import Ranks
from quire.verify.shard.length import Size, as_poly
from quire.verify.shard.order import START, Mesh, Place
from quire.verify.shard.task import Hint
from quire.verify.shard.tensor import Local
from quire.verify.value import NotShown, Value, require

Where = tuple[int, int, int]
"""A dim that holds blocks of rows: the dim, its blocks, elements of a row."""


class RowParts(Ranks):
    """The functions of `ranks`, and `in_parts` among them. `part_of` gives the model's tensor that
    one of this rank's is rows of; `known` makes the rows at a place of a tensor known by name."""

    def __init__(
        self,
        mesh: Mesh,
        part_of: Callable[[Local], tuple[fx.Node, Hint, Value]],
        known: Callable[[fx.Node, Hint, Value], Value],
    ) -> None:
        super().__init__(mesh)
        self.part_of, self.known = part_of, known
        self.some = 0
        """Rows that are run at a time; 0 outside `in_parts`."""

    def in_parts(
        self,
        function: Callable[..., Any],
        rows: Size,
        some: int,
        given: Sequence[Local],
        reads: Sequence[Where],
        makes: Sequence[Where],
        *others: Local,
    ) -> Any:
        require(self.mesh.start is None, "parts of the rows within parts of the rows")
        require(1 <= some <= rows, f"{some} of {rows} rows")
        held = [(*self.part_of(x), at) for x, at in zip(given, reads, strict=True)]
        for node, place, _, at in held:
            _is_at(node, place, at, rows)
        self.mesh.start, self.some = variable(START, [0], [as_poly(rows) - some]), some
        try:
            cut = [Local(self.known(n, self._some(p), whole)) for n, p, whole, _ in held]
            made = function(*cut, *others)
            results = list(made) if isinstance(made, tuple) else [made]
            found = [(*self.part_of(x), at) for x, at in zip(results, makes, strict=True)]
        finally:
            self.mesh.start, self.some = None, 0
        joined = []
        for node, place, whole, at in found:
            if place is None or place.some != some:
                raise NotShown(f"{node} is not rows of the part")
            place = attrs.evolve(place, some=0)
            _is_at(node, place, at, rows)
            joined.append(Local(self.known(node, place, whole)))
        return tuple(joined) if isinstance(made, tuple) else joined[0]

    def _some(self, place: Hint) -> Hint:
        return None if place is None else attrs.evolve(place, some=self.some)


def _is_at(node: fx.Node, place: Hint, at: Where, rows: Size) -> None:
    """That `at` names the dim that holds this rank's `rows` rows."""
    if not isinstance(place, Place) or place.some:
        raise NotShown(f"{node} is not this rank's rows")
    require((place.dim, place.outer, place.scale) == tuple(at), f"rows of {node} at {at}")
    require(place.order.rows == rows, f"{place.order.rows} rows of {node}, and not {rows}")
