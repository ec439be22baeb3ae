"""`Program` → nests of the loop IR.

Every node becomes a function from an index to an expression; views, casts and pointwise ops are
written into whatever reads them. What is stored:

- sums, maxima and other folds, but for scores that only a softmax reads;
- softmaxes, but for weights that only a product with values reads (that becomes an `Attend`);
- pointwise results that several ops read;
- what a contraction reads, unless it already lies side by side in memory.

Equal expressions are stored once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import sympy
import torch
from torch import fx

from quire.capture.program import Op, Operand, Program
from quire.errors import MissingRuleError
from quire.kernel import index as ix
from quire.kernel.analysis import (
    mapped,
    plain_call,
)
from quire.kernel.ir import (
    AnyNest,
    Buffer,
    Call,
    Expr,
    Fold,
    Nest,
    Num,
    Read,
    Soft,
    kind,
    reads,
    rewrite,
    walk,
)
from quire.kernel.lower import (  # noqa: F401  (fill the table)
    contraction,
    pointwise,
    reduce,
    view,
    window,
)
from quire.kernel.lower.store import Store
from quire.kernel.lower.table import RULES, NotLoweredError, Tensor, as_kind, aten

LARGE_BODY = 1
"""Operators in a pointwise expression from which on it is stored when several ops read it."""

_SCORES = {
    aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.add.Tensor,
    aten.tanh.default, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf,
    aten.masked_fill.Scalar, aten.masked_fill.Tensor,
    aten.sub.Tensor,
}  # fmt: skip
_VIEWS = {
    target
    for target, function in RULES.items()
    if function in (view.reshape, view.transpose, view.permute, view.expand, view.t)
}
_SOFTMAX = {aten.softmax.int, aten._softmax.default}
_PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.mm.default}


@attrs.frozen
class Lowered:
    """The nests of a program in order, and what its inputs, weights and outputs are called."""

    nests: tuple[AnyNest, ...]
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    origin: Mapping[str, str]
    """For each buffer computed, the node it was made for and its place in the model."""
    holds: Mapping[str, str]
    """The first node that shows a buffer's elements as they are, by the buffer's name."""


def lower(program: Program, scheme: str = "") -> Lowered:
    """The loop nests that compute `program`, large weights held by `scheme`.

    Raises MissingRuleError for an op without a rule.
    """
    return _Builder(program, scheme).run()


class _Builder(Store):
    def __init__(self, program: Program, scheme: str) -> None:
        super().__init__(program, scheme)
        self._values: dict[fx.Node, Any] = {}
        self._renames: dict[Buffer, Buffer] = {}
        self._holds: dict[str, str] = {}

    def tensor(self, value: Any) -> Tensor:
        if isinstance(value, Operand):
            held = self._values[value.node]
            return held[0] if isinstance(held, tuple) else held
        if isinstance(value, sympy.Expr):
            return Tensor((), torch.int64, lambda _: ix.of_size(value))
        dtype = {bool: torch.bool, int: torch.int64}.get(type(value), torch.float32)
        return Tensor((), dtype, lambda _: Num(value))

    def run(self) -> Lowered:
        inputs = [self._input(item) for item in self.program.inputs]
        for node in self.program.graph.nodes:
            if node in self._values or node.op != "call_function" or node in self.program.sizes:
                continue
            op = self.program.ops.get(node)
            if op is None:
                self._values[node] = self._values[node.args[0]][node.args[1]]
                continue
            self._here = f"{node.name} {op.where.module}"
            made = self._rule(op)
            outs = made if isinstance(made, tuple) else (made,)
            outs = tuple(self._decide(node, t) for t in outs)
            self._values[node] = outs if isinstance(made, tuple) else outs[0]
            if not isinstance(made, tuple):
                self._note(node, outs[0])
        for node, value in self.program.writes.items():
            self._write_back(node, value)
        outputs = tuple(
            self._output(k, node)
            for k, node in enumerate(self.program.outputs)
            if isinstance(node, fx.Node) and node in self.program.infos
        )
        return Lowered(
            tuple(prune(self.nests)), tuple(b for b in inputs if b), outputs, self._origin,
            self._holds,
        )  # fmt: skip

    def _note(self, node: fx.Node, value: Tensor) -> None:
        _, index = self._axes(value.shape)
        e = value.at(index)
        if isinstance(e, Read) and e.buffer.role == "temp":
            self._holds.setdefault(e.buffer.name, node.name)

    def _rule(self, op: Op) -> Any:
        function = RULES.get(op.target)
        if function is None:
            raise MissingRuleError(
                f"no lowering rule for {op.target}",
                where=str(op.where),
                allowed="the ops in quire.kernel.lower.table.RULES",
                fix="add a rule in quire/kernel/lower, or quire.chunk the model",
            )
        try:
            return function(self, op)
        except NotLoweredError as error:
            raise MissingRuleError(
                f"{op.target}: {error} cannot be fused", where=str(op.where)
            ) from error

    def _input(self, item: Any) -> Buffer | None:
        info = self.program.info(item.node)
        state = self.program.state.get(item.target)
        if item.kind == "constant" and state is not None and state.numel() == 1:
            value = state.item()
            self._values[item.node] = Tensor(info.shape, info.dtype, lambda _: Num(value))
            return None
        role = "input" if item.kind == "user" else "state"
        stride = None if state is None else tuple(state.stride())
        buffer = Buffer(item.node.name, info.shape, info.dtype, role, item.target, stride)
        self._values[item.node] = Tensor(
            info.shape, info.dtype, lambda index: Read(buffer, tuple(index))
        )
        return buffer

    def _decide(self, node: fx.Node, value: Tensor) -> Tensor:
        """`value`, stored if it has to be."""
        _, index = self._axes(value.shape)
        e = value.at(index)
        if any(isinstance(x, Soft) for x in walk(e)):
            return value if _leads_to(node, _VIEWS, _PRODUCTS) else self.stored(value)
        if any(isinstance(x, Fold) for x in walk(e)):
            lazy = _leads_to(node, _SCORES | _VIEWS, _SOFTMAX)
            return value if lazy else self.stored(value)
        if kind(e) == "float" and _uses(node) > 1 and _work(e) >= LARGE_BODY:
            return self.stored(value)
        return value

    def _write_back(self, node: fx.Node, value: fx.Node) -> None:
        """The new value of an input that the model changes in place."""
        target = self._values[node]
        axes, index = self._axes(target.shape)
        new, old = self._values[value].at(index), target.at(index)
        if new != old:
            body = self._legal(new, axes)
            self.nests.append(Nest(old.buffer, axes, old.at, body))

    def _output(self, k: int, node: fx.Node) -> Buffer:
        value = self._values[node]
        value = value[0] if isinstance(value, tuple) else value
        axes, index = self._axes(value.shape)
        e = self._legal(as_kind(value.at(index), value.dtype), axes)
        for old, new in self._renames.items():
            e = _swapped(e, old, new)
        shape = tuple(a.size for a in axes)
        name = f"out{k}"
        out = Buffer(name, shape, self._dtype(e), "output", name)
        self._origin[name] = node.name
        if isinstance(e, Read) and e.buffer.role == "temp" and e.at == axes:
            self.nests = [_renamed(n, e.buffer, out) for n in self.nests]
            self._renames[e.buffer] = out
        else:
            self.nests.append(Nest(out, axes, axes, e))
        return out


def _work(e: Expr) -> int:
    """Real operators in `e`, where it reads what the kernel computes at all."""
    seen = list(walk(e))
    computed = any(isinstance(x, Read) and x.buffer.role != "state" for x in seen)
    if not computed:
        return 0
    return sum(
        isinstance(x, Call) and x.op not in ("tofloat", "select") and kind(x) == "float"
        for x in seen
    ) + sum(
        isinstance(x, Read) and any(isinstance(y, Read) for a in x.at for y in walk(a))
        for x in seen
    )


def _uses(node: fx.Node) -> int:
    """How many ops read `node`, seen through views."""
    return sum(_uses(u) if u.target in _VIEWS else 1 for u in node.users)


def _leads_to(node: fx.Node, through: set[Any], goals: set[Any]) -> bool:
    """Whether the only reader of `node`, seen through ops of `through`, is one of `goals`."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.target in goals:
            return True
        if node.target not in through:
            return False
    return False


def _swapped(e: Expr, old: Buffer, new: Buffer) -> Expr:
    def swap(x: Expr) -> Expr | None:
        if isinstance(x, Read) and x.buffer == old:
            return Read(new, tuple(rewrite(a, swap, plain_call) for a in x.at))
        return None

    return rewrite(e, swap, plain_call)


def _renamed(nest: AnyNest, old: Buffer, new: Buffer) -> AnyNest:
    return mapped(nest, lambda e: _swapped(e, old, new), lambda b: new if b == old else b)


def prune(nests: Sequence[AnyNest]) -> list[AnyNest]:
    """Without nests that nothing reads."""
    needed: set[Buffer] = set()
    kept: list[AnyNest] = []
    for nest in reversed(nests):
        if any(b in needed or b.role in ("output", "input") for b in nest.outs):
            kept.append(nest)
            needed |= {r.buffer for r in reads(nest)}
    return kept[::-1]
