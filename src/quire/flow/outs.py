"""Ops whose CPU kernel writes straight into a given buffer, with no temporary of its own.

Measured with torch's profiler on torch 2.13; `runtime/kernels.py` says how each is called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from quire.flow.propagate import Storage

aten: Any = torch.ops.aten

ANY_LAYOUT: dict[Any, str] = {
    aten.add.Tensor: "torch.add",
    aten.sub.Tensor: "torch.sub",
    aten.mul.Tensor: "torch.mul",
    aten.div.Tensor: "torch.div",
    aten.pow.Tensor_Scalar: "torch.pow",
    aten.pow.Tensor_Tensor: "torch.pow",
    aten.neg.default: "torch.neg",
    aten.exp.default: "torch.exp",
    aten.tanh.default: "torch.tanh",
    aten.sigmoid.default: "torch.sigmoid",
    aten.rsqrt.default: "torch.rsqrt",
    aten.sqrt.default: "torch.sqrt",
    aten.cos.default: "torch.cos",
    aten.sin.default: "torch.sin",
    aten.erf.default: "torch.erf",
    aten.abs.default: "torch.abs",
    aten.maximum.default: "torch.maximum",
    aten.minimum.default: "torch.minimum",
    aten.silu.default: "kernels.silu",
    aten.relu.default: "kernels.relu",
    aten.where.self: "torch.where",
    aten.mean.dim: "torch.mean",
    aten.sum.dim_IntList: "torch.sum",
    aten.amax.default: "torch.amax",
    aten.amin.default: "torch.amin",
    aten.cat.default: "torch.cat",
    aten.mm.default: "torch.mm",
    aten.bmm.default: "torch.bmm",
    aten.addmm.default: "torch.addmm",
    aten.baddbmm.default: "torch.baddbmm",
    aten.linear.default: "kernels.linear",
    aten.clone.default: "kernels.copy",
    aten._to_copy.default: "kernels.copy",
}
"""Right for any strides of the buffer."""

DENSE: dict[Any, str] = {
    aten.softmax.int: "kernels.softmax",
    aten._softmax.default: "kernels.softmax",
    aten.embedding.default: "kernels.embedding",
    aten.gelu.default: "kernels.gelu",
    aten.matmul.default: "kernels.matmul",
}
"""Right, or free of temporaries, only where the buffer is contiguous: `_softmax.out` and the erf
form of `gelu.out` give wrong numbers otherwise."""

OVERWRITES: frozenset[Any] = frozenset({aten.softmax.int, aten._softmax.default})
"""Not pointwise, yet right when the buffer is the operand itself."""

ROWS_BLOCK = 1 << 19
"""Bytes of rows that a linear copies at a time where those of its operands do not lie together."""

ADDS: dict[Any, str] = {aten.linear.default: "kernels.linear_add"}
"""Ops that can add what they make to a tensor, in place or not: called with it ahead of their own
arguments."""


def adds_into(storage: Storage, step: fx.Node) -> fx.Node | None:
    """The addition `x + step` that `step` can do itself: it alone reads `step`, and `x` is a tensor
    of the sum's own facts that `step` does not read."""
    op = storage.program.ops[step]
    readers = storage.readers.get(step, ())
    if op.target not in ADDS or op.get("bias") is not None or len(readers) != 1:
        return None
    addition = storage.program.ops[readers[0]]
    if addition.target is not aten.add.Tensor or addition["alpha"] != 1:
        return None
    other = [o for o in addition.operands if o.node is not step]
    alone = len(addition.operands) == 2 and len(other) == 1 and step not in storage.returned
    if not alone or other[0].info != addition.out or op.out != addition.out:
        return None
    own = {storage.base[o.node] for o in op.operands}
    return None if storage.base[other[0].node] in own else addition.node
