"""Push slices of a projection back to its parameters, so that the parts can be made apart.

    before   y = linear(x, W, b); q = y[…, 0:n]; k = y[…, n:2n]; …       (fused Q, K, V)
    after    q = linear(x, W[0:n], b[0:n]); k = linear(x, W[n:2n], b[n:2n]); …

Also where a view first splits y's last dim, or a transpose moves it:

    view(y, [b, s, 3, h, d]).permute(2, 0, 3, 1, 4)[i]

Side conditions: y is read by such slices and selects only, over known ranges, none of which
overlap; each part, and the number of rows of x, is large enough for a matrix product to run at
speed. W[…] and b[…] are views. Claim: the same sums in the same order; equal.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import attrs
import torch
from torch import fx

from quire.capture.program import Size, evaluate
from quire.rewrite.draft import VIEWS, Draft, Refused

aten: Any = torch.ops.aten


MIN_ROWS = 32
MIN_WIDTH = 32
"""Below these a matrix product starves, and one product of all parts is the faster way."""


@attrs.frozen
class Cut:
    """One reader of a projection: rows `[start, end)` of the weight, and how `node` follows from
    the smaller projection: a view, a permutation, then a select where a dim of size 1 goes."""

    node: fx.Node
    start: int
    end: int
    shape: tuple[Size, ...]
    order: tuple[int, ...]
    drop: int | None


def push_slices(draft: Draft, notes: list[str] | None = None) -> None:
    """See this module's text. A line for each projection goes to `notes`."""
    for node in draft.nodes(aten.linear.default):
        cuts = _cuts(draft, node)
        if cuts is None or len(cuts) < 2 or _starves(draft, node, cuts):
            continue
        try:
            made = [(cut, _part(draft, node, cut)) for cut in cuts]
        except Refused:
            continue
        for cut, part in made:
            draft.replace(cut.node, part)
        if notes is not None:
            notes.append(f"{draft.module(node)} in {len(cuts)} parts")


def _starves(draft: Draft, linear: fx.Node, cuts: list[Cut]) -> bool:
    rows = math.prod(evaluate(s, draft.program.hints) for s in draft.shape(linear)[:-1])
    return rows < MIN_ROWS or any(c.end - c.start < MIN_WIDTH for c in cuts)


def _part(draft: Draft, linear: fx.Node, cut: Cut) -> fx.Node:
    at = cut.node
    x, *parameters = [a for a in linear.args if a is not None]
    rows = [
        draft.call(aten.slice.Tensor, (p, 0, cut.start, cut.end), at=linear) for p in parameters
    ]
    part = draft.call(aten.linear.default, (x, *rows), at=linear)
    if cut.shape != draft.shape(part):
        part = draft.call(aten.view.default, (part, draft.size_arguments(cut.shape)), at=at)
    if cut.order != tuple(range(len(cut.order))):
        part = draft.call(aten.permute.default, (part, list(cut.order)), at=at)
    if cut.drop is not None:
        part = draft.call(aten.select.int, (part, cut.drop, 0), at=at)
    return part


def _cuts(draft: Draft, linear: fx.Node) -> list[Cut] | None:
    """All readers of `linear`, if they are slices that do not overlap."""
    shape = draft.shape(linear)
    width = shape[-1]
    if not isinstance(width, int):
        return None
    rows: Any = 1
    node, dim = linear, len(shape) - 1
    order = tuple(range(len(shape)))
    user = next(iter(node.users), None)
    if len(node.users) == 1 and user is not None and user.target in VIEWS:
        split = draft.shape(user)
        if split[:dim] != shape[:dim] or not isinstance(split[dim], int):
            return None
        node, shape, rows = user, split, math.prod(split[dim + 1 :])
        order = tuple(range(len(shape)))
    while len(node.users) == 1 and (moved := _moved(draft, next(iter(node.users)))) is not None:
        node, order = next(iter(node.users)), tuple(order[d] for d in moved)
    place = order.index(dim)
    cuts = []
    for reader in node.users:
        found = _range(draft, reader, place)
        if found is None:
            return None
        start, end, dropped = found
        part = (*shape[:dim], end - start, *shape[dim + 1 :])
        cuts.append(Cut(reader, start * rows, end * rows, part, order, place if dropped else None))
    cuts.sort(key=lambda c: c.start)
    apart = all(a.end <= b.start for a, b in itertools.pairwise(cuts))
    return cuts if apart else None


def _moved(draft: Draft, node: fx.Node) -> list[int] | None:
    """The order of dims that a permute or transpose gives."""
    ndim = len(draft.shape(node)) if draft.is_tensor(node) else 0
    if node.target is aten.permute.default:
        return [int(d) % ndim for d in node.args[1]]  # type: ignore[union-attr]
    if node.target is aten.transpose.int:
        order = list(range(ndim))
        a, b = (int(d) % ndim for d in node.args[1:3])  # type: ignore[arg-type]
        order[a], order[b] = b, a
        return order
    return None


def _range(draft: Draft, node: fx.Node, dim: int) -> tuple[int, int, bool] | None:
    """`(start, end, dropped)` of a slice or select along `dim` in steps of one."""
    if node.target not in (aten.slice.Tensor, aten.select.int) or not draft.is_tensor(node):
        return None
    source: Any = node.args[0]
    shape = draft.shape(source)
    arguments: list[Any] = [*node.args[1:]]
    if node.kwargs or not all(a is None or isinstance(a, int) for a in arguments):
        return None
    size = shape[dim]
    if not isinstance(size, int) or (arguments[0] if arguments else 0) % len(shape) != dim:
        return None
    if node.target is aten.select.int:
        at = arguments[1] % size
        return at, at + 1, True
    start, end, step = [*arguments[1:], *[None, None, 1][len(arguments) - 1 :]]
    start, end, step = slice(start, end, step).indices(size)
    return (start, end, False) if step == 1 and start < end else None
