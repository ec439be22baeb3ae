"""What a tensor that no user input reaches holds, as a function of its indices.

    index_function(program, node)   node → IndexFunction, or None where that cannot be said

The function holds for every index and for every length in range. It is how a mask in a graph
(arange, unsqueeze, index, le, where …) is known to be the causal one, all zeros, or a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import fx

from quire.capture.program import Operand, Program, Size
from quire.rewrite import index_math, index_views  # noqa: F401  (their rules fill the table)
from quire.rewrite.index_table import RULES, Constant, cast
from quire.rewrite.terms import (
    Affine,
    Atom,
    Both,
    Box,
    Cond,
    If,
    Unknown,
    Value,
    box_lengths,
    index,
    leaves,
    negate,
    of_size,
)

NUMEL_OF_A_CONSTANT = 1 << 16
"""Lifted constants are read up to this size."""


@attrs.frozen
class IndexFunction:
    """The element at `(i0, i1, …)` of a tensor of `box.shape`: a condition for a bool tensor."""

    box: Box
    dtype: torch.dtype
    value: Value | Cond

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.box.shape


@attrs.frozen
class Band:
    """An additive mask that is 0 for the keys `i − left … i + right` of query i, and `fill`
    elsewhere. None: no end on that side."""

    left: Affine | None
    right: Affine | None
    fill: float


class Evaluator:
    """Index functions of a program's nodes, each worked out once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.lengths = box_lengths(program.symbols)
        self._constants = {
            i.node: program.state[i.target] for i in program.inputs if i.kind == "constant"
        }
        self._known: dict[fx.Node, IndexFunction | None] = {}

    def of(self, node: fx.Node) -> IndexFunction | None:
        """The index function of `node`, or None."""
        # Without recursion: a graph may be thousands of nodes deep.
        stack = [node]
        while stack:
            top = stack[-1]
            if top in self._known:
                stack.pop()
            elif waiting := [n for n in self._reads(top) if n not in self._known]:
                stack.extend(waiting)
            else:
                self._known[top] = self._work_out(top)
        return self._known[node]

    def _reads(self, node: fx.Node) -> list[fx.Node]:
        op = self.program.ops.get(node)
        rule = RULES.get(op.target) if op is not None else None
        if op is None or rule is None:
            return []
        return [o.node for o in op.operands] if rule.reads_values else []

    def _work_out(self, node: fx.Node) -> IndexFunction | None:
        infos = self.program.infos.get(node)
        if infos is None or len(infos) != 1:
            return None
        box = Box(infos[0].shape, self.lengths)
        try:
            if node in self._constants:
                return _of_constant(self._constants[node], box)
            op = self.program.ops.get(node)
            rule = RULES.get(op.target) if op is not None else None
            if op is None or rule is None:
                return None
            known: dict[fx.Node, Any] = {n: self._known[n] for n in self._reads(node)}
            if any(f is None for f in known.values()):
                return None
            arguments = {k: _bind(v, known) for k, v in op.arguments.items()}
            value = rule.function(arguments, box, infos[0].dtype)
            return IndexFunction(box, infos[0].dtype, cast(value, infos[0].dtype, box))
        except Unknown:
            return None


def index_function(program: Program, node: fx.Node) -> IndexFunction | None:
    """What `node` holds at each index, or None where user inputs, parameters or ops that the
    rules do not know have a say."""
    return Evaluator(program).of(node)


def _bind(value: Any, known: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, Operand):
        return known.get(value.node, value)
    if isinstance(value, list | tuple):
        return [_bind(v, known) for v in value]
    return value


def _of_constant(tensor: torch.Tensor, box: Box) -> IndexFunction:
    if not 0 < tensor.numel() <= NUMEL_OF_A_CONSTANT or tensor.is_complex():
        raise Unknown("a constant too large to read")
    first = tensor.flatten()[0]
    if not bool((tensor == first).all()):
        raise Unknown("a constant of several values")
    return IndexFunction(box, tensor.dtype, cast(Constant(first.item()).value, tensor.dtype, box))


def is_constant(f: IndexFunction | None, value: float | bool) -> bool:
    """Whether every element is `value`."""
    if f is None:
        return False
    if isinstance(f.value, bool | Atom | Both):
        return f.value is bool(value)
    return isinstance(f.value, Affine | float) and _equals(f.value, value)


def _equals(leaf: Affine | float, value: float) -> bool:
    return leaf.is_const and leaf.const == value if isinstance(leaf, Affine) else leaf == value


def band(f: IndexFunction | None) -> Band | None:
    """The band of keys that an additive mask over `[…, queries, keys]` lets through; None if it
    is not of that kind."""
    if f is None or not isinstance(f.value, If) or len(f.shape) < 2 or len(leaves(f.value)) != 2:
        return None
    live, then, other = f.value.cond, f.value.then, f.value.other
    if isinstance(then, float) and isinstance(other, float) and other == 0.0 and then != 0.0:
        parts = _parts(negate(live))
        then, other = other, then
    else:
        parts = _parts(live)
    if parts is None or not isinstance(then, float) or not isinstance(other, float) or then != 0.0:
        return None
    query, key = len(f.shape) - 2, len(f.shape) - 1
    ends: dict[int, Affine] = {}
    for part in parts:
        if part.op != ">=":
            return None
        factors = {k: c for k, c in part.expr.terms if isinstance(k, int)}
        side = factors.get(key, 0)
        if factors != {query: -side, key: side} or abs(side) != 1 or side in ends:
            return None
        # side 1: j − i + rest >= 0, so j >= i − rest. Side −1: j <= i + rest.
        ends[side] = part.expr - (index(key) - index(query)) * side
    return Band(ends.get(1), ends.get(-1), other)


def _parts(cond: Cond) -> list[Atom] | None:
    if isinstance(cond, Atom):
        return [cond]
    if isinstance(cond, Both) and cond.op == "and":
        return [p for p in cond.parts if isinstance(p, Atom)] if _flat(cond) else None
    return None


def _flat(cond: Both) -> bool:
    return all(isinstance(p, Atom) for p in cond.parts)


def is_dead(fill: float, dtype: torch.dtype) -> bool:
    """Whether adding `fill` to a score takes its key out of a softmax with a live key: its weight
    is an exact zero for every score that is not itself of the order of the dtype's range."""
    return dtype.is_floating_point and fill <= torch.finfo(dtype).min / 2


def is_causal(f: IndexFunction | None) -> bool:
    """Whether an additive mask lets query i see exactly the keys 0 … i, for all lengths.

    Key 0 is then live in every row.
    """
    found = band(f)
    return (
        f is not None
        and found is not None
        and found.left is None
        and found.right == Affine(0)
        and is_dead(found.fill, f.dtype)
    )


def window(f: IndexFunction | None) -> tuple[int | None, int | None] | None:
    """`(left, right)` where an additive mask lets query i see the keys `i − left … i + right`
    only, both known integers or None for no end; None if it is no such mask."""
    found = band(f)
    if f is None or found is None or not is_dead(found.fill, f.dtype):
        return None
    if not all(end is None or end.is_const for end in (found.left, found.right)):
        return None
    return (
        None if found.left is None else found.left.const,
        None if found.right is None else found.right.const,
    )


def has_live_key(f: IndexFunction | None) -> bool:
    """Whether an additive mask provably leaves a key in every row, for all lengths."""
    if f is None or len(f.shape) < 2:
        return False
    if isinstance(f.value, Affine | float):
        return not (isinstance(f.value, float) and is_dead(f.value, f.dtype))
    found = band(f)
    if found is None:
        return isinstance(f.value, If) and all(
            isinstance(leaf, Affine) or not is_dead(leaf, f.dtype) for leaf in leaves(f.value)
        )
    queries, keys = of_size(f.shape[-2]), of_size(f.shape[-1])
    box = f.box
    # The live keys of row i are max(0, i − left) … min(keys − 1, i + right).
    tests = [keys - 1]
    if found.right is not None:
        tests.append(found.right)
    if found.left is not None:
        tests.append(keys - queries + found.left)
    if found.left is not None and found.right is not None:
        tests.append(found.left + found.right)
    lows = [box.min(t) for t in tests]
    return all(low is not None and low >= 0 for low in lows)
