"""What the steps of a region read: expressions for parts of tensors, and their names."""

from __future__ import annotations

from typing import Any

import attrs
import sympy
from torch import fx

from quire.apply.code import arguments, called, packet, text
from quire.capture.program import Op, Operand, Program, Size
from quire.errors import QuireError
from quire.flow.propagate import Cut, Spread, Storage, cut_for, reads_of, writes_of
from quire.flow.relation import Axis, Part, Span
from quire.flow.rules.common import divide, equal
from quire.plan.plan import Region

A, B = sympy.Symbol("a", integer=True, nonnegative=True), sympy.Symbol("b", integer=True)


class PartReader:
    """A region as it is written out step by step: `lines` is the loop's body so far.

    Base of `apply.region.RegionEmitter`.
    """

    def __init__(self, program: Program, storage: Storage, region: Region) -> None:
        self.program, self.storage, self.region = program, storage, region
        nodes = {n.name: n for n in program.graph.nodes}
        self.steps = [nodes[name] for name in region.steps]
        self.places = {nodes[p.step]: p for p in region.places}
        self.reuse = {nodes[out]: nodes[base] for out, base in region.reuse}
        self.spread = Spread(storage, nodes[region.seed], region.axis)
        for step in reversed(self.steps):
            if not self.spread.grow(step):
                raise QuireError(
                    f"the plan's region {region.name} does not fit the program",
                    where=str(program.ops[step].where),
                    fix="plan again for this model and version of Quire",
                )
        self.seed = nodes[region.seed]
        self.weights = {i.node for i in program.inputs if i.kind != "user"}
        self.names: dict[fx.Node, str] = {}
        self.parameters: dict[fx.Node, str] = {}
        self.views: dict[tuple[fx.Node, Span], str] = {}
        self.units: dict[Any, tuple[Any, Any]] = {}
        self.view_starts: dict[tuple[fx.Node, Span], Any] = {}
        self.slices: dict[tuple[fx.Node, Span, tuple[Any, Any]], str] = {}
        self.lines: list[str] = []
        self.last_use: dict[fx.Node, int] = {}
        for k, step in enumerate(self.steps):
            for operand in program.ops[step].operands:
                # What an addition is done with is read when the addition is done.
                self.last_use[storage.base[operand.node]] = k + (self.places[step].kind == "into")

    def _is_into(self, node: fx.Node) -> bool:
        return node in self.places and self.places[node].kind == "into"

    def _shown(self, step: fx.Node) -> list[str]:
        """The arguments of the call that makes a part of `step`."""
        axis, cut = self._axis(step), self.spread.cuts[step]
        units = self._units(step, axis, cut)
        needs = list(reads_of(axis, cut))
        return self._call_arguments(self.program.ops[step], axis, needs, units, self._shapes(step))

    def _operand(self, step: fx.Node, operand: Operand) -> str:
        axis, cut = self._axis(step), self.spread.cuts[step]
        needs = list(reads_of(axis, cut))
        return self._operand_of(axis, needs, self._units(step, axis, cut), operand)

    def _operand_of(
        self, axis: Axis, needs: list[Span | None], units: tuple[Any, Any], operand: Operand
    ) -> str:
        own = axis.reads[operand.index]
        if own is None:
            return self._read(operand.node, None, (None, None))
        return self._read(operand.node, needs[operand.index], own.interval(*units))

    def _call_arguments(
        self,
        op: Op,
        axis: Axis,
        needs: list[Span | None],
        units: tuple[Any, Any],
        shapes: tuple[tuple[Any, ...], ...],
    ) -> list[str]:
        lo, hi = units
        changed: dict[str, Any] = {}
        if axis.edit is not None:
            changed |= axis.edit(Part(op, lo, hi, shapes))
        elif op.is_view and isinstance(op.get("size"), list):
            changed["size"] = list(shapes[0])

        return arguments(op, lambda o: self._operand_of(axis, needs, units, o), changed)

    def _read(self, node: fx.Node, need: Span | None, interval: tuple[Any, Any]) -> str:
        """An expression for what one op reads of one operand: `interval` of each block."""
        base = self.storage.base[node]
        if base not in self.spread.cuts:
            outside = self._external(node)
            return outside if need is None else self._slice(node, outside, need, interval)
        assert need is not None
        made = attrs.evolve(need, fill=None)
        name, total = (
            self._view(node, made)
            if node is not base and not self._is_output(node)
            else (self._name(node), self._write(base, self._output(node)))
        )
        if total == made and need.fill is None:
            return name
        assert total is not None
        start = self._made(node)[0] if node is base or self._is_output(node) else None
        first, last = interval
        if start is None:
            start = self.view_starts[node, made]
        return self._part(name, need, text(first - start), text(last - start))

    def _called(self, op: Op, shown: list[str]) -> str:
        """The overload; its packet, where a part takes arguments of a longer overload."""
        known = {argument.name for argument in op.target._schema.arguments}
        keywords = {word.split("=")[0] for word in shown if word.split("=")[0].isidentifier()}
        longer = any("=" in word and word.split("=")[0] in keywords - known for word in shown)
        return packet(op.target) if longer else called(op.target)

    def _is_output(self, node: fx.Node) -> bool:
        return self.storage.written(node)[0] is self.storage.base[node]

    def _output(self, node: fx.Node) -> int:
        return self.storage.written(node)[1]

    def _view(self, node: fx.Node, need: Span) -> tuple[str, Span]:
        """The view `node` of a part, emitted where first needed; there may be several."""
        cut = self.spread.view_cuts.get((node, need)) or cut_for(self.storage.flows[node], 0, need)
        assert cut is not None
        key = (node, need)
        if key not in self.views:
            op = self.program.ops[node]
            axis = self.storage.flows[node].axes[cut.axis]
            needs = list(reads_of(axis, cut))
            units = self._units((node, need), axis, cut)
            write = axis.writes[0]
            assert write is not None
            interval = write.interval(*units)
            self.view_starts[key] = interval[0]
            shapes = (self._shape(op.out.shape, need, interval),)
            shown = self._call_arguments(op, axis, needs, units, shapes)
            name = f"{_word(node)}_{len(self.names) + len(self.views)}"
            self.lines.append(f"{name} = {self._called(op, shown)}({', '.join(shown)})")
            self.views[key] = name
        return self.views[key], need

    def _slice(self, node: fx.Node, outside: str, need: Span, interval: tuple[Any, Any]) -> str:
        key = (node, need, interval)
        first, last = interval
        if need.outer != 1 or need.fill is not None:
            # It may copy: made for each use, so that the copy is gone after it.
            return self._part(outside, need, text(first), text(last))
        if key not in self.slices:
            size = self.program.infos[node][0].shape[need.dim]
            if need.lo == 0 and need.hi == 0 and equal(need.scale * self.spread.size, size):
                sliced = f"{outside}.narrow({need.dim}, {text(first)}, {text(last - first)})"
            else:
                sliced = self._part(outside, need, text(first), text(last))
            name = f"{outside}_{len(self.slices)}"
            self.lines.append(f"{name} = {sliced}")
            self.slices[key] = name
        return self.slices[key]

    def _part(self, name: str, need: Span, first: str, last: str) -> str:
        extra = f", outer={text(need.outer)}" if need.outer != 1 else ""
        extra += f", fill={text(need.fill)}" if need.fill is not None else ""
        return f"kernels.part({name}, {need.dim}, {first}, {last}{extra})"

    # Names and intervals

    def _axis(self, step: fx.Node) -> Axis:
        return self.storage.flows[step].axes[self.spread.cuts[step].axis]

    def _write(self, step: fx.Node, output: int = 0) -> Span | None:
        return list(writes_of(self._axis(step), self.spread.cuts[step]))[output]

    def _units(self, key: Any, axis: Axis, cut: Cut) -> tuple[Any, Any]:
        """The units of an op's own axis that a part computes, cut to the axis.

        Where a part may reach over an end, the cut ends are named in the loop.
        """
        if key not in self.units:
            lo, hi = cut.scale * A + cut.lo, cut.scale * B + cut.hi
            size = divide(axis.size, cut.outer)
            if not (cut.lo == 0 and cut.hi == 0 and equal(cut.scale * self.spread.size, size)):
                count = len(self.units)
                self.lines.append(
                    f"lo{count}, hi{count} = kernels.cut({text(lo)}, {text(hi)}, {text(size)})"
                )
                lo, hi = sympy.Symbol(f"lo{count}"), sympy.Symbol(f"hi{count}")
            self.units[key] = lo, hi
        return self.units[key]

    def _made(self, node: fx.Node) -> tuple[Any, Any]:
        """The interval of the split dim that the part of a step holds."""
        step, output = self.storage.written(node)
        axis, cut = self._axis(step), self.spread.cuts[step]
        write = axis.writes[output]
        assert write is not None
        return write.interval(*self._units(step, axis, cut))

    def _shape(
        self, shape: tuple[Size, ...], write: Span | None, interval: tuple[Any, Any]
    ) -> tuple[Any, ...]:
        if write is None:
            return shape
        part = write.outer * (interval[1] - interval[0])
        return tuple(part if d == write.dim else s for d, s in enumerate(shape))

    def _shapes(self, step: fx.Node) -> tuple[tuple[Any, ...], ...]:
        axis, cut = self._axis(step), self.spread.cuts[step]
        lo, hi = self._units(step, axis, cut)
        shapes = []
        for info, own, write in zip(
            self.program.infos[step], axis.writes, writes_of(axis, cut), strict=True
        ):
            interval = own.interval(lo, hi) if own is not None else (None, None)
            shapes.append(self._shape(info.shape, write, interval))
        return tuple(shapes)

    def _name(self, node: fx.Node) -> str:
        if not self._is_output(node) or self.storage.written(node)[0] is not node:
            made, output = self.storage.written(node)
            return f"{self._name(made)}[{output}]"
        if node not in self.names:
            self.names[node] = f"{_word(node)}_{len(self.names) + len(self.views)}"
        return self.names[node]

    def _out(self, step: fx.Node) -> str:
        order = [s for s in self.steps if self.places[s].escapes]
        return f"y{order.index(step)}"

    def _external(self, node: fx.Node) -> str:
        """A parameter for a tensor from outside; views of weights are taken by the caller."""
        return self._parameter(node)

    def _parameter(self, node: fx.Node) -> str:
        if node not in self.parameters:
            letter = "w" if self.storage.base[node] in self.weights else "x"
            count = sum(name[0] == letter for name in self.parameters.values())
            self.parameters[node] = f"{letter}{count}"
        return self.parameters[node]


def _word(node: fx.Node) -> str:
    """The op's plain name, for a variable."""
    return str(node.target).split(".")[1].strip("_") if "." in str(node.target) else node.name
