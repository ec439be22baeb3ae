"""Loops over parts, by induction on the end of what was done.

The body is run for the first part `[start, e)`, of any length: what it leaves behind is the
candidate for the state after parts that end at `e`, `I(e)`. Then it is run on any later part
`[a, b)` from the state `I(a)`, and what it leaves must be `I(b)`. After the loop the state is
`I(stop)`. Nothing is said of how many parts there are, or of what size.

Memory whose content does not follow this law holds nothing afterwards, nor at the start of a
later part: a body that reads it before writing it reads what is undefined.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quire.verify import term as t
from quire.verify.decide import minimum, prove
from quire.verify.laws import CLAIMS
from quire.verify.memory import ALIVE, Content, Held, Storage, Write, covered, looked_up, writes
from quire.verify.number import plain, wrap
from quire.verify.poly import Atom, Poly, atom_of, index, variable
from quire.verify.same import agree, same
from quire.verify.term import Term, substitute
from quire.verify.value import NotShown, Value, indices, kind_of, require

LATE = Held(None, "left over from an earlier part")


def part_loop(start: Any, stop: Any = None, step: Any = 1) -> Iterator[Any]:
    """`range`, as emitted text uses it to go over parts."""
    start, stop = (0, start) if stop is None else (start, stop)
    lo, hi, by = plain(start), plain(stop), plain(step)
    if lo.constant is not None and hi.constant is not None and by.constant is not None:
        yield from range(lo.constant, hi.constant, by.constant)
        return
    require(prove(by - 1, why="a step forward"), f"range by {by}")
    if prove(lo - hi, why="no parts"):
        return
    require(prove(hi - lo - 1, why="there is a part"), f"range from {lo} to {hi} may be empty")
    yield from _Loop(lo, hi, by).run()


class _Loop:
    def __init__(self, start: Poly, stop: Poly, step: Poly) -> None:
        self.start, self.stop, self.step = start, stop, step
        self.before = list(ALIVE[-1])
        self.entry = {s: s.content for s in self.before}
        self.end = minimum(start + step, stop)

    def run(self) -> Iterator[Any]:
        made = len(ALIVE[-1])
        yield wrap(self.start)
        changed = [s for s in self.before if s.content is not self.entry[s]]
        first = {s: s.content for s in changed}
        self._forget(made)
        if prove(self.start + self.step - self.stop, why="one part"):
            return
        handle = self._handle()
        a = variable("a", [self.start + 1], [self.stop - 1])
        b = minimum(a + self.step, self.stop)
        scratch: set[Storage] = set()
        for _ in range(3):
            states = {
                s: _at(first[s], self.entry[s], handle, self._offset(handle, a)) for s in changed
            }
            for s in changed:
                s.content = LATE if s in scratch else states[s]
            yield wrap(a)
            self._forget(made)
            for s in self.before:
                if s not in first and s.content is not self.entry[s]:
                    raise NotShown(f"{s}: written in later parts only")
            failed = set()
            for s in changed:
                if s in scratch:
                    continue
                want = _at(first[s], self.entry[s], handle, self._offset(handle, b))
                if not _equal(s, s.content, want, self.entry[s], states[s]):
                    failed.add(s)
            if not failed:
                break
            scratch |= failed
        for s in changed:
            whole = self._offset(handle, self.stop)
            s.content = LATE if s in scratch else _at(first[s], self.entry[s], handle, whole)

    def _forget(self, made: int) -> None:
        """What a part made in memory of its own is gone in the next."""
        for s in ALIVE[-1][made:]:
            s.content = Held(None, "made in an earlier part")
        del ALIVE[-1][made:]

    def _handle(self) -> Atom:
        """The atom that says where the first part ends."""
        for p in (self.end, self.end - self.start):
            if len(p.terms) == 1 and len(p.terms[0][0]) == 1 and p.terms[0][1] == 1:
                return atom_of(p)
        raise NotShown(f"parts of the fixed size {self.step}")

    def _offset(self, handle: Atom, end: Poly) -> Poly:
        """What the handle is when the first part ends at `end`."""
        return end if self.end.terms == (((handle,), 1),) else end - self.start


def _at(content: Content, entry: Content, handle: Atom, to: Poly) -> Content:
    """`content` with the handle replaced, in all writes since `entry`."""
    if not isinstance(content, Write) or content is entry:
        return entry if content is entry or isinstance(content, Write) else content
    older = _at(content.older, entry, handle, to)
    shape = tuple(substitute(s, {handle: to}) for s in content.shape)
    move: dict[Atom, Poly] = {handle: to}
    for k, (old, new) in enumerate(zip(content.shape, shape, strict=True)):
        if old is not new:
            move[atom_of(index(k, old))] = index(k, new)
    scalar = substitute(content.value.scalar, move)
    value = Value(shape, content.value.dtype, scalar)

    def forward(idx: Any, content: Write = content) -> list[Poly]:
        own = dict(move)
        for k, (old, i) in enumerate(zip(content.shape, idx, strict=True)):
            own[atom_of(index(k, old))] = i
        own[handle] = to
        return [substitute(p, own) for p in content.forward(indices(content.shape))]

    def back(at: Any, content: Write = content) -> tuple[Term, list[Poly]]:
        probe = [variable(f"x{k}") for k in range(len(at))]
        condition, inner = content.back(probe)
        own = {atom_of(p): i for p, i in zip(probe, at, strict=True)}
        own[handle] = to
        return substitute(condition, own), [substitute(p, own) for p in inner]

    return Write(_key(content.key, {handle: to}), shape, forward, back, value, older)


def _key(key: Any, to: dict[Atom, Poly]) -> Any:
    if isinstance(key, Poly):
        return substitute(key, to)
    return tuple(_key(k, to) for k in key) if isinstance(key, tuple) else key


def _equal(s: Storage, now: Content, want: Content, entry: Content, state: Content) -> bool:
    """Whether a storage's content is the wanted one: the same places written, the same values, and
    no place written by two parts (unless a fold writes all of them each time)."""
    items, wanted = writes(now, entry), writes(want, entry)
    kind = kind_of(s.dtype)
    for w in items:
        probe = indices(w.shape)
        at = w.forward(probe)
        got = looked_up(now, {(): at, w.key: probe}, kind)
        if not same(got, looked_up(want, {(): at}, kind)):
            return False
    at = indices(s.shape)
    if not agree(covered(items, at), covered(wanted, at)):
        return False
    earlier = writes(state, entry)
    for new in writes(now, state):
        if new.whole:
            continue
        probe = indices(new.shape)
        for old in earlier:
            twice = old.back(new.forward(probe))[0]
            if old in items and not agree(twice, t.FALSE):
                return False
    for log in CLAIMS:
        log.setdefault(f"; {s}: induction", "induction")
    return True
