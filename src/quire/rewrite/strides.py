"""Strides as the kernels give them.

Fake tensors and kernels disagree on one thing: the stride of a dim of size 1 after a reshape. That
stride decides whether a tensor counts as channels-last, and so which layout, and how much memory,
a convolution or a norm later takes.
"""

from __future__ import annotations

import torch
from torch import fx

from quire.capture.program import Program
from quire.rewrite.draft import Draft, kernel_strides


def settle_strides(program: Program) -> Program:
    """`program` with the strides that its kernels give; itself if they are right already."""
    wrong = [node for node in program.ops if _is_wrong(node)]
    if not wrong:
        return program
    draft = Draft(program)
    draft.settle(draft.new[node] for node in wrong)
    return draft.finish()


def _is_wrong(node: fx.Node) -> bool:
    value = node.meta.get("val")
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])  # type: ignore[misc]
    found = kernel_strides(node.target, args, kwargs)
    return found is not None and isinstance(value, torch.Tensor) and found != value.stride()
