"""Nests → phases: what runs between two barriers, and who computes what.

    heavy nests (contractions that stream weights, attention)  a level of their own
    cheap nests that one worker's results suffice for          epilogues of the level before
    other cheap nests                                          computed by every worker (private)

A private result that a later phase needs as well is computed once more into shared storage by the
phase that first needs it, each worker a part of it ("published"), so that it is never recomputed
through a growing chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs
import sympy

from quire.kernel.analysis import free, mapped, plain_call, weights_of
from quire.kernel.evaluate import NotLocalError
from quire.kernel.ir import (
    AnyNest,
    Attend,
    Buffer,
    Call,
    Expr,
    Merge,
    Nest,
    Read,
    Scan,
    Size,
    TopK,
    kind,
    reads,
    rewrite,
    walk,
)
from quire.kernel.lower.build import Lowered
from quire.kernel.segments import Segment
from quire.kernel.units import Units

STREAM = 1 << 11
"""Weights from which on a contraction is shared out rather than repeated by every worker."""

CHEAP = 1 << 17
"""Scalar operations, at the largest batch, that every worker may repeat."""

ONE_UNIT = 0.25
"""The part of a phase's work that one unit may hold."""

_SLOW = {"exp", "tanh", "sigmoid", "sin", "cos", "erf", "pow", "log"}


@attrs.frozen
class Phase:
    """`private` nests are run by every worker, `segments` and `attends` shared out."""

    private: tuple[AnyNest, ...]
    segments: tuple[Segment, ...]
    attends: tuple[Attend, ...]

    @property
    def nests(self) -> tuple[AnyNest, ...]:
        """Each nest once, in an order of execution."""
        shared: dict[int, AnyNest] = {}
        for s in self.segments:
            for share in s.shares:
                shared[id(share.nest)] = share.nest
        return (*self.private, *shared.values(), *self.attends)


def schedule(lowered: Lowered, sizes: Mapping[sympy.Symbol, int]) -> tuple[Phase, ...]:
    """The phases of a lowered program; `sizes` are the largest values of its lengths."""
    forced: frozenset[str] = frozenset()
    while True:
        planner = _Planner(lowered, sizes, forced)
        phases = planner.phases()
        if not planner.wanted:
            return phases
        forced |= planner.wanted


class _Planner:
    def __init__(
        self, lowered: Lowered, sizes: Mapping[sympy.Symbol, int], forced: frozenset[str]
    ) -> None:
        self.nests, self.sizes, self.forced = lowered.nests, sizes, forced
        self.wanted: frozenset[str] = frozenset()
        self.level: dict[int, int] = {}
        """Of shared nests, by position."""
        self.avail: dict[int, int] = {}
        """The first level at which a nest can run."""
        self.units: dict[int, Units] = {}
        self.writers: dict[str, list[int]] = {}
        for k, nest in enumerate(self.nests):
            self._place(k, nest)

    def _place(self, k: int, nest: AnyNest) -> None:
        deps = [w for r in reads(nest) for w in self.writers.get(r.buffer.name, [])]
        deps += [w for b in nest.outs for w in self.writers.get(b.name, [])]
        first = max((self._after(w) for w in deps), default=0)
        self.avail[k] = first
        caller_sees = any(b.role in ("input", "output") for b in nest.outs)
        forced = any(b.name in self.forced for b in nest.outs)
        is_cheap = self._is_cheap(nest)
        if isinstance(nest, Attend):
            self.level[k] = first
        elif is_cheap and first > 0 and self._join(k, nest, deps, first - 1):
            self.level[k] = first - 1
        elif not is_cheap or caller_sees or forced:
            self.level[k] = first
            self.units.setdefault(first, Units()).start(nest)
        for b in nest.outs:
            self.writers.setdefault(b.name, []).append(k)

    def _after(self, k: int) -> int:
        return self.level[k] + 1 if k in self.level else self.avail[k]

    def _join(self, k: int, nest: AnyNest, deps: Sequence[int], level: int) -> bool:
        """Whether `nest` could be added to the phase of `level` as an epilogue, and is."""
        units = self.units.get(level)
        if units is None or isinstance(nest, Merge | Scan) or not units.reads_any(nest):
            return False
        for w in deps:
            if w in self.level:
                if self.level[w] == level and isinstance(self.nests[w], Attend):
                    return False
            elif self.avail[w] > level:
                return False
        try:
            units.join(nest, ONE_UNIT)
        except NotLocalError:
            return False
        self.avail[k] = level
        return True

    def _is_cheap(self, nest: AnyNest) -> bool:
        if isinstance(nest, Attend):
            return False
        weight = weights_of(nest)
        if weight is not None and self._numel(v.size for v in _axes_of(weight, nest)) >= STREAM:
            return False
        work = self._numel(a.size for a in nest.axes)
        if isinstance(nest, Merge):
            return work * 4 <= CHEAP
        over = nest.over if isinstance(nest, Nest) else (nest.over,)
        if not isinstance(nest, Scan):
            work *= self._numel(v.size for v in over)
        slow = any(isinstance(x, Call) and x.op in _SLOW for x in walk(nest.value))
        return work * (8 if slow else 1) <= CHEAP

    def _numel(self, sizes) -> int:  # type: ignore[no-untyped-def]
        total: Size = 1
        for s in sizes:
            total = total * s
        return total if isinstance(total, int) else int(cast(Any, total.xreplace(dict(self.sizes))))

    # --- phases ------------------------------------------------------------------------------

    def phases(self) -> tuple[Phase, ...]:
        levels = sorted(set(self.level.values()))
        published: dict[int, dict[str, Nest]] = {n: {} for n in levels}
        made: dict[str, tuple[int, Buffer]] = {}
        """Private buffers computed so far: the level, and the shared copy's buffer."""
        plain: list[tuple[int, list[AnyNest], list[AnyNest]]] = []
        swaps: dict[int, dict[Buffer, Buffer]] = {}
        for n in levels:
            shared = [x for k, x in enumerate(self.nests) if self.level.get(k) == n]
            order: dict[int, None] = {}
            swap: dict[Buffer, Buffer] = {}
            stack = [r.buffer for x in shared for r in reads(x)]
            while stack:
                buffer = stack.pop()
                for w in self.writers.get(buffer.name, []):
                    if w in self.level or w in order:
                        continue
                    if buffer.name in made:
                        swap[buffer] = self._publish(buffer, w, made, published)
                        continue
                    order[w] = None
                    stack.extend(r.buffer for r in reads(self.nests[w]))
            private = [self.nests[w] for w in sorted(order)]
            for x in private:
                for b in x.outs:
                    made[b.name] = (n, attrs.evolve(b, name=b.name + "p"))
            swaps[n] = swap
            plain.append((n, private, shared))
        return tuple(self._phase(n, pr, sh, published[n], swaps[n]) for n, pr, sh in plain)

    def _publish(
        self,
        buffer: Buffer,
        writer: int,
        made: Mapping[str, tuple[int, Buffer]],
        published: dict[int, dict[str, Nest]],
    ) -> Buffer:
        level, copy = made[buffer.name]
        if self.avail[writer] == 0:
            self.wanted |= {buffer.name}
        nest = self.nests[writer]
        axes = nest.axes if not isinstance(nest, TopK) else None
        if axes is None:
            self.wanted |= {buffer.name}
            axes = nest.axes
        published[level][buffer.name] = Nest(copy, axes, axes, Read(buffer, axes))
        return copy

    def _phase(
        self,
        level: int,
        private: Sequence[AnyNest],
        shared: Sequence[AnyNest],
        copies: Mapping[str, Nest],
        swap: Mapping[Buffer, Buffer],
    ) -> Phase:
        units = self.units.get(level, Units())
        for copy in copies.values():
            units.start(copy)
        names = {b for x in private for b in x.outs}

        def buffer(b: Buffer) -> Buffer:
            if b in swap:
                return swap[b]
            return attrs.evolve(b, role="private") if b in names else b

        def expression(e: Expr) -> Expr:
            def change(x: Expr) -> Expr | None:
                if isinstance(x, Read) and buffer(x.buffer) != x.buffer:
                    return Read(buffer(x.buffer), tuple(expression(a) for a in x.at))
                return None

            return rewrite(e, change, plain_call)

        done: dict[int, AnyNest] = {}

        def placed(x: AnyNest) -> AnyNest:
            if id(x) not in done:
                done[id(x)] = mapped(x, expression, buffer)
            return done[id(x)]

        segments = tuple(
            attrs.evolve(s, shares=tuple(attrs.evolve(h, nest=placed(h.nest)) for h in s.shares))
            for s in units.segments()
        )
        attends = tuple(placed(x) for x in shared if isinstance(x, Attend))
        return Phase(tuple(placed(x) for x in private), segments, attends)  # type: ignore[arg-type]


def _axes_of(weight: Read, nest: AnyNest):  # type: ignore[no-untyped-def]
    own = set().union(*(free(e) for e in weight.at))
    over = nest.over if isinstance(nest, Nest) else ()
    return [a for a in (*nest.axes, *over) if a in own]


__all__ = ["Phase", "kind", "schedule"]
