"""Epochs of equal form are proved once: the layers of a model.

An epoch that ran is kept with the contents it read, the nodes it was found to hold and the shape of
the graph behind each. A later one of the same functions, whose buffers are of the same form, whose
contents are the same with tensors' names exchanged one for one, and whose nodes have the same graph
behind them, leaves the same with those names exchanged. What depends on the place (bytes of the
arena, what was lost) is checked each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from quire.verify import term as t
from quire.verify.kernel.content import Attended
from quire.verify.kernel.evaluate import Pointer
from quire.verify.kernel.script import CallOf
from quire.verify.kernel.source import Apply, Let, Number, Statement
from quire.verify.kernel.state import Found, Key, State, behind
from quire.verify.poly import REBUILD, ZERO, Poly, atom_of, bound, poly
from quire.verify.term.core import BINDERS, RANGES, REMAKE, Term, flat, make
from quire.verify.value import Value

Names = dict[str, str]


@attrs.frozen(eq=False)
class Match:
    """A buffer that was asked for in the graph: the node's place among the hints, how far back
    the tensor is known from and by which name, and the graph behind it."""

    where: tuple[Any, ...]
    place: int
    back: int
    name: str
    rows: tuple[Any, ...]


@attrs.frozen(eq=False)
class Record:
    entered: tuple[tuple[int, Any], ...]
    order: tuple[str, ...]
    matches: tuple[Match, ...]
    left: tuple[tuple[int, Any], ...]


class Again:
    """The epochs that ran so far."""

    def __init__(self, state: State, code: Mapping[str, Sequence[Statement]]) -> None:
        self.state = state
        self.slots = {name: _slots(body) for name, body in code.items()}
        self.known: dict[Any, list[Record]] = {}

    def form(self, phases: Sequence[CallOf]) -> tuple[Any, list[Pointer]]:
        """What epochs of one form share, and the pointers of this one."""
        pointers = [
            Pointer(c.base + k, 0, kind, "") for c in phases for k, kind in self.slots[c.function]
        ]
        first: dict[Key, int] = {}
        rows = []
        for k, p in enumerate(pointers):
            key, b = self.state.key(p), self.state.buffer(p)
            rows.append((first.setdefault(key, k), b.role, b.shape, b.strides, b.dtype, b.order,
                         b.scheme, p.kind))  # fmt: skip
        return (tuple(c.function for c in phases), tuple(rows)), pointers

    # --- keeping -----------------------------------------------------------------------------

    def keep(self, form: Any, pointers: Sequence[Pointer], epoch: Any, first_call: int) -> None:
        """Remember an epoch that ran, if what it read and found can be put in another's place."""
        places: dict[Key, int] = {}
        for k, p in enumerate(pointers):
            places.setdefault(self.state.key(p), k)
        entered = tuple((places[k], v) for k, v in epoch.entered.items())
        left = tuple((places[k], epoch.settled[k]) for k in epoch.written if k[0] != "scratch")
        order = {n: k for k, n in enumerate(_names([v for _, v in entered]))}
        matches = []
        for asked in self.state.asked:
            where = (
                ("scratch", -asked.key[1][0] - first_call, asked.key[1][1])
                if asked.key[0] == "scratch"
                else ("slot", places[asked.key])
            )
            rows = _numbered(asked.rows, order)
            matches.append(Match(where, asked.place, asked.back, asked.name, rows))
            order.setdefault(asked.name, len(order))
        record = Record(entered, tuple(order), tuple(matches), left)
        self.known.setdefault(form, []).append(record)

    # --- doing again -------------------------------------------------------------------------

    def done(self, form: Any, pointers: Sequence[Pointer], first_call: int) -> bool:
        """Whether the epoch is one already proved with other names; then its contents are left."""
        for record in self.known.get(form, ()):
            names = self._names(record, pointers)
            if names is None:
                continue
            found = self._nodes(record, names, pointers, first_call)
            if found is None:
                continue
            self._leave(record, found, pointers)
            return True
        return False

    def _names(self, record: Record, pointers: Sequence[Pointer]) -> Names | None:
        """Which name stands for which in what is read."""
        names: Names = {}
        pairs = [(old, self.state.before(pointers[k])) for k, old in record.entered]
        for old, new in pairs:
            if isinstance(old, Attended) is not isinstance(new, Attended):
                return None
            a, b = _plain(old), _plain(new)
            if (a is None) != (b is None):
                return None
            if a is not None and b is not None and names.setdefault(a, b) != b:
                return None
        for old, new in pairs:
            more = [[n for n in _names([x]) if n not in skip] for x, skip in
                    ((old, names), (new, set(names.values())))]  # fmt: skip
            if len(more[0]) != len(more[1]) or len(more[0]) > 1:
                return None
            names.update(zip(more[0], more[1], strict=True))
        if len(set(names.values())) != len(names):
            return None
        if any(RANGES.get(a) != RANGES.get(b) for a, b in names.items()):
            return None
        same = all(_equal(_renamed(old, names), new) for old, new in pairs)
        return names if same else None

    def _nodes(
        self, record: Record, names: Names, pointers: Sequence[Pointer], first_call: int
    ) -> tuple[Names, list[tuple[Key, Any, Any]]] | None:
        """The nodes that take the places of those found; None if the graph differs."""
        graph = self.state.graph
        order = {names[n]: k for k, n in enumerate(record.order[: len(names)])}
        given = dict(graph.given)
        found = []
        for m in record.matches:
            key: Key = (
                ("scratch", (-(m.where[1] + first_call), m.where[2]))
                if m.where[0] == "scratch"
                else self.state.key(pointers[m.where[1]])
            )
            hints = list(self.state.hints(key))
            if m.place >= len(hints):
                return None
            node = first = hints[m.place]
            raw = behind(node, graph.original, given)
            if _numbered(raw, order) != m.rows:
                return None
            for _ in range(m.back):
                first = graph.original.needs(first)[0]
            found.append((key, node, first))
            if first not in graph.original.inputs:
                given.setdefault(first, graph.original.cut(first))
            order.setdefault(graph.original.inputs.get(first, first.name), len(order))
        if len(order) != len(record.order):
            return None
        full = dict(zip(record.order, order, strict=True))
        if any(RANGES.get(a) != RANGES.get(b) for a, b in full.items()):
            return None
        return full, found

    def _leave(self, record: Record, found: Any, pointers: Sequence[Pointer]) -> None:
        names, nodes = found
        for key, node, first in nodes:
            self.state.graph.hold(first)
            self.state.found.append(Found(self.state.name(key), node.name))
        wrote = {self.state.key(pointers[k]): _renamed(v, names) for k, v in record.left}
        read = {self.state.key(pointers[k]) for k, _ in record.entered}
        self.state.take(wrote, read)


def _numbered(rows: Sequence[Any], order: dict[str, int]) -> tuple[Any, ...]:
    """Rows with tensors' names replaced by their numbers."""
    return tuple(
        ("leaf", order.setdefault(r[1], len(order)), *r[2:]) if r[0] == "leaf" else r for r in rows
    )


def _slots(body: Sequence[Statement]) -> list[tuple[int, str]]:
    """The pointers that a function declares, and their types."""
    return [
        (int(s.value.args[0].value), s.value.kind)
        for s in body
        if isinstance(s, Let) and isinstance(s.value, Apply) and s.value.what == "q.array"
        and isinstance(s.value.args[0], Number)
    ]  # fmt: skip


def _plain(x: Any) -> str | None:
    """The name, of a content that shows one tensor's elements."""
    if isinstance(x, Attended):
        return None
    scalar = x.scalar
    if isinstance(scalar, Poly):
        try:
            scalar = atom_of(scalar).args[0]
        except (ValueError, IndexError):
            return None
    return scalar.args[0] if getattr(scalar, "op", "") in ("read", "bread") else None


def _scalars(x: Any) -> list[Any]:
    return [x.lo, x.hi, x.scalar] if isinstance(x, Attended) else [x.scalar]


def _names(contents: Sequence[Any]) -> list[str]:
    """The tensors that contents speak of, in order of appearance."""
    found: dict[str, None] = {}
    seen: set[Any] = set()
    stack = [s for c in reversed(contents) for s in reversed(_scalars(c))]
    while stack:
        top = stack.pop()
        if top in seen:
            continue
        seen.add(top)
        if isinstance(top, Poly):
            stack += flat([a for x in top.free for a in x.args])
            continue
        if top.op in ("read", "bread"):
            found[top.args[0]] = None
        stack += flat(top.args)
    return list(found)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Attended):
        return (
            (a.shape, a.block, a.width) == (b.shape, b.block, b.width)
            and all(x is y for x, y in zip(_scalars(a), _scalars(b), strict=True))
        )  # fmt: skip
    return a.shape == b.shape and a.dtype == b.dtype and a.scalar is b.scalar


def _renamed(x: Any, names: Names) -> Any:
    if isinstance(x, Attended):
        lo, hi, scalar = (renamed(s, names) for s in _scalars(x))
        return attrs.evolve(x, lo=lo, hi=hi, scalar=scalar)
    return Value(x.shape, x.dtype, renamed(x.scalar, names))


def renamed(x: Any, names: Names, memo: dict[Any, Any] | None = None) -> Any:
    """A term or polynomial with tensors' names exchanged, in normal form again."""
    memo = {} if memo is None else memo
    found = memo.get(x)
    if found is None:
        found = _poly(x, names, memo) if isinstance(x, Poly) else _term(x, names, memo)
        memo[x] = found
    return found


def _poly(p: Poly, names: Names, memo: dict[Any, Any]) -> Poly:
    total = ZERO
    for mono, c in p.terms:
        item = poly(c)
        for x in mono:
            if not x.args:
                item = item * poly(x)
            elif x.kind == "val":
                item = item * t.int_of(renamed(x.args[0], names, memo))
            else:
                item = item * _calls(x, names, memo)
        total = total + item
    return total


def _calls(x: Any, names: Names, memo: dict[Any, Any]) -> Poly:
    class _Renamed:
        args = tuple(renamed(a, names, memo) for a in x.args)

    return REBUILD[x.kind](_Renamed, {})


def _term(x: Term, names: Names, memo: dict[Any, Any]) -> Any:
    def deep(a: Any) -> Any:
        if isinstance(a, Term | Poly):
            return renamed(a, names, memo)
        return tuple(deep(y) for y in a) if isinstance(a, tuple) else a

    if x.op in ("read", "bread"):
        return make(x.op, names.get(x.args[0], x.args[0]), deep(x.args[1]))
    args = [deep(a) for a in x.args]
    if x.op in BINDERS:
        size, body, *more = args
        old, new = bound(x.height, x.args[0]), bound(x.height, size)
        if old is not new:
            body = t.substitute(body, {atom_of(old): new})
        return REMAKE[x.op](size, body, new, *more)
    return REMAKE[x.op](*args) if x.op in REMAKE else make(x.op, *args)
