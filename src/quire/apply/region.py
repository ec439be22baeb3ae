"""One region of a plan as a Python function.

    y = op(x)  →  for each part [a, b): y[part] = op(x[part])

Side conditions: `flow.propagate.Spread` takes every step of the region in, and each output is
written once, part by part. Claim: the outputs equal those of the steps run whole.
"""

from __future__ import annotations

from typing import Any

import attrs
import sympy
from torch import fx

from quire.apply.code import arguments, called, packet, stride_order, stride_text, text, whole
from quire.capture.program import Op, Operand, Program, Size
from quire.errors import QuireError
from quire.flow.outs import ADDS, ANY_LAYOUT, DENSE
from quire.flow.propagate import Cut, Spread, Storage, cut_for, reads_of, writes_of
from quire.flow.relation import Axis, Join, Part, Span
from quire.flow.rules.common import divide, equal
from quire.plan.plan import Region

A, B = sympy.Symbol("a", integer=True, nonnegative=True), sympy.Symbol("b", integer=True)
STEP = sympy.Symbol("step", integer=True, positive=True)

FOLD = {
    Join.SUM: "{out}.add_({part})",
    Join.MEAN: "{out}.add_({part}, alpha=(b - a) / size)",
    Join.MAX: "torch.maximum({out}, {part}, out={out})",
    Join.MIN: "torch.minimum({out}, {part}, out={out})",
}


@attrs.frozen
class Emitted:
    """A region's function: its body under canonical names, and how it is called here."""

    body: str
    parameters: tuple[str, ...]
    arguments: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


class RegionEmitter:
    """Writes the function of one region. Use once."""

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

    def emit(self) -> Emitted:
        """The function's text, without its header."""
        loop: list[str] = []
        self.lines = loop
        for k, step in enumerate(self.steps):
            self._step(step)
            self._release(k)
        head = [*self._outputs(), *self._slots()]
        outputs = tuple(s for s in self.steps if self.places[s].escapes)
        lines = [
            "step = min(step, size)",
            *head,
            "for a in range(0, size, step):",
            "    b = min(a + step, size)",
            *("    " + line for line in loop),
            *self._finish(),
            f"return {', '.join(self._out(s) for s in outputs)}",
        ]
        return Emitted(
            "\n".join("    " + line for line in lines),
            tuple(self.parameters.values()),
            tuple(self.parameters),
            outputs,
        )

    # What surrounds the loop

    def _outputs(self) -> list[str]:
        lines = []
        for step in self.steps:
            if not self.places[step].escapes:
                continue
            if step in self.reuse:
                lines.append(f"{self._out(step)} = {self._parameter(self.reuse[step])}")
                continue
            info = self.program.infos[step][0]
            strides, plain = stride_text(info, info.shape)
            made = (
                f"torch.empty({text(info.shape)}"
                if plain
                else (f"torch.empty_strided({text(info.shape)}, {strides}")
            )
            lines.append(f"{self._out(step)} = {made}, dtype={info.dtype}, device=device)")
        return lines

    def _slots(self) -> list[str]:
        tenants: dict[int, list[fx.Node]] = {}
        for step in self.steps:
            if self.places[step].kind == "slot":
                tenants.setdefault(self.places[step].slot, []).append(step)
        lines = []
        for slot, steps in sorted(tenants.items()):
            sizes = dict.fromkeys(text(self._largest(s)) for s in steps)
            most = next(iter(sizes)) if len(sizes) == 1 else f"max({', '.join(sizes)})"
            dtype = self.program.infos[steps[0]][0].dtype
            lines.append(f"slot_{slot} = torch.empty({most}, dtype={dtype}, device=device)")
        return lines

    def _largest(self, step: fx.Node) -> Any:
        """Elements of the largest part of `step`."""
        write = self._write(step)
        numel = sympy.Integer(1)
        for dim, size in enumerate(self.program.infos[step][0].shape):
            if write is not None and dim == write.dim:
                block = divide(size, write.outer)
                length = write.scale * STEP + (write.hi - write.lo)
                size = write.outer * (length if length == STEP else sympy.Min(block, length))
            numel = numel * size
        return numel

    def _finish(self) -> list[str]:
        if self.spread.join is Join.CONCAT:
            return []
        axis = self._axis(self.seed)
        if axis.init is None:
            return []
        operand = self.program.ops[self.seed].operands[axis.init]
        added = self._external(operand.node)
        shape = self._aligned(operand)
        if shape is not None:
            added = f"{added}.view({text(shape)})"
        return [f"{self._out(self.seed)}.add_({added})"]

    def _aligned(self, operand: Operand) -> list[Any] | None:
        """The shape in which an operand that is added once broadcasts to the output; None if it
        does as it is. Its dims go where the op's other axes write them."""
        out = self.program.infos[self.seed][0]
        goes: dict[int, int] = {}
        for axis in self.storage.flows[self.seed].axes:
            read, write = axis.reads[operand.index], axis.writes[0]
            if read is not None and write is not None:
                goes[read.dim] = write.dim
        if all(to - out.ndim == dim - operand.ndim for dim, to in goes.items()):
            return None
        return [
            next((operand.shape[d] for d, to in goes.items() if to == dim), 1)
            for dim in range(out.ndim)
        ]

    # Within the loop

    def _step(self, step: fx.Node) -> None:
        op, axis = self.program.ops[step], self._axis(step)
        place, name, target = self.places[step], self._name(step), op.target
        if place.kind == "into":
            return
        with_it = [o.node for o in op.operands if self._is_into(o.node)]
        if with_it:
            other = next(o for o in op.operands if o.node is not with_it[0])
            shown = [self._operand(step, other), *self._shown(with_it[0])]
            target = self.program.ops[with_it[0]].target
            self.lines.append(f"{name} = {self._buffer(step)}")
            self.lines.append(f"{ADDS[target]}({', '.join([*shown, f'out={name}'])})")
        elif place.kind == "fresh" or axis.target is not None:
            shown = self._shown(step)
            function = axis.target.__name__ if axis.target is not None else self._called(op, shown)
            self.lines.append(f"{name} = {function}({', '.join(shown)})")
        else:
            shown = self._shown(step)
            function = ANY_LAYOUT.get(target) or DENSE[target]
            self.lines.append(f"{name} = {self._buffer(step)}")
            self.lines.append(f"{function}({', '.join([*shown, f'out={name}'])})")
        if place.escapes and place.kind != "out":
            self._deliver(step)

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

    def _buffer(self, step: fx.Node) -> str:
        """An expression for the buffer a part is written to."""
        place, write = self.places[step], self._write(step)
        if place.kind == "out":
            assert write is not None
            first, last = self._made(step)
            return f"{self._out(step)}.narrow({write.dim}, {text(first)}, {text(last - first)})"
        shape = self._shapes(step)[0]
        order = stride_order(self.program.infos[step][0])
        count = sympy.prod(shape)
        buffer = f"slot_{place.slot}.narrow(0, 0, {text(count)})"
        if order == sorted(order):
            return f"{buffer}.view({text(shape)})"
        back = [order.index(d) for d in range(len(order))]
        return f"{buffer}.view({text([shape[d] for d in order])}).permute({text(back)})"

    def _deliver(self, step: fx.Node) -> None:
        """Copy, or fold, a part into the region's output."""
        out, name, write = self._out(step), self._name(step), self._write(step)
        if write is None:
            scale = " * ((b - a) / size)" if self.spread.join is Join.MEAN else ""
            fold = FOLD[self.spread.join].format(out=out, part=name)
            self.lines += ["if a == 0:", f"    {out}.copy_({name}{scale})", "else:", f"    {fold}"]
            return
        first, last = write.scale * A, write.scale * B
        source = name
        if write.lo != 0 or write.hi != 0:
            start = self._made(step)[0]
            core = attrs.evolve(write, lo=0, hi=0)
            source = self._part(name, core, text(first - start), text(last - start))
        extra = f", outer={text(write.outer)}" if write.outer != 1 else ""
        self.lines.append(
            f"kernels.put({out}, {source}, {write.dim}, {text(first)}, {text(last)}{extra})"
        )

    def _release(self, k: int) -> None:
        """Drop new tensors that the loop reads no more."""
        dead = []
        for step in self.steps[: k + 1]:
            if self.places[step].kind != "fresh":
                continue
            if max(self.last_use.get(step, 0), self.steps.index(step)) == k:
                dead.append(self._name(step))
                gone = [key for key in self.views if self.storage.base[key[0]] is step]
                dead += [self.views[key] for key in gone]
        if dead:
            self.lines.append(f"del {', '.join(dead)}")

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


__all__ = ["Emitted", "RegionEmitter", "whole"]
