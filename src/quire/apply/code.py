"""Python text of ATen calls, sizes and strides."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import sympy
import torch
from torch import fx
from torch.utils._sympy.printers import PythonPrinter

from quire.capture.program import Op, Operand, Program, Size, TensorInfo


class _Printer(PythonPrinter):
    """torch's printer, with differences as people write them: `b - a`."""

    def _print_Add(self, expr: sympy.Add) -> str:
        terms = sorted(expr.args, key=lambda t: (t.could_extract_minus_sign(), str(t)))
        shown = self.parenthesize(terms[0], 0)
        for term in terms[1:]:
            minus = term.could_extract_minus_sign()
            shown += f" - {self._term(-term)}" if minus else f" + {self._term(term)}"
        return shown

    def _term(self, term: Any) -> str:
        return self.parenthesize(term, 36 if isinstance(term, sympy.Add) else 0)

    def _print_Mul(self, expr: sympy.Mul) -> str:
        if expr.args[0] == -1:
            rest = sympy.Mul(*expr.args[1:])
            return f"-{self.parenthesize(rest, 50)}"
        return super()._print_Mul(expr)


_printer = _Printer()


def text(value: Any) -> str:
    """A constant argument, or a size, as Python source."""
    if isinstance(value, sympy.Expr):
        return _printer.doprint(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(text(v) for v in value) + "]"
    if isinstance(value, torch.device):
        return "device"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def arguments(
    op: Op, operand: Callable[[Operand], str], changed: Mapping[str, Any] | None = None
) -> list[str]:
    """The arguments of `op` in its schema's order, those at their defaults left out."""
    changed = changed or {}

    def show(value: Any) -> str:
        if isinstance(value, Operand):
            return operand(value)
        if isinstance(value, list | tuple) and any(isinstance(v, Operand) for v in value):
            return "[" + ", ".join(show(v) for v in value) + "]"
        return text(value)

    names = {argument.name for argument in op.target._schema.arguments}
    longer = [name for name in changed if name not in names]
    if longer:
        # A longer overload is meant, whose arguments may stand in another order.
        return [
            f"{name}={show(changed.get(name, op.arguments.get(name)))}"
            for name in dict.fromkeys([*longer, *op.arguments])
            if changed.get(name, op.arguments.get(name)) is not None
        ]
    shown, skipped = [], False
    for argument in op.target._schema.arguments:
        name = argument.name
        value = changed.get(name, op.arguments.get(name))
        default = argument.has_default_value() and _same(value, argument.default_value)
        if default:
            skipped = True
        elif argument.kwarg_only or skipped:
            skipped = True
            shown.append(f"{name}={show(value)}")
        else:
            shown.append(show(value))
    return shown


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, Operand | sympy.Expr | list | tuple):
        return False
    return type(value) is type(default) and value == default


def overload(target: Any) -> str:
    """`aten.add.Tensor`: how emitted code names an overload."""
    name = str(target)
    return name if name.startswith("aten.") else f"torch.ops.{name}"


def packet(target: Any) -> str:
    """`aten.add`: the name under which torch picks the overload by the arguments."""
    return overload(target).rpartition(".")[0]


def stride_text(info: TensorInfo, shape: Iterable[Size]) -> tuple[str, bool]:
    """Dense strides for `shape` in the order of `info`'s own, and whether that is contiguous."""
    shape = list(shape)
    order = stride_order(info)
    strides: list[Any] = [0] * len(shape)
    step: Any = 1
    for dim in reversed(order):
        strides[dim] = step
        step = step * shape[dim]
    return text(tuple(strides)), order == sorted(order)


def stride_order(info: TensorInfo) -> list[int]:
    """The dims of a tensor, outermost in memory first."""
    hint = [s if isinstance(s, int) else 1 << 40 for s in info.stride]
    if all(isinstance(s, int) for s in info.stride):
        return sorted(range(info.ndim), key=lambda d: (-hint[d], d))
    sizes = {x: 7919 for s in info.stride if not isinstance(s, int) for x in s.free_symbols}
    value = [s if isinstance(s, int) else int(cast(Any, s.xreplace(sizes))) for s in info.stride]
    return sorted(range(info.ndim), key=lambda d: (-value[d], d))


def whole(program: Program, node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    """An expression for a node outside any loop: its name, or the views that lead to it."""
    if node in names:
        return names[node]
    if node.target is operator.getitem:
        return f"{whole(program, node.args[0], names)}[{node.args[1]}]"  # type: ignore[arg-type]
    op = program.ops[node]
    shown = arguments(op, lambda o: whole(program, o.node, names), sized(op))
    return f"{called(op.target)}({', '.join(shown)})"


VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}


def called(target: Any) -> str:
    """How emitted code calls an op. Strides are those of the run, not of the capture, so that a
    view may have to copy."""
    return "aten.reshape.default" if target in VIEWS else overload(target)


def sized(op: Op) -> dict[str, Any]:
    """A view's size spelled out: `-1` says nothing to a reader."""
    size = op.get("size")
    if op.is_view and isinstance(size, list) and -1 in size:
        return {"size": list(op.out.shape)}
    return {}
