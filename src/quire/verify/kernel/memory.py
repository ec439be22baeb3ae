"""One epoch: what runs between two barriers, carried out on terms.

A buffer's content after the epoch is worked out from the statements that write it, when it is first
asked for. A statement may read

- what was held before the epoch and is not written in it,
- its worker's own scratch, written before it,
- what the same unit wrote before it (`races.py` goes through all elements to see that it did).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from quire.verify import term as t
from quire.verify.decide import Premises, divmod_, prove
from quire.verify.digits import digits
from quire.verify.kernel import cover, hooks
from quire.verify.kernel.content import (
    Attended,
    decode,
    image,
    inverse,
    laid_out,
)
from quire.verify.kernel.evaluate import Evaluator, Pointer
from quire.verify.kernel.phase import Attention, Collector, Event, Loop
from quire.verify.kernel.races import Store, check_units
from quire.verify.kernel.state import IN_BLOCKS, Key, Read, State
from quire.verify.poly import ONE, Poly, atom_of, index, poly, variable
from quire.verify.poly import substitute as substitute_poly
from quire.verify.same import same, under
from quire.verify.term.core import flat
from quire.verify.value import NoMeaning, NotShown, Value, as_real, convert, indices

KEPT = 120
"""Terms that may be carried on where a buffer holds no tensor of the graph, such as a sum of
squares on its way to a mean."""


class Epoch:
    """The statements between two barriers and the contents they leave."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.evaluator = Evaluator(self)
        self.collector = Collector(self.evaluator)
        self.reads: list[Read] = []
        self.entered: dict[Key, Any] = {}
        self.settled: dict[Key, Value | Attended] = {}
        self.stores: dict[Key, list[Store]] = {}
        self._writers: dict[Key, list[Event | Attention]] = {}
        self._stack: list[Event | Attention] = []
        self._bound: list[Loop] = []
        self._settling: set[Key] = set()

    def run(self) -> None:
        """Work out all that is written, and check it."""
        self.state.asked.clear()
        for event in self.collector.events:
            self._writers.setdefault(self.state.key(event.pointer), []).append(event)
        for pointer in self.collector.pointers:
            self.state.check_type(pointer)
        for key in list(self._writers):
            if key not in self.settled:
                self.settle(key)
        check_units(self.state, self.reads, self.stores)
        self.state.leave(self)

    @property
    def written(self) -> dict[Key, list[Event | Attention]]:
        return self._writers

    # --- what expressions ask ----------------------------------------------------------------

    def length(self, k: int) -> Poly:
        return self.state.lengths[k]

    def load(self, pointer: Pointer, at: Poly, path: Premises) -> Any:
        key, held = self.content(pointer)
        if isinstance(held, Attended):
            raise NoMeaning("the parts of an attention are read by q.merge only")
        strides = self.state.strides(pointer, held.shape)
        what = f"read of {self.state.name(key)}"
        within = self.state.graph.in_range
        data = [p for x in at.free if x.kind == "val" for p in within(poly(x))]
        idx = decode(at, held.shape, strides, (*path, *data), what, within)
        self.reads.append(Read(self._stack[-1], key, tuple(idx), tuple(self._bound), path))
        return held.at(idx)

    def inside(self, size: Poly, body: Callable[[Poly], Any]) -> tuple[Poly, Any]:
        """A fresh index below `size`, and `body` of it."""
        var = variable("k", [0], [size - 1])
        self._bound.append((atom_of(var), size))
        try:
            return var, body(var)
        finally:
            self._bound.pop()

    def product(self, w: Any, x: Any, k: Poly) -> Any:
        """Σ_k of two arrays' elements: (array, start, row, rows' distance) each."""
        for pointer, start, row, step in (w, x):
            blocked = IN_BLOCKS.fullmatch(pointer.kind)
            if blocked is None:
                continue
            columns = poly(int(blocked[1]))
            if k is not columns or any(
                divmod_(p, columns)[1] is not poly(0) for p in (start, row * step)
            ):
                raise NotShown("weights in blocks that are not read by whole rows")

        def body(j: Poly) -> Any:
            return t.mul(
                *((as_real(self.load(p, start + row * step + j, ())), 1)
                  for p, start, row, step in (w, x))
            )  # fmt: skip

        var, inner = self.inside(k, body)
        return t.bind("sum", k, inner, var)

    def row(self, name: str, size: Poly, body: Any, place: Poly, *more: str) -> Any:
        if not prove(size - 1 - place, why="a place within the row"):
            raise NotShown(f"{name}: place {place} of {size}")
        var, inner = self.inside(size, body)
        found = t.row(size, as_real(inner), var, name, place, *more)
        return t.int_of(found) if name.endswith("indices") else found

    def prefix(self, index: Poly, body: Any) -> Any:
        var, inner = self.inside(index + 1, body)
        return t.bind("sum", index + 1, as_real(inner), var)

    # --- contents ----------------------------------------------------------------------------

    def content(self, pointer: Pointer) -> tuple[Key, Any]:
        key = self.state.key(pointer)
        writers = self._writers.get(key)
        if not writers:
            if key not in self.entered:
                self.entered[key] = self.state.before(pointer)
            return key, self.entered[key]
        self._may_read(key, writers)
        if key not in self.settled:
            self.settle(key)
        return key, self.settled[key]

    def _may_read(self, key: Key, writers: list[Event | Attention]) -> None:
        now = self._stack[-1]
        name = self.state.name(key)
        if key[0] == "scratch":
            if any(w.position >= now.position for w in writers):
                raise NotShown(f"{name} is read before it is written")
            return
        unit = now.unit if isinstance(now, Event) else None
        if unit is None:
            raise NotShown(f"{name} is read by every worker in the phase that shares it out")
        before = [
            w for w in writers
            if isinstance(w, Event) and w.unit is not None and w.unit.segment == unit.segment
        ]  # fmt: skip
        if not before or any(w.position >= now.position for w in before):
            raise NotShown(f"{name} is read in the phase that writes it, before it is written")

    def settle(self, key: Key) -> None:
        if key in self._settling:
            raise NotShown(f"{self.state.name(key)} is made from itself between two barriers")
        self._settling.add(key)
        bound, self._bound = self._bound, []
        writers = self._writers[key]
        if any(isinstance(w, Attention) for w in writers):
            self.settled[key] = self._attention(key, writers)
        else:
            stores = [self._store(key, w) for w in writers if isinstance(w, Event)]
            self.stores[key] = stores
            self.settled[key] = self._whole(key, stores)
        self._bound = bound
        self._settling.discard(key)

    def _store(self, key: Key, event: Event) -> Store:
        name = self.state.name(key)
        if key[0] == "scratch":
            if event.unit is not None:
                raise NotShown(f"{name}, a worker's own, is written by units")
        elif event.unit is None:
            raise NotShown(f"{name} is written by every worker")
        self.state.in_time()
        self._stack.append(event)
        at, value = event.where(), event.value()
        self._stack.pop()
        if event.unit is not None and event.unit.inner > 1:
            ends = {atom_of(event.unit.a), atom_of(event.unit.b)}
            if ends & at.free or ends & value.free:
                raise NotShown(f"{name}: what is written depends on how units are shared out")
        if key[0] == "scratch":
            places = [at]
        else:
            shape = self.state.shape(key)
            strides = self.state.strides(event.pointer, shape)
            places = decode(at, shape, strides, (), f"write of {name}")
        to, loops = digits(places, event.loops)
        value = t.substitute(convert(value, self.state.kind(event.pointer)), to)
        unit = None if event.unit is None or event.unit.index is None else event.unit.index
        return Store(
            event, [substitute_poly(p, to) for p in places], loops, value,
            None if unit is None else substitute_poly(unit, to),
        )  # fmt: skip

    def _whole(self, key: Key, stores: list[Store]) -> Value | Attended:
        dtype = self.state.dtype(stores[0].event.pointer)
        if key[0] == "scratch":
            if len(stores) != 1:
                raise NotShown(f"{self.state.name(key)} is written twice in a phase")
            (store,) = stores
            shape, at = laid_out(store.at[0], store.loops)
            made = attrs.evolve(store, at=at)
            return self._named(key, [made], shape, dtype)
        shape = self.state.shape(key)
        whole = self._covered(key, stores, shape)
        return self._named(key, stores, shape, dtype, None if whole else self._kept(key, stores))

    def _kept(self, key: Key, stores: list[Store]) -> Value:
        """What a buffer holds that is written in part: what it held before, elsewhere."""
        old = self.entered[key] = self.state.before(stores[0].event.pointer)
        name = self.state.name(key)
        if not isinstance(old, Value):
            raise NotShown(f"{name}: the parts of an attention are written over")
        scalar = old.at(indices(old.shape))
        for store in stores:
            found = image(store.at, old.shape, store.loops)
            if found is None:
                raise NotShown(f"{name} is written in part, at {store.at}")
            condition, to = found
            scalar = t.ite(condition, t.substitute(store.value, to), scalar)
        return Value(old.shape, old.dtype, scalar)

    def _named(
        self, key: Key, stores: list[Store], shape: Any, dtype: Any, plain: Value | None = None
    ) -> Value:
        """The content as a tensor: of the graph where it is one, else by what was written."""
        if plain is None and not any(cover.data_dims(s.at) for s in stores):
            plain = _function(stores, tuple(shape), dtype)
            if plain is not None and getattr(plain.scalar, "op", "") == "read":
                return plain

        def equal(want: Value) -> bool:
            if plain is not None:
                return plain.scalar is want.scalar or same(plain.scalar, want.scalar)
            return all(
                same(s.value, convert(want.at(s.at), want.kind)) for s in stores
            ) and self._rest(key, stores, want)

        found = self.state.match(key, tuple(shape), dtype, equal)
        if found is not None:
            return found
        if plain is None or (stores and key[0] == "input"):
            raise NotShown(f"what is written to {self.state.name(key)} is no tensor of the graph")
        if _size(plain.scalar) > KEPT:
            raise NotShown(
                f"what is written to {self.state.name(key)} is not shown to be a tensor of the "
                f"graph: {t.show(plain.scalar, 4)[:400]}"
            )
        return plain

    def _rest(self, key: Key, stores: list[Store], want: Value) -> bool:
        """Whether what a buffer changed in place keeps elsewhere is what `want` is there."""
        data = [cover.data_dims(s.at) for s in stores]
        if not any(data):
            return True
        old = self.entered[key] = self.state.before(stores[0].event.pointer)
        assert isinstance(old, Value)
        here = indices(want.shape)
        hits = set()
        for store in stores:
            whole = cover.whole_dims(store.at, want.shape, store.loops)
            to = {atom_of(store.at[d]): here[d] for d in whole}
            at = [(here[d], substitute_poly(store.at[d], to)) for d in sorted(data[0])]
            if any(p.free & {x for x, _ in store.loops} for _, p in at):
                return False
            hits.add(t.and_(*(t.eq(i - p) for i, p in at)))
        if len(hits) != 1:
            return False
        facts = (t.not_(hits.pop()),)
        return same(under(want.scalar, facts), convert(old.at(here), want.kind), facts)

    def _covered(self, key: Key, stores: list[Store], shape: Any) -> bool:
        """Each element is written once; where places are data, each but for those dims. False: each
        at most once, and some are not, of a buffer that held something before."""
        name = self.state.name(key)
        data = [cover.data_dims(s.at) for s in stores]
        held = key in self.state.held or key[0] == "input"
        if any(d != data[0] for d in data) or (data[0] and not held):
            raise NotShown(f"{name} is written at places that are data")
        whole = set.intersection(*(cover.whole_dims(s.at, shape, s.loops) for s in stores))
        rest = [d for d in range(len(shape)) if d not in whole and d not in data[0]]
        sizes = []
        for d in rest:
            n = shape[d].constant
            if n is None:
                raise NotShown(f"{name}: dim {d} of size {shape[d]} is not written as a whole")
            sizes.append(n)
        places = []
        for s in stores:
            used = {a for d in whole for a in s.at[d].free}
            env = cover.grid([(x, n) for x, n in s.loops if x not in used])
            places.append(cover.flat([s.at[d] for d in rest], sizes, env))
        count = int(np.prod(sizes)) if sizes else 1
        wrong = cover.once(places, count)
        part = bool(wrong) and held and not data[0] and not cover.once(places, count, whole=False)
        if wrong and not part:
            raise NotShown(f"coverage of {name}: {wrong}")
        times = "at most once" if part else "once"
        self.state.claim("coverage", f"{name}: each element is written {times}, by one worker")
        return not part

    # --- attention ---------------------------------------------------------------------------

    def _attention(self, key: Key, writers: list[Any]) -> Attended:
        if len(writers) != 1 or key[0] == "scratch":
            raise NotShown("the parts of an attention are written twice, or to scratch")
        return hooks.attention(self, writers[0])

    def merged(self, rest: Any, env: Any, i: Poly) -> Any:
        return hooks.merged(self, rest, env, i)

    def stacked(self, event: Event | Attention, body: Callable[[], Any]) -> Any:
        """`body` as if `event` asked."""
        self._stack.append(event)
        try:
            return body()
        finally:
            self._stack.pop()


def _function(stores: list[Store], shape: tuple[Poly, ...], dtype: Any) -> Value | None:
    """What was written as a function of the index; None if it is not found."""
    first = stores[0]
    if len(stores) == 1 and (to := inverse(first.at, shape, first.loops)) is not None:
        return Value(shape, dtype, t.substitute(first.value, to))
    # The function that the first statement writes, tried on the others.
    solved: dict[Any, Poly] = {}
    loops = {x for x, _ in first.loops}
    for d, p in enumerate(first.at):
        if shape[d] is ONE:
            continue
        for x in p.atoms():
            parts = p.split(x)
            if x in loops and x not in solved and parts is not None and parts[0] is ONE:
                solved[x] = index(d, shape[d]) - parts[1]
                break
        else:
            return None
    scalar = t.substitute(first.value, solved)
    if scalar.free & loops:
        return None
    found = Value(shape, dtype, scalar)
    return found if all(same(s.value, found.at(s.at)) for s in stores) else None


def _size(x: Any) -> int:
    """Distinct terms within a scalar."""
    seen: set[Any] = set()
    stack = [x]
    while stack and len(seen) <= KEPT:
        top = stack.pop()
        if top not in seen:
            seen.add(top)
            inner = [a for y in top.free for a in y.args] if isinstance(top, Poly) else top.args
            stack += flat(inner)
    return len(seen)
