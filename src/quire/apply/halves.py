"""An update of a state through a product of its own projections, in halves.

    z' = z + f(a(z) · b(z))   with `b` read whole, becomes, for the halves A and B of z,

    q   = a(z_A) · b(z_B)
    z₁  = z  with A replaced by z_A + f([a(z_A) · b_A, q])       where b_A = b(z_A)
    r   = a(z_B) · b_A
    z'  = z₁ with B replaced by z_B + f([r, a(z_B) · b(z_B)])

Beside the state there are at most half of `b` and a quarter of the product, three quarters of what
the whole of `b` takes. `a` is computed twice, and half of `b`.

Side conditions: both spreads take in all that lies between state and product, and read halves of
the state along one dim. Claim: equal, element by element in the same order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from quire.apply.unroll import Units
from quire.capture.program import Program
from quire.flow.propagate import Spread, reads_of
from quire.rewrite.draft import Draft

aten: Any = torch.ops.aten


def halve(program: Program, updates: Sequence[tuple[fx.Node, Spread, Spread]]) -> Program:
    """`program` with each update (state, spread of the new state, spread of the product's other
    side) computed in halves.

    Raises Refused if torch rejects a part.
    """
    draft = Draft(program)
    for state, outer, inner in updates:
        _Halved(draft, state, outer, inner).run()
    return draft.finish()


class _Halved:
    def __init__(self, draft: Draft, state: fx.Node, outer: Spread, inner: Spread) -> None:
        self.draft, self.state, self.outer, self.inner = draft, state, outer, inner
        self.at = draft.new[outer.seed]
        product = inner.seed
        self.product = draft.program.ops[product]
        axis = inner.storage.flows[product].axes[inner.cuts[product].axis]
        self.needs = list(reads_of(axis, inner.cuts[product]))
        write, need = axis.writes[0], inner.pending[state][0][1].need
        assert write is not None and need is not None
        self.side, self.dim = write.dim, need.dim
        size = int(outer.size)
        self.halves = range((size + 1) // 2), range((size + 1) // 2, size)

    def run(self) -> None:
        z = self.draft.new[self.state]
        q = self._product(self._left(0, z), self._right(1, z))
        b = self._right(0, z)
        a = self._left(0, z)
        z1 = self._replaced(z, 0, a, [self._product(a, b), q])
        r = self._product(self._left(1, z1), b)
        b = self._right(1, z1)
        a = self._left(1, z1)
        new = self._replaced(z1, 1, a, [r, self._product(a, b)])
        self.draft.supplant(self.at, new)
        self.draft.new[self.outer.seed] = new

    def _unit(self, spread: Spread, half: int, z: fx.Node) -> Units:
        return Units(self.draft, spread, self.halves[half], self.at, {self.state: z})

    def _left(self, half: int, z: fx.Node) -> Units:
        """The side that is read by part, for rows of one half; its product is still to come."""
        unit = self._unit(self.outer, half, z)
        cut = self.outer.cuts[self.product.node]
        axis = self.outer.storage.flows[self.product.node].axes[cut.axis]
        for operand, need in zip(self.product.operands, reads_of(axis, cut), strict=True):
            if need is not None:
                unit.instead[operand.node] = unit.read(operand.node, need)
        return unit

    def _right(self, half: int, z: fx.Node) -> Units:
        """The side that is read whole, one half of it."""
        unit = self._unit(self.inner, half, z)
        for operand, need in zip(self.product.operands, self.needs, strict=True):
            if need is not None:
                unit.read(operand.node, need)
        return unit

    def _product(self, left: Units, right: Units) -> fx.Node:
        """One half's rows times the other side's half."""
        own = Units(self.draft, self.inner, right.units, self.at, {**right.instead, **left.instead})
        own.made |= right.made
        return own.step(self.product.node)

    def _replaced(self, z: fx.Node, half: int, left: Units, parts: list[fx.Node]) -> fx.Node:
        """`z` with one half updated, from the two parts of its rows of the product."""
        left.made[self.product.node] = self.draft.call(
            aten.cat.default, (parts, self.side), at=self.at
        )
        rows = left.step(self.outer.seed)
        units = self.halves[half]
        args = (z, rows, self.dim, units.start, units.stop)
        return self.draft.call(aten.slice_scatter.default, args, at=self.at)
