"""States that are updated through a product of two of their own projections, such as a triangle
multiplication: state' = state + f(a(state) · b(state)), with one side read by part and the other
whole.

The state can be written over row by row, but the side that is read whole is as large as the state
itself. `apply.halves` computes such an update in halves, where nothing else fits.
"""

from __future__ import annotations

from torch import fx

from quire.cost.model import Model
from quire.flow.propagate import Spread, Storage
from quire.flow.relation import Join, span

REACH = 96
"""Steps that an update may take."""

Update = tuple[fx.Node, Spread, Spread]
"""The state; how rows of the new state spread to it; how the product's other side does."""


def own_products(model: Model) -> list[Update]:
    """The updates of a program in stages (`plan.stages`) that `apply.halves` can compute."""
    products = [s for s in model.storage.steps if model.kinds[s] == "gemm"]
    return [u for u in (_update(model, p) for p in products if _of_two(model.storage, p)) if u]


def _of_two(storage: Storage, step: fx.Node) -> bool:
    made = {storage.base[o.node] for o in storage.program.ops[step].operands}
    return sum(base.op == "call_function" for base in made) == 2


def _update(model: Model, product: fx.Node) -> Update | None:
    storage = model.storage
    first = storage.steps.index(product) + 1
    for seed in storage.steps[first : first + REACH]:
        for state in storage.program.ops[seed].operands:
            if model.infos.get(state.node) != model.infos[seed]:
                continue
            for axis in _split(storage, seed):
                outer = _grown(storage, seed, axis, product)
                if outer and _only(outer, state.node) and (side := _read_whole(outer, product)):
                    for other in _split(storage, product):
                        inner = _grown(storage, product, other, side)
                        if inner and _only(inner, state.node, _dim(outer, state.node)):
                            return state.node, outer, inner
    return None


def _read_whole(spread: Spread, product: fx.Node) -> fx.Node | None:
    """The tensor that the product, and nothing else in the spread, reads whole."""
    asked = spread.pending.items()
    found = [b for b, a in asked if [(r.reader, r.need) for _, r in a] == [(product, None)]]
    return found[0] if len(found) == 1 else None


def _split(storage: Storage, step: fx.Node) -> list[int]:
    axes = enumerate(storage.flows[step].axes)
    return [k for k, a in axes if a.join is Join.CONCAT and a.size >= 2]


def _grown(storage: Storage, seed: fx.Node, axis: int, reach: fx.Node) -> Spread | None:
    """A part of `seed` with all that it alone is made from; None if `reach` is not of it."""
    spread = Spread(storage, seed, axis)
    spread.grow_alone(REACH)
    return spread if reach in spread.cuts else None


def _only(spread: Spread, state: fx.Node, dim: int | None = None) -> bool:
    """Whether rows of the state are read for as many rows of the seed, along one dim of a fixed
    size (`dim`, if given), and not through a view."""
    asked = spread.pending.get(state, [])
    needs = {read.need for _, read in asked}
    if not all(node is state for node, _ in asked) or len(needs) != 1:
        return False
    (need,) = needs
    if need is None or need != span(need.dim) or dim not in (None, need.dim):
        return False
    return spread.storage.program.infos[state][0].shape[need.dim] == spread.size


def _dim(spread: Spread, state: fx.Node) -> int:
    need = spread.pending[state][0][1].need
    assert need is not None
    return need.dim
