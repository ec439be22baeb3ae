"""Which elements of the nests of a phase must be computed by one worker.

A nest that reads what another nest of the same phase writes needs no barrier if the same worker
writes and reads. Elements tied by such reads form components; a phase is shared out by whole
components. Found by evaluating the index expressions over all elements (sizes but the batch are
known numbers), so that it holds for any indexing, and described again in closed form:

    unit (o, r) of a segment holds, of each nest, the elements
    base + o·outer_step + r·inner_step + offset      for each of its offsets
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quire.kernel.analysis import free, weights_of
from quire.kernel.evaluate import NotLocalError, evaluate, grid_of, numel, taken_reads
from quire.kernel.ir import (
    AnyNest,
    Merge,
    Nest,
    Read,
    TopK,
    Var,
    reads,
)
from quire.kernel.segments import Member, Segment, cost, segments_of

LIMIT = 1 << 23
"""Pairs of elements looked at for one read, at most."""


class Units:
    """The nests of one phase and the components of their elements."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self._by_buffer: dict[str, Member] = {}
        self._count = 0

    def start(self, nest: AnyNest) -> None:
        """Add a nest that reads nothing of this phase."""
        axes = element_axes(nest)
        size = numel(axes)
        labels = np.arange(self._count, self._count + size)
        self._count += size
        self._add(Member(nest, axes, labels))

    def join(self, nest: AnyNest, share: float) -> None:
        """Add a nest that reads nests of this phase.

        Raises NotLocalError if that would tie more than `share` of the phase's work into one unit.
        """
        axes = element_axes(nest)
        over = tuple(v for v in getattr(nest, "over", ()) or ()) if isinstance(nest, Nest) else ()
        if isinstance(nest, TopK):
            over = (nest.over,)
        if any(not isinstance(v.size, int) for v in over):
            raise NotLocalError
        size, inner = numel(axes), numel(over)
        if size * inner > LIMIT:
            raise NotLocalError
        grid = grid_of((*axes, *over))
        xs, ls = [], []
        for read, taken in taken_reads(nest, grid):
            member = self._by_buffer.get(read.buffer.name)
            if member is None:
                continue
            x = np.repeat(np.arange(size), inner)
            ids = _element(read, member, grid, size * inner)
            if taken is not None:
                x, ids = x[taken], ids[taken]
            xs.append(x)
            ls.append(member.labels[ids])
        x, label = np.concatenate(xs), np.concatenate(ls)
        if len(np.unique(x)) < size:
            raise NotLocalError
        parent = _merged(x, label, size, self._count)
        own = np.empty(size, dtype=np.int64)
        own[x] = parent[label]
        weights = self._weights(parent)
        if weights.max() > share * weights.sum():
            raise NotLocalError
        for member in self.members:
            member.labels = parent[member.labels]
        self._add(Member(nest, axes, own))

    def reads_any(self, nest: AnyNest) -> bool:
        return any(r.buffer.name in self._by_buffer for r in reads(nest))

    def _add(self, member: Member) -> None:
        self.members.append(member)
        for buffer in member.nest.outs:
            self._by_buffer[buffer.name] = member

    def _weights(self, parent: Any) -> Any:
        total = np.zeros(self._count, dtype=np.int64)
        for member in self.members:
            np.add.at(total, parent[member.labels], cost(member.nest, member.axes))
        return total

    def segments(self) -> tuple[Segment, ...]:
        found: list[Segment] = []
        if not self.members:
            return ()
        members = [_narrow(m) for m in self.members]
        used, flat = np.unique(np.concatenate([m.labels for m in members]), return_inverse=True)
        ids, at = [], 0
        for m in members:
            ids.append(flat[at : at + len(m.labels)])
            at += len(m.labels)
        counts = np.stack([np.bincount(i, minlength=len(used)) for i in ids], axis=1)
        kinds, which = np.unique(counts, axis=0, return_inverse=True)
        which = which.reshape(-1)
        for k, row in enumerate(kinds):
            group = np.flatnonzero(which == k)
            found.extend(segments_of(members, ids, group, row))
        order = {id(m.nest): k for k, m in enumerate(members)}
        found.sort(key=lambda s: (order[id(s.shares[0].nest)], s.shares[0].base))
        return tuple(found)


def element_axes(nest: AnyNest) -> tuple[Var, ...]:
    """The axes of a nest that workers may share out: of known size, and for a contraction with
    weights those that the weights have."""
    if isinstance(nest, TopK):
        axes = nest.axes
    elif isinstance(nest, Merge):
        axes = nest.rows  # a row is merged as a whole
    else:
        axes = tuple(a for a in nest.axes if a != getattr(nest, "over", None))
    known = tuple(a for a in axes if isinstance(a.size, int))
    weight = weights_of(nest)
    if weight is not None:
        own = {v for e in weight.at for v in free(e)}
        if any(a in own for a in known):
            return tuple(a for a in known if a in own)
    return known


def _element(read: Read, member: Member, grid: dict[str, Any], size: int) -> Any:
    """Which element of `member` each element of a grid reads; those of a branch not taken are
    pulled into range."""
    nest = member.nest
    places = nest.at if isinstance(nest, Nest) else nest.axes
    at = {p.name: k for k, p in enumerate(places) if isinstance(p, Var)}
    total = np.zeros(size, dtype=np.int64)
    for axis in member.axes:
        if axis.name not in at:
            raise NotLocalError
        value = evaluate(read.at[at[axis.name]], grid)
        total = total * int(axis.size) + np.clip(value, 0, int(axis.size) - 1)
    return total


def _merged(x: Any, label: Any, size: int, count: int) -> Any:
    """The smallest label of each label's component, where all labels of one x are tied."""
    parent = np.arange(count)
    while True:
        least = np.full(size, count)
        np.minimum.at(least, x, parent[label])
        new = parent.copy()
        np.minimum.at(new, parent[label], least[x])
        while not np.array_equal(new, new[new]):
            new = new[new]
        new = new[parent]
        if np.array_equal(new, parent):
            return parent
        parent = new


def _narrow(member: Member) -> Member:
    """`member` without axes along which all elements lie in one component."""
    shape = tuple(int(a.size) for a in member.axes)
    labels = member.labels.reshape(shape)
    axes = list(member.axes)
    if weights_of(member.nest) is None and labels.size:
        for k in range(len(axes) - 1, -1, -1):
            first = np.take(labels, [0], axis=k)
            if (labels == first).all() and shape[k] > 1:
                labels = np.take(labels, 0, axis=k)
                axes.pop(k)
    return Member(member.nest, tuple(axes), labels.reshape(-1))
