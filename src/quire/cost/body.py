"""The body of a region's loop: where each part is stored, and what it costs in bytes and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs
from torch import fx

from quire.capture.program import Op, TensorInfo
from quire.cost.model import Model
from quire.cost.parts import PartCosts
from quire.flow.outs import ANY_LAYOUT, DENSE, OVERWRITES, adds_into
from quire.flow.propagate import Spread

TYPICAL = 1 << 10
"""Part size at which slots are compared for size."""


@attrs.frozen
class Place:
    """Where a step's part goes: `out`, straight into the region's output; `slot`, a reused
    buffer (number `slot`); `fresh`, a new tensor for each part; `into`, nowhere, as the addition
    that reads it is done with it. `copied`: to the output after."""

    kind: Literal["out", "slot", "fresh", "into"]
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
        costs: PartCosts | None = None,
    ) -> None:
        self.spread, self.model = spread, model
        self.costs = costs or PartCosts(spread, model)
        storage = spread.storage
        self.steps = spread.steps[::-1]
        inside = set(self.steps)
        self.outputs = [s for s in self.steps if s in escapes]
        self.writes = {s: self.costs.of(s).writes[0] for s in self.steps}
        self.dies: dict[fx.Node, fx.Node] = {}
        self._outside: dict[fx.Node, frozenset[fx.Node]] = {}
        for step in self.steps:
            bases = {storage.base[o.node] for o in storage.program.ops[step].operands}
            self.dies.update(dict.fromkeys(bases & inside, step))
            if outside := frozenset(b for b in bases - inside if b in model.nbytes):
                self._outside[step] = outside
        self.slots: list[list[fx.Node]] = []
        self.places = dict(places) if places is not None else self._place()
        if places is not None:
            count = max((p.slot for p in places.values()), default=-1) + 1
            self.slots = [[s for s in self.steps if places[s].slot == k] for k in range(count)]
        # What a slot's tenants take: mostly the same bytes, so few terms for each slot.
        made = self.costs.of
        self._slot_sizes = [{made(s).written[0] for s in tenants} for tenants in self.slots]
        self._beside = self._fresh_beside()
        apart = [(made(step), outside) for step, outside in self._outside.items()]
        self._workspaces = [(p, outside) for p, outside in apart if not p.pointwise]
        self._gemms = [(p, outside) for p, outside in apart if p.gemm]
        self._copied = sum(model.nbytes[s] for s in self.outputs if self.places[s].copied)
        self._scratch: dict[int, int] = {}

    def _fresh_beside(self) -> list[tuple[fx.Node, list[fx.Node]]]:
        """Steps that run while fresh parts live, their own among them, and these."""
        found: list[tuple[fx.Node, list[fx.Node]]] = []
        live: list[fx.Node] = []
        for step in self.steps:
            if self.places[step].kind == "fresh":
                live.append(step)
            if live:
                found.append((step, list(live)))
                live = [s for s in live if self.dies.get(s, s) is not step]
        return found

    @property
    def folds(self) -> bool:
        return self.spread.join.folds

    def _place(self) -> dict[fx.Node, Place]:
        """Give every part a place; slots are handed on as soon as their tenant is read last."""
        places: dict[fx.Node, Place] = {}
        free: dict[object, list[int]] = {}
        storage, model = self.spread.storage, self.model
        held: list[fx.Node] = []
        for step, after in zip(self.steps, [*self.steps[1:], None], strict=True):
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
            if after is not None and adds_into(storage, step) is after:
                places[step] = Place("into")
                held = dying
                continue
            write = self.writes[step]
            exact = write is not None and write.lo == 0 and write.hi == 0 and write.outer == 1
            if escapes and can_write and not folded and exact and self._straight(step):
                places[step] = Place("out")
            elif not can_write:
                places[step] = Place("fresh", copied=escapes)
            else:
                places[step] = Place("slot", self._slot(step, dying, places, free), escapes)
            dying, held = [*dying, *held], []
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
            size = self._made(step, TYPICAL)
            chosen = min(idle, key=lambda s: abs(self._slot_bytes(s) - size))
            idle.remove(chosen)
            self.slots[chosen].append(step)
            return chosen
        self.slots.append([step])
        return len(self.slots) - 1

    def _straight(self, step: fx.Node) -> bool:
        """Whether the step may write into a slice of the region's output: its kernel takes any
        layout, and no view of the slice, which might have to copy, is read in the loop."""
        storage = self.spread.storage
        if storage.program.ops[step].target not in ANY_LAYOUT:
            return False
        read = [o.node for s in self.steps for o in storage.program.ops[s].operands]
        return all(node is step for node in read if storage.base[node] is step)

    def _slot_bytes(self, slot: int) -> int:
        return max(self._made(s, TYPICAL) for s in self.slots[slot])

    def scratch(self, n: int) -> int:
        """Bytes the loop takes beside the region's inputs and outputs, `n` units a part."""
        found = self._scratch.get(n)
        if found is None:
            slots = sum(max(b.at(n) for b in sizes) for sizes in self._slot_sizes)
            peak = self.costs.most_workspace(len(self.steps), n)
            for parts, outside in self._workspaces:
                peak = max(peak, parts.workspace(n, outside))
            for step, fresh in self._beside:
                live = sum(self._made(s, n) for s in fresh)
                peak = max(peak, live + self._workspace(step, n))
            found = self._scratch[n] = slots + peak
        return found

    def _workspace(self, step: fx.Node, n: int) -> int:
        return self.costs.of(step).workspace(n, self._outside.get(step, frozenset()))

    def _made(self, step: fx.Node, n: int) -> int:
        return self.costs.of(step).made(n)

    def seconds(self, n: int, fresh_outputs: int) -> float:
        """Predicted time of the whole loop with parts of `n` units; `fresh_outputs` are the bytes
        of its outputs that lie in new pages."""
        machine = self.model.machine
        total = (fresh_outputs + self.scratch(n)) * machine.rates.fault
        total += 2 * self._copied / machine.copy_bandwidth
        total += sum(parts.seconds_apart(n, outside) for parts, outside in self._gemms)
        return total + self.costs.seconds(len(self.steps), n)


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
