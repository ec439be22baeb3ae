"""Operands of a product laid out once, ahead of it.

    product(a, permute(b))  →  product(a, clone(permute(b)))

where `permute(b)` has strides that no BLAS reads: the product would copy it anyway, and a product
taken part by part would copy it for each part. Claim: equal; a clone has the values of its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from quire.capture.program import Program
from quire.rewrite.draft import Draft

aten: Any = torch.ops.aten


def lay_out(program: Program, operands: Sequence[tuple[fx.Node, fx.Node]]) -> Program:
    """`program` with a contiguous copy of each operand: pairs of a call and a node it reads."""
    if not operands:
        return program
    draft = Draft(program)
    for call, operand in operands:
        at, source = draft.new[call], draft.new[operand]
        like = {"memory_format": torch.contiguous_format}
        copy = draft.call(aten.clone.default, (source,), like, at=at)
        args = tuple(copy if a is source else a for a in at.args)
        draft.rewire(at, at.target, args)
    return draft.finish()
