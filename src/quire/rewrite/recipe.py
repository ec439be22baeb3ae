"""A tensor to be made: a node of the program, and the views to take of it.

Matching works on a frozen program; recipes say what an edit will need, with shapes, before a
single node is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import fx

from quire.capture.program import Program, Size
from quire.rewrite.draft import Draft

aten: Any = torch.ops.aten


@attrs.frozen
class Recipe:
    """`node` after `steps`: pairs of an op and its arguments after the tensor."""

    node: fx.Node
    shape: tuple[Size, ...]
    steps: tuple[tuple[Any, tuple[Any, ...]], ...] = ()

    def _then(self, shape: Sequence[Size], op: Any, *args: Any) -> Recipe:
        return Recipe(self.node, tuple(shape), (*self.steps, (op, args)))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def permute(self, dims: Sequence[int]) -> Recipe:
        if list(dims) == list(range(self.ndim)):
            return self
        return self._then([self.shape[d] for d in dims], aten.permute.default, list(dims))

    def transpose(self) -> Recipe:
        """The last two dims swapped; two swaps in a row are none."""
        shape = (*self.shape[:-2], self.shape[-1], self.shape[-2])
        swap = (aten.transpose.int, (-2, -1))
        if self.steps and self.steps[-1] == swap:
            return Recipe(self.node, shape, self.steps[:-1])
        return self._then(shape, *swap[:1], *swap[1])

    def view(self, shape: Sequence[Size]) -> Recipe:
        return (
            self
            if tuple(shape) == self.shape
            else self._then(shape, aten.view.default, tuple(shape))
        )

    def expand(self, shape: Sequence[Size]) -> Recipe:
        """Broadcast to `shape`, new dims in front."""
        return (
            self
            if tuple(shape) == self.shape
            else self._then(shape, aten.expand.default, tuple(shape))
        )

    def scaled(self, factor: float) -> Recipe:
        return self._then(self.shape, aten.mul.Tensor, factor)

    def negated(self) -> Recipe:
        return self._then(self.shape, aten.logical_not.default)

    def masking(self, fill: float, dtype: torch.dtype) -> Recipe:
        """A bool tensor, true where a key is seen, as an additive mask."""
        return self._then(self.shape, aten.where.ScalarOther, fill, dtype)

    def emit(self, draft: Draft, at: fx.Node) -> fx.Node:
        """Make the tensor, ahead of the draft's node `at`. Raises Refused."""
        node = draft.new[self.node]
        for op, args in self.steps:
            if op is aten.view.default:
                node = draft.view(node, args[0], at=at)
            elif op is aten.expand.default:
                node = draft.call(op, (node, draft.size_arguments(args[0])), at=at)
            elif op is aten.where.ScalarOther:
                fill, dtype = args
                like = {"dtype": dtype, "device": draft.info(node).device}
                zero = draft.call(aten.full.default, ([], 0.0), like, at=at)
                node = draft.call(op, (node, zero, fill), at=at)
            else:
                node = draft.call(op, (node, *args), at=at)
        return node


def recipe(program: Program, node: fx.Node) -> Recipe:
    return Recipe(node, program.info(node).shape)
