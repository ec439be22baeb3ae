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

from quire.apply.code import stride_order, stride_text, text
from quire.apply.reads import A, B, PartReader
from quire.capture.program import Operand
from quire.flow.outs import ADDS, ANY_LAYOUT, DENSE
from quire.flow.relation import Join
from quire.flow.rules.common import divide

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


class RegionEmitter(PartReader):
    """Writes the function of one region. Use once."""

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
        if not self.spread.join.folds:
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
        elif axis.join is Join.WITHIN:
            written = next(o for o in op.operands if o.index != axis.init)
            self.lines.append(f"{name} = {self._operand(step, written)}")
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
        own = self._axis(step).writes[0]
        assert own is not None
        first, last = write.scale * A + own.lo, write.scale * B + own.lo
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
