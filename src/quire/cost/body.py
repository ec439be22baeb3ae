"""The body of a region's loop: where each part is stored, and what it costs in bytes and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs
from torch import fx

from quire.capture.program import Op, TensorInfo
from quire.cost.machine import Machine
from quire.flow.outs import ANY_LAYOUT, DENSE, OVERWRITES
from quire.cost.time import Kind, Work, kind_of, op_seconds
from quire.cost.workspace import workspace_bytes
from quire.flow.propagate import Spread, Storage, writes_of
from quire.flow.relation import Join, Span

LARGE = 1 << 25
"""From 32 MiB on glibc maps every allocation anew, so that each page of it faults."""


class Model:
    """What the planner asks of every step, at given lengths and on one machine, worked out once."""

    def __init__(
        self, storage: Storage, lengths: Mapping, machine: Machine, threads: int
    ) -> None:
        self.storage, self.machine, self.threads = storage, machine, threads
        program = storage.program
        self.infos: dict[fx.Node, tuple[TensorInfo, ...]] = {
            node: tuple(i.at(lengths) for i in infos) for node, infos in program.infos.items()
        }
        self.nbytes: dict[fx.Node, int] = {}
        self.kinds: dict[fx.Node, Kind] = {}
        self.workspace: dict[fx.Node, int] = {}
        self._seen: dict[tuple, int] = {}
        for step in storage.steps:
            op = program.ops[step]
            self.nbytes[step] = sum(int(i.nbytes) for i in self.infos[step])
            self.kinds[step] = kind_of(op, storage.flows[step])
            self.workspace[step] = self._workspace(op, self._operands(op), self.infos[step])

    def _operands(self, op: Op) -> tuple[TensorInfo, ...]:
        return tuple(self.infos[o.node][0] for o in op.operands)

    def _workspace(
        self, op: Op, operands: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]
    ) -> int:
        key = (op.target, operands, outputs, str(op.get("is_causal")), str(op.get("dim")))
        if key not in self._seen:
            self._seen[key] = workspace_bytes(op, operands, outputs, self.threads)
        return self._seen[key]

    def workspace_of_part(
        self,
        step: fx.Node,
        operands: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
    ) -> int:
        return self._workspace(self.storage.program.ops[step], operands, outputs)

    def seconds(self, step: fx.Node, *, fresh: bool = True) -> float:
        """The step's time when run whole; `fresh` if its output lies in new pages."""
        op, out = self.storage.program.ops[step], self.nbytes[step]
        read = sum(int(i.nbytes) for i in self._operands(op))
        flops = float(self.storage.flows[step].flops)
        kind = self.kinds[step]
        rows = rows_of(kind, self.infos[step][0])
        dtype = self.infos[step][0].dtype
        if kind == "attention" and op.get("is_causal"):
            flops /= 2
        work = Work(kind, flops, read, out, out if fresh else 0, 1, rows, dtype)
        return op_seconds(work, self.machine)


def rows_of(kind: Kind, out: TensorInfo) -> int:
    """The M of a GEMM with output `out`, or the query rows of an attention."""
    if not out.shape:
        return 1
    if kind == "attention":
        return int(out.shape[-2]) if out.ndim > 1 else 1
    return int(out.numel) // max(int(out.shape[-1]), 1)


def part_info(info: TensorInfo, need: Span | None, n: int) -> TensorInfo:
    """The part of `info` that `n` units of the loop make or read, densely stored in its order."""
    if need is None:
        return info
    block = int(info.shape[need.dim]) // int(need.outer) if need.outer else 0
    length = int(need.outer) * max(0, min(block, int(need.scale * n + need.hi - need.lo)))
    shape = tuple(length if d == need.dim else s for d, s in enumerate(info.shape))
    order = sorted(range(info.ndim), key=lambda d: (-int(info.stride[d]), d))
    stride, step = [0] * info.ndim, 1
    for d in reversed(order):
        stride[d] = step
        step *= max(int(shape[d]), 1)
    return TensorInfo(shape, info.dtype, tuple(stride), info.device)


@attrs.frozen
class Place:
    """Where a step's part goes: `out`, straight into the region's output; `slot`, a reused
    buffer (number `slot`); `fresh`, a new tensor for each part. `copied`: to the output after."""

    kind: Literal["out", "slot", "fresh"]
    slot: int = -1
    copied: bool = False


class Body:
    """The loop body of a `Spread`: its steps in order of execution, outputs, and places.

    `escapes` are the steps read after the region, or returned; `places`, if given, are kept.
    """

    def __init__(
        self,
        spread: Spread,
        model: Model,
        escapes: frozenset[fx.Node],
        places: Mapping[fx.Node, Place] | None = None,
    ) -> None:
        self.spread, self.model = spread, model
        storage = spread.storage
        self.steps = spread.steps[::-1]
        inside = set(self.steps)
        self.outputs = [s for s in self.steps if s in escapes]
        self.writes: dict[fx.Node, Span | None] = {}
        for step in self.steps:
            cut = spread.cuts[step]
            axis = storage.flows[step].axes[cut.axis]
            self.writes[step] = next(iter(writes_of(axis, cut)))
        self.dies: dict[fx.Node, fx.Node] = {}
        for step in self.steps:
            for operand in storage.program.ops[step].operands:
                base = storage.base[operand.node]
                if base in inside:
                    self.dies[base] = step
        self.slots: list[list[fx.Node]] = []
        self.places = dict(places) if places is not None else self._place()
        if places is not None:
            count = max((p.slot for p in places.values()), default=-1) + 1
            self.slots = [[s for s in self.steps if places[s].slot == k] for k in range(count)]

    @property
    def folds(self) -> bool:
        return self.spread.join is not Join.CONCAT

    def _place(self) -> dict[fx.Node, Place]:
        """Give every part a place; slots are handed on as soon as their tenant is read last."""
        places: dict[fx.Node, Place] = {}
        free: dict[object, list[int]] = {}
        storage, model = self.spread.storage, self.model
        for step in self.steps:
            op, info = storage.program.ops[step], model.infos[step][0]
            single = len(model.infos[step]) == 1
            axis = storage.flows[step].axes[self.spread.cuts[step].axis]
            can_write = single and axis.target is None and writes_out(op, info)
            escapes = step in self.outputs
            folded = self.folds and step is self.spread.seed
            dying = [
                base
                for base in dict.fromkeys(storage.base[o.node] for o in op.operands)
                if self.dies.get(base) is step and base not in self.outputs
            ]
            write = self.writes[step]
            exact = write is not None and write.lo == 0 and write.hi == 0 and write.outer == 1
            if escapes and can_write and not folded and exact and op.target in ANY_LAYOUT:
                places[step] = Place("out")
            elif not can_write:
                places[step] = Place("fresh", copied=escapes)
            else:
                places[step] = Place("slot", self._slot(step, dying, places, free), escapes)
            for base in dying:
                place = places[base]
                taken = places[step].kind == "slot" and places[step].slot == place.slot
                if place.kind == "slot" and not taken:
                    free.setdefault(self._kind(base), []).append(place.slot)
            if step not in self.dies and places[step].kind == "slot":
                free.setdefault(self._kind(step), []).append(places[step].slot)
        return places

    def _kind(self, step: fx.Node) -> object:
        return self.model.infos[step][0].dtype

    def _slot(
        self,
        step: fx.Node,
        dying: list[fx.Node],
        places: Mapping[fx.Node, Place],
        free: dict[object, list[int]],
    ) -> int:
        storage = self.spread.storage
        op, flow = storage.program.ops[step], storage.flows[step]
        info, write = self.model.infos[step][0], self.writes[step]
        if flow.pointwise or op.target in OVERWRITES:
            for base in dying:
                same = self.model.infos[base][0] == info and self.writes[base] == write
                direct = all(o.node is base for o in op.operands if storage.base[o.node] is base)
                if places[base].kind == "slot" and same and direct:
                    self.slots[places[base].slot].append(step)
                    return places[base].slot
        kind = self._kind(step)
        idle = free.get(kind)
        if idle:
            size = self._numel(step, 1 << 20)
            idle.sort(key=lambda s: abs(self._slot_numel(s, 1 << 20) - size))
            chosen = idle.pop(0)
            self.slots[chosen].append(step)
            return chosen
        self.slots.append([step])
        return len(self.slots) - 1

    def _numel(self, step: fx.Node, n: int) -> int:
        return int(part_info(self.model.infos[step][0], self.writes[step], n).numel)

    def _slot_numel(self, slot: int, n: int) -> int:
        return max(self._numel(s, n) for s in self.slots[slot])

    def scratch(self, n: int) -> int:
        """Bytes the loop takes beside the region's inputs and outputs, `n` units a part."""
        model = self.model
        total = 0
        for tenants in self.slots:
            total += max(self._numel(s, n) for s in tenants) * model.infos[tenants[0]][0].dtype.itemsize
        live, peak = 0, 0
        held: dict[fx.Node, int] = {}
        for step in self.steps:
            own = self.part_bytes(step, n)
            if self.places[step].kind == "fresh":
                held[step] = own
                live += own
            peak = max(peak, live + self._workspace(step, n))
            for base in [b for b in held if self.dies.get(b, b) is step]:
                live -= held.pop(base)
        return total + peak

    def part_bytes(self, step: fx.Node, n: int) -> int:
        cut = self.spread.cuts[step]
        axis = self.spread.storage.flows[step].axes[cut.axis]
        return sum(
            int(part_info(info, write, n).nbytes)
            for info, write in zip(self.model.infos[step], writes_of(axis, cut), strict=False)
        )

    def _workspace(self, step: fx.Node, n: int) -> int:
        model = self.model
        if model.workspace[step] <= 1 << 17:
            return model.workspace[step]
        operands, outputs = self.parts(step, n)
        extra = sum(
            int(i.nbytes)
            for i, need in zip(operands, self.needs(step), strict=True)
            if need is not None and (need.fill is not None or need.outer != 1)
        )
        target = self.spread.storage.flows[step].axes[self.spread.cuts[step].axis].target
        if target is not None:
            # The mask of the rows: built, and cut off above the diagonal.
            query, key = operands[0], operands[1]
            extra += int(query.shape[-2]) * int(key.shape[-2]) * query.dtype.itemsize
        return model.workspace_of_part(step, operands, outputs) + extra

    def needs(self, step: fx.Node) -> list[Span | None]:
        storage, cut = self.spread.storage, self.spread.cuts[step]
        from_axis = storage.flows[step].axes[cut.axis]
        return [
            None
            if r is None
            else Span(
                r.dim,
                r.scale * cut.scale,
                r.scale * cut.lo + r.lo,
                r.scale * cut.hi + r.hi,
                r.outer * cut.outer,
                r.fill,
            )
            for r in from_axis.reads
        ]

    def parts(
        self, step: fx.Node, n: int
    ) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        """The facts of the step's operands and outputs for a part of `n` units."""
        storage, model = self.spread.storage, self.model
        op, cut = storage.program.ops[step], self.spread.cuts[step]
        axis = storage.flows[step].axes[cut.axis]
        operands = tuple(
            part_info(model.infos[o.node][0], need, n)
            for o, need in zip(op.operands, self.needs(step), strict=True)
        )
        outputs = tuple(
            part_info(info, write, n)
            for info, write in zip(model.infos[step], writes_of(axis, cut), strict=True)
        )
        return operands, outputs

    def seconds(self, n: int, fresh_outputs: int) -> float:
        """Predicted time of the whole loop with parts of `n` units; `fresh_outputs` are the bytes
        of its outputs that lie in new pages."""
        model = self.model
        size = int(self.spread.size)
        count = -(-size // n)
        total = (fresh_outputs + self.scratch(n)) * model.machine.rates.fault
        for step in self.steps:
            operands, outputs = self.parts(step, n)
            read, written = sum(int(i.nbytes) for i in operands), sum(int(i.nbytes) for i in outputs)
            whole = self.model.nbytes[step]
            flow, kind = self.spread.storage.flows[step], model.kinds[step]
            if self.folds and step is self.spread.seed:
                flops, written = float(flow.flops), written * 3
            else:
                flops = float(flow.flops) * written * count / max(whole, 1)
            if self.places[step].copied:
                written *= 2
            if kind == "attention" and self.spread.storage.program.ops[step].get("is_causal"):
                flops /= 2
                read *= 0.6
            rows = rows_of(kind, outputs[0])
            is_fresh = self.places[step].kind == "fresh"
            fresh = written if is_fresh and written >= LARGE else 0
            work = Work(
                kind, flops, read * count, written * count, fresh * count, count, rows,
                outputs[0].dtype,
            )  # fmt: skip
            total += op_seconds(work, model.machine)
            total += count * model.machine.rates.overhead["view"] * (1 + len(operands))
        return total


def writes_out(op: Op, info: TensorInfo) -> bool:
    """Whether the op can write into a given buffer of the facts `info` without a temporary."""
    return op.target in ANY_LAYOUT or (op.target in DENSE and _dense_in_order(info))


def _dense_in_order(info: TensorInfo) -> bool:
    expected = 1
    for size, stride in zip(reversed(info.shape), reversed(info.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected = expected * int(size)
    return True
