"""Which dims carry the sequence, found through the relations: `Program → steps`.

Backward from every attention's queries, keys and values: as far as an axis of each op gives the
rows asked for, the op can run on this rank's rows alone. Forward from there: every op that reads
a spread tensor runs on parts if one of its axes allows it; operands the axis reads whole are
brought together. What no axis allows runs whole, on every rank.

Lengths may be free: sizes are then expressions of them, and a rank's rows of each sequence are a
symbol of their own (`Placer.local`).
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import sympy
import torch
from torch import fx

from quire.capture.program import Op, Program, Size, TensorInfo, evaluate
from quire.errors import CaptureError
from quire.flow.registry import flow_of
from quire.flow.relation import Axis, Flow, Join, Part
from quire.plan.layout import Layout
from quire.plan.shard.draws import drawn_of, draws_apart
from quire.plan.shard.padding import idle
from quire.plan.shard.plan import Placed, Site, Step
from quire.plan.shard.routed import routed
from quire.plan.shard.units import Unit, fits, local_shape, mentions, placed_by, plain, unit_of

aten: Any = torch.ops.aten

LOSSES = (aten.cross_entropy_loss.default,)
"""Means that weigh rows by the data: the flow cannot split them, `collectives` can."""

_KINDS = {Join.SUM: "sum", Join.MEAN: "mean", Join.MAX: "max", Join.MIN: "min"}


@attrs.frozen(eq=False)
class Spreading:
    """Places of all nodes, and how each op runs."""

    places: dict[fx.Node, Placed | None]
    steps: dict[fx.Node, Step]
    wants: dict[fx.Node, Placed]
    notes: tuple[str, ...]


class Placer:
    """One program's spreading over `ranks`, with the order `ring` of all its sequences. `at` gives
    free lengths the values that costs are compared at."""

    def __init__(
        self,
        program: Program,
        sites: Sequence[Site],
        ranks: int,
        ring: int,
        at: Mapping[sympy.Symbol, int] | None = None,
    ) -> None:
        self.program, self.ranks, self.ring = program, ranks, ring
        self.lengths = dict(at or {})
        self.local: dict[sympy.Expr, sympy.Symbol] = {}
        """A rank's rows of each sequence whose length is free."""
        self.sites = {site.node: site for site in sites}
        self.by_name = {n.name: n for n in program.graph.nodes}
        self.flows: dict[fx.Node, Flow] = {n: flow_of(op) for n, op in program.ops.items()}
        self.places: dict[fx.Node, Placed | None] = {}
        self.steps: dict[fx.Node, Step] = {}
        self.notes: list[str] = []
        self.some: int | None = None
        """Rows that ops run on at a time; None: all of a rank's."""

    def layout(self, size: int) -> Layout:
        return Layout(size, self.ranks, self.ring)

    def rows(self, size: Any) -> Any:
        """A rank's rows of a sequence of `size`; a symbol where that is free."""
        if self.some is not None:
            return self.some
        if isinstance(size, int):
            return self.layout(size).local
        if size not in self.local:
            name = f"local_{len(self.local)}" if self.local else "local"
            self.local[size] = sympy.Symbol(name, integer=True, positive=True)
        return self.local[size]

    def number(self, size: Size) -> int:
        """A size at the lengths that costs are compared at."""
        local = {x: self.layout(evaluate(s, self.lengths)).local for s, x in self.local.items()}
        return evaluate(size, {**self.lengths, **local})

    def _even(self, size: Size) -> bool:
        """Whether no rank ever holds padding."""
        return isinstance(size, int) and self.layout(size).padded == size

    def on_rows(self, nodes: Sequence[fx.Node], rows: int) -> tuple[Step, ...]:
        """The steps of ops that run on `rows` of this rank's rows at a time."""
        part = copy.copy(self)
        part.some, part.notes = rows, []
        return tuple(part._step(self.program.ops[n]) for n in nodes if n in self.program.ops)

    def run(self) -> Spreading:
        self.alive = self._alive()
        self.wants = self._wanted()
        for node in self.program.graph.nodes:
            if node not in self.alive:
                continue
            if node.target is operator.getitem:
                self.places[node] = self._item(node)
                continue
            op = self.program.ops.get(node)
            if op is None:
                self.places[node] = None
                continue
            step = self._step(op)
            self.steps[node] = step
            self.places[node] = step.out[0] if step.out else None
        return Spreading(self.places, self.steps, self.wants, tuple(self.notes))

    def _item(self, node: fx.Node) -> Placed | None:
        step = self.steps.get(node.args[0])  # type: ignore[arg-type]
        index = node.args[1]
        if step is None or not isinstance(index, int) or index >= len(step.out):
            return None
        return step.out[index]

    def _alive(self) -> set[fx.Node]:
        """What the outputs need, once attentions read no mask and no repeated keys."""
        stack = [o for o in self.program.outputs if isinstance(o, fx.Node)]
        found: set[fx.Node] = {i.node for i in self.program.inputs}
        while stack:
            node = stack.pop()
            if node in found:
                continue
            found.add(node)
            site = self.sites.get(node.name)
            if site is None or site.plain:
                stack += node.all_input_nodes
            else:
                stack += [self.by_name[n] for n in (site.q, site.k, site.v, *site.leaves)]
        return found

    # Backward: what could be spread.

    def _wanted(self) -> dict[fx.Node, Placed]:
        wants: dict[fx.Node, Placed] = {}

        def want(node: fx.Node, placed: Placed | None) -> None:
            if placed is not None and node not in wants and fits(placed, self.program.info(node)):
                wants[node] = placed

        for node in reversed(list(self.program.graph.nodes)):
            op = self.program.ops.get(node)
            site = self.sites.get(node.name)
            if site is not None and op is not None and node in self.alive:
                want(node, Placed(op.out.ndim - 2, site.q_size))
                for name, size in (
                    (site.q, site.q_size),
                    (site.k, site.k_size),
                    (site.v, site.k_size),
                ):
                    at = self.by_name[name]
                    want(at, Placed(self.program.info(at).ndim - 2, size))
                if not site.plain:
                    continue
            if node in wants and (drawn := drawn_of(self.program, node)) is not None:
                want(drawn, wants[node])
            if op is None or node not in wants or node not in self.alive:
                continue
            found = self._axis_for(op, wants[node])
            if found is not None:
                axis, unit = found
                for operand, read in zip(op.operands, axis.reads, strict=True):
                    want(operand.node, placed_by(read, unit))
        return wants

    def _axis_for(self, op: Op, placed: Placed) -> tuple[Axis, Unit] | None:
        for axis in self.flows[op.node].axes:
            write = axis.writes[0] if axis.writes else None
            if axis.join is not Join.CONCAT or write is None or not any(axis.reads):
                continue
            unit = unit_of(write, placed)
            if unit is not None and self._changed(op, axis, unit) is not None:
                return axis, unit
        return None

    # Forward: how each op runs.

    def _step(self, op: Op) -> Step:
        name = op.node.name
        if name in self.sites and not self.sites[name].plain:
            site = self.sites[name]
            return Step(name, "site", (Placed(op.out.ndim - 2, site.q_size),))
        held = [self.places.get(o.node) for o in op.operands]
        if any(held) and (found := routed(op, held)) is not None:
            return found
        if any(held) and draws_apart(op):
            return Step(name, "drawn", tuple(held[0] for _ in op.outputs))
        if any(p is not None and p.routed for p in held):
            raise CaptureError(
                f"{op.target} reads rows in an order that the data chose",
                where=str(op.where),
                allowed="ops that treat each routed row by itself, until the rows are put back",
                fix="keep this part of the model whole, or route without sorting",
            )
        if not any(held):
            # Integers (positions, ids) are small: whole, and cut where they are used.
            wanted = self.wants.get(op.node) if op.out.dtype.is_floating_point else None
            found = self._axis_for(op, wanted) if wanted is not None else None
            step = self._local(op, *found, held) if found is not None else None
            return step or Step(name, "whole", tuple(None for _ in op.outputs))
        if op.target in LOSSES and (step := self._loss(op, held)) is not None:
            return step
        options = [
            step
            for axis in self.flows[op.node].axes
            for unit in self._units(axis, held)
            if (step := self._split(op, axis, unit, held)) is not None
        ]
        fixed = self._fixed(op, held)
        options += [fixed] if fixed is not None else []
        options.append(self._whole(op, held))
        best = min(options, key=lambda s: s.sent)
        if best is options[-1]:
            self.notes.append(
                f"{name} ({op.target}) runs whole on every rank: no axis of it splits there; "
                f"{op.where.module}"
            )
        return best

    def _units(self, axis: Axis, held: Sequence[Placed | None]) -> list[Unit]:
        found: list[Unit] = []
        for read, placed in zip(axis.reads, held, strict=True):
            unit = unit_of(read, placed) if read is not None and placed is not None else None
            if unit is not None and unit not in found:
                found.append(unit)
        return found

    def _split(self, op: Op, axis: Axis, unit: Unit, held: Sequence[Placed | None]) -> Step | None:
        if axis.join is Join.CONCAT:
            return self._local(op, axis, unit, held)
        kind = _KINDS.get(axis.join)
        whole = axis.size == unit.outer * unit.size * unit.scale
        if kind is None or axis.init is not None or any(axis.writes) or not whole:
            return None
        if kind in ("max", "min") and not op.out.dtype.is_floating_point:
            return None
        base = self._local(op, axis, unit, held)
        if base is None:
            return None
        reading = [
            (i, p) for i, read in enumerate(axis.reads) if (p := placed_by(read, unit)) is not None
        ]
        fills = [] if self._even(unit.size) else reading
        if fills and not self._idle(op, axis, unit, kind, dict(reading)):
            return None
        nbytes = 2 * sum(_bytes(o, None, self) for o in op.outputs) * (self.ranks - 1) // self.ranks
        return attrs.evolve(
            base,
            kind=kind,
            out=tuple(None for _ in op.outputs),
            fills=tuple(fills),
            sent=base.sent + nbytes,
        )

    def _idle(
        self, op: Op, axis: Axis, unit: Unit, kind: str, reading: Mapping[int, Placed]
    ) -> bool:
        """Whether rows of padding do not count in a fold."""
        one = copy.copy(self)
        one.some = 1
        return idle(op, kind, reading, dict(one._changed(op, axis, unit) or ()), self.number)

    def _local(self, op: Op, axis: Axis, unit: Unit, held: Sequence[Placed | None]) -> Step | None:
        changed = self._changed(op, axis, unit)
        out = tuple(placed_by(w, unit) for w in axis.writes)
        if changed is None or (axis.join is Join.CONCAT and not all(out)):
            return None
        cuts, gathers, sent = [], [], 0
        for operand, read, placed in zip(op.operands, axis.reads, held, strict=True):
            need = placed_by(read, unit)
            if read is not None and (need is None or not fits(need, operand.info)):
                return None
            if need == placed:
                continue
            if placed is not None:
                gathers.append((operand.index, placed))
                sent += _bytes(operand.info, placed, self) * (self.ranks - 1)
            if need is not None:
                cuts.append((operand.index, need))
        return Step(op.node.name, "local", out, tuple(cuts), tuple(gathers), (), changed, sent)

    def _changed(self, op: Op, axis: Axis, unit: Unit) -> tuple[tuple[str, Any], ...] | None:
        """The arguments for this rank's part; None if they differ from rank to rank."""
        if axis.target is not None:
            return None
        local = self.rows(unit.size)
        shapes = tuple(
            local_shape(info.shape, placed_by(w, unit) if w is not None else None, local)
            for info, w in zip(op.outputs, axis.writes, strict=True)
        )
        if axis.edit is None:
            return ()
        start = sympy.Symbol("start", integer=True)
        length = unit.outer * local * unit.scale
        changed = axis.edit(Part(op, start, start + length, shapes))
        if any(mentions(v, start) for v in changed.values()):
            return None
        names = {a.name for a in op.target._schema.arguments}
        if any(k not in names for k in changed):
            return None
        return tuple((k, plain(v)) for k, v in changed.items())

    def _loss(self, op: Op, held: Sequence[Placed | None]) -> Step | None:
        scores, target = op["self"], op["target"]
        placed = held[scores.index]
        classes = 1 if scores.ndim > 1 else 0
        if placed is None or placed.dim == classes or target.ndim != scores.ndim - 1:
            return None
        own = attrs.evolve(placed, dim=placed.dim - (placed.dim > classes))
        at = held[target.index]
        if op["reduction"] == 0 or (at is not None and at != own):
            return None
        cuts = () if at == own else ((target.index, own),)
        nbytes = 2 * 8 * (self.ranks - 1) // self.ranks
        fills = ((target.index, own),) if at == own else ()
        return Step(op.node.name, "loss", (None,), cuts, (), fills, (), nbytes)

    def _fixed(self, op: Op, held: Sequence[Placed | None]) -> Step | None:
        """A selection of rows at fixed places: brought to every rank, and no more."""
        placed = held[0]
        if placed is None or placed.outer != 1 or placed.scale != 1 or len(op.operands) != 1:
            return None
        rows = _selected(op, placed)
        if rows is None:
            return None
        info = op.operands[0].info
        each: Any = math.prod(s for d, s in enumerate(info.shape) if d != placed.dim)
        sent = self.number(each * rows[1])
        nbytes = 2 * sent * info.dtype.itemsize * (self.ranks - 1) // self.ranks
        changed = (("first", rows[0]), ("count", rows[1]))
        return Step(op.node.name, "fixed", (None,), (), ((0, placed),), (), changed, nbytes)

    def _whole(self, op: Op, held: Sequence[Placed | None]) -> Step:
        gathers = [(o.index, p) for o, p in zip(op.operands, held, strict=True) if p is not None]
        sent = sum(_bytes(op.operands[i].info, p, self) for i, p in gathers) * (self.ranks - 1)
        return Step(
            op.node.name, "whole", tuple(None for _ in op.outputs), (), tuple(gathers), (), (), sent
        )


def _selected(op: Op, placed: Placed) -> tuple[Size, Size] | None:
    """First row and number of rows that a view at fixed places takes of the spread dim."""
    if op.target is aten.select.int:
        if op["dim"] % op.operands[0].ndim != placed.dim:
            return None
        return _from_front(op["index"], placed.size), 1
    if op.target is aten.slice.Tensor and op["step"] == 1:
        if op["dim"] % op.operands[0].ndim != placed.dim:
            return None
        first = op["start"] or 0
        return _from_front(first, placed.size), op.out.shape[placed.dim]
    return None


def _from_front(place: Size, size: Size) -> Size:
    """A place as Python counts it."""
    return place + size if isinstance(place, int) and place < 0 else place


def _bytes(info: TensorInfo, placed: Placed | None, placer: Placer) -> int:
    shape: Any = info.shape
    if placed is not None:
        shape = local_shape(info.shape, placed, placer.rows(placed.size))
    return placer.number(math.prod(shape)) * info.dtype.itemsize
