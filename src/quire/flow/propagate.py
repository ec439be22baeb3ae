"""How a split of one op spreads to the ops before it.

A region is a run of steps. `Spread` takes the steps one at a time, last first, and works out for
each the interval of its own axis that one part of the region's loop asks of it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
import torch
from torch import fx

from quire.capture.program import Op, Program, Size, evaluate
from quire.flow.registry import flow_of
from quire.flow.relation import Axis, Flow, Join, Span, span
from quire.flow.rules.common import divide, equal

aten: Any = torch.ops.aten

_COPIES = {
    aten.contiguous.default,
    aten.reshape.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.flatten.using_ints,
}
"""Ops whose schema says view but that may copy; counted as copies."""


@attrs.frozen
class Cut:
    """The units of an op's axis that one part `[a, b)` of the loop computes: in each of `outer`
    blocks `[scale·a + lo, scale·b + hi)`, cut to the axis."""

    axis: int
    scale: Size = 1
    lo: Size = 0
    hi: Size = 0
    outer: Size = 1


@attrs.frozen
class Read:
    """What one op of a region asks of one operand: the units in `need` of it, or all (None)."""

    reader: fx.Node
    operand: int
    need: Span | None


class Storage:
    """A program seen as steps (ops that make tensors) and views of what the steps made.

    `flows` are the ops' flows, all sizes ints when `lengths` names every symbol.
    """

    def __init__(self, program: Program, lengths: Mapping[Any, int] | None = None) -> None:
        self.program = program
        self.base: dict[fx.Node, fx.Node] = {}
        self.flows: dict[fx.Node, Flow] = {}
        self.steps: list[fx.Node] = []
        known: dict[int, tuple[Flow, Flow]] = {}
        for node in program.graph.nodes:
            op = program.ops.get(node)
            if op is not None:
                flow = flow_of(op)
                if id(flow) not in known:
                    known[id(flow)] = flow, _at(flow, lengths) if lengths else flow
                self.flows[node] = known[id(flow)][1]
            if node.target is operator.getitem:
                self.base[node] = self.base[node.args[0]]
            elif op is not None and is_view(op):
                self.base[node] = self.base[op.operands[0].node]
            elif op is not None:
                self.base[node] = node
                self.steps.append(node)
            elif node in program.infos:
                self.base[node] = node

    @cached_property
    def readers(self) -> dict[fx.Node, list[fx.Node]]:
        """For every base the steps that read it, through views or not, in graph order."""
        found: dict[fx.Node, list[fx.Node]] = {}
        for step in self.steps:
            for operand in self.program.ops[step].operands:
                rows = found.setdefault(self.base[operand.node], [])
                if not rows or rows[-1] is not step:
                    rows.append(step)
        return found

    @cached_property
    def returned(self) -> frozenset[fx.Node]:
        """The bases that the model's outputs are, or are views of."""
        return frozenset(self.base[o] for o in self.program.outputs if o in self.base)

    def written(self, node: fx.Node) -> tuple[fx.Node, int]:
        """The op that makes `node`, and which of its outputs `node` is."""
        if node.target is operator.getitem:
            return node.args[0], node.args[1]  # type: ignore[return-value]
        return node, 0


def is_view(op: Op) -> bool:
    """Whether the op's output is a view of its first operand, whatever the sizes."""
    return op.is_view and op.target not in _COPIES


def _at(flow: Flow, lengths: Mapping[Any, int]) -> Flow:
    def fixed(s: Span | None) -> Span | None:
        if s is None:
            return None
        values = {k: evaluate(getattr(s, k), lengths) for k in ("scale", "lo", "hi", "outer")}
        return attrs.evolve(s, **values)

    axes = tuple(
        attrs.evolve(
            axis,
            size=evaluate(axis.size, lengths),
            reads=tuple(map(fixed, axis.reads)),
            writes=tuple(map(fixed, axis.writes)),
        )
        for axis in flow.axes
    )
    return attrs.evolve(flow, axes=axes, flops=evaluate(flow.flops, lengths))


def cut_for(flow: Flow, output: int, need: Span) -> Cut | None:
    """The cut of an op that gives `need` of its output, if one of its axes can."""
    for index, axis in enumerate(flow.axes):
        write = axis.writes[output]
        if write is None or axis.join is not Join.CONCAT or write.dim != need.dim:
            continue
        outer: Size = 1
        if not equal(write.outer, need.outer):
            # A plain map over the whole dim is one over each block of it, too.
            if not (equal(write.outer, 1) and _is_map(axis)):
                continue
            outer = need.outer
        parts = [divide(x, write.scale) for x in (need.scale, need.lo, need.hi)]
        if None not in parts:
            scale, lo, hi = parts
            return Cut(index, scale, lo, hi, outer)  # type: ignore[arg-type]
    return None


def _is_map(axis: Axis) -> bool:
    sides = [s for s in (*axis.reads, *axis.writes) if s is not None]
    return axis.edit is None and all(s == span(s.dim) for s in sides)


def reads_of(axis: Axis, cut: Cut) -> Iterator[Span | None]:
    """What the op asks of each operand for `cut` of it, in units of the loop."""
    for read in axis.reads:
        if read is None:
            yield None
            continue
        yield Span(
            read.dim,
            scale=read.scale * cut.scale,
            lo=read.scale * cut.lo + read.lo,
            hi=read.scale * cut.hi + read.hi,
            outer=read.outer * cut.outer,
            fill=read.fill,
        )


def writes_of(axis: Axis, cut: Cut) -> Iterator[Span | None]:
    """Which part of each output the op makes for `cut` of it, in units of the loop."""
    for write in axis.writes:
        if write is None:
            yield None
            continue
        yield Span(
            write.dim,
            scale=write.scale * cut.scale,
            lo=write.scale * cut.lo,
            hi=write.scale * cut.hi,
            outer=write.outer * cut.outer,
        )


def hull(one: Span, other: Span) -> Span | None:
    """The least need that covers both, if they are of one kind."""
    if one.dim != other.dim or not equal(one.outer, other.outer):
        return None
    if not equal(one.scale, other.scale):
        return None
    lo, hi = _least(one.lo, other.lo), _least(-one.hi, -other.hi)
    return None if lo is None or hi is None else attrs.evolve(one, lo=lo, hi=-hi, fill=None)


def _least(a: Size, b: Size) -> Size | None:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return a if equal(a, b) else None


class Spread:
    """A region as it grows backward from its last step, the `seed`, split along its axis `axis`,
    `grain` units of it at a time.

    `cuts` says how each step and each view within the region is cut; `reads` what is asked of
    every operand that the region does not make itself.
    """

    def __init__(self, storage: Storage, seed: fx.Node, axis: int, grain: int = 1) -> None:
        self.storage = storage
        self.seed, self.axis, self.grain = seed, axis, grain
        self.size = storage.flows[seed].axes[axis].size // grain
        self.join = storage.flows[seed].axes[axis].join
        self.cuts: dict[fx.Node, Cut] = {}
        self.view_cuts: dict[tuple[fx.Node, Span], Cut] = {}
        self.pending: dict[fx.Node, list[tuple[fx.Node, Read]]] = {}
        self.steps: list[fx.Node] = []
        self.extra: list[fx.Node] = []

    def snapshot(self) -> Spread:
        """The region as it is now; the original may go on growing."""
        copy = object.__new__(Spread)
        copy.__dict__ |= self.__dict__
        copy.cuts, copy.view_cuts = dict(self.cuts), dict(self.view_cuts)
        copy.steps, copy.extra = list(self.steps), list(self.extra)
        copy.pending = {base: list(asked) for base, asked in self.pending.items()}
        return copy

    def grow(self, step: fx.Node) -> bool:
        """Take `step` in, the one before those taken so far. False if the split cannot pass it;
        the spread is then of no further use."""
        asked = self.pending.get(step)
        if step is self.seed:
            cut: Cut | None = Cut(self.axis, self.grain)
        elif asked:
            cut = self._cut(step, asked)
        else:
            cut = self._join_in(step)
            self.extra.append(step)
        if cut is None:
            return False
        self.pending.pop(step, None)
        self.cuts[step] = cut
        self.steps.append(step)
        op, flow = self.storage.program.ops[step], self.storage.flows[step]
        for operand, need in zip(op.operands, reads_of(flow.axes[cut.axis], cut), strict=True):
            base = self.storage.base[operand.node]
            read = Read(step, operand.index, need)
            self.pending.setdefault(base, []).append((operand.node, read))
        return True

    def grow_alone(self, reach: int | None = None) -> None:
        """Take in the seed and all that nothing outside the region reads, as far as the split goes:
        of the last `reach` steps before the seed, if given."""
        self.grow(self.seed)
        at = self.storage.steps.index(self.seed)
        first = 0 if reach is None else max(0, at - reach)
        for step in reversed(self.storage.steps[first:at]):
            readers = self.storage.readers.get(step, ())
            alone = all(r in self.cuts for r in readers) and step not in self.storage.returned
            if step in self.pending and alone and self.takes(step):
                self.grow(step)

    def takes(self, step: fx.Node) -> bool:
        """Whether the split can pass `step`, which the region reads."""
        return self._cut(step, self.pending[step]) is not None

    def _cut(self, step: fx.Node, asked: Sequence[tuple[fx.Node, Read]]) -> Cut | None:
        """The cut of `step` that answers every read of it."""
        total: Span | None = None
        output = 0
        for node, read in asked:
            if read.need is None:
                return None
            found = self._through_views(node, attrs.evolve(read.need, fill=None))
            if found is None:
                return None
            need, out = found
            if total is None:
                total, output = need, out
            else:
                total = hull(total, need) if out == output else None
                if total is None:
                    return None
        assert total is not None
        return cut_for(self.storage.flows[step], output, total)

    def need_of_base(self, node: fx.Node, need: Span | None) -> Span | None:
        """`need` of a view, in terms of the tensor it views; None if that is no span of it."""
        found = self._through_views(node, attrs.evolve(need, fill=None)) if need else None
        return found[0] if found else None

    def _through_views(self, node: fx.Node, need: Span) -> tuple[Span, int] | None:
        """`need` of a view as a need of the step whose output it views."""
        while True:
            op, output = self.storage.written(node)
            if self.storage.base[node] is op:
                return need, output
            cut = cut_for(self.storage.flows[op], output, need)
            if cut is None:
                return None
            self.view_cuts[node, need] = cut
            axis = self.storage.flows[op].axes[cut.axis]
            source = next(iter(reads_of(axis, cut)), None)
            if source is None:
                return None
            node, need = self.storage.program.ops[op].operands[0].node, source

    def _join_in(self, step: fx.Node) -> Cut | None:
        """A cut for a step that nothing in the region reads: the axis of the loop's length that
        reads most of the same parts of the same tensors."""
        best: tuple[int, Cut] | None = None
        flow = self.storage.flows[step]
        for index, axis in enumerate(flow.axes):
            if axis.join is not Join.CONCAT or not equal(axis.size, self.size):
                continue
            cut = Cut(index)
            score = 0
            operands = self.storage.program.ops[step].operands
            for operand, need in zip(operands, reads_of(axis, cut), strict=True):
                others = self.pending.get(self.storage.base[operand.node], ())
                same = [r.need for node, r in others if node is operand.node]
                score += 1 if need in same else -1 if same else 0
            if best is None or score > best[0]:
                best = score, cut
        return best[1] if best else None
