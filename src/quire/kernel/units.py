"""Which elements of the nests of a phase must be computed by one worker.

A nest that reads what another nest of the same phase writes needs no barrier if the same worker
writes and reads. Elements tied by such reads form components; a phase is shared out by whole
components. Found by evaluating the index expressions over all elements (sizes but the batch are
known numbers), so that it holds for any indexing, and described again in closed form:

    unit (o, r) of a segment holds, of each nest, the elements
    base + o·outer_step + r·inner_step + offset      for each of its offsets
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from quire.kernel.analysis import free
from quire.kernel.ir import (
    AnyNest,
    Call,
    Expr,
    Length,
    Nest,
    Num,
    Read,
    TopK,
    Var,
    children,
    expressions,
    reads,
)

LIMIT = 1 << 23
"""Pairs of elements looked at for one read, at most."""


@attrs.frozen
class Share:
    """One nest's elements in a segment. `axes` are the dims they are counted over, row-major;
    the nest's other axes are run through whole in every unit."""

    nest: AnyNest
    axes: tuple[Var, ...]
    base: int
    outer_step: int
    inner_step: int
    offsets: tuple[int, ...]


@attrs.frozen
class Segment:
    """`outer` × `inner` units of equal form; `cost` is the work of one."""

    outer: int
    inner: int
    cost: int
    shares: tuple[Share, ...]


class NotLocalError(Exception):
    """An element needs what other workers compute in the same phase."""


@attrs.define
class _Member:
    nest: AnyNest
    axes: tuple[Var, ...]
    labels: Any


class Units:
    """The nests of one phase and the components of their elements."""

    def __init__(self) -> None:
        self.members: list[_Member] = []
        self._by_buffer: dict[str, _Member] = {}
        self._count = 0

    def start(self, nest: AnyNest) -> None:
        """Add a nest that reads nothing of this phase."""
        axes = element_axes(nest)
        size = _numel(axes)
        labels = np.arange(self._count, self._count + size)
        self._count += size
        self._add(_Member(nest, axes, labels))

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
        size, inner = _numel(axes), _numel(over)
        if size * inner > LIMIT:
            raise NotLocalError
        grid = _grid((*axes, *over))
        xs, ls = [], []
        for read, taken in _taken(nest, grid):
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
        self._add(_Member(nest, axes, own))

    def reads_any(self, nest: AnyNest) -> bool:
        return any(r.buffer.name in self._by_buffer for r in reads(nest))

    def _add(self, member: _Member) -> None:
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
            found.extend(_segments(members, ids, group, row))
        order = {id(m.nest): k for k, m in enumerate(members)}
        found.sort(key=lambda s: (order[id(s.shares[0].nest)], s.shares[0].base))
        return tuple(found)


def element_axes(nest: AnyNest) -> tuple[Var, ...]:
    """The axes of a nest that workers may share out: of known size, and for a contraction with
    weights those that the weights have."""
    if isinstance(nest, TopK):
        axes = nest.axes
    else:
        axes = tuple(a for a in nest.axes if a != getattr(nest, "over", None))
    known = tuple(a for a in axes if isinstance(a.size, int))
    weight = weights_of(nest)
    if weight is not None:
        own = {v for e in weight.at for v in _vars(e)}
        if any(a in own for a in known):
            return tuple(a for a in known if a in own)
    return known


def weights_of(nest: AnyNest) -> Read | None:
    """The weights that a contraction streams, if it has any."""
    if not isinstance(nest, Nest) or nest.fold != "sum":
        return None
    match nest.value:
        case Call("mul", (Read() as a, Read() as b)):
            for side in (b, a):
                if side.buffer.role == "state" and set(nest.over) & set(_vars_of(side)):
                    return side
    return None


def cost(nest: AnyNest, axes: Sequence[Var]) -> int:
    """Work per element of `axes`, in multiply-adds or the like, for one row of a batch."""
    inner = 1
    rest = [a for a in nest.axes if a not in axes]
    over = getattr(nest, "over", ())
    for v in (*rest, *(over if isinstance(over, tuple) else (over,))):
        inner *= v.size if isinstance(v.size, int) else 1
    return max(1, inner)


def _vars(e: Expr) -> set[Var]:
    return free(e)


def _vars_of(read: Read) -> set[Var]:
    return {v for e in read.at for v in _vars(e)}


def _numel(axes: Sequence[Var]) -> int:
    total = 1
    for a in axes:
        total *= int(a.size)
    return total


def _grid(axes: Sequence[Var]) -> dict[str, Any]:
    """The value of each variable at every element, row-major."""
    flat = np.arange(_numel(axes))
    found: dict[str, Any] = {}
    for a in reversed(axes):
        found[a.name] = flat % int(a.size)
        flat = flat // int(a.size)
    return found


def _element(read: Read, member: _Member, grid: dict[str, Any], size: int) -> Any:
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


def _taken(nest: AnyNest, grid: dict[str, Any]) -> list[tuple[Read, Any]]:
    """The reads of a nest, each with the elements at which it is reached (None: all)."""
    found: list[tuple[Read, Any]] = []
    seen: set[tuple[Expr, tuple[tuple[Expr, bool], ...]]] = set()
    stack: list[tuple[Expr, tuple[tuple[Expr, bool], ...]]] = [(e, ()) for e in expressions(nest)]
    while stack:
        e, path = stack.pop()
        if (e, path) in seen:
            continue
        seen.add((e, path))
        if isinstance(e, Read):
            found.append((e, _where(path, grid)))
        if isinstance(e, Call) and e.op == "select":
            test, a, b = e.args
            stack += [(test, path), (a, (*path, (test, True))), (b, (*path, (test, False)))]
        else:
            stack += [(x, path) for x in children(e)]
    return found


def _where(path: tuple[tuple[Expr, bool], ...], grid: dict[str, Any]) -> Any:
    result = None
    for test, holds in path:
        try:
            value = np.asarray(evaluate(test, grid)).astype(bool) == holds
        except NotLocalError:
            continue
        if value.ndim:
            result = value if result is None else result & value
    return result


def evaluate(e: Expr, grid: dict[str, Any]) -> Any:
    """An integer expression at every element; runtime lengths and their variables count as 0."""
    match e:
        case Num(value):
            return int(value)
        case Var(name, _):
            return grid.get(name, 0)
        case Length():
            return 1
        case Read():
            raise NotLocalError
        case Call(op, args):
            if op == "select":
                test, a, b = (evaluate(x, grid) for x in args)
                return np.where(test, a, b)
            a = [evaluate(x, grid) for x in args]
            match op:
                case "add":
                    return sum(a[1:], a[0])
                case "mul":
                    return a[0] * a[1]
                case "idiv":
                    return a[0] // a[1]
                case "imod":
                    return a[0] % a[1]
                case "lt":
                    return a[0] < a[1]
                case "le":
                    return a[0] <= a[1]
                case "eq":
                    return a[0] == a[1]
                case "ne":
                    return a[0] != a[1]
                case "min":
                    return np.minimum(a[0], a[1])
                case "max":
                    return np.maximum(a[0], a[1])
                case "and":
                    return np.logical_and(a[0], a[1])
                case "neg":
                    return -a[0]
    raise NotLocalError


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


def _narrow(member: _Member) -> _Member:
    """`member` without axes along which all elements lie in one component."""
    shape = tuple(int(a.size) for a in member.axes)
    labels = member.labels.reshape(shape)
    axes = list(member.axes)
    if weights_of(member.nest) is None:
        for k in range(len(axes) - 1, -1, -1):
            first = np.take(labels, [0], axis=k)
            if (labels == first).all() and shape[k] > 1:
                labels = np.take(labels, 0, axis=k)
                axes.pop(k)
    return _Member(member.nest, tuple(axes), labels.reshape(-1))


def _segments(members: list[_Member], ids: list[Any], group: Any, counts: Any) -> list[Segment]:
    """The units `group`, each with `counts[m]` elements of member m, as segments."""
    present = [k for k, n in enumerate(counts) if n]
    place = np.full(int(max(i.max() for i in ids)) + 1, -1)
    place[group] = np.arange(len(group))
    tables = []
    for k in present:
        mine = np.flatnonzero(place[ids[k]] >= 0)
        order = np.lexsort((mine, place[ids[k][mine]]))
        tables.append(mine[order].reshape(len(group), int(counts[k])))
    bases = np.stack([t[:, 0] for t in tables], axis=1)
    forms = np.concatenate([t - t[:, :1] for t in tables], axis=1)
    _, form = np.unique(forms, axis=0, return_inverse=True)
    form = form.reshape(-1)
    found: list[Segment] = []
    for f in range(form.max() + 1):
        rows = np.flatnonzero(form == f)
        rows = rows[np.argsort(bases[rows, 0], kind="stable")]
        offsets = [tuple(int(v) for v in t[rows[0]] - t[rows[0], 0]) for t in tables]
        for first, outer, inner, big, small in _runs(bases[rows]):
            shares = tuple(
                Share(
                    members[k].nest,
                    members[k].axes,
                    int(first[n]),
                    int(big[n]),
                    int(small[n]),
                    offsets[n],
                )
                for n, k in enumerate(present)
            )
            work = sum(len(s.offsets) * cost(s.nest, s.axes) for s in shares)
            found.append(Segment(outer, inner, work, shares))
    return found


def _runs(bases: Any) -> list[tuple[Any, int, int, Any, Any]]:
    """Rows of bases as `first + o·big + r·small`, in as few pieces as a greedy walk finds."""
    found: list[tuple[Any, int, int, Any, Any]] = []
    n, width = bases.shape
    zero = np.zeros(width, dtype=np.int64)
    steps = np.diff(bases, axis=0)
    start = 0
    while start < n:
        inner = 1
        small = zero
        if start + 1 < n:
            small = steps[start]
            while start + inner < n and (steps[start + inner - 1] == small).all():
                inner += 1
        outer, big = 1, zero
        after = start + inner
        if after + inner <= n:
            big = bases[after] - bases[start]
            block = bases[start : start + inner]
            while (
                start + (outer + 1) * inner <= n
                and (
                    bases[start + outer * inner : start + (outer + 1) * inner]
                    == block + outer * big
                ).all()
            ):
                outer += 1
        if outer == 1:
            big = zero
        found.append((bases[start], outer, inner, big, small))
        start += outer * inner
    return found
