"""The attentions of a program, with their masks read back to what they say.

    mask[b, h, i, j]  →  a band of places around i, and a rule over vectors of the sequence

A rule's leaves are O(length): the S×S mask itself need not be built. Keys and values are followed
back over the repeat that grouped heads are given.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import fx

from quire.capture.program import Op, Operand, Program, Size
from quire.errors import CaptureError
from quire.plan.shard.plan import Site
from quire.rewrite.index_function import Evaluator, is_constant, window
from quire.rewrite.masks import additive

aten: Any = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default

_ALONE = {
    aten.expand.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten._to_copy.default,
    aten.to.dtype,
}
"""Ops between a mask and its parts that change no truth value."""

_ANDS = {aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default}

_RULES = _ANDS | {
    aten.__or__.Tensor,
    aten.bitwise_or.Tensor,
    aten.logical_or.default,
    aten.bitwise_not.default,
    aten.logical_not.default,
    aten.eq.Tensor,
    aten.ne.Tensor,
    aten.le.Tensor,
    aten.lt.Tensor,
    aten.ge.Tensor,
    aten.gt.Tensor,
    aten.eq.Scalar,
    aten.ne.Scalar,
    aten.le.Scalar,
    aten.lt.Scalar,
    aten.ge.Scalar,
    aten.gt.Scalar,
    aten.sub.Tensor,
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.abs.default,
    aten.where.ScalarSelf,
    aten.where.ScalarOther,
    aten.where.Scalar,
    aten.where.self,
    aten.masked_fill.Scalar,
    aten.rsub.Scalar,
    aten.neg.default,
}
"""Pointwise ops that a rule may hold: tiles of their operands give the tile of their result."""


def find_sites(program: Program) -> tuple[Site, ...]:
    """Every fused attention of `program`, in graph order."""
    evaluator = Evaluator(program)
    return tuple(_site(program, evaluator, op) for op in program.ops.values() if op.target is SDPA)


def _site(program: Program, evaluator: Evaluator, op: Op) -> Site:
    q, k, v = op["query"], op["key"], op["value"]
    keys, values = unrepeated(program, k.node), unrepeated(program, v.node)
    if program.info(keys).shape != program.info(values).shape:
        keys, values = k.node, v.node
    plain = "" if q.ndim == 4 and q.shape[0] == k.shape[0] else "its shape is not [B, H, S, D]"
    if not plain and q.shape[-1] != v.shape[-1]:
        plain = "values and keys differ in width"
    left, right, rule, leaves = None, None, "", ()
    if op["is_causal"]:
        right = 0
        if q.shape[-2] != k.shape[-2]:
            plain = plain or "causal, with queries and keys of two numbers"
    elif op["attn_mask"] is not None and not plain:
        found = _mask(program, evaluator, op["attn_mask"].node)
        if found is None:
            plain = "its mask is more than comparisons of vectors"
        else:
            (left, right), rule, leaves = found
    heads, kv = (
        _fixed(op, program.info(n).shape[-3]) if q.ndim == 4 else 1 for n in (q.node, keys)
    )
    return Site(
        node=op.node.name,
        module=op.where.module,
        q=q.node.name,
        k=keys.name,
        v=values.name,
        left=left,
        right=right,
        rule=rule,
        leaves=leaves,
        scale=op["scale"],
        dropout=float(op["dropout_p"]),
        batch=_fixed(op, q.shape[0]),
        heads=heads,
        kv=kv,
        depth=_fixed(op, q.shape[-1]),
        q_size=q.shape[-2],
        k_size=k.shape[-2],
        itemsize=q.info.dtype.itemsize,
        plain=plain,
    )


def _fixed(op: Op, size: Size) -> int:
    if not isinstance(size, int):
        raise CaptureError(
            f"an attention whose size {size} is free, and is not the length of a sequence",
            where=str(op.where),
            allowed="sequences of free length",
        )
    return size


def unrepeated(program: Program, node: fx.Node) -> fx.Node:
    """The `[B, KV, S, D]` that `node` `[B, KV·G, S, D]` repeats, each head G times in a row."""
    chain: list[Op] = []
    at = node
    shape = program.info(node).shape
    while (op := program.ops.get(at)) is not None and len(chain) < 5 and op.operands:
        chain.append(op)
        at = op.operands[0].node
        source = program.info(at).shape
        if _is_repeat(chain, source, shape):
            return at
    return node


def _is_repeat(chain: list[Op], source: Any, shape: Any) -> bool:
    """unsqueeze(2) → expand → (clone) → view, read from its shapes."""
    if len(source) != 4 or len(shape) != 4 or len(chain) < 3:
        return False
    batch, kv, size, depth = source
    groups = shape[1] // kv
    wide = [batch, kv, groups, size, depth]
    if list(shape) != [batch, kv * groups, size, depth]:
        return False
    *after, first = chain
    if list(first.out.shape) != [batch, kv, 1, size, depth]:
        return False
    inner = [list(op.out.shape) for op in after[1:]]
    return all(op.target in _ALONE for op in after[1:]) and all(s == wide for s in inner)


def _mask(
    program: Program, evaluator: Evaluator, node: fx.Node
) -> tuple[tuple[int | None, int | None], str, tuple[str, ...]] | None:
    left: int | None = None
    right: int | None = None
    rest: list[fx.Node] = []
    for part in _conjuncts(program, node):
        function = additive(evaluator.of(part))
        if is_constant(function, 0.0):
            continue
        if (ends := window(function)) is not None:
            left = ends[0] if left is None else min(left, left if ends[0] is None else ends[0])
            right = ends[1] if right is None else min(right, right if ends[1] is None else ends[1])
        else:
            rest.append(part)
    if not rest:
        return (left, right), "", ()
    reader = _RuleReader(program)
    texts = [reader.read(part) for part in rest]
    if any(t is None for t in texts):
        return None
    rule = str(texts[0])
    for text in texts[1:]:
        rule = f"logical_and.default({rule}, {text})"
    return (left, right), rule, tuple(n.name for n in reader.leaves)


def _conjuncts(program: Program, node: fx.Node) -> list[fx.Node]:
    op = program.ops.get(node)
    if op is not None and op.out.dtype is torch.bool:
        if op.target in _ALONE and op.operands[0].info.dtype is torch.bool:
            return _conjuncts(program, op.operands[0].node)
        if op.target in _ANDS:
            return [p for operand in op.operands for p in _conjuncts(program, operand.node)]
    return [node]


@attrs.define
class _RuleReader:
    """Reads a mask backward to leaves with one of the last two dims of size 1."""

    program: Program
    leaves: list[fx.Node] = attrs.field(factory=list)

    def read(self, node: fx.Node) -> str | None:
        info = self.program.info(node)
        if info.ndim < 2 or 1 in info.shape[-2:]:
            if info.ndim >= 3 and info.shape[-3] != 1:
                return None
            if info.dtype.is_floating_point:
                return None
            if node not in self.leaves:
                self.leaves.append(node)
            return f"x{self.leaves.index(node)}"
        op = self.program.ops.get(node)
        if op is None:
            return None
        if op.target in _ALONE and op.operands[0].ndim >= 2:
            inner = self.read(op.operands[0].node)
            if inner is None or op.out.dtype == op.operands[0].info.dtype:
                return inner
            return None
        if op.target not in _RULES:
            return None
        parts: list[str] = []
        for argument in op.target._schema.arguments:
            value = op[argument.name]
            if argument.has_default_value() and value == argument.default_value:
                continue
            if isinstance(value, Operand):
                text = self.read(value.node)
                if text is None:
                    return None
                parts.append(text)
            elif isinstance(value, bool | int | float):
                parts.append(repr(value))
            else:
                return None
        name = op.target._schema.name.removeprefix("aten::")
        return f"{name}.{op.target._overloadname}({', '.join(parts)})"
