"""Ops that draw random numbers for each element apart.

No axis gives a part of what the whole would draw. But a rank may draw its own rows from a stream of
its own: what all ranks draw is as likely as what one device would.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from quire.capture.program import Op, Program
from quire.flow.registry import flow_of

aten: Any = torch.ops.aten

DRAWS = (
    aten.native_dropout.default,
    aten.dropout.default,
    aten.bernoulli.default,
    aten.bernoulli.p,
    aten.rand_like.default,
    aten.randn_like.default,
)


def draws_apart(op: Op) -> bool:
    """Whether `op` draws for each element of its one operand; not if its odds are 0."""
    if op.target not in DRAWS or len(op.operands) != 1 or flow_of(op).axes:
        return False
    return all(o.shape == op.operands[0].shape for o in op.outputs)


def drawn_of(program: Program, node: fx.Node) -> fx.Node | None:
    """The tensor whose elements those of `node` are drawn for."""
    source: Any = node.args[0] if node.target is operator.getitem else node
    op = program.ops.get(source)
    return op.operands[0].node if op is not None and draws_apart(op) else None
